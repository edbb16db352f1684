"""Warping and displacement algebra against SciPy, SimpleITK, NumPy and hand values."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.ndimage import map_coordinates as jax_map_coordinates
from jax.test_util import check_grads
from scipy import ndimage

from ldm_morph_jax.ops import geometry
from ldm_morph_jax.ops.inverse import invert
from ldm_morph_jax.ops.jacobian import jacobian_determinant

GOLDEN = Path(__file__).parent.parent / "golden" / "ldm_morph_128.npz"
SHAPE = (24, 20)
VOLUME = (6, 12, 10)


def smooth_field(seed, size=SHAPE, amplitude=1.5):
    """A smooth random displacement [*size, rank] that fades to zero at the border."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(*size, len(size))), (*[4] * len(size), 0))
    fading = (np.sin(np.pi * np.arange(n) / (n - 1)) for n in size)
    field = noise / np.abs(noise).max() * functools.reduce(np.multiply.outer, fading)[..., None]
    return (amplitude * field).astype(np.float32)


def sitk_transform(displacement):
    """SimpleITK's own transform for a displacement in pixels; ITK's order is (column, row, ...)."""
    sitk = pytest.importorskip("SimpleITK")
    field = np.ascontiguousarray(displacement[..., ::-1], np.float64)
    return sitk.DisplacementFieldTransform(sitk.GetImageFromArray(field, isVector=True))


def scipy_warp(image, displacement, order):
    coordinates = np.indices(image.shape, np.float32) + np.moveaxis(displacement, -1, 0)
    return ndimage.map_coordinates(image, coordinates, order=order, mode="nearest")


def test_identity_grid_is_row_then_column():
    grid = geometry.identity_grid(3, 4)
    assert grid.dtype == jnp.float32
    np.testing.assert_array_equal(grid, np.moveaxis(np.indices((3, 4)), 0, -1))


def test_warp_pulls_back_rows_first():
    image = jnp.arange(12.0).reshape(1, 3, 4, 1)
    displacement = jnp.zeros((1, 3, 4, 2)).at[..., 0].set(1.0)  # fetch from the row below
    np.testing.assert_array_equal(
        geometry.warp(image, displacement)[0, :, :, 0],
        [[4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]],
    )
    half_column = jnp.zeros((1, 3, 4, 2)).at[..., 1].set(-0.5)
    np.testing.assert_array_equal(geometry.warp(image, half_column)[0, 0, :, 0], [0, 0.5, 1.5, 2.5])


@pytest.mark.parametrize("space", [SHAPE, VOLUME])
def test_zero_displacement_changes_no_bit(space):
    image = np.random.default_rng(0).normal(size=(2, *space, 3)).astype(np.float32)
    nothing = np.zeros((2, *space, len(space)), np.float32)
    for interpolation in ("linear", "nearest"):
        warped = geometry.warp(image, nothing, interpolation=interpolation)
        np.testing.assert_array_equal(warped, image)


@pytest.mark.parametrize("space", [SHAPE, VOLUME])
@pytest.mark.parametrize("interpolation, order", [("linear", 1), ("nearest", 0)])
def test_warp_equals_scipy_also_far_outside(interpolation, order, space):
    rng = np.random.default_rng(1)
    image = rng.random((3, *space, 2)).astype(np.float32)
    displacement = rng.normal(0, 9, (3, *space, len(space))).astype(np.float32)
    warped = jax.jit(geometry.warp, static_argnames="interpolation")(
        image, displacement, interpolation=interpolation
    )
    expected = [
        [scipy_warp(image[b, ..., c], displacement[b], order) for c in range(2)] for b in range(3)
    ]
    np.testing.assert_allclose(warped, np.moveaxis(expected, 1, -1), atol=2e-6)


def test_nearest_keeps_labels_and_rounds_like_scipy():
    labels = np.random.default_rng(2).integers(0, 4, (1, *SHAPE, 1)).astype(np.uint8)
    for value in (0.5, -0.5, 1.5, 0.49999997, 30.0, -30.0):
        displacement = np.full((1, *SHAPE, 2), value, np.float32)
        warped = geometry.warp(labels, displacement, interpolation="nearest")
        assert warped.dtype == jnp.uint8
        np.testing.assert_array_equal(
            warped[0, ..., 0], scipy_warp(labels[0, ..., 0], displacement[0], 0)
        )


