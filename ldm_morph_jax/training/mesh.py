"""Data parallelism: one mesh axis over all devices, parameters replicated, batches sharded.

This is what `jax.pmap` became: JAX builds pmap on `jit` and `shard_map`, keeps it in maintenance
and sends new code here. One `jax.jit` step over the mesh runs unchanged on a CPU, eight GPUs or a
pod; losses are means over the global batch and XLA inserts the all-reduce. Random draws inside
the step are global arrays, so one device and eight give the same numbers.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh(devices=None) -> Mesh:
    """A one-axis `("data",)` mesh over all devices of all processes.

    The axis is Auto: window partitions reshape across the sharded batch axis, which an Explicit
    mesh (the default of `jax.make_mesh`) refuses.
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Refuse a global batch that devices cannot share equally, naming the nearest legal ones."""
    devices = mesh.devices.size
    if batch_size < 1 or batch_size % devices:
        below = batch_size // devices * devices
        legal = [str(n) for n in (below, below + devices) if n > 0]
        raise ValueError(
            f"batch_size {batch_size} does not divide over {devices} devices; "
            f"legal sizes are multiples of {devices}, for example {' or '.join(legal)}"
        )


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's share of a batch (host arrays) as global arrays sharded over the mesh."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharded(mesh), np.asarray(x)), batch
    )
