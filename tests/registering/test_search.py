"""The search for a velocity: what must hold by construction, and that it finds a known motion."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from ldm_morph_jax.ops.geometry import compose, integrate_velocity, warp
from ldm_morph_jax.ops.jacobian import jacobian_determinant
from ldm_morph_jax.registering.search import Level, Refinement, refine, search

SHAPE = (64, 64)
QUICK = Refinement(levels=(2, 1), steps=(30, 15))


def texture(seed, shape=SHAPE, sigma=2.0):
    image = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    image = (image - image.min()) / (image.max() - image.min())
    return image.astype(np.float32)


def contraction(shape=SHAPE, strength=0.25, centre=(32.0, 32.0)):
    """A velocity `[1, H, W, 2]` towards a centre, strongest ten pixels away from it."""
    positions = np.moveaxis(np.indices(shape), 0, -1) - np.array(centre)
    squared = (positions**2).sum(-1, keepdims=True)
    return jnp.asarray((strength * positions * np.exp(-squared / 200))[None], jnp.float32)


@pytest.fixture(scope="module")
def pair():
    moving = texture(0)[None]
    v = contraction()
    fixed = warp(moving[..., None], integrate_velocity(v))[..., 0]
    return jnp.asarray(moving), fixed, v


@pytest.fixture(scope="module")
def refined(pair):
    return refine(*pair[:2], settings=QUICK)


def test_known_motion_is_found(pair, refined):
    moving, fixed, v = pair
    truth = integrate_velocity(v)
    error = jnp.linalg.norm(refined.displacement - truth, axis=-1)
    assert error.mean() < 0.15 * jnp.linalg.norm(truth, axis=-1).mean()
    assert (jacobian_determinant(refined.displacement) > 0).all()
    assert refined.scale[0] == 1
    assert refined.rms[0, 1] < 0.2 * refined.rms[0, 0]
    # the floor keeps it below 1
    assert refined.correlation[0, 1] > 0.93 > refined.correlation[0, 0]
    warped = warp(moving[..., None], refined.displacement)[..., 0]
    np.testing.assert_allclose(
        refined.rms[0, 1], jnp.sqrt(jnp.mean((warped - fixed) ** 2)), rtol=1e-4
    )


def test_gain_and_offset_change_little(pair):
    moving, fixed, v = pair
    found = refine(moving, 0.6 * fixed + 0.2, settings=QUICK)
    truth = integrate_velocity(v)
    error = jnp.linalg.norm(found.displacement - truth, axis=-1)
    assert error.mean() < 0.15 * jnp.linalg.norm(truth, axis=-1).mean()


def test_exchanged_images_negate_the_velocity(pair, refined):
    moving, fixed, _ = pair
    back = refine(fixed, moving, settings=QUICK)
    np.testing.assert_allclose(back.velocity, -refined.velocity, atol=1e-5)
    there_and_back = compose(refined.displacement, back.displacement)
    assert jnp.abs(there_and_back[:, 4:-4, 4:-4]).max() < 0.1


def test_same_image_twice_does_not_move(pair):
    for image in (
        pair[0],
        jnp.asarray(np.random.default_rng(1).uniform(size=(1, 40, 56)), jnp.float32),
    ):
        found = refine(image, image, settings=QUICK)
        assert jnp.abs(found.velocity).max() < 1e-5 and jnp.abs(found.displacement).max() < 1e-5


def test_inverse_holds_everywhere(refined):
    assert refined.inverse.converged.all()
    assert refined.inverse.residual.max() < 1e-3
    assert jnp.abs(compose(refined.displacement, refined.inverse.displacement)).max() < 2e-3


def test_a_good_start_is_kept_and_a_bad_one_dropped(pair):
    moving, fixed, v = pair
    few = Refinement(levels=(1,), steps=(0,))
    kept = refine(moving, fixed, start=v, settings=few)
    assert kept.scale[0] == 1 and kept.start_gain[0] > 0.4
    np.testing.assert_allclose(kept.velocity, v, atol=1e-6)
    wrong = refine(moving, fixed, start=-v, settings=few)
    assert wrong.start_gain[0] < 0 and not wrong.displacement.any()


def test_a_map_that_folds_is_smoothed_until_it_does_not():
    rough = np.random.default_rng(0).normal(0, 2, (2, 32, 32, 2)).astype("f4")
    rough[1] *= 0.01  # no fold there: this pair stays as it is
    blank = jnp.zeros((2, 32, 32))
    as_given = Refinement(levels=(1,), steps=(0,), least_gain=-np.inf)
    assert (jacobian_determinant(integrate_velocity(rough))[0] <= 0).any()
    found = refine(blank, blank, start=jnp.asarray(rough), settings=as_given)
    for u in (found.displacement, found.inverse.displacement):
        assert (jacobian_determinant(u) > 0).all()
    assert jnp.abs(found.velocity[0]).max() > 0.1
    np.testing.assert_array_equal(found.velocity[1], rough[1])
    # smoothing alone would take too long
    wild = refine(blank, blank, start=jnp.asarray(100 * rough), settings=as_given)
    assert (jacobian_determinant(wild.displacement) > 0).all() and wild.scale[0] < 1


def test_relaxation_makes_steps_longer(pair):
    moving, fixed, _ = pair
    step, longer = (
        search(
            moving,
            fixed,
            settings=Refinement(levels=(1,), steps=(1,), relaxation=times, longest_step=100.0),
        )
        for times in (1.0, 3.0)
    )
    np.testing.assert_allclose(longer, 3 * step, atol=1e-5)


def test_what_makes_images_less_alike_is_scaled_back(pair):
    moving, fixed, v = pair
    trusting = Refinement(levels=(1,), steps=(0,), least_gain=-np.inf)
    wrong = refine(moving, fixed, start=-v, settings=trusting)
    assert wrong.scale[0] == 0 and not wrong.displacement.any()
    np.testing.assert_array_equal(wrong.rms[:, 0], wrong.rms[:, 1])
    too_far = refine(moving, fixed, start=2.4 * v, settings=trusting)
    assert 0 < too_far.scale[0] < 1
    assert too_far.rms[0, 1] < too_far.rms[0, 0]
    np.testing.assert_allclose(too_far.velocity, 2.4 * too_far.scale[0] * v, atol=1e-5)


def test_pairs_do_not_see_each_other(pair, refined):
    moving, fixed, _ = pair
    other = jnp.asarray(texture(5))[None], jnp.asarray(texture(6))[None]
    both = refine(
        jnp.concatenate([other[0], moving]), jnp.concatenate([other[1], fixed]), settings=QUICK
    )
    np.testing.assert_allclose(both.velocity[1], refined.velocity[0], atol=1e-4)


def test_size_need_not_be_a_multiple_and_what_is_unknown_does_not_count(pair, refined):
    moving, fixed, _ = pair
    pad = ((0, 0), (0, 9), (0, 5))
    noise = np.random.default_rng(2).uniform(size=(2, 1, 73, 69)).astype(np.float32)
    valid = jnp.pad(jnp.ones((1, *SHAPE), bool), pad)
    wide = [
        jnp.where(valid, jnp.pad(image, pad), n)
        for image, n in zip((moving, fixed), noise, strict=True)
    ]
    found = refine(*wide, valid=valid, settings=QUICK)
    assert found.velocity.shape == (1, 73, 69, 2)
    inside = found.velocity[:, : SHAPE[0], : SHAPE[1]]
    difference = jnp.linalg.norm(inside - refined.velocity, axis=-1)[:, 8:-8, 8:-8]
    assert difference.mean() < 0.05 * jnp.linalg.norm(refined.velocity, axis=-1).mean()


SPACING = (4.0, 1.0, 1.0)
VOLUME = (8, 40, 36)


@pytest.fixture(scope="module")
def volumes():
    """A heart-sized contraction with a motion through slices that are four pixels apart."""
    fine = texture(3, (4 * VOLUME[0], *VOLUME[1:]), 2.5)
    moving = fine.reshape(VOLUME[0], 4, *VOLUME[1:]).mean(axis=1)[None]
    away = (np.moveaxis(np.indices(VOLUME), 0, -1) - (np.array(VOLUME) - 1) / 2) * SPACING
    v = 0.25 * away * np.exp(-(away**2).sum(-1, keepdims=True) / 200) / SPACING
    v = jnp.asarray(v[None], jnp.float32)
    fixed = warp(jnp.asarray(moving)[..., None], integrate_velocity(v))[..., 0]
    return jnp.asarray(moving), fixed, v


@pytest.fixture(scope="module")
def refined_volumes(volumes):
    return refine(*volumes[:2], settings=QUICK.on(SPACING), spacing=SPACING)


@pytest.mark.integration
def test_known_motion_of_a_volume_is_found(volumes, refined_volumes):
    truth = integrate_velocity(volumes[2])
    for axis, most in ((0, 0.25), (1, 0.15), (2, 0.15)):
        error = jnp.abs(refined_volumes.displacement - truth)[..., axis].mean()
        assert error < most * jnp.abs(truth[..., axis]).mean()
    assert (jacobian_determinant(refined_volumes.displacement) > 0).all()
    assert refined_volumes.scale[0] == 1
    assert refined_volumes.inverse.converged.all()
    lands = compose(refined_volumes.displacement, refined_volumes.inverse.displacement)
    assert jnp.abs(lands).max() < 2e-3


@pytest.mark.integration
def test_volumes_keep_the_laws(volumes, refined_volumes):
    moving, fixed, _ = volumes
    back = refine(fixed, moving, settings=QUICK.on(SPACING), spacing=SPACING)
    np.testing.assert_allclose(back.velocity, -refined_volumes.velocity, atol=1e-5)
    still = refine(moving, moving, settings=QUICK.on(SPACING), spacing=SPACING)
    assert jnp.abs(still.displacement).max() < 1e-5


def test_only_ratios_of_the_spacing_count_and_axes_may_be_exchanged(volumes, refined_volumes):
    moving, fixed, _ = volumes
    turned = [jnp.moveaxis(image, 1, 3) for image in (moving, fixed)]
    found = refine(*turned, settings=QUICK.on((1.25, 1.25, 5.0)), spacing=(1.25, 1.25, 5.0))
    expected = jnp.moveaxis(refined_volumes.displacement, 1, 3)[..., jnp.array([1, 2, 0])]
    difference = jnp.abs(found.displacement - expected)
    assert difference.mean() < 1e-4 and difference.max() < 0.02


def test_slices_as_thick_as_a_level_are_not_merged():
    assert Refinement().on((10.0, 1.5, 1.5)).levels == ((1, 4, 4), (1, 2, 2), (1, 1, 1))
    assert Refinement().on((3.15, 1.5, 1.5)).levels == ((2, 4, 4), (1, 2, 2), (1, 1, 1))
    assert Refinement().on((1.0, 1.0)).levels == ((4, 4), (2, 2), (1, 1))
    for level, spacing, unit in (
        ((1, 4, 4), (10.0, 1.5, 1.5), (0.6, 1, 1)),
        ((2, 4, 4), (3.15, 1.5, 1.5), (6 / 6.3, 1, 1)),
        (2, (1.0, 1.0), (1, 1)),
    ):
        np.testing.assert_allclose(Level.of(level, jnp.array(spacing)).unit, unit, rtol=1e-6)


def test_refused_settings_and_shapes():
    with pytest.raises(ValueError, match="as many of each"):
        Refinement(levels=(2, 1), steps=(10,))
    with pytest.raises(ValueError, match="powers of two"):
        Refinement(levels=(3,), steps=(10,))
    with pytest.raises(ValueError, match="more than 0 pixels"):
        Refinement(elastic=0.0)
    with pytest.raises(ValueError, match="fixed: found shape"):
        refine(jnp.zeros((1, 32, 32)), jnp.zeros((1, 32, 33)))
    with pytest.raises(ValueError, match="expected 3 positive numbers"):
        refine(*jnp.zeros((2, 1, 8, 32, 32)), spacing=(1.0, 1.0))


def test_equal_settings_are_one_program():
    """As static arguments of `jax.jit` they are compared by value."""
    assert len({Refinement(), Refinement(), Refinement(elastic=1.0)}) == 2
