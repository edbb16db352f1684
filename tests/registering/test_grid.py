"""The model grid on images: the way there and back."""

import numpy as np
import pytest
from analytic_method import AnalyticMethod, heart

from ldm_morph_jax.files.images import images_from_array
from ldm_morph_jax.registering.grid import (
    place_model_grid,
    place_whole_grid,
    prepare,
    to_transform,
    velocity_on_whole,
)


def test_model_grid_is_the_training_crop():
    """A 256x256 image at the training spacing: the grid is its pixels 64 to 191, exactly."""
    image = images_from_array(heart((256, 256)), 1.25)[0][0]
    grid = place_model_grid(image, 128, 1.25)
    np.testing.assert_array_equal(grid.fixed_pixels()[0, 0], [64, 64])
    np.testing.assert_array_equal(grid.fixed_pixels()[-1, -1], [191, 191])
    method = AnalyticMethod(128, 1.25)
    [one] = prepare(method, image, image)
    crop = image.array[64:192, 64:192]
    np.testing.assert_allclose(one.model.fixed, (crop - crop.min()) / np.ptp(crop), atol=1e-6)
    u = np.asarray(
        method.displacement(one.model.moving[None, ..., None], one.model.fixed[None, ..., None])
    )
    found = [(one.model.grid, u[0])]
    transform = to_transform([one], found, image.geometry, image.geometry)
    np.testing.assert_allclose(transform.displacement[64:192, 64:192], u[0], atol=1e-6)
    # the whole image has its own pixels, and there the same motion
    assert one.whole.grid.shape == (256, 256) and one.whole.grid.scale == (1.0, 1.0)
    unit = (image.array - image.array.min()) / np.ptp(image.array)
    np.testing.assert_allclose(one.whole.moving, unit, atol=1e-6)
    np.testing.assert_allclose(velocity_on_whole(one, u[0]), transform.displacement, atol=1e-5)
    # beyond the grid the displacement fades without a step, to nothing at half a grid's distance
    edge = transform.displacement[:66, 100]
    np.testing.assert_allclose(edge[0], 0, atol=1e-3)
    assert np.abs(np.diff(edge, axis=0)).max() < 0.1 * np.abs(edge).max()
    shifted = place_model_grid(image, 128, 1.25, centre=(100.5, 90.5))
    np.testing.assert_array_equal(shifted.fixed_pixels()[0, 0], [37, 27])


@pytest.mark.parametrize(
    "shape,spacing,size,scale",
    [
        ((100, 90), 1.25, 128, 100 / 128),  # rounded up to a multiple of 32: the image fits in
        ((96, 40), None, 96, 1.0),
        ((700, 512), 0.5, 256, 700 / 256),  # bounded
    ],
)
def test_a_method_for_any_grid_gets_one_for_the_image(shape, spacing, size, scale):
    grid = place_model_grid(images_from_array(heart(shape), spacing)[0][0], None, None)
    assert grid.shape == (size, size)
    np.testing.assert_allclose(grid.scale, scale)
    # the longer side fills the grid, border to border
    first, last = grid.fixed_pixels()[0, 0, 0], grid.fixed_pixels()[-1, 0, 0]
    np.testing.assert_allclose([first - scale / 2, last + scale / 2], [-0.5, shape[0] - 0.5])


@pytest.mark.parametrize(
    "shape,spacing,trained,grid,scale",
    [
        ((100, 90), 1.5, 1.25, (100, 90), (1.0, 1.0)),  # its own pixels
        ((100, 90), None, 1.25, (100, 90), (1.0, 1.0)),
        ((100, 90), 0.5, 1.25, (40, 36), (2.5, 2.5)),  # not finer than the network's
        ((100, 90), (0.5, 2.0), None, (100, 256), (1.40625, 0.3515625)),  # square, bounded
        ((700, 512), 0.5, None, (256, 188), (700 / 256, 700 / 256)),
    ],
)
def test_the_whole_grid_covers_the_image(shape, spacing, trained, grid, scale):
    placed = place_whole_grid(images_from_array(heart(shape), spacing)[0][0], trained)
    if spacing == (0.5, 2.0):
        grid = tuple(int(np.ceil(n / s - 1e-6)) for n, s in zip(shape, scale, strict=True))
    assert placed.shape == grid
    np.testing.assert_allclose(placed.scale, scale)
    corner = placed.fixed_pixels()[0, 0] - np.array(placed.scale) / 2
    assert (corner <= -0.5 + 1e-6).all() and (corner > -0.5 - np.array(scale)).all()


def test_grey_values_of_two_units_are_brought_to_one_scale():
    moving, fixed = heart((40, 44), radius=0.5), heart((40, 44), radius=0.4)
    method = AnalyticMethod(32, None)

    def whole(moving, fixed):
        [one] = prepare(method, images_from_array(moving)[0][0], images_from_array(fixed)[0][0])
        return one.whole

    alike = whole(1.5 * moving, fixed)
    assert alike.moving.max() == 1 and alike.fixed.max() < 0.8  # one scanner, one scale
    apart = whole(100 * moving, fixed)
    assert apart.moving.max() == apart.fixed.max() == 1
