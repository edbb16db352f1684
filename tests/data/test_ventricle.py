"""The 3-D phantom: what it claims of its motion holds."""

import numpy as np
import pytest
from exact_strain import deformation_gradient

from ldm_morph_jax.data.ventricle import (
    LEFT_VENTRICLE,
    MYOCARDIUM,
    RIGHT_VENTRICLE,
    Heart,
    Motion,
    ventricle,
)
from ldm_morph_jax.ops import strain
from ldm_morph_jax.ops.jacobian import jacobian_determinant


@pytest.fixture(scope="module")
def heart():
    return ventricle(1, shape=(10, 72, 72), spacing=(10.0, 2.5, 2.5))


@pytest.mark.parametrize("seed", range(5))
def test_the_closed_form_inverts_and_never_folds(seed):
    rng = np.random.default_rng(seed)
    motion = Motion.draw(rng, Heart.draw(rng))
    points = np.random.default_rng(seed).uniform((-30, -90, -90), (110, 90, 90), size=(4000, 3))
    moved, gradient = motion.forward(points)
    np.testing.assert_allclose(motion.backward(moved), points, atol=1e-6)
    assert np.linalg.det(gradient).min() > 0.2  # at least (1 - 1.2 0.36)^2 (1 - 14 mm max S')
    for axis, step in enumerate(1e-4 * np.eye(3)):
        slope = (motion.forward(points + step)[0] - motion.forward(points - step)[0]) / 2e-4
        np.testing.assert_allclose(gradient[..., axis], slope, atol=1e-5)


def test_the_heart_contracts_shortens_thickens_and_twists(heart):
    volumes = [
        [(mask == k).sum() for k in (RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE)]
        for mask in (heart.fixed_mask, heart.moving_mask)
    ]
    ejected = 1 - volumes[1][2] / volumes[0][2]
    assert 0.35 < ejected < 0.75
    assert volumes[1][0] < 0.9 * volumes[0][0]
    wall = heart.fixed_mask == MYOCARDIUM
    wall[:4] = False  # the apex is thin and moves with the cavity
    tensor = np.asarray(strain.green_lagrange(heart.deformation))
    away = np.moveaxis(np.indices(wall.shape), 0, -1)[..., 1:] - heart.centre
    radial = away / np.linalg.norm(away, axis=-1, keepdims=True)
    none = np.zeros((*wall.shape, 1))
    around = np.concatenate([none, -radial[..., 1:], radial[..., :1]], -1)
    out, along = np.concatenate([none, radial], -1), np.eye(3)[0]
    means = [float(strain.normal_strain(tensor, n)[wall].mean()) for n in (out, around, along)]
    assert means[0] > 0.02 and means[1] < -0.1 and means[2] < -0.03
    middle = heart.displacement[..., 1:]
    turn = (radial[..., 0] * middle[..., 1] - radial[..., 1] * middle[..., 0])[wall]
    z = np.broadcast_to(np.arange(len(wall))[:, None, None], wall.shape)[wall]
    assert np.corrcoef(z, turn)[0, 1] < -0.5  # from apex to base
    assert heart.displacement[-3:][wall[-3:]][:, 0].mean() < -0.5  # towards the apex, voxels


def test_displacement_images_and_masks_belong_together(heart):
    from scipy.ndimage import map_coordinates

    at = np.moveaxis(np.indices(heart.fixed.shape) + np.moveaxis(heart.displacement, -1, 0), 0, 0)
    inner = heart.fixed_mask[1:-1] > 0
    warped = map_coordinates(heart.moving, at, order=1, mode="nearest")
    error = np.abs(warped - heart.fixed)[1:-1][inner].mean()
    assert error < 0.6 * np.abs(heart.moving - heart.fixed)[1:-1][inner].mean()
    carried = map_coordinates(heart.moving_mask, at, order=0, mode="nearest")
    for k in (RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE):
        a, b = carried == k, heart.fixed_mask == k
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85
    assert jacobian_determinant(heart.displacement).min() > 0
    by_differences = np.asarray(deformation_gradient(heart.displacement, heart.spacing))
    difference = np.abs(by_differences - heart.deformation)[2:-2]
    assert difference.mean() < 0.02


def test_a_seed_is_a_heart():
    small = {"shape": (4, 24, 24), "spacing": (24.0, 8.0, 8.0)}
    a, b, c = (ventricle(seed, **small) for seed in (5, 5, 6))
    np.testing.assert_array_equal(a.moving, b.moving)
    assert np.abs(a.displacement - c.displacement).max() > 0.05
