"""What the baselines minimise, and its gradient in the displacement, against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from ldm_morph_jax.data.phantom import phantom_pair
from ldm_morph_jax.methods.cyclemorph import CycleMorph
from ldm_morph_jax.methods.diffusemorph import DiffuseMorph
from ldm_morph_jax.methods.transmorph import TransMorph

SIZE = 32


@pytest.fixture(scope="module")
def images():
    """moving and fixed `[2, 32, 32, 1]`, a smooth displacement `[2, 32, 32, 2]`."""
    pairs = [phantom_pair(seed, image_size=SIZE) for seed in (1, 2)]
    moving, fixed = (np.stack([getattr(p, side) for p in pairs]) for side in ("moving", "fixed"))
    rough = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 2))
    u = 30 * ndimage.gaussian_filter(rough, (0, 4, 4, 0))
    return moving[..., None], fixed[..., None], u.astype(np.float32)


def warp(image, u):
    """The image `[B, 1, H, W]` at x + u(x), u `[B, 2, H, W]` in pixels (row, column)."""
    axis = torch.arange(SIZE, dtype=u.dtype)
    place = torch.stack(torch.meshgrid(axis, axis, indexing="ij")) + u
    grid = (2 * place / (SIZE - 1) - 1).permute(0, 2, 3, 1).flip(-1)  # (x, y) in [-1, 1]
    return F.grid_sample(image, grid, padding_mode="border", align_corners=True)


def smoothness(u):
    rows, columns = (torch.diff(u, dim=axis).square().mean() for axis in (2, 3))
    return (rows + columns) / 2


def mean_squared_error(fixed, warped):
    return (fixed - warped).square().mean()


def local_correlation(fixed, warped):
    """Minus the mean of cross^2 / (var var) in windows of 9 x 9 around every pixel."""

    def box(x):
        return F.conv2d(x, torch.ones(1, 1, 9, 9, dtype=x.dtype), padding=4)

    cross = box(fixed * warped) - box(fixed) * box(warped) / 81
    variances = [box(x * x) - box(x) ** 2 / 81 for x in (fixed, warped)]
    return -(cross**2 / (variances[0] * variances[1] + 1e-5)).mean()


@pytest.mark.parametrize(
    ("method", "similarity", "weight"),
    [
        (TransMorph(None, 0.02), mean_squared_error, 0.02),  # VoxelMorph and TransMatch alike
        (CycleMorph(None), local_correlation, 1.0),
        (DiffuseMorph(None, None, None, smoothness_weight=0.03), mean_squared_error, 0.03),
    ],
    ids=["mse", "cyclemorph", "diffusemorph"],
)
def test_objective_and_its_gradient(images, method, similarity, weight):
    moving, fixed, u = images

    def objective(u):
        return method.objective({}, jnp.asarray(moving), jnp.asarray(fixed), u)["loss"]

    found, gradient = jax.jit(jax.value_and_grad(objective))(jnp.asarray(u))

    m, f, t = (torch.from_numpy(x.transpose(0, 3, 1, 2).astype(float)) for x in images)
    t.requires_grad_()
    expected = similarity(f, warp(m, t)) + weight * smoothness(t)
    expected.backward()
    np.testing.assert_allclose(found, expected.item(), rtol=1e-5)
    expected = t.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, expected, atol=1e-4 * np.abs(expected).max())
