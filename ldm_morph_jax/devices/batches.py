"""Pads batches to one size, so that a program is compiled only once."""

import jax
import numpy as np


def fill_up(batch, size: int):
    """Fill a batch up to `size` rows with copies of its last row.

    Args:
      batch: tree of arrays `[n, ...]`, 1 <= n <= size.
      size: rows wanted.

    Returns:
      (tree of arrays `[size, ...]`, valid `[size]` bool: False for the copies).
    """
    rows = {len(leaf) for leaf in jax.tree.leaves(batch)}
    if len(rows) != 1 or not 1 <= min(rows) <= size:
        raise ValueError(f"batch has {sorted(rows)} rows, expected one number from 1 to {size}")
    [n] = rows
    filled = jax.tree.map(lambda leaf: leaf[np.minimum(np.arange(size), n - 1)], batch)
    return filled, np.arange(size) < n


def in_chunks(function, size: int, *arrays):
    """A function of arrays `[N, ...]`, `size` rows at a time, so that one program serves all.

    Returns what the function does, a tree of arrays `[N, ...]`, as NumPy arrays.
    """
    parts = []
    for first in range(0, len(arrays[0]), size):
        chunk, valid = fill_up(tuple(a[first : first + size] for a in arrays), size)
        parts.append(jax.tree.map(lambda a, valid=valid: np.asarray(a)[valid], function(*chunk)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
