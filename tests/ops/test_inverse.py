"""Newton's inverse where a fixed point diverges, against closed forms, SimpleITK and itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from ldm_morph_jax.ops import geometry
from ldm_morph_jax.ops.inverse import invert, invert_at
from ldm_morph_jax.ops.jacobian import jacobian_determinant

SHAPE = (48, 40)


def smooth_field(seed, amplitude, sigma=4.0):
    """A smooth random field `[H, W, 2]` that fades to zero at the border."""
    noise = ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=(*SHAPE, 2)), (sigma, sigma, 0)
    )
    rows, columns = (np.sin(np.pi * np.arange(n) / (n - 1)) for n in SHAPE)
    field = noise / np.abs(noise).max() * rows[:, None, None] * columns[None, :, None]
    return (amplitude * field).astype(np.float32)


def steep_field():
    """exp(v) of a contraction: no fold, J above 11, |grad u| far above 1."""
    positions = np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2
    squared = (positions**2).sum(-1, keepdims=True)
    v = (1.5 * positions * np.exp(-squared / (2 * 6.0**2)))[None].astype(np.float32)
    return geometry.integrate_velocity(jnp.asarray(v)), geometry.integrate_velocity(jnp.asarray(-v))


def pixels(shape=SHAPE):
    return np.moveaxis(np.indices(shape), 0, -1).reshape(-1, len(shape)).astype(np.float64)


def test_steep_field_without_folds_is_inverted_everywhere():
    u, back = steep_field()
    determinant = jacobian_determinant(u)
    assert determinant.min() > 0 and determinant.max() > 11
    found = jax.jit(invert)(u)
    assert found.converged.all() and found.residual.max() < 1e-3
    lands = geometry.compose(u, found.displacement)
    np.testing.assert_allclose(np.linalg.norm(lands, axis=-1), found.residual, atol=1e-4)
    assert jnp.abs(lands).max() < 2e-3
    # exp(-v) is the inverse up to interpolation
    assert jnp.abs(found.displacement - back).mean() < 0.05


def test_a_fixed_point_diverges_on_this_field():
    """What the method is for: were this to converge, the test above would prove nothing."""
    u, _ = steep_field()
    w = -u
    for _ in range(50):
        w = -geometry.warp(u, w)
    assert jnp.abs(geometry.compose(u, w)).max() > 1


@pytest.mark.integration
def test_steep_volumes_are_inverted_everywhere_too():
    space = np.array((14, 24, 20))
    away = np.moveaxis(np.indices(space), 0, -1) - (space - 1) / 2
    v = 1.2 * away * np.exp(-(away**2).sum(-1, keepdims=True) / (2 * 4.0**2))
    u = geometry.integrate_velocity(jnp.asarray(v[None], jnp.float32))
    assert jacobian_determinant(u).min() > 0 and jacobian_determinant(u).max() > 11
    found = invert(u)
    assert found.converged.all()
    assert jnp.abs(geometry.compose(u, found.displacement)).max() < 2e-3
    points, residual = invert_at(np.asarray(u[0]), pixels(space))
    assert residual.max() < 1e-6
    np.testing.assert_allclose(
        points - pixels(space), np.asarray(found.displacement[0]).reshape(-1, 3), atol=5e-3
    )


def test_a_point_that_is_stuck_starts_again_from_its_neighbours():
    """At the border and at the edges of its cells the interpolant bends, and Newton's steps end."""
    noise = np.random.default_rng(24)
    v = [
        size * ndimage.gaussian_filter(noise.normal(size=(4, 12, 12)), (1, 2, 2))
        for size in (4, 18, 18)
    ]
    u = geometry.integrate_velocity(jnp.asarray(np.stack(v, -1)[None], jnp.float32))
    assert jacobian_determinant(u).min() > 0
    targets = pixels((4, 12, 12))
    points, residual = invert_at(np.asarray(u[0]), targets)
    assert residual.max() < 1e-6
    lone = [invert_at(np.asarray(u[0]), target[None])[1].item() for target in targets]
    assert np.sort(lone)[-3] > 1e-3, "without neighbours three points are stuck"


