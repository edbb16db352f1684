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
    for other in (noise, 1 - new):
        assert distance(other, described).min() > 1.2 * worst


def test_gain_margin_and_size_of_pixels_do_not_matter():
    images = hearts(range(20))
    np.testing.assert_allclose(appearance(300 * images - 20), appearance(images), atol=1e-4)
    described = describe(hearts(range(60)))
    shown = 0.2 + 0.8 * images  # only the margin is darker
    finer = np.kron(shown, np.ones((1, 3, 3)))
    margin = np.pad(finer, ((0, 0), (30, 60), (90, 15)))
    noise = np.random.default_rng(0).uniform(size=images.shape)
    assert distance(noise, described).min() > 5
    for other in (finer, margin):
        changed = distance(other, described) - distance(shown, described)
        np.testing.assert_array_less(np.abs(changed), 1)


def test_by_hand():
    checkerboard = np.indices((64, 64)).sum(0) % 2
    [numbers] = appearance([checkerboard])
    np.testing.assert_allclose(numbers[:5], [0.5, 0.5, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(numbers[5], np.log(2), rtol=1e-5)  # every neighbour differs by 1
    np.testing.assert_allclose(numbers[6:], np.log(1e-6))  # and no mean of 2 x 2 does


def test_refusals():
    with pytest.raises(ValueError, match="found an array of 3 dimensions"):
        appearance(np.zeros((1, 2, 32, 31)))
