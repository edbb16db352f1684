"""Gradient accumulation: a batch in several parts, one after the other, equal to the whole batch.

A batch `[B, ...]` is cut into parts of every `parts`-th row, so that each part is spread over all
devices as the batch is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def mean_gradient(loss_fn: Callable, params, batch, parts: int):
    """Loss, terms and gradient as means over the parts of a batch.

    Args:
      loss_fn: (params, part, number of the part) -> (loss, terms), means over the part's rows.
      batch: tree of `[B, ...]`; B is a multiple of `parts`.

    Returns:
      (loss, terms, gradient in the parameters).
    """
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        (loss, terms), gradient = gradient_fn(params, batch, 0)
        return loss, terms, gradient

    def of_part(numbered):
        (loss, terms), gradient = gradient_fn(params, *numbered)
        return loss, terms, gradient

    def add(total, numbered):
        return jax.tree.map(jnp.add, total, of_part(numbered)), None

    numbered = _split(batch, parts), jnp.arange(parts)
    first = jax.tree.map(lambda a: a[0], numbered)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(of_part, first))
    total, _ = jax.lax.scan(add, zeros, numbered)
    return jax.tree.map(lambda a: a / parts, total)


def in_parts(function: Callable, batch, parts: int):
    """`function(batch)` part by part; only the inputs are kept for the backward pass.

    `function` returns a tree of arrays `[B, ...]`, which are put together again in the batch's
    order, and of scalars that are means over the batch. For losses that need all rows at once,
    such as an adversarial one.
    """
    if parts == 1:
        return function(batch)
    results = jax.lax.map(jax.checkpoint(function), _split(batch, parts))

    def join(a):  # [parts, B / parts, ...] or [parts]
        return jnp.mean(a) if a.ndim == 1 else a.swapaxes(0, 1).reshape(-1, *a.shape[2:])

    return jax.tree.map(join, results)


def _split(batch, parts: int):
    """`[B, ...]` -> `[parts, B / parts, ...]`."""
    return jax.tree.map(
        lambda a: a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1),
        batch,
    )
