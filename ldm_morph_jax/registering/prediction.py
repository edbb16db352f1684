"""Register slices that lie on their grids: the network's velocity, refined on the whole image."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.devices.batches import fill_up
from ldm_morph_jax.devices.programs import Program, options_for
from ldm_morph_jax.registering.grid import Grid, OnGrid, Slice, velocity_on_whole
from ldm_morph_jax.registering.method import Method
from ldm_morph_jax.registering.search import Refinement, refine

# Sides of the whole grid are filled up to multiples of this, so that few programs are compiled.
_SIZE_CLASS = 64


@dataclass(frozen=True)
class Found:
    """What was found for one slice.

    grid: where the displacement is given.
    displacement: `[*grid.shape, 2]` pixels of the grid, pull-back.
    scale: s in [0, 1]: of the velocity exp(s v) was taken, as no more motion makes the images more
        alike on the whole image than none; 1 where a method predicts a displacement.
    correlation, rms: (before, after) mean local correlation, and root of the mean squared
        difference of the images in [0, 1], on the whole image; None where a method predicts a
        displacement.
    start_gain: how well the network's prediction explains the images, see `search.Refined`; it
        was dropped where this is below `search.Refinement.least_gain`.
    """

    grid: Grid
    displacement: np.ndarray
    scale: float = 1.0
    correlation: tuple[float, float] | None = None
    rms: tuple[float, float] | None = None
    start_gain: float | None = None


def is_velocity(method: Method, *, steps: int, diffeomorphic: bool) -> bool:
    """Whether what is found is the integral of a velocity.

    Args:
        method: the method.
        steps: of refinement.
        diffeomorphic: take a predicted displacement for a velocity.

    Raises:
        ValueError: refinement or integration of what a method without a network finds.
    """
    if method.image_size is None:
        for option, asked in (("refine", steps), ("diffeomorphic", diffeomorphic)):
            if asked:
                raise ValueError(
                    f"{option}: works on what a network predicts; {method.name} has none"
                )
        return False
    return bool(steps) or diffeomorphic or method.predicts_velocity


def find(
    method: Method, slices: Sequence[Slice], *, steps: int = 0, diffeomorphic: bool = False
) -> list[Found]:
    """Register slices, in any order and number; none sees another.

    Args:
        method: the method.
        slices: see `grid.Slice`.
        steps: of refinement; 0: what the network predicts.
        diffeomorphic: see `is_velocity`.

    Raises:
        ValueError: the method predicts NaN; see also `is_velocity`.
    """
    if not is_velocity(method, steps=steps, diffeomorphic=diffeomorphic):
        return [
            Found(one.model.grid, np.asarray(u, np.float64))
            for one, u in zip(slices, _run(method, method.displacement, slices), strict=True)
        ]
    refining = _refining(steps, method.calls)
    classes = [_size_class(one.whole.grid.shape) for one in slices]
    if method.calls == "once":  # two programs to load: both at once
        refining.prepare(*_shapes(_batch_size(len(slices)), classes[0]))
    starts = [
        velocity_on_whole(one, np.asarray(v, np.float64))
        for one, v in zip(slices, _run(method, method.velocity, slices), strict=True)
    ]
    found: list[Found | None] = [None] * len(slices)
    for size in dict.fromkeys(classes):
        members = [k for k, one in enumerate(classes) if one == size]
        inputs = [_filled_up(slices[k].whole, starts[k], size) for k in members]
        for part, filled in _batches([np.stack(arrays) for arrays in zip(*inputs, strict=True)]):
            refined = {name: np.asarray(value) for name, value in refining(*filled).items()}
            for row, k in enumerate(members[part]):
                found[k] = _of_slice(refined, row, slices[k].whole.grid)
    return found


def refined_displacement(method: Method, moving, fixed, *, steps: int) -> np.ndarray:
    """`[B, N, N, 1]` twice -> displacement `[B, N, N, 2]` after `steps` of refinement."""
    n = moving.shape[1]
    grid = Grid((n, n), ((n - 1) / 2,) * 2, (1.0, 1.0))
    pairs = [
        OnGrid(grid, m, f, np.ones((n, n), bool))
        for m, f in zip(np.asarray(moving)[..., 0], np.asarray(fixed)[..., 0], strict=True)
    ]
    slices = [Slice(pair, pair, np.zeros(2)) for pair in pairs]
    return np.stack([one.displacement for one in find(method, slices, steps=steps)]).astype("f4")


def _run(method: Method, function, slices: Sequence[Slice]) -> list[np.ndarray]:
    """`function` of the slices on the model grid; those on grids of one size go together."""
    results: list[np.ndarray | None] = [None] * len(slices)
    for shape in dict.fromkeys(one.model.grid.shape for one in slices):
        members = [k for k, one in enumerate(slices) if one.model.grid.shape == shape]
        images = [
            np.stack([getattr(slices[k].model, name) for k in members])[..., None]
            for name in ("moving", "fixed")
        ]
        # an iterative method would spend on filling up what nobody reads
        alone = method.image_size is None
        for part, filled in _batches(images, one_by_one=alone):
            values = np.asarray(function(*map(jnp.asarray, filled)))
            if not np.isfinite(values).all():
                raise ValueError(
                    f"{method.name}: predicted NaN or infinity; the weights are not usable"
                )
            for row, k in enumerate(members[part]):
                results[k] = values[row]
    return results


def _batches(
    arrays: list[np.ndarray], *, one_by_one: bool = False
) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Rows of the arrays, and these rows filled up to 1, 4 or 16.

    Every size is a program to compile, the largest bounds the memory.
    """
    first = 0
    while left := len(arrays[0]) - first:
        size = 1 if one_by_one else _batch_size(left)
        part = slice(first, first + min(size, left))
        yield part, fill_up([array[part] for array in arrays], size)[0]
        first = part.stop


