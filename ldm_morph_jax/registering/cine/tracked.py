"""Follow the tissue of a cine: `track_cine(cine)`, `load(name).track(frames)`.

How frames are registered depends on the method:

* none: the search of `registering.search`, from no motion;
* a network: what it predicts of the key frames, made antisymmetric, is where that search starts;
* LDDMM, SyN: every frame directly to the reference, since they offer no velocity to go on from;
  their displacements are made smooth in time, and inverted by Newton's method.

Frames with pixels below `_FINEST_MM`, or sides above `_LARGEST` pixels, are tracked on a coarser
grid; what comes out is on their own.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.devices.batches import fill_up, in_chunks
from ldm_morph_jax.devices.mesh import data_mesh, sharded
from ldm_morph_jax.files.geometry import Geometry
from ldm_morph_jax.files.images import Image, ImageError, check_spacing, images_from_array
from ldm_morph_jax.files.movies import Cine
from ldm_morph_jax.files.transforms import Transform
from ldm_morph_jax.ops.geometry import integrate_velocity
from ldm_morph_jax.ops.inverse import invert
from ldm_morph_jax.registering import search as searching
from ldm_morph_jax.registering import tracking
from ldm_morph_jax.registering.cine.series import Series
from ldm_morph_jax.registering.registrar import Registrar
from ldm_morph_jax.registering.tracking import Tracking, Velocities

SEARCH = searching.Refinement()
# Noise is averaged over time, so that correlation may look closer here than in a single pair. The
# wider window brings cavities of real hearts to close further.
IMPROVE = searching.Refinement(
    levels=(1,), steps=(15,), windows=(1.0, 4.0), fluid=5.0, elastic=0.3, stiffness=0.15
)
DEFAULTS = Tracking()
# Frames with finer pixels or longer sides than these are tracked on a coarser grid. Windows are
# some pixels wide, chosen on hearts of 1.25 mm per pixel: of finer ones they see too little.
_FINEST_MM = 1.0
_LARGEST = 320

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Tracked:
    """A cine and the motion of the tissue of its reference frame.

    cine: frames `[T, H, W]`.
    reference: number of the frame whose tissue is followed.
    times: `[T]` seconds; frame numbers where the cine does not tell.
    displacement: `[T, H, W, 2]` float32 pixels, Lagrangian: the tissue at x of the reference is at
        x + displacement[t](x) in frame t. Computed when it is looked at; `np.asarray` makes an
        array of all frames.
    inverse: `[T, H, W, 2]` float32 pixels, from frame t back to the reference; likewise.
    period: of the motion, in the unit of `times`; None where it was not told.
    unconstrained_last: `[H, W, 2]`, displacement of the last frame when it is registered by itself,
        before anything is smoothed in time; None where that was not done.
    method: "search", or the name of the method.
    """

    cine: Cine
    reference: int
    times: np.ndarray
    displacement: Series | np.ndarray
    inverse: Series | np.ndarray
    period: float | None
    unconstrained_last: np.ndarray | None
    method: str

    @property
    def geometry(self) -> Geometry:
        """Of every frame."""
        return self.cine.first.geometry

    @property
    def spacing(self) -> tuple[float, float]:
        """(row, column) in mm; (1, 1) where unknown."""
        return self.cine.first.spacing

    @property
    def whole_beat(self) -> bool:
        """Whether the last frame is one period after the first."""
        length = self.times[-1] - self.times[0]
        return self.period is not None and math.isclose(length, self.period, rel_tol=1e-6)

    def transform(self, t: int) -> Transform:
        """T with frame_t(T(p)) ~ reference(p): brings frame t to the reference frame."""
        return self._transform(self.displacement[t])

    def inverse_transform(self, t: int) -> Transform:
        """Brings images and labels of the reference frame to frame t."""
        return self._transform(self.inverse[t])

    def warped(self, t: int) -> np.ndarray:
        """Frame t brought to the reference frame, `[H, W]` float32, original intensities."""
        return self.transform(t).warp(self.cine.frames[t])

    def carried(self, labels: np.ndarray, t: int) -> np.ndarray:
        """Labels `[H, W]` of the reference frame in frame t; nearest neighbour."""
        return self.inverse_transform(t).warp(labels, "nearest")

    def _transform(self, u):
        geometry = self.geometry
        return Transform(geometry.vectors_to_physical(u), geometry, geometry)


def cine_from_arrays(frames, *, spacing=None, times: Sequence[float] | None = None) -> Cine:
    """A cine without a place in space.

    Args:
        frames: `[T, H, W]`, NumPy or JAX, grey values of any range.
        spacing: mm, one number or (row, column); None where unknown.
        times: `[T]` seconds, increasing; None where unknown.

    Raises:
        ImageError: fewer than two frames, NaN, constant frames, times that do not fit or increase.
    """
    frames = np.asarray(frames)
    if frames.ndim != 3 or len(frames) < 2:
        raise ImageError(f"frames: found shape {frames.shape}, expected [T, H, W] with T >= 2")
    spacing = None if spacing is None else check_spacing(spacing, "frames")
    images, _ = images_from_array(frames, spacing, source="frames")
    if times is not None:
        times = np.asarray(times, np.float64)
        if times.shape != (len(frames),) or not (np.diff(times) > 0).all():
            raise ImageError(f"times: found {times}, expected {len(frames)} that increase")
    return Cine(np.stack([image.array for image in images]), times, images[0])


def track_cine(
    cine: Cine,
    registrar: Registrar | None = None,
    *,
    reference: int = 0,
    period: float | str | None = None,
    settings: Tracking | None = None,
    progress: Progress = lambda share: None,
) -> Tracked:
    """Track the tissue of one frame through a cine of one slice.

    Args:
        cine: frames `[T, H, W]`.
        registrar: a method; None: the search alone.
        reference: the frame whose tissue is followed, usually end-diastole.
        period: of the beat, in seconds (frames, where times are unknown); "whole": the last frame
            shows what the first one does; None: the motion need not repeat.
        settings: of `tracking.track`; None: `DEFAULTS`.
        progress: called with the share that is done.

    Raises:
        ImageError: a stack of slices; no such frame; a period shorter than the cine.
    """
    count, source = len(cine.frames), cine.first.source
    if cine.frames.ndim != 3:
        raise ImageError(f"{source}: has {cine.frames.shape[1]} slices, expected one at a time")
    if not 0 <= reference < count:
        raise ImageError(f"{source}: has no frame {reference}; its frames are 0 to {count - 1}")
    times = np.arange(count, dtype=float) if cine.times is None else cine.times
    length = times[-1] - times[0]
    period = length if period == "whole" else period
    if period is not None and not period >= (1 - 1e-6) * length:
        raise ImageError(
            f"{source}: its frames span {length:g}, the period of the beat is {period:g}; "
            "expected it to be as long"
        )
    devices, settings = len(jax.devices()), settings or DEFAULTS
    settings = replace(settings, chunk=devices * math.ceil(settings.chunk / devices))
    factor = max(1.0, max(cine.frames.shape[1:]) / _LARGEST)
    if cine.first.spacing_known:
        factor = max(factor, _FINEST_MM / max(cine.first.spacing))
    frames = _prepared(cine, reference, factor, settings.chunk)
    arguments = {"times": times, "reference": reference, "period": period, "settings": settings}
    if registrar is not None and registrar.method.image_size is None:
        there, back, last = _directly(frames, cine.first, registrar, factor, progress, **arguments)
    else:
        there, back, last = _by_velocity(frames, cine, registrar, factor, progress, **arguments)
    method = "search" if registrar is None else registrar.method.name
    return Tracked(cine, reference, times, there, back, period, last, method)


def _prepared(cine, reference, factor, chunk) -> np.ndarray:
    """Frames in about [0, 1] on the grid they are tracked on, `[T, h, w]`; one scale for all."""
    first = cine.frames[reference].astype(np.float64)
    low, high = np.percentile(first, [0.2, 99.8])
    if low == high:
        low, high = first.min(), first.max()
    shape = tuple(round(n / factor) for n in cine.frames.shape[1:])

    def one_chunk(frames):
        frames = np.clip((frames.astype(np.float32) - low) / (high - low), 0, 1)
        return _resized(jnp.asarray(frames, jnp.float32)[..., None], shape)[..., 0]

    return in_chunks(one_chunk, chunk, cine.frames)


def _by_velocity(frames, cine, registrar, factor, progress, *, settings, **arguments):
    """(displacement, inverse, unconstrained last displacement), by a velocity for each frame."""
    last_found = None

    def search(moving, fixed, start):
        nonlocal last_found
        if registrar is not None:
            start = _predicted(registrar, moving, fixed, cine.first, factor)
        found = _search(*_spread(moving, fixed, start), SEARCH)
        # rows that fill a chunk up repeat its last one; twicing searches images that are no frames
        if np.array_equal(moving[-1], frames[-1]):
            last_found = np.asarray(found[-1:])
        return found

    def improve(moving, fixed, start):
        return _search(*_spread(moving, fixed, start), IMPROVE)

    v = tracking.track(frames, search, improve, settings=settings, progress=progress, **arguments)
    integrated = functools.partial(_integrated, shape=cine.frames.shape[1:])
    shape = (*cine.frames.shape, 2)
    there = _series(lambda rows: integrated(v[rows]), shape, settings.chunk)
    back = _series(lambda rows: integrated(-v[rows]), shape, settings.chunk)
    is_key = arguments["reference"] != len(frames) - 1  # the last frame is one of the key frames
    return there, back, np.asarray(integrated(last_found))[0] if is_key else None


def _directly(frames, first, registrar, factor, progress, *, times, reference, period, settings):
    """As `_by_velocity`, every frame by itself."""
    basis = tracking.time_basis(times, reference, settings.harmonics, period)
    u = Velocities(basis, np.zeros((basis.shape[1], *frames.shape[1:], 2), np.float32))
    enlarged = functools.partial(_enlarged, shape=first.array.shape)
    others, last = np.setdiff1d(np.arange(len(frames)), [reference]), None
    for start in range(0, len(others), settings.chunk):
        chosen = others[start : start + settings.chunk]
        found = _registered(registrar, frames[chosen], frames[reference], first, factor)
        u.plus(chosen, found)
        if chosen[-1] == len(frames) - 1:
            last = np.asarray(enlarged(found[-1:]))[0]
        progress((start + len(chosen)) / len(others))
    shape = (len(frames), *first.array.shape, 2)
    there = _series(lambda rows: enlarged(u[rows]), shape, settings.chunk)
    back = _series(lambda rows: _inverted(there[rows]), shape, settings.chunk)
    return there, back, last


def _series(compute, shape, chunk) -> Series:
    """`compute` of a slice of frames, always of as many, so that one program serves all."""

    def of_rows(rows):
        wanted = np.arange(rows.start, rows.stop)
        filled, valid = fill_up(wanted, chunk)
        return np.asarray(compute(filled))[valid]

    return Series(of_rows, shape, chunk)


def _predicted(registrar, moving, fixed, first, factor) -> np.ndarray:
    """A network's displacements of pairs `[B, h, w]`, made antisymmetric: first-order velocities.

    v = (u(moving, fixed) - u(fixed, moving)) / 2 changes its sign with the order of the images.
    """
    there = _registered(registrar, moving, fixed, first, factor)
    back = _registered(registrar, fixed, moving, first, factor)
    return ((there - back) / 2).astype(np.float32)


def _registered(registrar, moving, fixed, first, factor) -> np.ndarray:
    """Displacements `[B, h, w, 2]` in pixels of images on the grid that is tracked on."""
    spacing = tuple(factor * s for s in first.spacing) if first.spacing_known else None

    def images(arrays) -> list[Image]:
        return images_from_array(np.asarray(arrays), spacing, source=first.source)[0]

    fixed = np.broadcast_to(fixed, moving.shape)
    pairs = list(zip(images(moving), images(fixed), strict=True))
    return np.stack([one.pixel_displacement for one in registrar.register_images(pairs, refine=0)])


def _spread(*arrays):
    """Rows of the arrays shared out over all devices."""
    return jax.device_put(arrays, sharded(data_mesh()))


def _search(moving, fixed, start, settings):
    return searching.search(moving, fixed, None, start, settings)


@functools.partial(jax.jit, static_argnames="shape")
def _integrated(v, shape):
    return _enlarged(integrate_velocity(v), shape)


@functools.partial(jax.jit, static_argnames="shape")
def _enlarged(u, shape):
    """Displacements of a coarser grid on one of `shape`."""
    factor = jnp.array([n / k for n, k in zip(shape, u.shape[1:3], strict=True)])
    return _resized(u, shape) * factor


def _resized(x, shape):
    """`[B, h, w, C]` on a grid of `shape` over the same field of view; linear."""
    return (
        x if x.shape[1:3] == shape else jax.image.resize(x, (len(x), *shape, x.shape[3]), "linear")
    )


@jax.jit
def _inverted(u):
    return invert(u).displacement
