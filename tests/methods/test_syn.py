"""SyN of ANTsPy: in our conventions, on hearts, and leaving no files behind."""

import tempfile

import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax.data.phantom import phantom_pair
from ldm_morph_jax.methods.syn import SyN
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.jacobian import jacobian_determinant
from ldm_morph_jax.ops.metrics import dice

pytestmark = pytest.mark.integration

# the extra `test` has it where ANTsPy has a wheel
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


def test_a_displaced_ball_is_found():
    """Planes, rows and columns move by different amounts."""
    axes = np.meshgrid(*[np.arange(24.0)] * 3, indexing="ij")

    def ball(*centre):
        square = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
        return np.exp(-square / 30)[None, ..., None].astype(np.float32)

    u = SyN().displacement({}, {}, ball(13, 11, 13), ball(11, 12, 11))
    assert u.shape == (1, 24, 24, 24, 3)
    np.testing.assert_allclose(u[0, 8:15, 9:16, 8:15].mean((0, 1, 2)), [2, -1, 2], atol=0.5)


def test_clean_hearts_are_registered_without_folds():
    """The fixed image is the moved moving image; a pair is what it is alone."""
    pairs = [phantom_pair(seed, look="sax", image_size=64) for seed in (1, 2)]
    arrays = {name: np.stack([getattr(p, name) for p in pairs]) for name in pairs[0]._fields}
    moving = arrays["moving"][..., None]
    fixed = np.asarray(warp(jnp.asarray(moving), arrays["displacement"]))
    u = SyN().displacement({}, {}, moving, fixed)
    alone = SyN().displacement({}, {}, moving[1:], fixed[1:])
    np.testing.assert_array_equal(alone, u[1:])
    masks = arrays["moving_mask"][..., None]
    warped = np.asarray(warp(jnp.asarray(masks), u, interpolation="nearest"))
    for before, after, target in zip(masks, warped, arrays["fixed_mask"], strict=True):
        scores = [
            np.mean(list(dice(m[..., 0], target, (1, 2, 3)).values())) for m in (before, after)
        ]
        assert scores[0] < 0.75 and scores[1] > 0.9, scores
    assert np.asarray(jacobian_determinant(u)).min() > 0
