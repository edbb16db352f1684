"""Find the heart in a cine, of a slice or of volumes, and its end-diastole and end-systole.

The anatomy network sees every frame of every slice (`segmenting`). End-diastole is the frame with
the largest cavity (the sum of its probabilities), end-systole the one with the smallest; what looks
like a cavity away from that of end-diastole does not count. Doubts are reported, and an option
overrules each finding.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.images import in_region
from ldm_morph_jax.files.movies import Cine
from ldm_morph_jax.registering.anatomy import Anatomy, anatomy_of, anatomy_of_mask, with_levels
from ldm_morph_jax.registering.segmenting import CAVITY, WALL, connected, locate_in_stack, segment
from ldm_morph_jax.runs.anatomy import AnatomyModel

_NO_WALL = 255  # a label that no network gives
_LEAST_CHANGE = 0.08  # of the cavity's area: less is no beat
_UNSURE_FRAMES = 0.1  # of a cine: a larger share is a doubt
_FAR = 0.25  # of the largest area: a frame further from the median of three is wrong
_ALIKE = 0.02  # areas that differ by a smaller share are equally large
_AROUND = 0.3  # of the radius of the largest cavity: beyond it, what looks like a cavity is none


class Seen(NamedTuple):
    """What a network sees in the T frames of a cine, of one slice or of volumes of S slices.

    likely: `[T, *space]`, probability of the cavity.
    labels: `[T, *space]` uint8, 0 where no heart is seen.
    confidence, distance: `[T]` or `[T, S]`, see `segmenting.Segmentation`.
    found: `[T]` or `[T, S]`, whether there is a heart.
    """

    likely: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray
    distance: np.ndarray
    found: np.ndarray

    def of_slice(self, k: int, reference: int, labels: np.ndarray) -> "Seen":
        """One slice of volumes, whose labels in the reference frame are those of all slices."""
        one = Seen(*(part[:, k] for part in self))
        of_slice = one.labels.copy()
        of_slice[reference] = labels[k]
        return one._replace(labels=of_slice)


@dataclass(frozen=True)
class Findings:
    """What was found in a cine of T frames.

    network: its name.
    areas: `[T]` pixels of the image, of the cavity; of volumes in all slices together.
    confidence: `[T]`, see `segmenting.Segmentation`; of volumes the mean over slices with a cavity.
    end_diastole, end_systole: frames.
    labels: `[*space]` uint8 of the reference frame.
    reference: that frame.
    whole_beat: whether the cavity returns to its first area after end-systole.
    doubts: what a reader should look at.
    """

    network: str
    areas: np.ndarray
    confidence: np.ndarray
    end_diastole: int
    end_systole: int
    labels: np.ndarray
    reference: int
    whole_beat: bool
    doubts: tuple[str, ...]

    @property
    def change(self) -> float:
        """Share of its area, of volumes of its volume, that the cavity loses to end-systole."""
        return float(1 - self.areas[self.end_systole] / self.areas[self.end_diastole])

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found, for a reader, and the doubts."""
        found = (
            f"found by {self.network}: end-diastole in frame {self.end_diastole}, end-systole in "
            f"frame {self.end_systole}, where the cavity is smaller by {100 * self.change:.1f} %, "
            f"{'a' if self.whole_beat else 'not a'} whole beat; `reference` and `period` overrule "
            "it"
        )
        return (found, *self.doubts)

    def summary(self, pixel: float | None) -> dict:
        """As JSON has it; `pixel`: area of one in mm2, None where unknown."""
        unit = "px" if pixel is None else "mm2"
        return {
            "network": self.network,
            "end_diastole": self.end_diastole,
            "end_systole": self.end_systole,
            f"cavity_area_{unit}": np.round(self.areas * (pixel or 1.0), 1).tolist(),
            "fractional_area_change": round(self.change, 4),
            "confidence": np.round(self.confidence, 3).tolist(),
            "whole_beat": self.whole_beat,
            "doubts": list(self.doubts),
        }


class Known(NamedTuple):
    """A cine and the heart in its reference frame.

    cine: of several ultrasound regions it has the scale of the one that shows the heart.
    reference: number of the frame.
    anatomy: the heart in it.
    findings: of the network; None where the heart was told.
    """

    cine: Cine
    reference: int
    anatomy: Anatomy
    findings: Findings | None = None


