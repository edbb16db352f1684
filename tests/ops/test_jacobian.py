"""The one Jacobian determinant, against hand values, NumPy's, SimpleITK and the published code."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from ldm_morph_jax.ops.jacobian import determinant, jacobian_determinant

GOLDEN = Path(__file__).parent.parent / "golden" / "ldm_morph_128.npz"


def smooth_field(space, seed=15):
    noise = np.random.default_rng(seed).normal(size=(*space, len(space)))
    field = ndimage.gaussian_filter(noise, (*[2] * len(space), 0))
    return (1.5 * field / np.abs(field).max()).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_determinant_is_numpys(n):
    matrices = np.random.default_rng(n).normal(size=(50, n, n))
    rows = [[matrices[:, i, j] for j in range(n)] for i in range(n)]
    np.testing.assert_allclose(determinant(rows), np.linalg.det(matrices), rtol=1e-9)


@pytest.mark.parametrize("n", [2, 3])
def test_affine_maps_by_hand(n):
    matrix = np.random.default_rng(n).normal(size=(n, n))
    x = np.moveaxis(np.indices((5, 6, 4)[-n:]), 0, -1)
    u = x @ (matrix - np.eye(n)).T
    for given in (u, u[None], np.stack([u, u])):
        found = jacobian_determinant(given)
        assert isinstance(found, np.ndarray) and found.shape == given.shape[:-1]
        np.testing.assert_allclose(found, np.linalg.det(matrix), rtol=1e-9)
        traced = jacobian_determinant(jnp.asarray(given, jnp.float32))
        assert isinstance(traced, jnp.ndarray)
        np.testing.assert_allclose(traced, np.linalg.det(matrix), rtol=1e-3, atol=1e-4)


def test_rows_and_columns_by_hand():
    rows, columns = np.indices((5, 6)).astype(np.float32)
    # x + u(x) = (1.5 r + 0.25 c, -0.5 r + 0.75 c): determinant 1.125 + 0.125
    u = np.stack([0.5 * rows + 0.25 * columns, -0.5 * rows - 0.25 * columns], -1)[None]
    np.testing.assert_allclose(jacobian_determinant(u), 1.25, rtol=1e-6)
    reflection = np.stack([-2 * rows, 0 * rows], -1)[None]
    np.testing.assert_allclose(jacobian_determinant(reflection), -1, rtol=1e-6)


@pytest.mark.parametrize("space", [(24, 20), (7, 12, 10)])
def test_equals_numpys_gradient(space):
    n = len(space)
    u = np.random.default_rng(14).normal(size=(2, *space, n))
    phi = u + np.moveaxis(np.indices(space), 0, -1)
    tensor = np.stack(np.gradient(phi, axis=tuple(range(1, n + 1))), axis=-1)
    expected = np.linalg.det(tensor)
    np.testing.assert_allclose(jacobian_determinant(u), expected, atol=1e-12)
    np.testing.assert_allclose(
        jacobian_determinant(jnp.asarray(u, jnp.float32)), expected, atol=5e-5
    )


@pytest.mark.parametrize("space", [(24, 20), (12, 14, 10)])
def test_equals_simpleitk_inside(space):
    sitk = pytest.importorskip("SimpleITK")
    u = smooth_field(space)
    field = sitk.GetImageFromArray(np.ascontiguousarray(u[..., ::-1], np.float64), isVector=True)
    expected = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field))
    inner = (slice(1, -1),) * len(space)
    np.testing.assert_allclose(jacobian_determinant(u)[inner], expected[inner], atol=1e-5)


def test_equals_the_published_networks():
    golden = np.load(GOLDEN)
    displacement = np.moveaxis(golden["flow"], 0, -1)[None] * 127 / 2
    found = jacobian_determinant(displacement)
    np.testing.assert_allclose(found[0], golden["jacobian_determinant"], rtol=1e-4, atol=1e-3)


def test_slices_that_move_within_their_planes_have_the_determinant_of_each():
    u = np.stack([smooth_field((24, 20), seed) for seed in range(3)])
    moved = np.concatenate([np.zeros((*u.shape[:-1], 1), np.float32), u], axis=-1)
    np.testing.assert_array_equal(jacobian_determinant(moved), jacobian_determinant(u))
    np.testing.assert_array_equal(jacobian_determinant(moved[:1]), jacobian_determinant(u[:1]))


def test_half_precision_is_raised_and_wrong_shapes_are_refused():
    assert jacobian_determinant(jnp.zeros((1, 4, 4, 2), jnp.bfloat16)).dtype == jnp.float32
    for shape in ((4, 4, 4), (4, 2), (4, 4, 3)):
        with pytest.raises(ValueError, match="u: found shape"):
            jacobian_determinant(np.zeros(shape))
