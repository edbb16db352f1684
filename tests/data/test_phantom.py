"""The phantom: a known, fold-free motion that its own images and masks follow."""

import numpy as np
import pytest
from scipy import ndimage

from ldm_morph_jax.data.phantom import LOOKS, MIN_JACOBIAN, phantom_pair


def warp(image, u, order=1):
    rows, cols = np.indices(image.shape).astype(float)
    return ndimage.map_coordinates(
        image, [rows + u[..., 0], cols + u[..., 1]], order=order, mode="nearest"
    )


def overlap(a, b, label):
    a, b = a == label, b == label
    return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))


def min_jacobian(u):
    d_row, d_col = np.gradient(u, axis=(0, 1))
    return ((1 + d_row[..., 0]) * (1 + d_col[..., 1]) - d_row[..., 1] * d_col[..., 0]).min()


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [64, 128])
def test_displacement_maps_moving_onto_fixed(look, size, reverse):
    pair = phantom_pair((1, 2), look=look, image_size=size, reverse=reverse)
    for image in (pair.moving, pair.fixed):
        assert image.shape == (size, size) and image.dtype == np.float32
        assert 0 <= image.min() and image.max() <= 1 and image.std() > 0.05
    assert pair.displacement.shape == (size, size, 2)
    for mask in (pair.moving_mask, pair.fixed_mask):
        assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1, 2, 3}
    # 128: nearest-neighbour masks are half a pixel off at most, walls are about 7 pixels thick
    warped = warp(pair.moving_mask, pair.displacement, order=0)
    limits = {1: 0.95, 2: 0.9, 3: 0.93} if size == 128 else {1: 0.9, 2: 0.8, 3: 0.88}
    for label, limit in limits.items():
        assert overlap(warped, pair.fixed_mask, label) > limit
        assert overlap(pair.moving_mask, pair.fixed_mask, label) < limit - 0.03
    before = np.corrcoef(pair.moving.ravel(), pair.fixed.ravel())[0, 1]
    after = np.corrcoef(warp(pair.moving, pair.displacement).ravel(), pair.fixed.ravel())[0, 1]
    assert before + 0.02 < after < 0.995  # alike, but not the same picture


@pytest.mark.parametrize("look", LOOKS)
def test_population(look):
    pairs = [phantom_pair((7, i), look=look, image_size=96) for i in range(16)]
    assert min(min_jacobian(p.displacement) for p in pairs) > MIN_JACOBIAN
    dice = [overlap(p.moving_mask, p.fixed_mask, 1) for p in pairs]
    assert 0.64 < np.mean(dice) < 0.77 and np.std(dice) > 0.02
    assert all((p.moving_mask == 1).sum() > (p.fixed_mask == 1).sum() for p in pairs)
    assert len({p.moving.tobytes() for p in pairs}) == 16


@pytest.mark.parametrize("look", LOOKS)
def test_seed_and_size(look):
    first, again = (phantom_pair(5, look=look) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    small = phantom_pair(5, look=look, image_size=64)
    # The same heart on a coarser grid: displacement in pixels is halved.
    blocks = first.displacement.reshape(64, 2, 64, 2, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(small.displacement, blocks / 2, atol=0.05)


def test_reverse_is_the_inverse():
    forward, backward = (phantom_pair(3, look="echo", reverse=r) for r in (False, True))
    np.testing.assert_array_equal(forward.moving, backward.fixed)
    u, v = forward.displacement, backward.displacement
    there_and_back = v + np.stack([warp(u[..., i], v) for i in range(2)], axis=-1)
    assert np.abs(there_and_back[12:-12, 12:-12]).max() < 0.1


def test_speckle_moves_with_the_tissue_and_partly_decorrelates():
    pair = phantom_pair(4, look="echo")
    muscle = pair.fixed_mask == 2

    def detail(image):
        return (image - ndimage.gaussian_filter(image, 3))[muscle]

    still = np.corrcoef(detail(pair.moving), detail(pair.fixed))[0, 1]
    moved = np.corrcoef(detail(warp(pair.moving, pair.displacement)), detail(pair.fixed))[0, 1]
    assert moved > still + 0.15 and 0.3 < moved < 0.95


def test_errors():
    with pytest.raises(ValueError, match="look must be one of"):
        phantom_pair(0, look="ct")
    with pytest.raises(ValueError, match="at least 32"):
        phantom_pair(0, image_size=16)
