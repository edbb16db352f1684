"""JAX at its strictest, for tests of the training loop.

What is traced must not promote types or ranks silently (a float64 or an unwanted broadcast starts
so), and between two steps nothing may move between host and device unless the code asks for it.
"""

import contextlib
import functools

import flax.linen as nn
import jax
import optax

# these mix integers and floats themselves
LENIENT = [(optax, name) for name in ("adam", "adamw", "amsgrad")] + [(nn, "avg_pool")]


@contextlib.contextmanager
def strict_promotion(patch):
    """`patch` is a pytest.MonkeyPatch; it undoes what is changed here in Optax and Flax."""
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


class GuardedBatches:
    """Batches as a stage reads them; from the first one on, implicit transfers are errors."""

    def __init__(self, batches):
        self._batches = batches

    def __next__(self):
        batch = next(self._batches)
        jax.config.update("jax_transfer_guard", "disallow")
        return batch

    def __getattr__(self, name):  # a checkpoint asks for the iterator's place
        return getattr(self._batches, name)
