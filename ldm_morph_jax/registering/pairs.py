"""Register pairs of images of any size: to their grids, the start, the search, the result.

A network predicts a velocity on the model grid, which is where `search.refine` starts on the whole
image. An iterative method finds a displacement by itself. Volumes are searched in three dimensions:
from what a network for volumes predicts; if their slices are thick, from what one for images
predicts for each slice; else from no motion.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.devices.batches import fill_up
from ldm_morph_jax.devices.programs import Program, options_for
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.images import FEWEST_SLICES, Image, on_one_scale
from ldm_morph_jax.registering.affine import NONE, find_affine
from ldm_morph_jax.registering.grid import (
    Grid,
    OnGrid,
    Slice,
    has_thick_slices,
    prepare,
    prepare_volume,
    velocity_on_whole,
)
from ldm_morph_jax.registering.guiding import Guided, guide
from ldm_morph_jax.registering.result import Registration, SliceMotion
from ldm_morph_jax.registering.search import STEPS, Refinement, refine
from ldm_morph_jax.runs.anatomy import AnatomyModel, anatomy_network
from ldm_morph_jax.runs.trained import TrainedMethod
from ldm_morph_jax.runs.weights import DEFAULT_ANATOMY

AUTO = "auto"  # which network guides the search, see `register_images`
# Sides of the whole grid are filled up to multiples of this, so that few programs are compiled.
_SIZE_CLASS = 64
_SLICE_CLASS = 4  # the same for the slices of a volume
_RELAXATION = 3.0  # of the search in volumes


def register_images(
    method: TrainedMethod,
    pairs: Sequence[tuple[Image, Image]],
    *,
    align: str = "auto",
    centre: tuple[float, float] | None = None,
    refine: int | None = None,
    volume: bool = False,
    anatomy: AnatomyModel | str | Path = AUTO,
    affine: str = NONE,
) -> list[Registration]:
    """Register (moving, fixed) images.

    Args:
        method: what registers.
        pairs: none sees another.
        align, centre: see `grid.prepare`.
        refine: see `refinement_steps`.
        volume: register stacks in three dimensions where that is possible; otherwise the notes of
            the registration say why not. False: slice by slice.
        anatomy: guides the search, see `guiding`: a network, its name, run or file. "auto":
            `DEFAULT_ANATOMY` in volumes of thick slices, whose base leaves its slice; "none": not.
        affine: "rigid" or "affine": what is found before anything deforms, see `affine`.

    Raises:
        ImageError: two images that do not fit together.
        ValueError: a prediction of NaN, or anatomy where there is no search to guide; see also
            `refinement_steps`.
    """
    steps = refinement_steps(method, refine)
    if anatomy not in (AUTO, NONE) and not steps:
        raise ValueError(f"anatomy guides a search, and {method.name} is asked for none")
    pairs = [on_one_scale(*pair) for pair in pairs]
    prepared = []  # of every pair its slices, what guides the search of each, alignment and notes
    for moving, fixed in pairs:
        stacks = volume and moving.array.ndim == fixed.array.ndim == 3
        reason = _why_slice_by_slice(method, moving, fixed, steps) if stacks else None
        if method.depth and (reason or not stacks):
            raise ImageError(
                f"{moving.source}: {method.name} of this `model` registers volumes, "
                f"{reason or 'expected two stacks of slices, in three dimensions'}"
            )
        alignment = None
        if affine != NONE:
            alignment = find_affine(moving, fixed, affine, align=align, calls=method.calls)
        bring = prepare_volume if stacks and not reason else prepare
        slices = bring(method, moving, fixed, align=align, centre=centre, alignment=alignment)
        notes = (f"registered slice by slice: {reason}",) if reason else ()
        guides = [_guide(anatomy, fixed, part, steps) for part in slices]
        prepared.append((slices, guides, alignment, notes))

    planes = [
        (part, guided)
        for slices, guides, *_ in prepared
        for part, guided in zip(slices, guides, strict=True)
        if not part.in_space and not part.blank
    ]
    motions = iter(_motions(method, *zip(*planes, strict=True), steps) if planes else ())

    def motion(part: Slice, guided: Guided | None, fixed: Image) -> SliceMotion:
        if part.in_space:
            return _volume_motion(method, part, fixed.geometry.spacing, steps, guided)
        if part.blank:
            return _still(part, steps or method.predicts_velocity)
        return next(motions)

    return [
        Registration(
            moving,
            fixed,
            slices,
            [motion(part, guided, fixed) for part, guided in zip(slices, guides, strict=True)],
            alignment,
            notes,
        )
        for (moving, fixed), (slices, guides, alignment, notes) in zip(pairs, prepared, strict=True)
    ]


def _guide(anatomy, fixed: Image, part: Slice, steps: int) -> Guided | None:
    if anatomy == AUTO and part.in_space and has_thick_slices(fixed) and steps:
        anatomy = DEFAULT_ANATOMY
    if anatomy in (AUTO, NONE) or part.blank:
        return None
    if isinstance(anatomy, str | Path):
        anatomy = anatomy_network(str(anatomy))
    spacing = tuple(np.multiply(part.whole.grid.scale[-2:], fixed.spacing).tolist())
    return guide(anatomy, part.whole, spacing if fixed.spacing_known else None)


def _why_slice_by_slice(method, moving: Image, fixed: Image, steps: int) -> str | None:
    """Why two stacks are not registered in three dimensions; None: they are."""
    fewest = min(len(moving.array), len(fixed.array))
    if fewest < FEWEST_SLICES:
        return (
            f"a stack of {fewest} slices, fewer than {FEWEST_SLICES}, shows no motion through them"
        )
    if method.iterative:
        return f"{method.name} knows no volumes"
    if not steps and not method.depth:
        return f"{method.name} knows no volumes, and no refinement was asked for"
    return None


def refinement_steps(method: TrainedMethod, refine: int | None) -> int:
    """Steps of refinement for a method; `refine` None: the usual number.

    Raises ValueError: a negative number, or any steps for an iterative method.
    """
    if refine is None:
        return 0 if method.iterative else STEPS
    if refine < 0 or refine != int(refine):
        raise ValueError(f"refine: found {refine}, expected 0 or more steps")
    if refine and method.iterative:
        raise ValueError(f"refine: works on what a network predicts; {method.name} has none")
    return int(refine)


def refined_displacement(
    method: TrainedMethod,
    moving,
    fixed,
    *,
    steps: int,
    anatomy: AnatomyModel | None = None,
    spacing: tuple[float, float] | None = None,
) -> np.ndarray:
    """`[B, N, N, 1]` twice -> displacement `[B, N, N, 2]` after `steps` of refinement.

    anatomy: guides the search, see `guiding`; `spacing` is of all pairs, in mm.
    """
    n = moving.shape[1]
    grid = Grid((n, n), ((n - 1) / 2,) * 2, (1.0, 1.0))
    pairs = [
        OnGrid(grid, m, f, np.ones((n, n), bool))
        for m, f in zip(np.asarray(moving)[..., 0], np.asarray(fixed)[..., 0], strict=True)
    ]
    slices = [Slice(pair, pair, np.zeros(2)) for pair in pairs]
    guides = [None if anatomy is None else guide(anatomy, pair, spacing) for pair in pairs]
    motions = _motions(method, slices, guides, refinement_steps(method, steps))
    return np.stack([motion.displacement for motion in motions]).astype("f4")


def _motions(
    method: TrainedMethod,
    slices: Sequence[Slice],
    guides: Sequence[Guided | None],
    steps: int,
) -> list[SliceMotion]:
    """Register slices, in any order and number, all guided or none; none sees another."""
    if not (steps or method.predicts_velocity):
        displacements = _predict(method, method.displacement, slices)
        return [
            SliceMotion(plane.model.grid, np.asarray(u, np.float64))
            for plane, u in zip(slices, displacements, strict=True)
        ]
    refining, spacing = _refining(Refinement.of(steps), method.calls), np.ones(2, np.float32)
    classes = [_size_class(plane.whole.grid.shape) for plane in slices]
    if method.calls == "once":  # two programs to load: both at once
        pixels = (_batch_size(len(slices)), *classes[0])
        image, valid = (jax.ShapeDtypeStruct(pixels, kind) for kind in (np.float32, bool))
        counts = [2] if guides[0] is None else [2, *[guides[0].moving.shape[-1]] * 2]
        others = [jax.ShapeDtypeStruct((*pixels, n), np.float32) for n in counts]
        refining.prepare(spacing, image, image, valid, *others)
    starts = _starts(method, slices)
    motions: list[SliceMotion | None] = [None] * len(slices)
    for size in dict.fromkeys(classes):
        members = [k for k, size_class in enumerate(classes) if size_class == size]
        inputs = [_filled_up(slices[k].whole, starts[k], size, guides[k]) for k in members]
        for part, filled in _batches([np.stack(arrays) for arrays in zip(*inputs, strict=True)]):
            refined = jax.tree.map(np.asarray, refining(spacing, *filled))
            for row, k in enumerate(members[part]):
                motions[k] = _motion(refined, row, slices[k].whole.grid, guides[k])
    return motions


def _starts(method: TrainedMethod, slices: Sequence[Slice]) -> list[np.ndarray]:
    """The predicted velocity of every slice on its whole grid."""
    velocities = _predict(method, method.velocity, slices)
    return [
        velocity_on_whole(plane, np.asarray(v, np.float64))
        for plane, v in zip(slices, velocities, strict=True)
    ]


def _predict(method: TrainedMethod, function, slices: Sequence[Slice]) -> list[np.ndarray]:
    """`function` of the slices on the model grid; those on grids of one size go together."""
    results: list[np.ndarray | None] = [None] * len(slices)
    for shape in dict.fromkeys(plane.model.grid.shape for plane in slices):
        members = [k for k, plane in enumerate(slices) if plane.model.grid.shape == shape]
        images = [
            np.stack([getattr(slices[k].model, name) for k in members])[..., None]
            for name in ("moving", "fixed")
        ]
        # an iterative method would waste time on rows that only fill up a batch
        for part, filled in _batches(images, one_by_one=method.iterative):
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


def _size_class(shape: tuple[int, int]) -> tuple[int, int]:
    return tuple(_SIZE_CLASS * math.ceil(n / _SIZE_CLASS) for n in shape)


def _filled_up(
    pair: OnGrid,
    velocity: np.ndarray | None,
    size: tuple[int, ...],
    guided: Guided | None,
) -> list:
    """[moving, fixed, valid, velocity(, two channels)] of `size`; what is new does not count."""
    more = [(0, n - old) for n, old in zip(size, pair.grid.shape, strict=True)]
    filled = [
        np.pad(pair.moving, more, mode="edge"),
        np.pad(pair.fixed, more, mode="edge"),
        np.pad(pair.valid, more),
        None if velocity is None else np.pad(velocity, [*more, (0, 0)], mode="edge"),
    ]
    if guided is not None:
        channels = (guided.moving, guided.fixed)
        filled += [np.pad(channel, [*more, (0, 0)], mode="edge") for channel in channels]
    return filled


def _volume_motion(
    method: TrainedMethod, part: Slice, spacing, steps: int, guided: Guided | None
) -> SliceMotion:
    """The motion of a volume on its grid; spacing of the fixed image."""
    if part.model is not None and not (steps or method.predicts_velocity):
        [u] = _predict(method, method.displacement, [part])
        return SliceMotion(part.model.grid, np.asarray(u, np.float64))
    pair, start = part.whole, None
    if part.model is not None:
        [start] = _starts(method, [part])
    elif shown := [k for k, plane in enumerate(part.slices) if not plane.blank]:
        start = np.zeros((*pair.grid.shape, 3), np.float32)
        start[shown, ..., 1:] = _starts(method, [part.slices[k] for k in shown])
    spacing = tuple(float(s * k) for s, k in zip(spacing, pair.grid.scale, strict=True))
    classes = (_SLICE_CLASS, _SIZE_CLASS, _SIZE_CLASS)
    size = tuple(n * math.ceil(k / n) for k, n in zip(pair.grid.shape, classes, strict=True))
    filled = jax.tree.map(lambda array: array[None], _filled_up(pair, start, size, guided))
    settings = replace(Refinement.of(steps), relaxation=_RELAXATION).on(spacing)
    refining = _refining(settings, method.calls)
    refined = jax.tree.map(np.asarray, refining(np.asarray(spacing, np.float32), *filled))
    return _motion(refined, 0, pair.grid, guided)


def _still(part: Slice, of_velocity) -> SliceMotion:
    """The motion of a blank slice; its similarity is not known."""
    nothing = np.zeros((*part.whole.grid.shape, 2))
    return SliceMotion(
        part.whole.grid, nothing, correlation=(math.nan, math.nan) if of_velocity else None
    )


_READ = ("displacement", "scale", "correlation")  # of search.Refined


@functools.cache
def _refining(settings: Refinement, calls: str) -> Program:
    """(spacing, moving, fixed, valid, start[, two channels]) -> `_READ` of `search.refine`."""

    def make():
        def refined(spacing, moving, fixed, valid, start, *channels):
            whole = refine(moving, fixed, valid, start, settings, spacing, channels or None)
            return {name: getattr(whole, name) for name in _READ}

        return refined

    # its loop gains more by optimisation than that takes, even if it is called once
    options = options_for("few" if calls == "once" else calls)
    return Program(make, f"refine {settings}", options)


def _motion(
    refined: dict[str, np.ndarray], row: int, grid: Grid, guided: Guided | None
) -> SliceMotion:
    inside = (row, *map(slice, grid.shape))
    return SliceMotion(
        grid,
        refined["displacement"][inside].astype(np.float64),
        float(refined["scale"][row]),
        tuple(map(float, refined["correlation"][row])),
        None if guided is None else guided.guidance,
    )
