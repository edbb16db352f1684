"""The model grid on images: the way there and back."""

import numpy as np
import pytest
from analytic_method import AnalyticMethod, heart

from ldm_morph_jax.files.images import image_from_array
from ldm_morph_jax.registering.grid import place_model_grid, prepare, to_transform


def test_model_grid_is_the_training_crop():
    """A 256x256 image at the training spacing: the grid is its pixels 64 to 191, exactly."""
    image = image_from_array(heart((256, 256)), 1.25)
    grid = place_model_grid(image, 128, 1.25)
    np.testing.assert_array_equal(grid.fixed_pixels()[0, 0], [64, 64])
    np.testing.assert_array_equal(grid.fixed_pixels()[-1, -1], [191, 191])
    method = AnalyticMethod(128, 1.25)
    prepared = prepare(method, image, image)
    crop = image.array[64:192, 64:192]
    np.testing.assert_allclose(prepared.fixed[0], (crop - crop.min()) / np.ptp(crop), atol=1e-6)
    u = np.asarray(method.field(prepared.moving[..., None], prepared.fixed[..., None]))
    transform = to_transform(prepared, u, image.geometry, image.geometry)
    np.testing.assert_allclose(transform.displacement[64:192, 64:192], u[0], atol=1e-6)
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
    grid = place_model_grid(image_from_array(heart(shape), spacing), None, None)
    assert grid.size == size
    np.testing.assert_allclose(grid.scale, scale)
    # the longer side fills the grid, border to border
    first, last = grid.fixed_pixels()[0, 0, 0], grid.fixed_pixels()[-1, 0, 0]
    np.testing.assert_allclose([first - scale / 2, last + scale / 2], [-0.5, shape[0] - 0.5])
