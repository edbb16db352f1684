"""LDM-Morph's field: a displacement as in the paper, or a velocity that is integrated."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

from ldm_morph_jax.methods import build_method
from ldm_morph_jax.ops.geometry import compose, integrate_velocity
from ldm_morph_jax.ops.jacobian import jacobian_determinant
from ldm_morph_jax.profiling.timing import random_arrays
from ldm_morph_jax.runs.directory import abstract_ldm

pytestmark = pytest.mark.integration


def method(tmp_path, **changes):
    config = tiny_config(tmp_path)
    config.registration.update(changes)
    return build_method(config)


def initial(method):
    return jax.jit(lambda: method.init(jax.random.key(0), (32, 32)))()


def test_the_paper_predicts_a_displacement(tmp_path):
    field = jax.random.normal(jax.random.key(0), (1, 32, 32, 2))
    assert method(tmp_path).to_displacement(field) is field
    assert not method(tmp_path).predicts_velocity


def test_a_velocity_is_smoothed_and_integrated(tmp_path):
    """A rough field, as a displacement full of folds, becomes a map without any."""
    field = 4 * jax.random.normal(jax.random.key(0), (1, 64, 64, 2))
    assert jacobian_determinant(field).min() < 0
    velocity_method = method(tmp_path, integration_steps=6, velocity_sigma=2.0)
    assert velocity_method.predicts_velocity
    u = velocity_method.to_displacement(field)
    assert u.shape == field.shape and jacobian_determinant(u).min() > 0
    assert np.abs(u).max() > 0.5
    # a smooth velocity loses little by being integrated at half the size
    x = np.moveaxis(np.indices((64, 64)), 0, -1) / 63 * np.pi
    smooth = (6 * np.sin(x) * np.sin(x[..., ::-1]))[None].astype(np.float32)
    u = method(tmp_path, integration_steps=6).to_displacement(smooth)
    np.testing.assert_allclose(u, integrate_velocity(smooth, 6), atol=0.05)


def test_smoothing_without_a_velocity_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"velocity_sigma is 2\.0.*integration_steps above 0"):
        method(tmp_path, velocity_sigma=2.0)


@pytest.mark.parametrize("fusion", ["none", "lgca"])
def test_exchanged_images_have_the_inverse_and_the_same_image_none(tmp_path, fusion):
    config = tiny_config(tmp_path)
    with config.unlocked():
        config.registration.update(integration_steps=6, velocity_sigma=4.0, symmetric=True)
        config.registration.model.fusion = fusion
    method = build_method(config)
    rng = np.random.default_rng(0)
    moving, fixed = rng.random((2, 1, 32, 32, 1), np.float32)
    drawn = initial(method)
    params = jax.tree.map(np.add, drawn, random_arrays(drawn, rng))  # no layer is zero
    frozen = random_arrays(abstract_ldm(config), rng)
    field = jax.jit(method.field)
    forward = field(params, frozen, moving, fixed)
    assert np.abs(forward).max() > 0.1
    # float32: how a row is rounded depends on its place in the batch, differently on every CPU
    rounding = 1e-4 * float(np.abs(forward).max())
    np.testing.assert_allclose(field(params, frozen, fixed, moving), -forward, atol=rounding)
    np.testing.assert_allclose(field(params, frozen, moving, moving), 0, atol=rounding)
    there, back = method.to_displacement(forward), method.to_displacement(-forward)
    assert np.abs(compose(there, back))[0, 4:-4, 4:-4].max() < 0.1 * np.abs(there).max()


def test_a_symmetric_loss_is_the_same_for_exchanged_images(tmp_path):
    config = tiny_config(tmp_path)
    with config.unlocked():
        config.registration.update(integration_steps=6, symmetric=True)
        config.registration.model.drop_path_rate = 0.0
    method = build_method(config)
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 2, 32, 32, 1), np.float32)
    params, frozen = initial(method), random_arrays(abstract_ldm(config), rng)
    loss = jax.jit(
        lambda m, f: method.loss(params, frozen, {"moving": m, "fixed": f}, jax.random.key(0), 0)[1]
    )
    forward, exchanged = loss(a, b), loss(b, a)
    for name in forward:
        np.testing.assert_allclose(forward[name], exchanged[name], rtol=1e-4)


def test_symmetry_without_a_velocity_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"symmetric is True.*integration_steps above 0"):
        method(tmp_path, symmetric=True)