def test_warp_gradients_equal_map_coordinates():
    rng = np.random.default_rng(3)
    image = jnp.asarray(rng.random((2, *SHAPE, 1)), jnp.float32)
    target = jnp.asarray(rng.random((2, *SHAPE, 1)), jnp.float32)
    displacement = jnp.asarray(rng.normal(0, 4, (2, *SHAPE, 2)), jnp.float32)

    def reference(image, displacement):
        def one(image, displacement):
            coordinates = jnp.moveaxis(geometry.identity_grid(*SHAPE) + displacement, -1, 0)
            return jax_map_coordinates(image[..., 0], coordinates, order=1, mode="nearest")

        return jax.vmap(one)(image, displacement)[..., None]

    def gradients(warp):
        loss = lambda image, displacement: jnp.mean((warp(image, displacement) - target) ** 2)  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1)))(image, displacement)

    for ours, theirs in zip(gradients(geometry.warp), gradients(reference), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-8, rtol=1e-4)


def test_warp_gradient_by_finite_differences():
    rng = np.random.default_rng(4)
    with jax.enable_x64(True):
        image = jnp.asarray(rng.random((1, 6, 7, 2)))
        # fractions away from the kinks at integers, some points outside
        displacement = jnp.asarray(
            rng.integers(-3, 4, (1, 6, 7, 2)) + rng.uniform(0.2, 0.8, (1, 6, 7, 2))
        )
        check_grads(
            geometry.warp, (image, displacement), order=1, modes=["rev"], eps=1e-4, rtol=1e-6
        )


def test_warp_gradient_at_and_beyond_the_border():
    image = jnp.asarray(np.random.default_rng(5).random((1, 4, 5, 1)), jnp.float32)
    row_gradient = jax.grad(lambda u: geometry.warp(image, u).sum())(jnp.zeros((1, 4, 5, 2)))[
        0, ..., 0
    ]
    by_row = np.diff(image[0, ..., 0], axis=0)
    # one-sided towards the inside: forward differences, backward in the last row
    np.testing.assert_allclose(row_gradient, np.concatenate([by_row, by_row[-1:]]), atol=1e-6)
    for shift in (-100.0, 100.0):
        outside = jnp.full((1, 4, 5, 2), shift)
        assert not np.any(jax.grad(lambda u: geometry.warp(image, u).sum())(outside))


def test_warp_of_nan_is_nan():
    image = jnp.ones((1, 4, 4, 1))
    displacement = jnp.zeros((1, 4, 4, 2)).at[0, 1, 2, 0].set(jnp.nan)
    np.testing.assert_array_equal(
        np.argwhere(np.isnan(geometry.warp(image, displacement)))[:, 1:3], [[1, 2]]
    )


def test_warp_of_bfloat16_keeps_float32_coordinates():
    """At column 300 bfloat16 has steps of two pixels: coordinates in it would land elsewhere."""
    image = jnp.tile(jnp.arange(400) % 2, (1, 2, 1))[..., None].astype(jnp.bfloat16)
    displacement = jnp.zeros((1, 2, 400, 2)).at[..., 1].set(1.0)
    warped = geometry.warp(image, displacement)
    assert warped.dtype == jnp.bfloat16
    np.testing.assert_array_equal(warped[0, 0, :-1, 0], image[0, 0, 1:, 0])


def test_warp_equals_simpleitk_inside():
    sitk = pytest.importorskip("SimpleITK")
    image = np.random.default_rng(6).random(SHAPE).astype(np.float32)
    displacement = smooth_field(7, amplitude=3.0)
    expected = sitk.GetArrayFromImage(
        sitk.Resample(sitk.GetImageFromArray(image), sitk_transform(displacement), sitk.sitkLinear)
    )
    points = np.moveaxis(np.indices(SHAPE), 0, -1) + displacement
    inside = ((points >= 0) & (points <= np.array(SHAPE) - 1)).all(-1)
    assert inside.mean() > 0.9
    warped = geometry.warp(image[None, ..., None], displacement[None])[0, ..., 0]
    np.testing.assert_allclose(np.asarray(warped)[inside], expected[inside], atol=1e-5)


def test_warp_equals_the_published_networks():
    golden = np.load(GOLDEN)
    displacement = np.moveaxis(golden["flow"], 0, -1)[None] * 127 / 2
    warped = geometry.warp(golden["moving"][None, ..., None], displacement)
    np.testing.assert_allclose(warped[0, ..., 0], golden["warped"][0], atol=2e-5)


