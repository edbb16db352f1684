"""Linear maps axis by axis: SciPy's Gaussians, linear interpolation, means of blocks."""

import numpy as np
import pytest
from scipy import ndimage

from ldm_morph_jax.ops import separable


@pytest.mark.parametrize("space, sigmas", [((60, 50), (2.0, 3.0)), ((30, 24, 40), (0.8, 1.5, 2.0))])
def test_smoothing_is_scipys(space, sigmas):
    image = np.random.default_rng(0).normal(size=(2, *space)).astype(np.float32)
    smoothed = separable.smooth(image, sigmas)
    expected = ndimage.gaussian_filter(image, (0, *sigmas), truncate=8)
    inner = (slice(None), *(slice(int(4 * s) + 1, -int(4 * s) - 1) for s in sigmas))
    np.testing.assert_allclose(smoothed[inner], expected[inner], atol=2e-4)
    repeated = separable.smooth(image, sigmas, border="repeat", truncate=3)
    expected = ndimage.gaussian_filter(image, (0, *sigmas), mode="nearest", truncate=3)
    np.testing.assert_allclose(repeated, expected, atol=1e-5)


def test_gaussians_keep_a_constant_and_narrow_ones_change_nothing():
    for options in ({}, {"border": "repeat", "truncate": 3}):
        np.testing.assert_allclose(
            separable.gaussian_matrix(9, 1.5, **options).sum(axis=1), 1, rtol=1e-6
        )
        np.testing.assert_array_equal(separable.gaussian_matrix(4, 0.05, **options), np.eye(4))


def test_every_axis_gets_its_matrix():
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 5, 6))
    matrices = [np.random.default_rng(k).normal(size=(7 + k, 4 + k)) for k in range(3)]
    expected = np.einsum("bcdhw,id,jh,kw->bcijk", x, *matrices)
    np.testing.assert_allclose(separable.apply(matrices, x), expected, atol=2e-5)
    expected = np.einsum("bcdhw,jh,kw->bcdjk", x, *matrices[1:])
    np.testing.assert_allclose(separable.apply(matrices[1:], x), expected, atol=2e-5)


def test_cells_and_corners():
    line = np.array([[1.0, 3.0, 5.0, 7.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    means = separable.resize(line, (1, 2), align="cells")
    np.testing.assert_allclose(means, [[1, 3]])
    back = separable.resize(means, (1, 4), align="cells")  # centres at -1/4, 1/4, 3/4, 5/4
    np.testing.assert_allclose(back, [[1, 1.5, 2.5, 3]])
    np.testing.assert_allclose(separable.resize(line, (2, 7))[0], [1, 2, 3, 4, 5, 6, 7])
    np.testing.assert_allclose(
        separable.resize(line[None], (2, 2), align="cells"), [[[2, 6], [0, 0]]]
    )
    with pytest.raises(ValueError, match="whole parts"):
        separable.resize(line, (2, 3), align="cells")
    with pytest.raises(ValueError, match="align: found 'edges'"):
        separable.resize(line, (2, 3), align="edges")
