"""Follow the tissue of one frame through a cine: `track_cine(cine)`, `load(name).track(frames)`.

Every frame is registered to the *reference* frame itself, never to its neighbour: what chains of
neighbours add up to drifts, and its errors do not average out. The order is chosen so that this
costs little:

1. A few key frames, evenly spread, are searched from nothing. The frames between them start from
   the velocity interpolated in time and are only improved.
2. Velocities are made smooth in time: projected on the harmonics of the beat where its period is
   known, on cubic splines otherwise, both zero at the reference frame. All frames are improved
   from there and made smooth again: what one frame's noise pulled aside, its neighbours pull back.
3. Regularisation shrinks motion. Track the reference warped by its own result; add back the motion
   lost ("twicing", Tukey, Exploratory Data Analysis, 1977). The loss changes slowly in time, so
   that the key frames are enough.

A stationary velocity v_t stands for each frame: x + u_t(x) = exp(v_t)(x) leads from the reference
to frame t (`ops.strain` states the conventions), exp(-v_t) back. What is smooth in time is a sum of
few curves: their coefficients are kept, not the velocity of every frame, and gathered while frames
are registered, at most `chunk` of them at a time; they do not grow with the length of the cine.

How frames are registered depends on the method:

* none: the search of `registering.search`, from no motion;
* a network: its prediction for the key frames, made antisymmetric, is where that search starts; in
  volumes that of each slice, unless it is a network for volumes;
* an iterative method (LDDMM, SyN): every frame directly to the reference, since it offers no
  velocity to go on from; its displacements are made smooth in time, and inverted by Newton's
  method.

The border of an ultrasound sector stands still while tissue moves through it: it and a margin along
it hardly count (`away_from_blank`).

Frames with pixels below `FINEST_MM`, or sides above `LARGEST` pixels, are tracked on a coarser
grid; the result is given on their own. Volumes are followed in three dimensions by the same code,
on the grid that `register` has for them (`grid.place_volume_grid`), searched around the heart where
it is known. Beyond, the velocity fades towards the border.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from scipy.interpolate import BSpline

from ldm_morph_jax.devices.batches import fill_up, in_chunks
from ldm_morph_jax.devices.mesh import data_mesh, sharded
from ldm_morph_jax.files.images import (
    FEWEST_SLICES,
    Image,
    ImageError,
    images_from_array,
    volume_from_array,
)
from ldm_morph_jax.files.movies import Cine
from ldm_morph_jax.ops.checks import check_shape
from ldm_morph_jax.ops.geometry import integrate_velocity, warp
from ldm_morph_jax.ops.inverse import invert
from ldm_morph_jax.registering.grid import place_volume_grid
from ldm_morph_jax.registering.pairs import register_images
from ldm_morph_jax.registering.result import Series, Tracked
from ldm_morph_jax.registering.search import SIZE_STEP, Refinement
from ldm_morph_jax.registering.search import search as search_velocity
from ldm_morph_jax.runs.trained import TrainedMethod

Register = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(moving `[B, *space]`, fixed `[B, *space]`, start `[B, *space, rank]`) -> velocity like start."""

SEARCH = Refinement()
# Noise is averaged over time, so that correlation may look closer here than in a single pair. The
# wider window brings cavities of real hearts to close further.
IMPROVE = Refinement(
    levels=(1,), steps=(15,), windows=(1.0, 4.0), fluid=5.0, elastic=0.3, stiffness=0.15
)
# Frames with finer pixels or longer sides than these are tracked on a coarser grid. Windows are
# some pixels wide, chosen on hearts of 1.25 mm per pixel: of finer ones they see too little.
FINEST_MM = 1.0
LARGEST = 320
# Blank surroundings of an image are at most so bright, of [0, 1]. They and a margin along them, in
# pixels, hardly count: a little, since a wall that lies outside altogether is held by nothing else.
# Chosen on beats (63, 0) to (63, 23) of the phantom and 40 training patients of CAMUS.
_BLANK = 0.02
_MARGIN = 6
_WEIGHT_OF_BORDER = 0.02
_AROUND_MM = 40.0  # of a heart in volumes: the search there takes most of the time
_MOST_AT_ONCE = 2**20  # pixels on the device, of all frames together: bounds the memory


