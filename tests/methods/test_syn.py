"""SyN of ANTsPy: in our conventions, and leaving no files behind."""

import tempfile

import numpy as np
import pytest

from ldm_morph_jax.methods.syn import SyN
from ldm_morph_jax.ops.geometry import warp

pytest.importorskip("ants", reason="the extra `ants` is not installed")


def test_a_displaced_blob_is_found(tmp_path, monkeypatch):
    """Rows and columns move by different amounts: a swapped or negated component would show."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows, columns = np.meshgrid(np.arange(64.0), np.arange(64.0), indexing="ij")

    def blob(row, column):
        image = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 50)
        return image[None, ..., None].astype(np.float32)

    # pull-back: fixed(p) = moving(p + u), so u = (3, -2)
    moving, fixed = blob(35, 28), blob(32, 30)
    u = SyN().displacement({}, {}, moving, fixed)
    assert u.shape == (1, 64, 64, 2) and u.dtype == np.float32
    np.testing.assert_allclose(u[0, 28:37, 26:35].mean((0, 1)), [3, -2], atol=0.5)
    before, after = (np.mean((image - fixed) ** 2) for image in (moving, warp(moving, u)))
    assert after < before / 10
    assert list(tmp_path.iterdir()) == []
