"""Learning rates and optimisers of the stages."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ldm_morph_jax.config import stage_config
from ldm_morph_jax.training.optimiser import adam, learning_rate_schedule


def train(**changes):
    return ConfigDict(stage_config(steps=100, learning_rate=0.5, **changes))


def test_schedules():
    rates = {
        name: [float(learning_rate_schedule(train(schedule=name))(step)) for step in (0, 50, 100)]
        for name in ("constant", "cosine", "polynomial")
    }
    np.testing.assert_allclose(rates["constant"], [0.5, 0.5, 0.5])
    np.testing.assert_allclose(rates["cosine"], [0.5, 0.25, 0], atol=1e-7)
    np.testing.assert_allclose(rates["polynomial"], [0.5, 0.5 * 0.5**0.9, 0], atol=1e-7)
    warm = learning_rate_schedule(train(schedule="polynomial", warmup_steps=20))
    np.testing.assert_allclose([warm(10), warm(20), warm(100)], [0.25, 0.5, 0], atol=1e-7)
    with pytest.raises(ValueError, match="'linear', expected 'constant', 'cosine' or 'polynom"):
        learning_rate_schedule(train(schedule="linear"))


def test_amsgrad_remembers_the_largest_gradient():
    """After one large gradient the steps of AMSGrad stay small, those of Adam do not."""
    last = {}
    for amsgrad in (False, True):
        optimiser = adam(train(), b1=0.0, b2=0.5, amsgrad=amsgrad)
        state = optimiser.init(jnp.zeros(()))
        for gradient in (100.0, *[1.0] * 40):
            update, state = optimiser.update(jnp.asarray(gradient), state)
        last[amsgrad] = float(update)
    assert last[False] == pytest.approx(-0.5, rel=1e-3)
    assert -0.02 < last[True] < 0


@pytest.mark.parametrize("form", [{}, {"amsgrad": True}, {"weight_decay": 0.0}])
def test_gradients_below_epsilon_move_in_proportion(form):
    """Adam's first step is gradient / (|gradient| + epsilon), times the learning rate."""
    optimiser = adam(train(adam_eps=1e-3), **form)
    gradients = jnp.asarray([1.0, 1e-3, 1e-6])
    updates, _ = optimiser.update(gradients, optimiser.init(gradients), gradients)
    np.testing.assert_allclose(updates, [-0.5 / 1.001, -0.25, -0.5e-3 / 1.001], rtol=1e-5)