def test_both_forms_and_all_starts_agree():
    u, back = steep_field()
    found = invert(u)
    from_back = invert(u, back)
    np.testing.assert_allclose(found.displacement, from_back.displacement, atol=5e-3)
    points, residual = invert_at(np.asarray(u[0]), pixels())
    assert residual.max() < 1e-6
    np.testing.assert_allclose(
        points - pixels(), np.asarray(found.displacement[0]).reshape(-1, 2), atol=5e-3
    )


def test_affine_field_by_hand():
    matrix = np.array([[0.5, 0.3], [-0.2, 1.5]])
    u = ((pixels() @ (matrix - np.eye(2)).T).reshape(1, *SHAPE, 2)).astype(np.float32)
    truth = pixels()[500:700]  # positions inside, so that no border value is met
    points, residual = invert_at(u[0], truth @ matrix.T)
    np.testing.assert_allclose(points, truth, atol=1e-5)
    assert residual.max() < 1e-6


def test_translation_leaves_the_image_by_its_border_value():
    u = jnp.broadcast_to(jnp.array([3.0, -2.0]), (1, *SHAPE, 2))
    found = invert(u)
    np.testing.assert_allclose(found.displacement, -u, atol=1e-5)
    assert found.converged.all()
    points, _ = invert_at(np.asarray(u[0]), np.array([[-10.0, 100.0]]))
    np.testing.assert_allclose(points, [[-13.0, 102.0]])


def test_equals_simpleitk():
    sitk = pytest.importorskip("SimpleITK")
    u = smooth_field(13, amplitude=2.0)
    field = sitk.GetImageFromArray(np.ascontiguousarray(u[..., ::-1], np.float64), isVector=True)
    expected = sitk.InvertDisplacementField(
        field,
        maximumNumberOfIterations=100,
        maxErrorToleranceThreshold=1e-4,
        meanErrorToleranceThreshold=1e-5,
    )
    expected = sitk.GetArrayFromImage(expected)[..., ::-1]
    np.testing.assert_allclose(invert(u[None]).displacement[0], expected, atol=5e-3)


def test_where_it_does_not_converge_it_says_so():
    """Below the middle rows run backwards: the way to what lies beyond the crease leads uphill."""
    u = np.zeros((1, *SHAPE, 2), np.float32)
    u[..., 0] = -2 * np.maximum(np.arange(SHAPE[0]) - 24.0, 0)[None, :, None]
    found = invert(u)
    assert found.converged[0, :24].all() and not found.converged[0, 30].any()
    np.testing.assert_allclose(found.residual[0, 30], 6, atol=0.5)
    lands = jnp.linalg.norm(geometry.compose(u, found.displacement), axis=-1)
    np.testing.assert_allclose(lands, found.residual, atol=1e-4)
    np.testing.assert_array_equal(found.converged, found.residual <= 1e-3)
    _, residual = invert_at(u[0], pixels())
    np.testing.assert_allclose(residual.reshape(SHAPE)[30], 6, atol=0.5)


def test_stacks_move_within_their_slices():
    u = np.stack([smooth_field(seed, amplitude=3.0) for seed in (1, 2, 3)])
    u = np.concatenate([np.zeros((*u.shape[:-1], 1)), u], axis=-1)
    points, residual = invert_at(u, pixels((3, *SHAPE)))
    assert residual.max() < 1e-6
    for k in range(3):
        alone, _ = invert_at(u[k, ..., 1:], pixels())
        here = points.reshape(3, -1, 3)[k]
        np.testing.assert_allclose(here[:, 1:], alone, atol=1e-4)
        np.testing.assert_allclose(here[:, 0], k, atol=1e-6)
    single, residual = invert_at(u[:1], pixels((1, *SHAPE)))
    assert residual.max() < 1e-6 and np.isfinite(single).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="u: found shape"):
        invert(jnp.zeros((4, 4, 2)))
    with pytest.raises(ValueError, match="start: found shape"):
        invert(jnp.zeros((1, 4, 4, 2)), jnp.zeros((1, 5, 4, 2)))