def test_compose_by_hand():
    """v = one row down, u = 0.1 row: twice row steps, minus nothing at the replicated border."""
    u = jnp.zeros((1, 4, 3, 2)).at[..., 0].set(0.1 * jnp.arange(4.0)[None, :, None])
    v = jnp.zeros((1, 4, 3, 2)).at[..., 0].set(1.0)
    w = geometry.compose(u, v)
    np.testing.assert_allclose(w[0, :, 0, 0], [1.1, 1.2, 1.3, 1.3], atol=1e-6)
    np.testing.assert_array_equal(w[..., 1], 0)


@pytest.mark.parametrize("space", [SHAPE, VOLUME])
def test_compose_equals_simpleitk(space):
    sitk = pytest.importorskip("SimpleITK")
    u, v = smooth_field(8, space), smooth_field(9, space)
    both = sitk.CompositeTransform(
        [sitk_transform(u), sitk_transform(v)]
    )  # the last is applied first
    field = sitk.TransformToDisplacementField(both, sitk.sitkVectorFloat64, space[::-1])
    expected = sitk.GetArrayFromImage(field)[..., ::-1]
    composed = geometry.compose(u[None], v[None])[0]
    np.testing.assert_allclose(composed, expected, atol=1e-5)
    assert np.abs(composed - (u + v)).max() > 0.05  # it is not the sum


def test_compose_is_warping_twice():
    rows, columns = np.indices(SHAPE)
    image = (2.0 * rows - 3.0 * columns)[None, ..., None].astype(np.float32)  # linear: no error
    u, v = (smooth_field(s, amplitude=0.8)[None] for s in (10, 11))
    once = geometry.warp(image, geometry.compose(u, v))
    twice = geometry.warp(geometry.warp(image, u), v)
    np.testing.assert_allclose(once[:, 2:-2, 2:-2], twice[:, 2:-2, 2:-2], atol=1e-4)


def test_inverse_equals_simpleitk():
    sitk = pytest.importorskip("SimpleITK")
    u = smooth_field(13, (48, 40), amplitude=2.0)
    field = sitk.GetImageFromArray(np.ascontiguousarray(u[..., ::-1], np.float64), isVector=True)
    expected = sitk.InvertDisplacementField(
        field,
        maximumNumberOfIterations=100,
        maxErrorToleranceThreshold=1e-4,
        meanErrorToleranceThreshold=1e-5,
    )
    expected = sitk.GetArrayFromImage(expected)[..., ::-1]
    np.testing.assert_allclose(invert(u[None]).displacement[0], expected, atol=5e-3)


@pytest.mark.parametrize("size", [(47, 39), (30, 13), SHAPE])
def test_resize_keeps_a_linear_motion(size):
    matrix, offset = np.array([[0.1, -0.2], [0.05, 0.15]]), np.array([1.0, -2.0])
    scale = (np.array(size) - 1) / (np.array(SHAPE) - 1)
    u = np.moveaxis(np.indices(SHAPE), 0, -1) @ matrix.T + offset
    expected = ((np.moveaxis(np.indices(size), 0, -1) / scale) @ matrix.T + offset) * scale
    resized = geometry.resize_displacement(jnp.asarray(u[None], jnp.float32), size)
    np.testing.assert_allclose(resized[0], expected, atol=2e-5)


def test_resize_of_cells_keeps_a_linear_motion():
    """A pixel of the new grid covers 2 x 1/3 x 1 old ones; both grids have the same outer edges."""
    matrix = np.random.default_rng(0).normal(size=(3, 3))
    factors = np.array([2, 1 / 3, 1])
    old, new = (12, 8, 5), (6, 24, 5)

    def positions(size, factors):
        return (np.moveaxis(np.indices(size), 0, -1) + 0.5) * factors - 0.5

    u = positions(old, 1) @ matrix.T
    resized = geometry.resize_displacement(jnp.asarray(u[None], jnp.float32), new, align="cells")
    expected = positions(new, factors) @ matrix.T / factors
    np.testing.assert_allclose(resized[0, :, 2:-2], expected[:, 2:-2], atol=1e-4)


