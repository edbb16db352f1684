"""Find the heart in a cine, and its end-diastole and end-systole.

The anatomy network sees every frame (`segmenting`). End-diastole is the frame with the largest
cavity (the sum of its probabilities), end-systole the one with the smallest; what looks like a
cavity away from that of end-diastole does not count. Doubts are reported, and an option overrules
each finding.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.images import in_region
from ldm_morph_jax.files.movies import Cine
from ldm_morph_jax.registering.anatomy import Anatomy, anatomy_of, anatomy_of_mask
from ldm_morph_jax.registering.segmenting import CAVITY, Segmentation, segment
from ldm_morph_jax.runs.anatomy import AnatomyModel

WALL = "myocardium"
_NO_WALL = 255  # a label that no network gives
_LEAST_CHANGE = 0.08  # of the cavity's area: less is no beat
_UNSURE_FRAMES = 0.1  # of a cine: a larger share is a doubt
_FAR = 0.25  # of the largest area: a frame further from the median of three is wrong
_ALIKE = 0.02  # areas that differ by a smaller share are equally large
_AROUND = 0.3  # of the radius of the largest cavity: beyond it, what looks like a cavity is none


@dataclass(frozen=True)
class Findings:
    """What was found in a cine of T frames.

    network: its name.
    areas: `[T]` pixels of the image, of the cavity.
    confidence: `[T]`, see `segmenting.Segmentation`.
    end_diastole, end_systole: frames.
    labels: `[H, W]` uint8 of the reference frame.
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
    def notes(self) -> tuple[str, ...]:
        """What was found, for a reader, and the doubts."""
        found = (
            f"found by {self.network}: end-diastole in frame {self.end_diastole}, end-systole in "
            f"frame {self.end_systole}, {'a' if self.whole_beat else 'not a'} whole beat; "
            "`reference` and `period` overrule it"
        )
        return (found, *self.doubts)

    def summary(self, pixel: float | None) -> dict:
        """As JSON has it; `pixel`: area of one in mm2, None where unknown."""
        unit = "px" if pixel is None else "mm2"
        largest, smallest = self.areas[self.end_diastole], self.areas[self.end_systole]
        return {
            "network": self.network,
            "end_diastole": self.end_diastole,
            "end_systole": self.end_systole,
            f"cavity_area_{unit}": np.round(self.areas * (pixel or 1.0), 1).tolist(),
            "fractional_area_change": round(float(1 - smallest / largest), 4),
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
    cine: Cine, model: AnatomyModel | None, *, reference: int | None = None, **given
) -> Known:
    """The heart in the reference frame, told or found.

    Args:
        cine: of one slice; of volumes where the heart is told.
        model: the network that finds the heart; None: it is told.
        reference: the frame; None: 0, or end-diastole as found.
        given: arguments of `anatomy.anatomy_of`.

    Raises ImageError: what `anatomy_of` and `find_heart` refuse.
    """
    findings = None
    if model is None:
        reference = reference or 0
        anatomy = anatomy_of(cine, reference=reference, **given)
    else:
        findings, anatomy = _found(cine, model, reference, **given)
        reference = findings.reference
    if anatomy.labels is not None:
        cine = replace(cine, first=in_region(cine.first, anatomy.labels != 0))
    return Known(cine, reference, anatomy, findings)


def _found(cine, model, reference, *, view=None, **given) -> tuple[Findings, Anatomy]:
    """What the network finds; the view, septum, landmarks and levels are those `given`."""
    if cine.frames.ndim == 4:
        raise ImageError(
            f"{cine.first.source}: the anatomy network {model.name!r} sees slices; volumes need a "
            "`mask`, or `slice` all"
        )
    findings = find_heart(
        model,
        cine.frames,
        cine.first.spacing if cine.first.spacing_known else None,
        cine.first.source,
        reference=reference,
    )
    told = anatomy_of(cine, reference=findings.reference, view=view or model.view, **given)
    found = replace(anatomy_found(model, findings, told), view_by="user" if view else "network")
    if view not in (None, model.view):
        doubt = f"`view` is {view}, but {model.name!r} finds hearts in views that are {model.view}"
        found = replace(found, notes=(doubt,))
    return findings, found


def find_heart(
    model: AnatomyModel,
    frames: np.ndarray,
    spacing: tuple[float, float] | None,
    source: str,
    *,
    reference: int | None = None,
) -> Findings:
    """The heart in a cine.

    Args:
        model: the network.
        frames: `[T, H, W]`.
        spacing: mm, None where unknown.
        source: for messages.
        reference: the frame whose labels are wanted; None: end-diastole, as found.

    Raises ImageError: no such frame, or no heart in it.
    """
    if reference is not None and not 0 <= reference < len(frames):
        raise ImageError(f"{source}: has no frame {reference}")
    seen = segment(model, list(frames), spacing)
    cavity = model.label(CAVITY)
    confidence = np.array([one.confidence for one in seen])
    likely = np.stack([one.probabilities[..., cavity] for one in seen])
    largest = without_outliers(likely.sum(axis=(1, 2))).argmax()
    areas = likely[:, _around(_one_heart(seen[largest], cavity) == cavity)].sum(axis=1)
    curve = without_outliers(areas)
    end_diastole, end_systole = int(curve.argmax()), int(curve.argmin())
    reference = end_diastole if reference is None else reference
    if not seen[reference].found:
        raise ImageError(
            f"{source}: the anatomy network {model.name!r} finds no heart in frame {reference} "
            f"(confidence {confidence[reference]:.2f}, expected at least "
            f"{model.least_confidence:.2f}; distance from its training images "
            f"{seen[reference].distance:.2f}, expected at most {model.largest_distance:.2f}); give "
            "`mask` or `contours`, or the `anatomy` of this modality"
        )
    labels, whole = _one_heart(seen[reference], cavity), is_whole_beat(curve)
    unsure = sum(not one.found for one in seen)
    doubts = _doubts(curve, unsure, end_diastole, end_systole, whole)
    return Findings(
        network=model.name,
        areas=areas,
        confidence=confidence,
        end_diastole=end_diastole,
        end_systole=end_systole,
        labels=labels,
        reference=reference,
        whole_beat=whole,
        doubts=doubts,
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

    View, septum, landmarks and level are those `given`.
    """
    wall = model.label(WALL) or _NO_WALL
    source = f"anatomy network {model.name}"
    names = (model.label(CAVITY), wall)
    found = anatomy_of_mask(
        findings.labels, given.view, source, cavity_and_wall=names, septum=given.septum
    )
    return replace(found, landmarks=given.landmarks, level=given.level)


def _one_heart(seen: Segmentation, cavity: int) -> np.ndarray:
    """Labels without what is not connected to the largest cavity; its holes are filled."""
    labels = seen.labels.copy()
    parts, count = ndimage.label(labels == cavity)
    if not count:
        return labels
    sizes = np.bincount(parts.ravel())[1:]
    largest = parts == sizes.argmax() + 1
    whole, _ = ndimage.label(labels > 0)
    labels[whole != whole[largest][0]] = 0
    labels[(labels == cavity) & ~largest] = 0
    labels[ndimage.binary_fill_holes(largest)] = cavity
    return labels


def _around(cavity: np.ndarray) -> np.ndarray:
    """Where a cavity may be in other frames, `[H, W]` bool; everywhere if this one is empty."""
    radius = np.sqrt(np.count_nonzero(cavity) / np.pi)
    return ndimage.distance_transform_edt(~cavity) <= _AROUND * radius if radius else ~cavity


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
