"""JAX at its strictest, for tests of the training loop."""

import contextlib
import dataclasses
import functools

import flax.linen as nn
import jax
import optax
import pytest

# these mix integers and floats themselves
LENIENT = [(optax, name) for name in ("adam", "adamw", "amsgrad")] + [(nn, "avg_pool")]


@contextlib.contextmanager
def strict_promotion():
    """What is traced within may not promote types or ranks without saying so.

    A float64, or an array that was broadcast along the wrong axis, starts as such a promotion.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module, name in LENIENT:
            patch.setattr(module, name, _lenient(getattr(module, name)))
        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            yield


def _lenient(function):
    @functools.wraps(function)
    def call(*arguments, **options):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            result = function(*arguments, **options)
        if isinstance(result, optax.GradientTransformation):
            return optax.GradientTransformation(result.init, _lenient(result.update))
        return result

    return call


def guarded(program, batches):
    """Both, so that between steps nothing moves to or from the device unless asked to.

    The guard is on from every batch to the next validation, whose pictures are drawn on the host.
    """

    def evaluate(*arguments, **options):
        jax.config.update("jax_transfer_guard", "allow")
        return program.evaluate(*arguments, **options)

    return dataclasses.replace(program, evaluate=evaluate), _GuardedBatches(batches)


class _GuardedBatches:
    def __init__(self, batches):
        self._batches = batches

    def __next__(self):
        batch = next(self._batches)
        jax.config.update("jax_transfer_guard", "disallow")
        return batch

    def __getattr__(self, name):  # a checkpoint asks for the iterator's place
        return getattr(self._batches, name)
