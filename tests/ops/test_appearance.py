"""Ten numbers of an image tell its kind."""

import numpy as np
import pytest
from analytic_method import heart

from ldm_morph_jax.ops.appearance import appearance, describe, distance


def hearts(seeds, shape=(64, 64)):
    images = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        image = heart(shape, radius=rng.uniform(0.35, 0.6), seed=seed)
        image += rng.normal(scale=rng.uniform(5, 20), size=shape)
        images.append((image - image.min()) / np.ptp(image))
    return np.stack(images)


def test_images_of_one_kind_are_near_and_others_far():
    described = describe(hearts(range(60)))
    assert np.array(described["covariance"]).shape == (10, 10)
    new = hearts(range(100, 120))
    assert np.median(distance(new, described)) == pytest.approx(1, abs=0.5)
    worst = distance(new, described).max()
    noise = np.random.default_rng(0).uniform(size=new.shape)
    small = np.pad(new[:, ::2, ::2], ((0, 0), (16, 16), (16, 16)))
    for other in (noise, 1 - new, small):
        assert distance(other, described).min() > 1.2 * worst


def test_by_hand():
    checkerboard = np.indices((1, 32, 32)).sum(0) % 2
    numbers = appearance(checkerboard)[0]
    np.testing.assert_allclose(numbers[:5], [0.5, 0.5, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(numbers[5], np.log(2), rtol=1e-6)  # every neighbour differs by 1
    np.testing.assert_allclose(numbers[6:], np.log(1e-8))  # and no mean of 2 x 2 does


def test_refusals():
    with pytest.raises(ValueError, match="at least 32 x 32"):
        appearance(np.zeros((1, 32, 31)))
    with pytest.raises(ValueError, match="images: found shape"):
        appearance(np.zeros((32, 32)))
