"""LDM-Morph, from the images to the displacement, against PyTorch (tests/against_torch.py)."""

import numpy as np
import pytest
from against_torch import both

from ldm_morph_jax.config import experiment

pytestmark = pytest.mark.integration


def test_method():
    """Two pairs, all parts small: maps of 16 to 2 positions a side, windows of 4."""
    config = experiment("sunnybrook")
    config.data.image_size = 64
    config.autoencoder.model.update(base_channels=8, norm_groups=4, codebook_size=4)
    config.diffusion.model.update(base_channels=8, head_channels=4, norm_groups=4)
    config.registration.model.update(
        embed_dim=8, depths=(2, 1, 1, 1), num_heads=(2, 2, 4, 4), window_size=4
    )
    in_jax, in_torch = both(config, batch=2)
    found, expected = in_jax(), in_torch()
    assert found.shape == expected.shape == (2, 64, 64, 2)
    largest = np.abs(expected).max()
    assert expected.std(axis=(1, 2)).min() > 0.05 * largest  # something to compare
    np.testing.assert_allclose(found, expected, atol=1e-4 * largest)
    np.testing.assert_allclose(in_torch(channels_last=True), expected, atol=1e-4 * largest)
