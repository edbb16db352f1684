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
    """A function of arrays (or trees of them) `[N, ...]`, `size` rows at a time, by one program.

    The last rows are filled up, and what comes of the copies is dropped. Returns what the function
    does, a tree of arrays `[N, ...]`, as NumPy arrays.
    """
    parts = []
    for first in range(0, len(jax.tree.leaves(arrays)[0]), size):
        rows = jax.tree.map(lambda a, at=first: a[at : at + size], arrays)
        chunk, valid = fill_up(rows, size)
        parts.append(jax.tree.map(lambda a, valid=valid: np.asarray(a)[valid], function(*chunk)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
