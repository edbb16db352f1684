"""LDDMM: its energy and gradient, and what it makes of clean hearts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax.data.phantom import phantom_pair
from ldm_morph_jax.methods.lddmm import LDDMM
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.jacobian import jacobian_determinant
from ldm_morph_jax.ops.metrics import dice
from ldm_morph_jax.runs.trained import load_method

pytestmark = pytest.mark.integration

LABELS = {1: "left ventricle", 2: "myocardium", 3: "right ventricle"}


def blob(size, centre, width):
    y, x = np.meshgrid(*[np.arange(size) / size] * 2, indexing="ij")
    square = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
    return np.exp(-square / (2 * width**2))[None, ..., None]


def derivatives(lddmm, momentum, moving, fixed, directions, step=1e-3):
    """Central differences of the energy along directions, and what its gradient says of them."""
    at = jax.jit(functools.partial(lddmm.energy_and_gradient, moving=moving, fixed=fixed))
    gradient = at(momentum)[1]
    found, expected = [], []
    for direction in directions:
        velocity = np.asarray(lddmm.velocity(direction))
        scale = np.abs(velocity).max()
        energies = [at(momentum + sign * step / scale * direction)[0][0] for sign in (1, -1)]
        expected.append(float(energies[0] - energies[1]) / (2 * step))
        found.append(np.sum(gradient * velocity / scale) / lddmm.time_steps)
    return np.array(found), np.array(expected)


def test_velocity_inverts_the_operator():
    """A = (1 - alpha^2 Laplacian)^4, periodic, five-point."""
    lddmm = LDDMM(alpha=1.5)
    with jax.enable_x64(True):
        momentum = np.random.default_rng(0).normal(size=(5, 1, 16, 12, 2))
        v = np.asarray(lddmm.velocity(momentum))
    for _ in range(2 * lddmm.power):
        neighbours = sum(np.roll(v, shift, axis) for shift in (-1, 1) for axis in (2, 3))
        v = v - lddmm.alpha**2 * (neighbours - 4 * v)
    np.testing.assert_allclose(v, momentum, atol=1e-9)


def test_volumes_are_registered_as_images():
    """A volume of equal planes moves like one of them, and not through them."""
    lddmm = LDDMM(iterations=20)
    plane = blob(16, (0.45, 0.5), 0.15), blob(16, (0.5, 0.55), 0.15)
    volumes = [np.broadcast_to(image[:, None], (1, 6, 16, 16, 1)) for image in plane]
    expected = lddmm.displacement({}, {}, *(image.astype(np.float32) for image in plane))
    u = np.asarray(lddmm.displacement({}, {}, *(v.astype(np.float32) for v in volumes)))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(u[..., 0], 0, atol=1e-4)
    np.testing.assert_allclose(u[:, 3, ..., 1:], expected, atol=2e-3)


@pytest.mark.parametrize(("size", "tolerance"), [(48, 0.06), (96, 0.015)])
def test_gradient_is_that_of_the_energy(size, tolerance):
    """Exact at rest; elsewhere it is the gradient before discretisation, nearer on finer grids."""
    lddmm = LDDMM(alpha=size / 8)
    moving, fixed = blob(size, (0.45, 0.5), 0.12), blob(size, (0.5, 0.55), 0.13)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        directions = [rng.normal(size=(5, 1, size, size, 2)) for _ in range(6)]
        rest = np.zeros_like(directions[0])
        found, expected = derivatives(lddmm, rest, moving, fixed, directions)
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)

        momentum = directions.pop()
        speed = np.abs(lddmm.velocity(momentum)).max()
        momentum = momentum * 0.02 * size / speed  # up to a fiftieth of the image in unit time
        directions.append(lddmm.energy_and_gradient(momentum, moving, fixed)[1])
        found, expected = derivatives(lddmm, momentum, moving, fixed, directions)
        assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
        np.testing.assert_allclose(found[-1], expected[-1], rtol=0.015)  # steepest descent

        # what deformation costs is quadratic, and its gradient exact
        blank = np.zeros_like(moving)
        found, expected = derivatives(lddmm, momentum, blank, blank, directions)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.fixture(scope="module")
def clean():
    """Hearts that differ by their motion alone: the fixed image is the moved moving image."""
    pairs = [phantom_pair(seed, look=look) for seed, look in ((1, "sax"), (2, "sax"), (3, "echo"))]
    arrays = {name: np.stack([getattr(p, name) for p in pairs]) for name in pairs[0]._fields}
    moving, motion = arrays["moving"][..., None], arrays["displacement"]
    images = {"moving": moving, "fixed": np.asarray(warp(jnp.asarray(moving), motion))}
    masks = {side: arrays[f"{side}_mask"][..., None] for side in ("moving", "fixed")}
    return images, masks, motion


@pytest.fixture(scope="module")
def registered(clean):
    return jax.device_get(LDDMM().register(**clean[0]))


def test_clean_hearts_are_registered_without_folds(clean, registered):
    displacement, _ = registered
    _, masks, motion = clean
    warped = warp(jnp.asarray(masks["moving"]), displacement, interpolation="nearest")
    for i in range(3):
        before = dice(masks["moving"][i], masks["fixed"][i], LABELS)
        after = dice(np.asarray(warped[i]), masks["fixed"][i], LABELS)
        assert np.mean(list(before.values())) < 0.75
        assert np.mean(list(after.values())) >= 0.95, after
    assert np.asarray(jacobian_determinant(displacement)).min() > 0
    assert np.all(np.linalg.norm(displacement - motion, axis=-1).mean((1, 2)) < 0.4)  # pixels


def test_energy_falls_to_the_end(clean, registered):
    images = clean[0]
    _, energy = registered
    assert energy.shape == (500, 3)
    assert np.all(np.diff(energy, axis=0) <= 1e-6 * energy[0])
    assert np.all(energy[-1] < 0.2 * energy[0])
    error = 255 * (images["moving"] - images["fixed"])  # at rest: sigma = 2, and nothing moves
    np.testing.assert_allclose(energy[0], np.sum(error**2, axis=(1, 2, 3)) / 8, rtol=1e-4)


def test_a_pair_does_not_depend_on_its_batch(clean):
    images = {side: image[:, 32:96, 32:96] for side, image in clean[0].items()}
    lddmm = LDDMM(iterations=20)
    batch, _ = lddmm.register(**images)
    alone, _ = lddmm.register(**{side: image[1:2] for side, image in images.items()})
    np.testing.assert_allclose(batch[1:2], alone, atol=1e-3)


def test_evaluation_gets_the_papers_settings():
    lddmm = LDDMM()
    assert (lddmm.time_steps, lddmm.iterations) == (5, 500)
    image = np.zeros((2, 32, 32, 1), np.float32)
    u = load_method("lddmm").displacement(image, image)
    assert u.shape == (2, 32, 32, 2) and u.dtype == np.float32 and not np.any(u)


def test_images_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"fixed: found shape \(1, 32, 40, 1\)"):
        LDDMM().register(jnp.zeros((1, 32, 32, 1)), jnp.zeros((1, 32, 40, 1)))
