"""Follow the tissue of one frame through a whole cine, by any method that registers pairs.

Every frame is registered to the *reference* frame itself, never to its neighbour: what chains of
neighbours add up to drifts, and its errors do not average out. The order is chosen so that this
costs little:

1. A few key frames, evenly spread, are searched from nothing. The frames between them start from
   the velocity interpolated in time and are only improved.
2. Velocities are made smooth in time: projected on the harmonics of the beat where its period is
   known, on cubic splines otherwise, both zero at the reference frame. All frames are improved
   from there and made smooth again: what one frame's noise pulled aside, its neighbours pull back.
3. Regularisation pulls motion towards smoother and smaller ones. How far, the tracking tells when
   it is applied to the reference frame moved by its own result: the difference is added
   ("twicing", Tukey, Exploratory Data Analysis, 1977). It changes slowly in time, so that the key
   frames are enough.

A stationary velocity v_t stands for each frame: x + u_t(x) = exp(v_t)(x) leads from the reference
to frame t (`ops.strain` states the conventions), exp(-v_t) back. What is smooth in time is a sum of
few curves: their coefficients are kept, not the velocity of every frame, and gathered while frames
are registered, at most `chunk` of them at a time; they do not grow with the length of the cine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import BSpline

from ldm_morph_jax.devices.batches import fill_up, in_chunks
from ldm_morph_jax.ops.checks import check_shape
from ldm_morph_jax.ops.geometry import integrate_velocity, warp

Register = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(moving `[B, H, W]`, fixed `[B, H, W]`, start `[B, H, W, 2]`) -> velocity `[B, H, W, 2]`."""


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


@dataclass(frozen=True)
class Velocities:
    """Velocities of T frames, as sums of curves over time. `v[rows]` are those of some frames.

    basis: `[T, K]`, of `time_basis`.
    coefficients: `[K, H, W, 2]` float32, pixels.
    """

    basis: np.ndarray
    coefficients: np.ndarray

    def __getitem__(self, rows) -> np.ndarray:
        """`[N, H, W, 2]` float32 of N rows: a slice or an array of numbers."""
        return np.tensordot(self.basis[rows], self.coefficients, axes=1)

    def plus(self, rows, v: np.ndarray) -> None:
        """Adds the smooth part of velocities `[N, H, W, 2]` of N frames and zero of the others."""
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
        frames: `[T, H, W]` float32.
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
    sizes = check_shape("frames", frames, "T H W")
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
        found = np.asarray(method(*filled))[valid]
        done += settings.chunk
        progress(min(1.0, done / work))
        return found

    def chunks(rows):
        return (rows[k : k + settings.chunk] for k in range(0, len(rows), settings.chunk))

    def smooth_in_time():
        """Velocities to add to, all zero."""
        return Velocities(basis, np.zeros((basis.shape[1], *frames.shape[1:], 2), np.float32))

    def of_known(values):
        """Velocities `[keys, H, W, 2]` with zero at the reference, `[known, H, W, 2]`."""
        return np.insert(values, np.searchsorted(keys, reference), 0, axis=0)

    v = smooth_in_time()
    at_keys = np.concatenate(
        [
            register(search, frames[rows], np.zeros((len(rows), *frames.shape[1:], 2), np.float32))
            for rows in chunks(keys)
        ]
    )
    v.plus(keys, at_keys)
    at_known = of_known(at_keys)
    for rows in chunks(between):
        start = _interpolate(times[rows], times[known], at_known)
        v.plus(rows, register(improve, frames[rows], start))
    for _ in range(settings.rounds - 1):
        improved = smooth_in_time()
        for rows in chunks(others):
            improved.plus(rows, register(improve, frames[rows], v[rows]))
        v = improved
    if settings.twicing:
        lost = []
        for rows in chunks(keys):
            wanted = v[rows]
            moved = propagate(frames[reference], wanted, settings.chunk)
            found = register(search, moved, np.zeros_like(wanted))
            for _ in range(settings.rounds - 1):
                found = register(improve, moved, found)
            lost.append(wanted - found)
        lost = of_known(np.concatenate(lost))
        for rows in chunks(others):
            v.plus(rows, _interpolate(times[rows], times[known], lost))
    progress(1.0)
    return v


def displacement(velocity: np.ndarray, chunk: int = 8) -> np.ndarray:
    """exp(v_t) - id for velocities `[T, H, W, 2]`; for `-velocity` it is the way back."""
    return in_chunks(_integrate, chunk, velocity)


def propagate(image: np.ndarray, velocity: np.ndarray, chunk: int = 8) -> np.ndarray:
    """An image or labels `[H, W]` of the reference frame carried to every frame, `[T, H, W]`.

    Floating images are interpolated linearly, labels take the nearest.
    """
    return in_chunks(_warp, chunk, np.broadcast_to(image, velocity.shape[:3]), -velocity)


def drift(u: np.ndarray, region: np.ndarray) -> float:
    """Mean length of the last displacement of `[T, H, W, 2]` in `region` `[H, W]`, pixels.

    Zero where the beat is a whole one and the last frame is the first one again.
    """
    return float(np.linalg.norm(u[-1], axis=-1)[np.asarray(region, bool)].mean())


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


# ---------------------------------------------------------------------------- helpers

_integrate = jax.jit(integrate_velocity)


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
