"""LDM-Morph's field: a displacement as in the paper, or a velocity that is integrated."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

from ldm_morph_jax.methods.build import build_method
from ldm_morph_jax.ops.geometry import integrate_velocity, jacobian_determinant


def method(tmp_path, **changes):
    config = tiny_config(tmp_path)
    config.registration.update(changes)
    return build_method(config)


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
