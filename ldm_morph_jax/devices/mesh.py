"""The mesh of all devices: parameters replicated, batches sharded over rows and, perhaps, space.

One `jax.jit` step over the mesh runs unchanged on a CPU, eight GPUs or a pod. Losses are means over
the global batch, and XLA inserts the all-reduce. Random draws inside the step are global arrays, so
one device and eight devices give the same numbers.

Where a volume does not fit a device, several share it: each has some of its planes (of an image,
rows). XLA then splits convolutions, and exchanges the planes at the borders.
"""

import functools
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ldm_morph_jax.devices import processes
from ldm_morph_jax.devices.batches import in_chunks
from ldm_morph_jax.models.backend import straightforward


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


def data_mesh(devices_per_image: int = 1, devices=None) -> Mesh:
    """A `("data", "space")` mesh over all devices of all processes, or over those given.

    The axes are Auto: window partitions reshape across sharded axes, which an Explicit mesh (the
    default of `jax.make_mesh`) refuses.

    Args:
      devices_per_image: that share one image or volume, neighbours in one process where it has
        enough.

    Raises ValueError, naming the valid values, if all devices do not divide into such groups.
    """
    devices = available() if devices is None else devices
    check_devices_per_image(devices_per_image, devices)
    devices = sorted(devices, key=lambda d: (d.process_index, d.id))
    grid = np.asarray(devices).reshape(-1, devices_per_image)
    return Mesh(grid, ("data", "space"), axis_types=(AxisType.Auto,) * 2)


def check_devices_per_image(devices_per_image: int, devices, **sizes: int) -> None:
    """Raise ValueError, naming the valid values, if so many devices cannot share an image equally.

    sizes: what of an image they have to divide besides, by name, for example planes=32.
    """
    in_process = len([d for d in devices if d.process_index == devices[0].process_index])

    def problems(n):
        if n < 1 or len(devices) % n:
            yield f"the {len(devices)} devices"
        elif n % in_process and in_process % n:
            yield f"the {in_process} devices of each process, or a multiple of them"
        yield from (f"the {size} {name}" for name, size in sizes.items() if n < 1 or size % n)

    if found := list(problems(devices_per_image)):
        valid = [str(n) for n in range(1, len(devices) + 1) if not list(problems(n))]
        raise ValueError(
            f"compute.devices_per_image is {devices_per_image}, expected a divisor of "
            f"{' and of '.join(found)}: {' or '.join(valid)}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh, shape: Sequence[int] = ()) -> NamedSharding:
    """Of rows; of images, volumes and maps `[B, *space, C]` also of their first axis of space.

    A map whose first axis does not divide (a deep level of a network) is whole on each of the
    devices that share an image.
    """
    in_space = len(shape) >= 4 and shape[1] % mesh.shape["space"] == 0
    return NamedSharding(
        mesh, PartitionSpec("data", "space") if in_space else PartitionSpec("data")
    )


def rows_of_process(mesh: Mesh) -> tuple[int, int]:
    """(number, count): a batch has `count` parts of equal rows; this process reads that `number`.

    Processes that share images read the same rows.
    """
    # the first process of each image's; processes are in ascending order (`data_mesh`)
    readers = sorted({group[0].process_index for group in mesh.devices})
    return sum(reader <= jax.process_index() for reader in readers) - 1, len(readers)


def for_mesh(function: Callable, mesh: Mesh) -> Callable:
    """`function`, to be traced for this mesh.

    Where devices share images it takes the straightforward implementations on every backend: XLA
    splits the library's convolutions, but gathers an image to reshape it for those of a CPU.
    """
    if mesh.shape["space"] == 1:
        return function

    @functools.wraps(function)
    def traced(*arguments):
        with straightforward():
            return function(*arguments)

    return traced


def check_batch_size(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
    """Raise ValueError, naming the nearest valid sizes, if devices cannot share a batch equally."""
    devices, sharing = mesh.shape["data"], mesh.shape["space"]
    if micro_batches < 1:
        raise ValueError(f"micro_batches is {micro_batches}, expected 1 or more")
    unit = devices * micro_batches
    if batch_size < 1 or batch_size % unit:
        below = batch_size // unit * unit
        legal = [str(n) for n in (below, below + unit) if n > 0]
        times = f" groups of {sharing} devices" if sharing > 1 else " devices"
        times += f" x {micro_batches} micro-batches" if micro_batches > 1 else ""
        raise ValueError(
            f"batch_size {batch_size} does not divide over {devices}{times}; "
            f"valid sizes are multiples of {unit}, for example {' or '.join(legal)}"
        )


def over_batches(function: Callable, shared, arrays, *, batch_size: int, mesh: Mesh):
    """`function(shared, batch)` over host arrays, with every batch shared by all devices.

    Used for validation.

    Args:
      function: (shared, tree of `[B, ...]`) -> tree of `[B, ...]`, row by row. Compiled by
        `replicated_jit(mesh)`, so that every process gets all results.
      shared: parameters and the like, replicated over the mesh (or host arrays).
      arrays: tree of host arrays `[N, ...]`, the same on every process.
      batch_size: rows at a time, rounded up to a multiple of what `mesh` has along "data".

    Returns:
      The tree of results as host arrays `[N, ...]`.
    """
    groups = mesh.shape["data"]

    def placed(array):
        return _from_parts(array.shape, sharded(mesh, array.shape), lambda where: array[where])

    def results(batch):
        return jax.device_get(function(shared, jax.tree.map(placed, batch)))

    return in_chunks(results, -(-batch_size // groups) * groups, jax.tree.map(np.asarray, arrays))


def replicated_jit(mesh: Mesh) -> Callable[[Callable], Callable]:
    """A decorator: `jax.jit` for this mesh, whose results every device has, so every process."""
    return functools.partial(_replicated_jit, mesh)


def _replicated_jit(mesh: Mesh, function: Callable) -> Callable:
    jitted = jax.jit(for_mesh(function, mesh), out_shardings=replicated(mesh))
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


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's share of a batch, the rows that `rows_of_process` says, as global arrays."""
    number, count = rows_of_process(mesh)

    def whole(array):
        array = np.asarray(array)
        rows = len(array)
        shape = (count * rows, *array.shape[1:])

        def part(where):
            start, stop, _ = where[0].indices(shape[0])
            return array[(slice(start - number * rows, stop - number * rows), *where[1:])]

        return _from_parts(shape, sharded(mesh, shape), part)

    return jax.tree.map(whole, batch)


def _from_parts(shape: Sequence[int], sharding: NamedSharding, part: Callable) -> jax.Array:
    """As `jax.make_array_from_callback`, whose transfers count as unasked for."""
    places = sharding.addressable_devices_indices_map(tuple(shape))
    parts = [jax.device_put(part(where), device) for device, where in places.items()]
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, parts)
