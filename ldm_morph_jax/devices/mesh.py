"""Data parallelism: one mesh axis over all devices, parameters replicated, batches sharded.

This replaces `jax.pmap`, which JAX now builds on `jit` and `shard_map`, keeps in maintenance only
and does not recommend for new code. One `jax.jit` step over the mesh runs unchanged on a CPU, eight
GPUs or a pod. Losses are means over the global batch, and XLA inserts the all-reduce. Random draws
inside the step are global arrays, so one device and eight devices give the same numbers.
"""

import os
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ldm_morph_jax.devices import processes
from ldm_morph_jax.devices.batches import fill_up


def available() -> list[jax.Device]:
    """All devices of all processes; ValueError if the platform asked for has none here."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where only that one is asked for
        platforms = os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms
        reason = " ".join(str(error).split()) or "JAX finds no such device"
        raise ValueError(
            f"JAX_PLATFORMS is {platforms!r}, but {reason}; unset it, or set it to cpu"
        ) from None


def data_mesh(devices=None) -> Mesh:
    """A one-axis `("data",)` mesh over all devices of all processes.

    The axis is Auto: window partitions reshape across the sharded batch axis, which an Explicit
    mesh (the default of `jax.make_mesh`) refuses.
    """
    devices = available() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Raise ValueError, naming the nearest valid sizes, if devices cannot share a batch equally."""
    devices = mesh.devices.size
    if micro_batches < 1:
        raise ValueError(f"micro_batches is {micro_batches}, expected 1 or more")
    unit = devices * micro_batches
    if batch_size < 1 or batch_size % unit:
        below = batch_size // unit * unit
        legal = [str(n) for n in (below, below + unit) if n > 0]
        times = f" x {micro_batches} micro-batches" if micro_batches > 1 else ""
        raise ValueError(
            f"batch_size {batch_size} does not divide over {devices} devices{times}; "
            f"valid sizes are multiples of {unit}, for example {' or '.join(legal)}"
        )


def over_batches(function: Callable, shared, arrays, *, batch_size: int):
    """`function(shared, batch)` over host arrays, with every batch shared by all devices.

    Used for validation.

    Args:
      function: (shared, tree of `[B, ...]`) -> tree of `[B, ...]`, row by row. Compiled by
        `replicated_jit`, so that every process gets all results.
      shared: parameters and the like, replicated over the mesh (or host arrays).
      arrays: tree of host arrays `[N, ...]`, the same on every process.
      batch_size: rows at a time, rounded up to a multiple of the number of devices. The last batch
        is padded (`batches.fill_up`); the results of the copies are dropped.

    Returns:
      The tree of results as host arrays `[N, ...]`.
    """
    mesh = data_mesh()
    devices = mesh.devices.size
    batch_size = -(-batch_size // devices) * devices
    parts = []
    for start in range(0, len(jax.tree.leaves(arrays)[0]), batch_size):
        rows = jax.tree.map(lambda a, at=start: np.asarray(a)[at : at + batch_size], arrays)
        batch, valid = fill_up(rows, batch_size)
        batch = jax.tree.map(lambda a: _from_all_hosts(a, mesh), batch)
        results = jax.device_get(function(shared, batch))
        parts.append(jax.tree.map(lambda a, valid=valid: a[valid], results))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def replicated_jit(function: Callable) -> Callable:
    """`jax.jit` with results replicated on every device, so that every process can read them."""
    jitted = jax.jit(function, out_shardings=replicated(data_mesh()))
    if jax.process_count() == 1:
        return jitted
    programs = {}

    def call(*arguments):
        """Process 0 may find a program in the compilation cache that the others must compile."""
        shapes = jax.tree.structure(arguments), tuple(map(np.shape, jax.tree.leaves(arguments)))
        if shapes not in programs:
            programs[shapes] = jitted.lower(*arguments).compile()
            processes.wait_for_all("compiled")
        return programs[shapes](*arguments)

    return call


def _from_all_hosts(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """A host array that every process holds as one global array sharded over the mesh."""
    return jax.make_array_from_callback(array.shape, sharded(mesh), lambda index: array[index])


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's share of a batch (host arrays) as global arrays sharded over the mesh."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharded(mesh), np.asarray(x)), batch
    )