def known_or_found(
    cine: Cine,
    model: AnatomyModel | None,
    *,
    reference: int | None = None,
    seen: Seen | None = None,
    **given,
) -> Known:
    """The heart in the reference frame, told or found.

    Args:
        cine: of one slice, or of volumes.
        model: the network that finds the heart; None: it is told.
        reference: the frame; None: 0, or end-diastole as found.
        seen: what the network sees in the cine, where that is known already.
        given: arguments of `anatomy.anatomy_of`.

    Raises ImageError: no such frame, what `anatomy_of` and `find_heart` refuse.
    """
    findings = None
    cine.check_frame(reference or 0)
    if model is None:
        reference = reference or 0
        anatomy = anatomy_of(cine, reference=reference, **given)
    else:
        findings, anatomy = _found(cine, model, reference, seen, **given)
        reference = findings.reference
    if anatomy.labels is not None:
        cine = replace(cine, first=in_region(cine.first, anatomy.labels != 0))
    return Known(cine, reference, anatomy, findings)


def _found(cine, model, reference, seen, *, view=None, **given) -> tuple[Findings, Anatomy]:
    """What the network finds; the view, septum, landmarks and levels are those `given`."""
    spacing = cine.first.spacing if cine.first.spacing_known else None
    seen = seen or look(model, cine.frames, spacing)
    findings = find_heart(model, seen, cine.first.source, reference=reference)
    told = anatomy_of(cine, reference=findings.reference, view=view or model.view, **given)
    found = anatomy_found(model, findings, told)
    found = replace(found, view_by="user" if view else "network")
    if view not in (None, model.view):
        doubt = f"`view` is {view}, but {model.name!r} finds hearts in views that are {model.view}"
        found = replace(found, notes=(doubt,))
    return findings, found


def look(
    model: AnatomyModel,
    frames: np.ndarray,
    spacing: tuple[float, float] | None,
    centre: tuple[float, float] | None = None,
    progress: Callable[[Sequence], Iterable] = iter,
) -> Seen:
    """What the network sees in frames `[T, H, W]`, or of volumes `[T, S, H, W]`.

    Args:
        model: the network.
        frames: grey values of any range.
        spacing: mm within a slice, None where unknown.
        centre: see `segmenting.segment`; the slices of volumes have one in common.
        progress: goes through the numbers of the slices.
    """
    if frames.ndim == 4:
        centre = locate_in_stack(model, frames, spacing)
        slices = [
            look(model, frames[:, k], spacing, centre) for k in progress(range(frames.shape[1]))
        ]
        return Seen(*(np.stack(part, axis=1) for part in zip(*slices, strict=True)))
    seen = segment(model, list(frames), spacing, centre)
    cavity = model.label(CAVITY)
    return Seen(
        likely=np.stack([one.probabilities[..., cavity] for one in seen]),
        labels=np.stack([one.labels for one in seen]),
        confidence=np.array([one.confidence for one in seen]),
        distance=np.array([one.distance for one in seen]),
        found=np.array([one.found for one in seen]),
    )


def find_heart(
    model: AnatomyModel, seen: Seen, source: str, *, reference: int | None = None
) -> Findings:
    """The heart in a cine, of what the network sees in it.

    What is seen away from the largest cavity does not count.

    Args:
        model: the network.
        seen: see `look`.
        source: for messages.
        reference: the frame whose labels are wanted; None: end-diastole, as found.

    Raises ImageError: no heart in it.
    """
    cavity, space = model.label(CAVITY), tuple(range(1, seen.labels.ndim))
    largest = without_outliers(seen.likely.sum(axis=space)).argmax()
    heart = _one_heart(seen.labels[largest], cavity) == cavity
    areas = (seen.likely * _around(heart)).sum(axis=space)
    confidence, found = seen.confidence, seen.found
    if confidence.ndim == 2:
        shows = heart.any(axis=(1, 2)) | ~heart.any()
        confidence = confidence[:, shows].mean(axis=1)
        found = 2 * found[:, shows].sum(axis=1) >= shows.sum()
    curve = without_outliers(areas)
    end_diastole, end_systole = int(curve.argmax()), int(curve.argmin())
    reference = end_diastole if reference is None else reference
    labels = _one_heart(seen.labels[reference], cavity)
    if not (labels == cavity).any():
        raise ImageError(
            f"{source}: the anatomy network {model.name!r} finds no heart in frame {reference} "
            f"(confidence {confidence[reference]:.2f}, expected at least "
            f"{model.least_confidence:.2f}; distance from its training images "
            f"{seen.distance[reference].min():.2f}, expected at most "
            f"{model.largest_distance:.2f}); give `mask` or `contours`, or the `anatomy` of this "
            "modality"
        )
    whole = is_whole_beat(curve)
    return Findings(
        network=model.name,
        areas=areas,
        confidence=confidence,
        end_diastole=end_diastole,
        end_systole=end_systole,
        labels=labels,
        reference=reference,
        whole_beat=whole,
        doubts=_doubts(curve, int((~found).sum()), end_diastole, end_systole, whole),
    )


