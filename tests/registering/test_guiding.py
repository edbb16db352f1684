"""Anatomy in the search: what is mixed in, when it is left out, what the search does with it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from threshold_anatomy import Threshold, heart

from ldm_morph_jax.registering.grid import Grid, OnGrid
from ldm_morph_jax.registering.guiding import DRAWINGS, guide
from ldm_morph_jax.registering.search import Refinement, refine


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


def test_a_drawing_is_mixed_into_both_images():
    one = pair(16, 11)
    [found] = guide(Cavity(), [one], (1.5, 1.5))
    greys, share = DRAWINGS[frozenset(Cavity().structures)]
    assert set(greys) == {"left ventricle"}
    assert found.used and min(found.confidence) > 0.8
    inside, outside = (48, 48), (5, 5)
    drawn = share * greys["left ventricle"]
    assert found.moving[inside] == pytest.approx((1 - share) * one.moving[inside] + drawn, abs=0.01)
    assert found.fixed[outside] == pytest.approx((1 - share) * one.fixed[outside], abs=1e-6)
    [exchanged] = guide(Cavity(), [pair(11, 16)], (1.5, 1.5))
    np.testing.assert_array_equal(exchanged.moving, found.fixed)


def test_it_is_left_out_where_one_image_shows_no_heart():
    one = pair(16, 11)
    noise = (np.random.default_rng(0).random((96, 96)) > 0.96).astype("f4")
    [found] = guide(Cavity(), [dataclasses.replace(one, fixed=noise)], (1.5, 1.5))
    assert not found.used
    np.testing.assert_array_equal(found.moving, one.moving)
    np.testing.assert_array_equal(found.fixed, noise)


def test_structures_that_nobody_knows_how_to_draw():
    with pytest.raises(ValueError, match="'threshold' knows left ventricle, myocardium; a search"):
        guide(Threshold(), [pair(16, 11)], (1.5, 1.5))


def test_the_search_compares_what_it_is_given_and_judges_the_images():
    settings = Refinement(levels=(2,), steps=(12,))
    one = pair(16, 12)
    images = jnp.asarray(one.moving)[None], jnp.asarray(one.fixed)[None]
    plain = refine(*images, settings=settings)
    same = refine(*images, settings=settings, compared=images)
    np.testing.assert_allclose(same.displacement, plain.displacement, atol=1e-5)
    still = refine(*images, settings=settings, compared=(images[1], images[1]))
    assert float(jnp.abs(still.displacement).max()) < 1e-4
    np.testing.assert_allclose(still.rms[:, 0], plain.rms[:, 0], rtol=1e-5)  # of the images
