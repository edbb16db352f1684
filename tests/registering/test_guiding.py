"""Anatomy in the search: which channels, when they are left out, what the search does with them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from threshold_anatomy import Threshold, heart

from ldm_morph_jax.ops.geometry import integrate_velocity, warp
from ldm_morph_jax.registering.grid import Grid, OnGrid
from ldm_morph_jax.registering.guiding import WEIGHT_OF_CAVITY, WEIGHT_WITH_WALL, guide
from ldm_morph_jax.registering.search import Refinement, refine, search
from ldm_morph_jax.registering.segmenting import segment


@dataclasses.dataclass(frozen=True)
class Cavity(Threshold):
    structures: tuple = ("left ventricle", "myocardium", "left atrium")

    def probabilities(self, windows):
        found = super().probabilities(windows)
        return np.concatenate([found, np.zeros_like(found[..., :1])], axis=-1)


def pair(*radii):
    images = [heart(r, centre=(48, 48), shape=(96, 96), spacing=(1.5, 1.5))[0] for r in radii]
    images = [((i - i.min()) / np.ptp(i)).astype("f4") for i in images]
    grid = Grid((96, 96), (47.5, 47.5), (1.0, 1.0))
    return OnGrid(grid, *images, np.ones((96, 96), bool))


def test_every_structure_is_a_channel_and_the_wall_counts_with_its_cavity():
    one = pair(16, 11)
    found = guide(Cavity(), one, (1.5, 1.5))
    assert found.guidance.used and min(found.guidance.confidence) > 0.8
    assert found.moving.shape == (96, 96, 3)
    [seen] = segment(Cavity(), [one.moving], (1.5, 1.5))
    cavity, wall, atrium = (seen.probabilities[..., k] for k in (1, 2, 3))
    expected = np.sqrt(WEIGHT_WITH_WALL) * np.stack([cavity, cavity + wall, atrium], axis=-1)
    np.testing.assert_allclose(found.moving, expected, atol=1e-5)
    assert found.moving[48, 48, 0] > 1 and found.moving[5, 5, 0] < 0.1
    exchanged = guide(Cavity(), pair(11, 16), (1.5, 1.5))
    np.testing.assert_array_equal(exchanged.moving, found.fixed)


def test_a_network_that_knows_the_cavity_alone_counts_less():
    one, alone = pair(16, 11), Cavity(structures=("left ventricle",))
    found = guide(alone, one, (1.5, 1.5)).moving
    [seen] = segment(alone, [one.moving], (1.5, 1.5))
    expected = np.sqrt(WEIGHT_OF_CAVITY) * seen.probabilities[..., 1:2]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert WEIGHT_OF_CAVITY < WEIGHT_WITH_WALL


def test_it_is_left_out_where_one_image_shows_no_heart():
    one = pair(16, 11)
    noise = (np.random.default_rng(0).random((96, 96)) > 0.96).astype("f4")
    found = guide(Cavity(), dataclasses.replace(one, fixed=noise), (1.5, 1.5))
    assert not found.guidance.used
    assert not found.moving.any() and not found.fixed.any()


def volume(*slices):
    images = [np.stack([getattr(one, name) for one in slices]) for name in ("moving", "fixed")]
    middle = ((len(slices) - 1) / 2, 47.5, 47.5)
    return OnGrid(Grid(images[0].shape, middle, (1.0,) * 3), *images, np.ones_like(images[0], bool))


def test_a_slice_that_shows_no_heart_counts_in_a_volume_that_does():
    dark = np.zeros((96, 96), "f4")
    sure, gone = pair(16, 11), dataclasses.replace(pair(16, 11), fixed=dark)
    found = guide(Cavity(), volume(gone, sure, sure), (1.5, 1.5))
    [alone] = guide(Cavity(), volume(sure, sure, sure), (1.5, 1.5)).moving[:1]
    assert found.guidance.used
    np.testing.assert_allclose(found.moving[0], alone, atol=0.05)
    assert found.moving[0].max() > 1 and found.fixed[0].max() == 0 and found.fixed[1].max() > 1
    confidence = [guide(Cavity(), one, (1.5, 1.5)).guidance.confidence for one in (sure, gone)]
    expected = np.average(confidence, axis=0, weights=(2, 1))
    np.testing.assert_allclose(found.guidance.confidence, expected, atol=0.02)


def test_a_volume_with_a_heart_in_few_slices_is_not_guided():
    dark = np.zeros((96, 96), "f4")
    sure, gone = pair(16, 11), dataclasses.replace(pair(16, 11), fixed=dark)
    found = guide(Cavity(), volume(gone, sure, gone, gone), (1.5, 1.5))
    assert not found.guidance.used and not found.moving.any() and not found.fixed.any()


@pytest.mark.integration
@pytest.mark.parametrize("space", [(48, 48), (16, 48, 48)])
def test_channels_move_what_images_do_not_show(space):
    """Two flat images, whose channels are a disc (a ball) of 10 and of 7 pixels."""
    settings = Refinement(levels=(2, 1), steps=(30, 20))
    offset = np.indices(space) - (np.reshape(space, (-1, *[1] * len(space))) - 1) / 2
    offset[: len(space) - 2] *= 2
    distance = np.sqrt((offset**2).sum(0))
    large, small = (
        jnp.asarray(3 / (1 + np.exp(distance - r)), jnp.float32)[None, ..., None] for r in (10, 7)
    )
    flat = jnp.full((1, *space), 0.5)
    v = search(flat, flat, settings=settings, channels=(large, small))
    moved = warp(large, integrate_velocity(v))
    assert float(jnp.abs(moved - small).mean()) < 0.25 * float(jnp.abs(large - small).mean())
    back = search(flat, flat, settings=settings, channels=(small, large))
    np.testing.assert_allclose(back, -v, atol=1e-4)
    assert not search(flat, flat, settings=settings, channels=(large, large)).any()


@pytest.mark.integration
def test_images_are_what_a_guided_search_is_judged_on():
    settings = Refinement(levels=(2,), steps=(12,))
    one = pair(16, 12)
    images = jnp.asarray(one.moving)[None], jnp.asarray(one.fixed)[None]
    plain = refine(*images, settings=settings)
    nothing = (jnp.zeros((1, 96, 96, 2)),) * 2
    same = refine(*images, settings=settings, channels=nothing)
    np.testing.assert_allclose(same.displacement, plain.displacement, atol=1e-5)
    wrong = tuple(30 * image[..., None] for image in images[::-1])  # the opposite of the images
    led_astray = refine(*images, settings=settings, channels=wrong)
    np.testing.assert_allclose(led_astray.rms[:, 0], plain.rms[:, 0], rtol=1e-5)
    assert float(led_astray.scale[0]) < 1
    assert float(led_astray.rms[0, 1]) <= float(led_astray.rms[0, 0])