def _batch_size(left: int) -> int:
    return 1 if left == 1 else 16 if left >= 16 else 4


def _shapes(batch: int, size: tuple[int, int]) -> list[jax.ShapeDtypeStruct]:
    """Of the arguments of `_refining`."""
    image, mask = (jax.ShapeDtypeStruct((batch, *size), kind) for kind in (np.float32, bool))
    return [image, image, mask, jax.ShapeDtypeStruct((batch, *size, 2), np.float32)]


def _size_class(shape: tuple[int, int]) -> tuple[int, int]:
    return tuple(_SIZE_CLASS * math.ceil(n / _SIZE_CLASS) for n in shape)


def _filled_up(pair: OnGrid, velocity: np.ndarray, size: tuple[int, int]) -> tuple:
    """(moving, fixed, valid, velocity) of `size`; what is new does not count."""
    more = [(0, n - old) for n, old in zip(size, pair.grid.shape, strict=True)]
    return (
        np.pad(pair.moving, more, mode="edge"),
        np.pad(pair.fixed, more, mode="edge"),
        np.pad(pair.valid, more),
        np.pad(velocity, [*more, (0, 0)], mode="edge"),
    )


_WANTED = ("displacement", "scale", "correlation", "rms", "start_gain")  # of search.Refined


@functools.cache
def _refining(steps: int, calls: str) -> Program:
    """(moving, fixed, valid, start) -> what is wanted of `search.refine` with so many steps."""
    settings = Refinement.of(steps)

    def make():
        def refined(*arguments):
            whole = refine(*arguments, settings=settings)
            return {name: getattr(whole, name) for name in _WANTED}

        return refined

    # its loop gains more by optimisation than that takes, even if it is called once
    options = options_for("few" if calls == "once" else calls)
    return Program(make, f"refine {settings}", options)


def _of_slice(refined: dict[str, np.ndarray], row: int, grid: Grid) -> Found:
    rows, columns = grid.shape
    return Found(
        grid,
        refined["displacement"][row, :rows, :columns].astype(np.float64),
        float(refined["scale"][row]),
        tuple(map(float, refined["correlation"][row])),
        tuple(map(float, refined["rms"][row])),
        float(refined["start_gain"][row]),
    )
