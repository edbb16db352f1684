"""Gradient accumulation: processes a batch in parts, with the same result as the whole batch.

`optax.microbatching` splits a batch `[B, ...]` into parts of every `parts`-th row, so that each
part is spread over all devices like the batch, and keeps the activations of one part at a time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from optax.microbatching import AccumulationType, microbatch


def mean_gradient(loss_fn: Callable, params, batch, parts: int):
    """Loss, terms and gradient as means over the parts of a batch.

    Args:
      loss_fn: (params, part, number of the part) -> (loss, terms), means over the part's rows.
      batch: tree of `[B, ...]`; B is a multiple of `parts`.

    Returns:
      ((loss, terms), gradient with respect to the parameters).
    """
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        return gradient_fn(params, batch, 0)
    rows = _rows(batch)
    in_turn = microbatch(
        lambda params, part, numbers: gradient_fn(params, part, numbers[0]),
        argnums=(1, 2),
        microbatch_size=rows // parts,
        accumulator=AccumulationType.MEAN,
    )
    return in_turn(params, batch, jnp.arange(rows) % parts)


def in_parts(function: Callable, batch, parts: int, joined):
    """`function(batch)`, computed part by part; only inputs are kept for the backward pass.

    For losses that need all rows at once, such as an adversarial loss.

    Args:
      joined: for every result of `function`, True if it is an array `[B, ...]`, which is
        reassembled in the batch's order, False if it is a mean over the batch.
    """
    if parts == 1:
        return function(batch)
    how = {True: AccumulationType.CONCAT, False: AccumulationType.MEAN}
    return microbatch(
        jax.checkpoint(function),
        argnums=0,
        microbatch_size=_rows(batch) // parts,
        accumulator=jax.tree.map(how.get, joined),
    )(batch)


def _rows(batch) -> int:
    return len(jax.tree.leaves(batch)[0])
