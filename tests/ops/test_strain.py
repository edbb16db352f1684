"""Strain, areas and volumes against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_strain import (
    contour_area,
    deformation_gradient,
    deformation_gradient_of,
    engineering_strain,
    shared_border,
)

from ldm_morph_jax.ops import strain
from ldm_morph_jax.ops.geometry import identity_grid

SIZE = (20, 24)
CENTRE = np.array([9.0, 12.0])
STRETCH = np.array([[1.2, 0.0], [0.0, 0.9]])
SHEAR = np.array([[1.0, 0.3], [0.0, 1.0]])
TURN = np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])


def affine(matrix, spacing=(1.0, 1.0)):
    """Displacement in pixels of x -> matrix x about CENTRE, matrix in millimetres."""

    def displacement(x):
        away = (x - CENTRE) * jnp.asarray(spacing)
        return (away @ (matrix - np.eye(2)).T) / jnp.asarray(spacing)

    return displacement


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.8, 2.0)])
@pytest.mark.parametrize("matrix", [STRETCH, SHEAR, TURN, TURN @ SHEAR @ STRETCH])
def test_affine_maps_have_their_closed_form(matrix, spacing):
    grid = identity_grid(*SIZE)
    expected = (matrix.T @ matrix - np.eye(2)) / 2
    on_grid = deformation_gradient(affine(matrix, spacing)(grid), spacing)
    exact = deformation_gradient_of(affine(matrix, spacing), grid, spacing)
    region = (grid > 4).all(axis=-1) & (grid < 16).all(axis=-1)
    fitted = strain.regional_gradient(affine(matrix, spacing)(grid), region, 2.0, spacing)
    for gradient in (on_grid, exact, fitted):
        assert gradient.shape == (*SIZE, 2, 2)
        close = functools.partial(np.testing.assert_allclose, atol=3e-5)
        close(gradient, np.broadcast_to(matrix, (*SIZE, 2, 2)))
        tensor = strain.green_lagrange(gradient)
        close(tensor, np.broadcast_to(expected, (*SIZE, 2, 2)))
        for direction in np.eye(2):
            length = np.linalg.norm(matrix @ direction)
            close(engineering_strain(tensor, direction), length - 1)
            close(strain.normal_strain(tensor, direction), (length**2 - 1) / 2)


def test_affine_motion_of_a_volume():
    spacing = np.array([5.0, 1.5, 1.0])
    stretch = np.eye(3) + 0.2 * np.random.default_rng(0).normal(size=(3, 3))
    grid = identity_grid(4, 6, 5)
    u = (grid * spacing) @ (stretch - np.eye(3)).T / spacing
    exact = deformation_gradient_of(
        lambda x: (x * spacing) @ (stretch - np.eye(3)).T / spacing, grid, spacing
    )
    fitted = strain.regional_gradient(u, grid[..., 1] > 1, 2.0, spacing)
    size = strain.region_size(u, np.ones((4, 6, 5)), spacing)
    assert size == pytest.approx(120 * 7.5 * np.linalg.det(stretch), rel=1e-4)
    for gradient in (deformation_gradient(u, spacing), exact, fitted):
        np.testing.assert_allclose(gradient, np.broadcast_to(stretch, gradient.shape), atol=1e-4)
        tensor = strain.green_lagrange(gradient)
        direction = np.array([0.6, 0.0, 0.8])
        length = np.linalg.norm(stretch @ direction)
        np.testing.assert_allclose(engineering_strain(tensor, direction), length - 1, atol=1e-4)
    moved = strain.move_points(grid[1:3, 1:4], u[None])
    np.testing.assert_allclose(moved[0], (grid + u)[1:3, 1:4], atol=1e-4)


def test_a_curved_motion_by_automatic_differentiation_and_by_differences():
    def displacement(x):
        return jnp.stack([0.02 * x[..., 0] ** 2, jnp.sin(0.1 * x[..., 0])], axis=-1)

    grid = identity_grid(*SIZE)
    rows = np.arange(SIZE[0])[:, None] * np.ones(SIZE)
    expected = np.zeros((*SIZE, 2, 2))
    expected[..., 0, 0], expected[..., 1, 0] = 1 + 0.04 * rows, 0.1 * np.cos(0.1 * rows)
    expected[..., 1, 1] = 1
    exact = deformation_gradient_of(displacement, grid)
    np.testing.assert_allclose(exact, expected, atol=1e-5)
    # central differences are exact for the square; sin(h)/h at h = 0.1 falls short by 0.17 %
    inner = np.s_[1:-1]
    by_differences = deformation_gradient(displacement(grid))
    np.testing.assert_allclose(by_differences[inner], expected[inner], atol=2e-4)


def test_what_moves_beside_the_region_does_not_reach_its_gradient():
    def displacement(x):
        return jnp.where(x[..., :1] < 10, 0.1 * x, 3.0)

    u = displacement(identity_grid(*SIZE))
    region = identity_grid(*SIZE)[..., 0] < 10
    within = strain.regional_gradient(u, region, 1.5)[:10]
    np.testing.assert_allclose(within, np.broadcast_to(1.1 * np.eye(2), within.shape), atol=0.01)
    assert abs(deformation_gradient(u)[9, 5, 0, 0] - 1.1) > 0.5


def test_a_wider_fit_leaves_less_noise():
    noise = np.random.default_rng(0).normal(scale=0.1, size=(40, 40, 2))
    whole = np.ones((40, 40), bool)
    left = [
        float(jnp.std(strain.regional_gradient(noise, whole, sigma)[10:30, 10:30] - np.eye(2)))
        for sigma in (1.0, 3.0)
    ]
    assert left[1] == pytest.approx(left[0] / 9, rel=0.3)  # falls with sigma squared


def test_leading_axes_are_kept():
    u = jnp.zeros((3, 4, *SIZE, 2))
    whole = np.ones(SIZE, bool)
    for gradient in (deformation_gradient(u), strain.regional_gradient(u, whole, 1.0)):
        tensor = strain.green_lagrange(gradient)
        assert tensor.shape == (3, 4, *SIZE, 2, 2)
        np.testing.assert_allclose(tensor, 0, atol=1e-6)


def test_long_axis_and_directions_of_a_tilted_tube():
    spacing = np.array([8.0, 1.5, 1.5])
    index = np.moveaxis(np.indices((7, 60, 60)), 0, -1)
    slope = np.array([0.3, -0.2])  # mm per mm along the slices
    middle = np.array([45.0, 42.0]) + slope * (index[..., :1] * 8.0 - 24)
    cavity = np.linalg.norm(index[..., 1:] * 1.5 - middle, axis=-1) < 20
    cavity[0] = False
    centre, axis = strain.slice_axis(cavity, spacing)
    np.testing.assert_allclose(axis[1:] / axis[0], slope, atol=0.01)
    np.testing.assert_allclose(centre[1:] * 1.5, [45, 42] + 4.0 * slope, atol=0.2)
    flat = strain.slice_axis(cavity[3:5], spacing)[1]  # of two slices nobody knows the tilt
    np.testing.assert_array_equal(flat, [1, 0, 0])
    directions = jnp.stack(strain.cylinder_directions(index + 0.01, centre, axis, spacing), -1)
    products = jnp.einsum("...ki,...kj->...ij", directions, directions)
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), products.shape), atol=1e-4)
    away = ((index - centre) * spacing)[..., None, :] @ np.asarray(directions)
    assert (away[..., 0, 0] > -0.1).all()
    np.testing.assert_allclose(away[..., 0, 1], 0, atol=0.1)


def test_polar_directions_and_the_strain_of_a_ring():
    # r -> 0.8 r + 3: radially 0.8 - 1, around 0.8 + 3 / r - 1
    def displacement(x):
        away = x - CENTRE
        return (-0.2 + 3 / jnp.linalg.norm(away)) * away

    points = CENTRE + np.array([[5.0, 0], [0, 5], [-3, 4]])
    tensor = strain.green_lagrange(deformation_gradient_of(displacement, points))
    radial, around = strain.polar_directions(points, CENTRE)
    np.testing.assert_allclose(radial, [[1, 0], [0, 1], [-0.6, 0.8]], atol=1e-6)
    np.testing.assert_allclose(around, [[0, 1], [-1, 0], [-0.8, -0.6]], atol=1e-6)
    np.testing.assert_allclose(engineering_strain(tensor, radial), -0.2, atol=1e-5)
    np.testing.assert_allclose(engineering_strain(tensor, around), 0.4, atol=1e-5)


def test_directions_are_millimetres():
    radial, _ = strain.polar_directions(CENTRE + [[3.0, 2.0]], CENTRE, (1.0, 2.0))
    np.testing.assert_allclose(radial, [[0.6, 0.8]], atol=1e-6)


def circle(radius, count=720):
    angle = 2 * np.pi * np.arange(count) / count
    return CENTRE + radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def test_contour_directions_of_a_circle_are_polar():
    points = CENTRE + np.array([[5.0, 1.0], [-2.0, 6.0]])
    normal, tangent = strain.contour_directions(points, circle(4))
    radial, around = strain.polar_directions(points, CENTRE)
    np.testing.assert_allclose(normal, radial, atol=0.01)
    np.testing.assert_allclose(tangent, around, atol=0.01)


def test_contour_directions_of_an_open_line():
    line = np.stack([np.arange(10.0), 2 * np.arange(10.0)], axis=-1)
    normal, tangent = strain.contour_directions(line, line, (2.0, 1.0))
    np.testing.assert_allclose(tangent, np.full((10, 2), 0.5**0.5), atol=1e-6)
    np.testing.assert_allclose(normal, np.tile([0.5**0.5, -(0.5**0.5)], (10, 1)), atol=1e-6)


def test_contour_segments_have_equal_lengths():
    line = np.stack([np.zeros(13), [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18]], axis=-1)
    expected = [1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 5, 6, 6]
    np.testing.assert_array_equal(strain.contour_segments(line, 6), expected)


def test_regional_mean():
    values = jnp.array([[[1.0, 2.0, 3.0], [4.0, jnp.nan, 6.0]]])
    regions = jnp.array([[1, 1, 2], [2, 0, 4]])
    means = strain.regional_mean(values, regions, 4)
    np.testing.assert_allclose(means, [[1.5, 3.5, np.nan, 6.0]])


def test_peak_and_its_time():
    times = np.array([0.0, 0.1, 0.25, 0.3, 0.9])
    curves = np.array([[0, -0.1, -0.21, -0.2, 0.02], [0, 0.3, 0.1, 0.3, 0.0], [0, 1, np.nan, 1, 0]])
    value, at = strain.peak(curves.T, times)
    np.testing.assert_allclose(value, [-0.21, 0.3, np.nan], atol=1e-6)
    np.testing.assert_allclose(at, [0.25, 0.1, np.nan], atol=1e-6)


def test_strain_rate_is_numpys_gradient():
    times = np.array([0.0, 0.1, 0.25, 0.3, 0.9])
    curve = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(
        strain.strain_rate(curve, times), np.gradient(curve, times, axis=0), rtol=1e-4
    )


def test_points_and_contours_follow_the_displacement():
    u = jnp.stack([affine(m)(identity_grid(*SIZE)) for m in (np.eye(2), STRETCH)])
    moved = strain.move_points(circle(5), u)
    np.testing.assert_allclose(moved[0], circle(5), atol=1e-5)
    np.testing.assert_allclose(moved[1], CENTRE + (circle(5) - CENTRE) @ STRETCH.T, atol=1e-4)
    area = contour_area(moved)
    np.testing.assert_allclose(area, 25 * np.pi * np.array([1, 1.08]), rtol=1e-4)
    np.testing.assert_allclose(strain.fractional_change(area[0], area[1]), -0.08, atol=1e-4)
    length = strain.contour_length(moved, closed=True)
    assert length[0] == pytest.approx(10 * np.pi, rel=1e-4)
    half = strain.contour_length(circle(5)[:361], (2.0, 2.0), closed=False)
    assert half == pytest.approx(10 * np.pi, rel=1e-4)


def test_area_of_a_region():
    u = affine(STRETCH)(identity_grid(*SIZE))[None]
    region = np.zeros(SIZE)
    region[5:10, 6:12] = 1
    area = strain.region_size(u, region, (2.0, 1.5))
    np.testing.assert_allclose(area, [5 * 6 * 3 * 1.2 * 0.9], rtol=1e-5)


def test_disc_volume_of_an_ellipsoid():
    # semi-axes 40 mm along the (tilted) axis, 18 mm across, on pixels of 1 by 0.8 mm
    spacing, centre = np.array([1.0, 0.8]), np.array([50.0, 60.0])
    axis = np.array([np.cos(0.3), np.sin(0.3)])
    away = (np.stack(np.indices((100, 120)), axis=-1) - centre) * spacing
    along, across = away @ axis, away @ [-axis[1], axis[0]]
    mask = (along / 40) ** 2 + (across / 18) ** 2 <= 1
    apex, base = centre - 40 * axis / spacing, centre + 40 * axis / spacing
    volume = strain.disc_volume(mask, apex, base, tuple(spacing))
    assert volume == pytest.approx(4 / 3 * np.pi * 40 * 18**2, rel=0.01)
    found_apex, found_base = strain.long_axis(mask, base, tuple(spacing))
    np.testing.assert_allclose(found_apex, apex, atol=1.0)
    np.testing.assert_allclose(found_base, base)
    ends = strain.disc_volume(mask, base, apex, tuple(spacing))  # either way round
    assert volume == pytest.approx(float(ends), rel=1e-3)


def test_ejection_fraction_of_a_shrinking_sphere():
    grid = np.stack(np.indices((64, 64)), axis=-1) - 32.0
    masks = [np.linalg.norm(grid, axis=-1) <= r for r in (25, 20)]
    volumes = [
        strain.disc_volume(m, np.array([32.0 - r, 32]), np.array([32.0 + r, 32]))
        for m, r in zip(masks, (25, 20), strict=True)
    ]
    ejected = strain.fractional_change(*volumes)
    assert ejected == pytest.approx(1 - 0.8**3, abs=0.01)


def test_shared_border():
    ventricle, atrium = np.zeros((2, 8, 8), bool)
    ventricle[1:4, 2:6] = atrium[4:6, 3:7] = True
    np.testing.assert_allclose(shared_border(ventricle, atrium), [3.5, 4.0])
    assert np.isnan(shared_border(ventricle, np.zeros((8, 8), bool))).all()


def test_gradients_exist():
    """Every score can be optimised, the identity included."""

    def score(u):
        tensor = strain.green_lagrange(deformation_gradient(u))
        radial, _ = strain.polar_directions(identity_grid(*SIZE), CENTRE + 0.5)
        return engineering_strain(tensor, radial).mean()

    assert np.isfinite(jax.grad(score)(jnp.zeros((*SIZE, 2)))).all()


def test_errors():
    with pytest.raises(ValueError, match=r"u: found shape \(8, 8, 3\), expected \[..., H, W, 2\]"):
        strain.region_size(jnp.zeros((8, 8, 3)), jnp.ones((8, 8)))
    with pytest.raises(ValueError, match="times: found shape"):
        strain.strain_rate(jnp.zeros(3), jnp.zeros(2))
    with pytest.raises(ValueError, match="found 2 points, expected at least 3"):
        strain.contour_length(jnp.zeros((2, 2)), closed=False)
    with pytest.raises(ValueError, match="values: found shape"):
        strain.regional_mean(jnp.zeros((3, 4)), jnp.zeros((4, 3)), 1)