def is_whole_beat(areas: np.ndarray) -> bool:
    """Whether a cavity's areas `[T]` fall, rise, and end about where they began.

    About: within a quarter of their range, since the last frame of a beat may come a frame's time
    before the next one begins, in the atrial kick.
    """
    change = np.ptp(areas)
    inner = areas[1:-1]
    turned = bool(len(inner)) and (
        inner.min() < min(areas[0], areas[-1]) - change / 4
        or inner.max() > max(areas[0], areas[-1]) + change / 4
    )
    return bool(turned and abs(areas[-1] - areas[0]) <= change / 4)


def without_outliers(areas: np.ndarray) -> np.ndarray:
    """Areas `[T]`; a frame far from the median of itself and its neighbours takes that median.

    A single frame that the network gets wrong must not pass for end-systole.
    """
    median = ndimage.median_filter(areas, 3, mode="nearest")
    far = np.abs(areas - median) > _FAR * areas.max(initial=0)
    return np.where(far, median, areas)


def anatomy_found(model: AnatomyModel, findings: Findings, given: Anatomy) -> Anatomy:
    """Cavity, wall and contours of the reference frame, as from a mask.

    View, septum and landmarks are those `given`, as are levels of slices where they are.
    """
    source = f"anatomy network {model.name}"
    found = anatomy_of_mask(
        findings.labels,
        given.view,
        source,
        cavity_and_wall=cavity_and_wall(model),
        septum=given.septum,
    )
    found = replace(found, landmarks=given.landmarks, level=given.level, levels=given.levels)
    return with_levels(found) if found.labels.ndim == 3 and not found.levels else found


def cavity_and_wall(model: AnatomyModel) -> tuple[int, int]:
    """Their labels; of a network that does not know the wall, one that it does not give."""
    return model.label(CAVITY), model.label(WALL) or _NO_WALL


def _one_heart(labels: np.ndarray, cavity: int) -> np.ndarray:
    """Labels `[*space]` of what is connected to the largest cavity, whose holes are filled."""
    labels = labels.copy()
    largest = connected(labels == cavity)
    if not largest.any():
        return labels
    whole, _ = ndimage.label(labels > 0)
    labels[whole != whole[largest][0]] = 0
    labels[(labels == cavity) & ~largest] = 0
    within_slices = largest if largest.ndim == 3 else largest[None]
    filled = np.stack([ndimage.binary_fill_holes(one) for one in within_slices])
    labels[filled.reshape(largest.shape)] = cavity
    return labels


def _around(cavity: np.ndarray) -> np.ndarray:
    """Where a cavity `[*space]` may be in other frames of its slices; everywhere if it is empty."""
    if not cavity.any():
        return ~cavity
    if cavity.ndim == 3:
        return np.stack([one.any() & _around(one) for one in cavity])
    radius = np.sqrt(np.count_nonzero(cavity) / np.pi)
    return ndimage.distance_transform_edt(~cavity) <= _AROUND * radius


def _doubts(areas, unsure, end_diastole, end_systole, whole) -> tuple[str, ...]:
    found = []
    if unsure > _UNSURE_FRAMES * len(areas):
        found.append(f"the network is unsure of the heart in {unsure} of {len(areas)} frames")
    change = 1 - areas[end_systole] / areas[end_diastole]
    if len(areas) > 1 and change < _LEAST_CHANGE:
        found.append(
            f"the cavity's area changes by {100 * change:.0f} % only; is this a whole beat?"
        )
    elif len(areas) > 1 and not whole:
        found.append("the cavity's area does not end where it began: is this a whole beat?")
    # a whole beat may show the same phase again at its other end
    for name, frame, alike in (
        ("end-diastole", end_diastole, areas >= areas[end_diastole] * (1 - _ALIKE)),
        ("end-systole", end_systole, areas <= areas[end_systole] * (1 + _ALIKE)),
    ):
        others = np.flatnonzero(alike)
        away = np.abs(others - frame)
        far = others[(away > max(2, len(areas) // 10)) & (away < len(areas) - len(areas) // 10 - 1)]
        if len(far):
            found.append(f"{name} may be frame {frame} or {int(far[0])}: areas are nearly equal")
    return tuple(found)
