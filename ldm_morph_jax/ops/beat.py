"""What readers ask of curves over a beat: peaks, their timing, uniformity, rates, twist.

Curves are `[T]` or `[T, K]` of K segments, NumPy, times `[T]` increasing from the reference frame,
which is end-diastole. `end_systole` is a time, that of a frame or of the aortic valve's closure
between two frames. A segment that is not measured is NaN; it makes its own values NaN, and those
over all segments leave it out.

Terms follow the consensus of Voigt et al., Eur Heart J Cardiovasc Imaging 16:1, 2015; where another
source defines a number, it is named there.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

SHORTENING = -1  # circumferential and longitudinal strain fall in systole
THICKENING = 1  # radial strain rises
# What valves do in a beat, in this order (Voigt 2015, sec. 3.1 and fig. 6).
VALVES = {
    "MVC": "mitral valve closure",
    "AVO": "aortic valve opening",
    "AVC": "aortic valve closure",
    "MVO": "mitral valve opening",
}


class Peak(NamedTuple):
    """The peaks of curves `[T, ...]`, each `[...]`.

    value: the strain of the largest shortening (or thickening) of the whole beat.
    time: when it is, from the reference frame ("time to peak").
    end_systolic: the strain at end-systole.
    post_systolic_index: (value - end_systolic) / value, the share of the peak that comes after
        end-systole; 0 where the peak is not after it.
    """

    value: np.ndarray
    time: np.ndarray
    end_systolic: np.ndarray
    post_systolic_index: np.ndarray


class Rates(NamedTuple):
    """Peak rates of strain of a beat, each `[...]`, per unit of the times; NaN where not seen."""

    systolic: np.ndarray
    early: np.ndarray
    late: np.ndarray


def check_valves(valves: Mapping[str, float], length: float = np.inf) -> None:
    """ValueError unless times of `VALVES` follow each other from 0 to `length`, all in ms."""
    for name, time in valves.items():
        if name not in VALVES:
            raise ValueError(f"`valves` has {name!r}, expected {', '.join(VALVES)}")
        if not 0 <= time <= length:
            end = f"to {length:g}, the last one" if np.isfinite(length) else "or more"
            raise ValueError(
                f"`valves` has {name} at {time:g} ms, expected 0, the reference frame, {end}"
            )
    told = [name for name in VALVES if name in valves]
    for before, after in zip(told, told[1:], strict=False):
        if not valves[before] < valves[after]:
            raise ValueError(
                f"`valves` has {before} at {valves[before]:g} ms and {after} at {valves[after]:g} "
                f"ms, expected {before} to come first"
            )


def valves_told(valves: Mapping[str, float]) -> str:
    """Such as "AVC 350 ms, MVO 420 ms"."""
    return ", ".join(f"{name} {valves[name]:g} ms" for name in VALVES if name in valves)


def peaks(curves: np.ndarray, times: np.ndarray, end_systole: float, direction: int) -> Peak:
    """Peak strain and its timing (Voigt 2015, sec. 3.3).

    The strain at an `end_systole` between two frames is interpolated linearly. The post-systolic
    index is that of Voigt et al., J Am Soc Echocardiogr 16:415, 2003. Where a segment never moves
    in its direction, the peak is the reference frame, 0, and the index NaN.

    Args:
        curves: `[T, ...]`.
        times: `[T]`.
        end_systole: a time.
        direction: `SHORTENING` or `THICKENING`.
    """
    curves, times = _checked(curves, times, end_systole)
    known = ~np.isnan(curves).any(axis=0)
    at = np.argmax(np.where(known, direction * curves, 0), axis=0)
    value = np.where(known, np.take_along_axis(curves, at[None], axis=0)[0], np.nan)
    systolic = np.where(known, _at(curves, times, end_systole), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        index = np.where(times[at] > end_systole, (value - systolic) / value, 0.0)
    index = np.where(known & (value != 0), index, np.nan)
    return Peak(value, np.where(known, times[at], np.nan), systolic, index)


def mechanical_dispersion(times_to_peak: np.ndarray) -> float:
    """Standard deviation of the segments' times to peak `[K]` (n - 1 in the denominator).

    Haugaa et al., JACC Cardiovasc Imaging 3:247, 2010. NaN with fewer than two segments.
    """
    known = _known(times_to_peak)
    return float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")


def earliest_to_latest(times_to_peak: np.ndarray) -> float:
    """Time from the first segment's peak to the last one's.

    Suffoletto et al., Circulation 113:960, 2006. NaN with fewer than two segments.
    """
    known = _known(times_to_peak)
    return float(np.ptp(known)) if len(known) > 1 else float("nan")


def uniformity(curves: np.ndarray) -> float:
    """Uniformity ratio estimate of strain around the ventricle, from 0 (half against half) to 1.

    CURE of circumferential, RURE of radial strain: sqrt(S0 / (S0 + S1)), with the power S0 of the
    mean and S1 of the first harmonic (frequencies +1 and -1) around the circumference, summed over
    time and slices (Leclercq et al., Circulation 106:1760, 2002; Helm et al., Circulation 111:2760,
    2005). Evenly spaced segments, in their order.

    Args:
        curves: `[..., K]`, K >= 3 segments around a slice; leading axes: times and slices. Slices
            in which a segment is missing (NaN) are left out.

    Returns:
        The ratio; NaN where no slice is whole or nothing moves.
    """
    curves = np.asarray(curves, np.float64)
    if curves.ndim < 1 or curves.shape[-1] < 3:
        raise ValueError(f"curves: found shape {curves.shape}, expected [..., K] with K >= 3")
    whole = curves[~np.isnan(curves).any(axis=-1)]
    power = np.abs(np.fft.fft(whole, axis=-1)) ** 2
    mean, first = power[:, 0].sum(), power[:, 1].sum() + power[:, -1].sum()
    return float(np.sqrt(mean / (mean + first))) if mean + first > 0 else float("nan")


def peak_rates(curves: np.ndarray, times: np.ndarray, end_systole: float, direction: int) -> Rates:
    """Peak systolic (S), early (E) and late diastolic (A) strain rate (D'hooge et al., Eur J
    Echocardiogr 1:154, 2000).

    S is the largest rate in the strain's direction up to end-systole, E and A the largest against
    it in the first and in the second half of diastole. Without an electrocardiogram or times of
    valves the halves stand for filling before and after diastasis. What has fewer than two frames
    is NaN: A, for one, where the cine ends soon after end-systole.

    Args:
        curves: strain `[T, ...]`, whose rate is taken by second-order differences.
        times, end_systole, direction: as in `peaks`.
    """
    curves, times = _checked(curves, times, end_systole)
    rates = np.gradient(curves, times, axis=0) if len(times) > 1 else np.zeros_like(curves)
    middle = (end_systole + times[-1]) / 2
    windows = (
        (times <= end_systole, direction),
        ((times >= end_systole) & (times <= middle), -direction),
        (times > middle, -direction),
    )
    peaks = []
    for window, way in windows:
        inside = rates[window]
        if len(inside) < 2:
            peaks.append(np.full(curves.shape[1:], np.nan))
        else:
            peaks.append(way * (way * inside).max(axis=0))
    return Rates(*peaks)


def rotation(points: np.ndarray, moved: np.ndarray, spacing=(1.0, 1.0)) -> np.ndarray:
    """Rotation of a slice over time, degrees, `[T]`.

    The angle of the rotation that fits best (least squares, Kabsch): about the centroid, which may
    move. Positive is anticlockwise on an image with rows downwards; seen from the apex, as short
    axes are, that is how the apex turns in systole.

    Args:
        points: `[N, 2]` (row, column) pixels of the wall in the reference frame.
        moved: `[T, N, 2]`, where they are.
        spacing: of a pixel, (row, column).
    """
    scale = np.asarray(spacing, np.float64) * [-1.0, 1.0]  # rows count downwards
    start = (points - points.mean(axis=0)) * scale
    now = (moved - moved.mean(axis=1, keepdims=True)) * scale
    sine = (start[:, 1] * now[..., 0] - start[:, 0] * now[..., 1]).sum(axis=1)
    cosine = (start * now).sum(axis=(1, 2))
    return np.degrees(np.unwrap(np.arctan2(sine, cosine)))


def twist(basal: np.ndarray, apical: np.ndarray) -> np.ndarray:
    """Apical minus basal rotation `[T]`, degrees (Young and Cowan, J Cardiovasc Magn Reson 14:49,
    2012)."""
    return np.asarray(apical) - np.asarray(basal)


def torsion(twisted: np.ndarray, distance: float) -> np.ndarray:
    """Twist per distance of the slices, degrees per unit of `distance` (Young and Cowan 2012)."""
    if not distance > 0:
        raise ValueError(f"distance: found {distance}, expected a positive number")
    return np.asarray(twisted) / distance


def _checked(curves, times, end_systole):
    curves, times = np.asarray(curves, np.float64), np.asarray(times, np.float64)
    if times.shape != curves.shape[:1] or not len(times):
        raise ValueError(f"times: found shape {times.shape}, expected {curves.shape[:1]}")
    if not times[0] <= end_systole <= times[-1]:
        raise ValueError(
            f"end_systole: found {end_systole:g}, expected {times[0]:g} to {times[-1]:g}"
        )
    return curves, times


def _at(curves, times, time) -> np.ndarray:
    """`[...]`, curves `[T, ...]` at a time, linearly between frames."""
    if len(times) == 1:
        return curves[0]
    k = int(np.clip(np.searchsorted(times, time, side="right") - 1, 0, len(times) - 2))
    share = (time - times[k]) / (times[k + 1] - times[k])
    return (1 - share) * curves[k] + share * curves[k + 1]


def _known(values) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values[np.isfinite(values)]