def test_resize_equals_scipy():
    u, size = smooth_field(16), (37, 51)
    coordinates = np.meshgrid(
        *(np.linspace(0, n - 1, m) for n, m in zip(SHAPE, size, strict=True)), indexing="ij"
    )
    expected = np.stack(
        [
            ndimage.map_coordinates(u[..., k], coordinates, order=1)
            * (size[k] - 1)
            / (SHAPE[k] - 1)
            for k in range(2)
        ],
        axis=-1,
    )
    np.testing.assert_allclose(geometry.resize_displacement(u[None], size)[0], expected, atol=1e-5)


def test_integrate_linear_velocity():
    """For v(x) = A (x - c) every composition is exact, so phi = (1 + A/2^n)^(2^n) -> exp(A)."""
    matrix, center = np.array([[-0.4, 0.3], [-0.3, -0.5]]), np.array([11.5, 9.5])
    x = np.moveaxis(np.indices(SHAPE), 0, -1) - center
    v = jnp.asarray((x @ matrix.T)[None], jnp.float32)
    for steps in (0, 3, 7):
        power = np.linalg.matrix_power(np.eye(2) + matrix / 2**steps, 2**steps)
        integrated = geometry.integrate_velocity(v, steps=steps)[0]
        # the rotation leads out of the image near its corners
        inner = np.abs(x).max(-1) < 7
        np.testing.assert_allclose(integrated[inner], (x @ (power - np.eye(2)).T)[inner], atol=1e-4)


def test_integrated_velocity_is_diffeomorphic_and_inverts_by_sign():
    v = smooth_field(17, (48, 40), amplitude=4.0)[None]
    forward, backward = geometry.integrate_velocity(v), geometry.integrate_velocity(-v)
    assert jacobian_determinant(forward).min() > 0
    assert np.abs(geometry.compose(forward, backward)).max() < 0.05


@pytest.mark.parametrize("space", [SHAPE, VOLUME])
@pytest.mark.parametrize("sigma", [0.0, 0.6, 2.0])
def test_smooth_gaussian_equals_scipy(sigma, space):
    u = smooth_field(5, space, amplitude=3.0)[None]
    sigmas = (0, *[sigma] * len(space), 0)
    expected = ndimage.gaussian_filter(u, sigmas, mode="nearest", truncate=3)
    np.testing.assert_allclose(geometry.smooth_gaussian(u, sigma), expected, atol=1e-5)


def test_wrong_input_is_refused():
    image, u = np.zeros((1, 8, 8, 1), np.float32), np.zeros((1, 8, 8, 2), np.float32)
    with pytest.raises(
        ValueError, match=r"displacement: found shape \(1, 8, 8, 3\).*\[1, 8, 8, 2\]"
    ):
        geometry.warp(image, np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="displacement: found shape"):
        geometry.warp(np.zeros((1, 8, 9, 1), np.float32), u)
    with pytest.raises(ValueError, match="image: found shape"):
        geometry.warp(image[0], u)
    with pytest.raises(ValueError, match="interpolation: found 'cubic'"):
        geometry.warp(image, u, interpolation="cubic")
    with pytest.raises(ValueError, match="dtype uint8.*nearest"):
        geometry.warp(image.astype(np.uint8), u)
    with pytest.raises(ValueError, match=r"displacement: found .* expected \[1, 4, 8, 8, 3\]"):
        geometry.warp(np.zeros((1, 4, 8, 8, 1), np.float32), np.zeros((1, 4, 8, 8, 2), np.float32))
    with pytest.raises(ValueError, match="image: found 1x8x8, expected at least 2x2x2"):
        geometry.warp(np.zeros((1, 1, 8, 8, 1), np.float32), np.zeros((1, 1, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="1x8, expected at least 2x2"):
        geometry.warp(image[:, :1], u[:, :1])
    with pytest.raises(ValueError, match="u: found shape"):
        geometry.compose(u[:, 1:], u)
    with pytest.raises(ValueError, match="at least 2x2"):
        geometry.resize_displacement(u, (1, 8))
    with pytest.raises(ValueError, match="u: found 1x8"):
        geometry.resize_displacement(u[:, :1], (8, 8))
    with pytest.raises(ValueError, match="steps: found -1"):
        geometry.integrate_velocity(u, steps=-1)
    with pytest.raises(ValueError, match="sigma: found -1"):
        geometry.smooth_gaussian(u, -1)