@dataclass(frozen=True)
class Tracking:
    """Settings of `track`, chosen on development beats of the phantom (docs/tracking.md).

    key_frames: how many are searched from nothing.
    harmonics: of the period, or half the number of spline pieces: how fast motion may change.
    rounds: how often velocities are improved and made smooth in time.
    twicing: whether what regularisation takes away is estimated and added.
    chunk: frames at once on the device.
    """

    key_frames: int = 8
    harmonics: int = 9
    rounds: int = 2
    twicing: bool = True
    chunk: int = 8

    def __post_init__(self):
        for name, least in (
            ("key_frames", 2),
            ("harmonics", 1),
            ("rounds", 1),
            ("chunk", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least {least}")


DEFAULTS = Tracking()


@dataclass(frozen=True)
class Velocities:
    """Velocities of T frames, as sums of curves over time. `v[rows]` are those of some frames.

    basis: `[T, K]`, of `time_basis`.
    coefficients: `[K, *space, rank]` float32, pixels.
    unconstrained_last: `[*space, rank]`, of the last frame as the search found it, before anything
        is smoothed in time; None where the last frame is the reference.
    """

    basis: np.ndarray
    coefficients: np.ndarray
    unconstrained_last: np.ndarray | None = None

    @classmethod
    def zero(cls, basis: np.ndarray, shape: tuple[int, ...]) -> "Velocities":
        """Velocities to add to, of frames of `shape`."""
        return cls(basis, np.zeros((basis.shape[1], *shape, len(shape)), np.float32))

    def __getitem__(self, rows) -> np.ndarray:
        """`[N, *space, rank]` float32 of N rows: a slice or an array of numbers."""
        return np.tensordot(self.basis[rows], self.coefficients, axes=1)

    def plus(self, rows, v: np.ndarray) -> None:
        """Adds the smooth part of velocities of N frames, `[N, ...]`, and zero of the others."""
        self.coefficients[...] += np.tensordot(self.basis[rows].T, v, axes=1)


def track(
    frames: np.ndarray,
    search: Register,
    improve: Register,
    *,
    times: np.ndarray | None = None,
    reference: int = 0,
    period: float | None = None,
    settings: Tracking = Tracking(),
    progress: Callable[[float], None] = lambda done: None,
) -> Velocities:
    """Velocities from the reference frame to every frame, smooth in time.

    Args:
        frames: `[T, *space]` float32.
        search: registers from nothing; it may ignore its start, as networks do.
        improve: registers from a start near the result.
        times: `[T]`, increasing; frame numbers where None.
        reference: the frame whose tissue is followed.
        period: of the motion, in the unit of `times`, where the cine holds a whole beat; tissue is
            at time t + period where it is at t. None: no such thing is assumed.
        settings: see `Tracking`.
        progress: called with the share that is done, after each chunk.

    Raises:
        ValueError: fewer than two frames, or times and reference that do not fit them.
    """
    sizes = check_shape("frames", frames, "T *space")
    if sizes["T"] < 2:
        raise ValueError(f"frames: found {sizes['T']}, expected at least 2")
    if not 0 <= reference < sizes["T"]:
        raise ValueError(f"reference: found {reference}, expected 0 to {sizes['T'] - 1}")
    times = np.arange(sizes["T"], dtype=float) if times is None else np.asarray(times, float)
    check_shape("times", times, "T", sizes)
    if not (np.diff(times) > 0).all():
        raise ValueError(f"times: found {times}, expected them to increase")
    frames = np.asarray(frames, np.float32)
    basis = time_basis(times, reference, settings.harmonics, period)
    keys = np.unique(np.linspace(0, sizes["T"] - 1, settings.key_frames).round().astype(int))
    keys = keys[keys != reference]
    known = np.sort([*keys, reference])
    others = np.setdiff1d(np.arange(sizes["T"]), [reference])
    between = np.setdiff1d(others, keys)
    done, work = 0, settings.rounds * len(frames) + settings.twicing * len(known)

    def register(method, moving, start):
        """At most a chunk of frames."""
        nonlocal done
        fixed = np.broadcast_to(frames[reference], moving.shape)
        filled, valid = fill_up((moving, fixed, start), settings.chunk)
        v = np.asarray(method(*filled))[valid]
        done += settings.chunk
        progress(min(1.0, done / work))
        return v

    def chunks(rows):
        return (rows[k : k + settings.chunk] for k in range(0, len(rows), settings.chunk))

    def of_known(values):
        """Velocities of the key frames `[keys, ...]` and zero at the reference, `[known, ...]`."""
        return np.insert(values, np.searchsorted(keys, reference), 0, axis=0)

    v = Velocities.zero(basis, frames.shape[1:])
    still = np.zeros((settings.chunk, *v.coefficients.shape[1:]), np.float32)
    at_keys = np.concatenate(
        [register(search, frames[rows], still[: len(rows)]) for rows in chunks(keys)]
    )
    v.plus(keys, at_keys)
    at_known = of_known(at_keys)
    for rows in chunks(between):
        start = _interpolate(times[rows], times[known], at_known)
        v.plus(rows, register(improve, frames[rows], start))
    for _ in range(settings.rounds - 1):
        improved = Velocities.zero(basis, frames.shape[1:])
        for rows in chunks(others):
            improved.plus(rows, register(improve, frames[rows], v[rows]))
        v = improved
    if settings.twicing:
        lost = []
        for rows in chunks(keys):
            known_motion = v[rows]
            moved = propagate(frames[reference], known_motion, settings.chunk)
            recovered = register(search, moved, np.zeros_like(known_motion))
            for _ in range(settings.rounds - 1):
                recovered = register(improve, moved, recovered)
            lost.append(known_motion - recovered)
        lost = of_known(np.concatenate(lost))
        for rows in chunks(others):
            v.plus(rows, _interpolate(times[rows], times[known], lost))
    progress(1.0)
    last_is_key = reference != sizes["T"] - 1
    return replace(v, unconstrained_last=at_keys[-1] if last_is_key else None)


def propagate(image: np.ndarray, velocity: np.ndarray, chunk: int = 8) -> np.ndarray:
    """An image or labels `[*space]` of the reference frame carried to every frame, `[T, *space]`.

    Floating images are interpolated linearly, labels take the nearest.
    """
    return in_chunks(_warp, chunk, np.broadcast_to(image, velocity.shape[:-1]), -velocity)


def time_basis(
    times: np.ndarray, reference: int, harmonics: int, period: float | None = None
) -> np.ndarray:
    """Smooth curves over `times` that are zero at the reference, `[T, K]` float32, orthonormal.

    basis @ basis.T brings a curve to the nearest smooth one. Periodic: sums of `harmonics` sines
    and cosines of the period. Otherwise: cubic splines of twice as many equal pieces. Fewer, where
    there are not frames enough to tell them apart.
    """
    phase = (times - times[0]) / (times[-1] - times[0] if period is None else period)
    if period is None:
        pieces = max(1, min(2 * harmonics, len(times) - 3))
        knots = np.concatenate([[0] * 3, np.linspace(0, 1, pieces + 1), [1] * 3])
        curves = BSpline.design_matrix(phase, knots, 3).toarray()
    else:
        angle = 2 * np.pi * np.outer(phase, np.arange(1, min(harmonics, (len(times) - 1) // 2) + 1))
        curves = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    basis, sizes, _ = np.linalg.svd(curves - curves[reference], full_matrices=False)
    return basis[:, sizes > 1e-9 * sizes.max(initial=0)].astype(np.float32)


@jax.jit
def _warp(images, velocity):
    interpolation = "linear" if jnp.issubdtype(images.dtype, jnp.floating) else "nearest"
    displaced = integrate_velocity(velocity)
    return warp(images[..., None], displaced, interpolation=interpolation)[..., 0]


def _interpolate(at, times, v):
    """v `[K, ...]`, known at `times` `[K]`, linearly at `at`, which lies between them or beyond."""
    k = np.clip(np.searchsorted(times, at) - 1, 0, len(times) - 2)
    share = np.clip((at - times[k]) / (times[k + 1] - times[k]), 0, 1)
    share = share.reshape(-1, *[1] * (v.ndim - 1)).astype(v.dtype)
    return v[k] * (1 - share) + v[k + 1] * share


# ---------------------------------------------------------------------------- cines


def track_cine(
    cine: Cine,
    method: TrainedMethod | None = None,
    *,
    reference: int = 0,
    region: np.ndarray | None = None,
    period: float | str | None = None,
    settings: Tracking | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Tracked:
    """Track the tissue of one frame through a cine of one slice, or of volumes.

    Args:
        cine: frames `[T, H, W]`, or volumes `[T, S, H, W]`.
        method: what registers, or where the search starts; None: the search from no motion.
        reference: the frame whose tissue is followed, usually end-diastole.
        region: `[*space]` bool of volumes, the heart in that frame; None: the whole volume is
            searched.
        period: of the beat, in seconds (frames, where times are unknown); "whole": the last frame
            shows what the first one does; None: the motion need not repeat.
        settings: see `Tracking`; None: `DEFAULTS`.
        progress: called with the share that is done.

    Raises:
        ImageError: volumes of fewer than `FEWEST_SLICES`, or with an iterative method; a cine of
            one slice with a network for volumes; no such frame; a period shorter than the cine.
    """
    count, source = len(cine.frames), cine.first.source
    if cine.frames.ndim == 4:
        _check_volumes(cine, method)
    cine.check_frame(reference)
    times = np.arange(count, dtype=float) if cine.times is None else cine.times
    length = times[-1] - times[0]
    period = length if period == "whole" else period
    if isinstance(period, str):
        raise ImageError(f"{source}: `period` is {period!r}, expected a number or 'whole'")
    if period is not None and not (1 - 1e-6) * length <= period < math.inf:
        raise ImageError(
            f"{source}: its frames span {length:g}, the period of the beat is {period:g}; "
            "expected it to be as long"
        )
    devices, settings = len(jax.devices()), settings or DEFAULTS
    shape, spacing = _tracked_on(cine.first)
    box = tuple(slice(0, n) for n in shape)
    if region is not None and region.ndim == 3 and region.any() and cine.first.spacing_known:
        box = _around(region, shape, spacing)
    searched = math.prod(part.stop - part.start for part in box)
    at_once = max(1, min(settings.chunk, count - 1, _MOST_AT_ONCE // searched))
    at_once = 2 ** int(math.log2(at_once))  # 8 key frames fill chunks of 1, 2, 4 and 8
    settings = replace(settings, chunk=devices * math.ceil(at_once / devices))
    frames = _prepared(cine, reference, shape, settings.chunk)
    arguments = {"times": times, "reference": reference, "period": period, "settings": settings}
    if method is not None and method.iterative:
        found = _directly(frames, cine.first, method, spacing, progress, **arguments)
    else:
        found = _by_velocity(frames, box, cine.first, method, spacing, progress, **arguments)
    there, back, last = found
    name = "search" if method is None else method.name
    return Tracked(cine, reference, times, there, back, period, last, name)


def _check_volumes(cine, method) -> None:
    source, slices = cine.first.source, cine.frames.shape[1]
    if slices < FEWEST_SLICES:
        raise ImageError(
            f"{source}: a stack of {slices} slices, fewer than {FEWEST_SLICES}, shows no motion "
            "through them; expected `slice` all"
        )
    if method is not None and method.iterative:
        raise ImageError(f"{source}: {method.name} knows no volumes; expected a network as `model`")


def _tracked_on(first: Image) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    """(shape, spacing in mm, None where unknown) of the grid that frames are tracked on."""
    if first.array.ndim == 3:
        grid = place_volume_grid(first)
        return grid.shape, tuple(np.multiply(grid.scale, first.geometry.spacing).tolist())
    factor = max(1.0, max(first.array.shape) / LARGEST)
    if first.spacing_known:
        factor = max(factor, FINEST_MM / max(first.spacing))
    spacing = tuple(factor * s for s in first.spacing) if first.spacing_known else None
    return tuple(round(n / factor) for n in first.array.shape), spacing


def _around(region, shape, spacing) -> tuple[slice, ...]:
    """All slices, and the rows and columns about a region, of a grid of `shape` on its image."""
    box = [slice(0, shape[0])]
    for axis, others in ((1, (0, 2)), (2, (0, 1))):
        at = np.flatnonzero(region.any(axis=others)) * shape[axis] / region.shape[axis]
        wanted = at[-1] - at[0] + 2 * _AROUND_MM / spacing[axis]
        size = min(shape[axis], SIZE_STEP * math.ceil(wanted / SIZE_STEP))  # few programs
        start = round((at[0] + at[-1] - size) / 2)
        start = min(max(start, 0), shape[axis] - size)
        box.append(slice(start, start + size))
    return tuple(box)


def _prepared(cine, reference, shape, chunk) -> np.ndarray:
    """Frames in about [0, 1] on the grid of `shape`, `[T, *shape]`; one scale for all."""
    first = cine.frames[reference].astype(np.float64)
    low, high = np.percentile(first, [0.2, 99.8])
    if low == high:
        low, high = first.min(), first.max()

    def prepared(frames):
        frames = np.clip((frames.astype(np.float32) - low) / (high - low), 0, 1)
        return _resized(jnp.asarray(frames, jnp.float32)[..., None], shape)[..., 0]

    return in_chunks(prepared, chunk, cine.frames)


def away_from_blank(frames: np.ndarray) -> np.ndarray:
    """Where tissue can be followed in frames `[T, *space]` in about [0, 1], `[*space]` bool.

    The border of an ultrasound sector, or of a picture padded with black, stands still while tissue
    moves through it: a search that sees it holds the tissue there. So what is black in every frame
    and connected to the edge of its slice is left out, and a margin along it.
    """
    disc = ndimage.generate_binary_structure(2, 1).reshape(*[1] * (frames.ndim - 3), 3, 3)
    black = (frames <= _BLANK).all(axis=0)
    core = ndimage.binary_erosion(black, disc, iterations=2, border_value=1)  # without specks
    edge = np.ones_like(core)
    edge[..., 1:-1, 1:-1] = False
    core = ndimage.binary_propagation(edge & core, disc, mask=core)
    return ~ndimage.binary_dilation(core, disc, iterations=2 + _MARGIN)


def _by_velocity(frames, box, first, method, spacing, progress, *, settings, **arguments):
    """(displacement, inverse, unconstrained last displacement), by a velocity for each frame.

    The frames are searched within the box.
    """
    beyond = [(0, 0), *((b.start, n - b.stop) for b, n in zip(box, frames.shape[1:], strict=True))]
    inside, counts = away_from_blank(frames)[box], None
    frames = frames[(slice(None), *box)]
    if not inside.all():
        counts = np.where(inside, 1, _WEIGHT_OF_BORDER).astype(np.float32)

    def searched(moving, fixed, start, settings):
        weight = None if counts is None else np.broadcast_to(counts, moving.shape)
        moving, fixed, weight, start = jax.device_put(
            (moving, fixed, weight, start), sharded(data_mesh())
        )
        if moving.ndim == 3:  # pixels of a slice are square, or nearly so
            return search_velocity(moving, fixed, weight, start, settings)
        voxel = jnp.array(spacing, jnp.float32)
        return search_velocity(moving, fixed, weight, start, settings.on(spacing), voxel)

    def search(moving, fixed, start):
        if method is not None:
            start = _predicted(method, moving, fixed, first, spacing)
        return searched(moving, fixed, start, SEARCH)

    def improve(moving, fixed, start):
        return searched(moving, fixed, start, IMPROVE)

    v = track(frames, search, improve, settings=settings, progress=progress, **arguments)

    def integrated(v):
        v = np.pad(v, [*beyond, (0, 0)], mode="linear_ramp")
        return _integrated(v, first.array.shape)

    shape = (len(frames), *first.array.shape, first.array.ndim)
    there = _series(lambda rows: integrated(v[rows]), shape, settings.chunk)
    back = _series(lambda rows: integrated(-v[rows]), shape, settings.chunk)
    last = v.unconstrained_last
    return there, back, None if last is None else np.asarray(integrated(last[None]))[0]


def _directly(frames, first, method, spacing, progress, *, times, reference, period, settings):
    """As `_by_velocity`, every frame by itself."""
    basis = time_basis(times, reference, settings.harmonics, period)
    u = Velocities.zero(basis, frames.shape[1:])
    enlarged = functools.partial(_enlarged, shape=first.array.shape)
    others, last = np.setdiff1d(np.arange(len(frames)), [reference]), None
    for start in range(0, len(others), settings.chunk):
        rows = others[start : start + settings.chunk]
        of_rows = _registered(method, frames[rows], frames[reference], first, spacing)
        u.plus(rows, of_rows)
        if rows[-1] == len(frames) - 1:
            last = np.asarray(enlarged(of_rows[-1:]))[0]
        progress((start + len(rows)) / len(others))
    shape = (len(frames), *first.array.shape, 2)
    there = _series(lambda rows: enlarged(u[rows]), shape, settings.chunk)
    back = _series(lambda rows: _inverted(there[rows]), shape, settings.chunk)
    return there, back, last


def _series(compute, shape, chunk) -> Series:
    """`compute` of a slice of frames, always of as many, so that one program serves all."""

    def of_rows(rows):
        filled, valid = fill_up(np.arange(rows.start, rows.stop), chunk)
        return np.asarray(compute(filled))[valid]

    return Series(of_rows, shape, chunk)


def _predicted(method, moving, fixed, first, spacing) -> np.ndarray:
    """A network's displacements of pairs `[B, *space]`, made antisymmetric: first-order velocities.

    v = (u(moving, fixed) - u(fixed, moving)) / 2 changes its sign with the order of the images.
    Slices of a volume that the network sees one by one are made smooth through each other.
    """
    there = _registered(method, moving, fixed, first, spacing)
    back = _registered(method, fixed, moving, first, spacing)
    v = (there - back) / 2
    if moving.ndim == 4 and not method.depth:
        v = ndimage.gaussian_filter1d(v, 1.0, axis=1, mode="nearest")
    return v.astype(np.float32)


def _registered(method, moving, fixed, first, spacing) -> np.ndarray:
    """Displacements `[B, *space, rank]` in pixels of images on the grid that is tracked on."""

    def images(arrays) -> list[Image]:
        arrays = np.asarray(arrays)
        if arrays.ndim == 3:
            return images_from_array(arrays, spacing, source=first.source)[0]
        return [volume_from_array(array, spacing, source=first.source) for array in arrays]

    fixed = np.broadcast_to(fixed, moving.shape)
    pairs = list(zip(images(moving), images(fixed), strict=True))
    registrations = register_images(method, pairs, refine=0, volume=bool(method.depth))
    return np.stack([registration.pixel_displacement for registration in registrations])


@functools.partial(jax.jit, static_argnames="shape")
def _integrated(v, shape):
    return _enlarged(integrate_velocity(v), shape)


@functools.partial(jax.jit, static_argnames="shape")
def _enlarged(u, shape):
    """Displacements of a coarser grid on one of `shape`."""
    factor = jnp.array([n / k for n, k in zip(shape, u.shape[1:-1], strict=True)])
    return _resized(u, shape) * factor


def _resized(x, shape):
    """`[B, *space, C]` on a grid of `shape` over the same field of view; linear."""
    if x.shape[1:-1] == shape:
        return x
    return jax.image.resize(x, (len(x), *shape, x.shape[-1]), "linear")


@jax.jit
def _inverted(u):
    return invert(u).displacement
