"""A folder of DICOM files, as scanners and archives export them.

Which slice and which frame a file holds is in its header: the slice by its position, the frame by
its trigger time, or else temporal position, acquisition time or instance number. File names, and
the order in which a folder lists them, mean nothing. A file holds one image, or all frames of a
slice.
"""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from ldm_morph_jax.files import dicom
from ldm_morph_jax.files.errors import ImageError, refusing
from ldm_morph_jax.files.stored import Stored

# a step between frames that is so many times as long as the others has lost a frame
_LONG_STEP = 1.6
# what can tell images of one place and time apart, for messages
_DIFFERENCES = (
    "SeriesDescription ImageType ComplexImageComponent EchoTime EchoNumbers InversionTime "
    "FlipAngle DiffusionBValue AcquisitionNumber InstanceNumber"
).split()


@dataclass(frozen=True)
class Instance:
    """One file.

    stored: its image `[1, 1, H, W]`, or the frames of its slice.
    header: a `pydicom.Dataset`.
    """

    path: Path
    stored: Stored
    header: Any

    def number(self, name: str) -> float | None:
        """A numeric attribute; None where it is missing or no number."""
        value = dicom.numbers(self.header.get(name), (1,))
        return None if value is None else float(value[0])

    @property
    def position(self) -> np.ndarray | None:
        """`[3]` mm"""
        return self.stored.geometry.origin if self.stored.position_known else None

    @property
    def orientation(self) -> np.ndarray | None:
        """`[6]`, the directions of rows and columns."""
        known = self.stored.orientation_known
        return self.stored.geometry.direction[:, :2].T.ravel() if known else None

    def acquired(self) -> float | None:
        """When it was acquired, in seconds; None where that is not told."""
        date = str(self.header.get("AcquisitionDate") or "")
        text = str(self.header.get("AcquisitionDateTime") or "")
        text = text or (date or "20000101") + str(self.header.get("AcquisitionTime") or "-")
        text = text.partition("+")[0].partition("-")[0]  # the offset from UTC is that of all
        whole, _, fraction = text.partition(".")
        try:
            seconds = datetime.strptime(whole, "%Y%m%d%H%M%S").timestamp()
            return seconds + float(f"0.{fraction or 0}")
        except ValueError:
            return None

    def group(self) -> tuple:
        """What images of one slice and one kind have in common."""
        orientation, kind = self.orientation, self.header.get("ImageType") or ""
        return (
            str(self.header.get("SeriesInstanceUID") or ""),
            kind if isinstance(kind, str) else "\\".join(kind),
            self.stored.array.shape[-2:],
            tuple(np.round(self.stored.geometry.spacing[-2:], 4)),
            None if orientation is None else tuple(np.round(orientation, 3)),
        )

    def described(self) -> str:
        """For messages: 'series 5 "cine" (ORIGINAL\\PRIMARY\\M, 96 x 96 pixels)'."""
        _, kind, (height, width), *_ = self.group()
        number = self.header.get("SeriesNumber")
        name = self.header.get("SeriesDescription") or self.header.get("SeriesInstanceUID") or ""
        return (
            f"series {'' if number is None else f'{number} '}{str(name)!r} "
            f"({kind + ', ' if kind else ''}{height} x {width} pixels)"
        )


# What puts the frames of a slice in order, the best first: its name in messages,
# its value, how many seconds one is, and whether equal ones show that files do not belong together
# (acquisition times are equal wherever a scanner gives all frames of a beat the same one).
_KEYS: tuple[tuple[str, Callable[[Instance], float | None], float | None, bool], ...] = (
    ("trigger time", lambda one: one.number("TriggerTime"), 1e-3, True),
    ("temporal position", lambda one: one.number("TemporalPositionIdentifier"), None, True),
    ("acquisition time", Instance.acquired, 1.0, False),
    ("instance number", lambda one: one.number("InstanceNumber"), None, False),
)


def read_series(files: Sequence[Path], source: str, *, luminance: bool = False) -> Stored:
    """Frames and slices `[T, S, H, W]` of DICOM files, slices along the normal of their plane.

    A file that is there twice counts once, and a note says so. Several series are taken together
    where each has slices of its own (a breath-hold per slice).

    Raises:
        ImageError: several series, or several kinds of image (magnitude and phase), at one place;
            slices or frames that are missing; frames that nothing puts in order.
    """
    # pydicom decodes a value, and raises, when it is asked for
    with refusing(f"{source}: not a readable DICOM series"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that break rules that do not matter here
        return _stack([_read(file, luminance) for file in files], source)


def in_order(files: Sequence[Path], source: str) -> list[list[Instance]]:
    """The files of every slice, in time, as `read_series` puts them; raises as it does."""
    slices, _, _ = _in_slices([_read(file, True) for file in files], source)
    return _in_order(slices, source)[0]


def _stack(instances: list[Instance], source: str) -> Stored:
    slices, geometry, notes = _in_slices(instances, source)
    if any(len(instance.stored.array) > 1 for instance in instances):
        array, times = _of_cines(slices, source)
    else:
        slices, times, notes_on_order = _in_order(slices, source)
        notes += notes_on_order
        in_time = [[instance.stored.array[0, 0] for instance in planes] for planes in slices]
        array = np.stack([np.stack(planes) for planes in in_time], axis=1)
    first = slices[0][0].stored
    notes = (*first.notes, *notes)
    return replace(first, array=array, geometry=geometry, times=times, notes=notes)


def _read(file: Path, luminance: bool) -> Instance:
    stored, header = dicom.read_with_header(file, str(file), luminance=luminance)
    frames, slices = stored.array.shape[:2]
    if slices > 1 or (frames > 1 and not stored.position_known):
        raise ImageError(
            f"{file}: holds {frames * slices} frames, expected one, or those of one slice at a "
            "known position; read this file by itself"
        )
    return Instance(file, stored, header)


def _without_repeats(instances: list[Instance]) -> tuple[list[Instance], tuple[str, ...]]:
    """Drops files with the same pixels, place and time as another one."""
    kept: dict[tuple, Instance] = {}
    repeated = []
    for instance in instances:
        times = [value(instance) for _, value, _, _ in _KEYS[:-1]]
        if all(time is None for time in times):
            times = [instance.number("InstanceNumber")]
        position = instance.position
        key = (
            instance.group(),
            None if position is None else tuple(np.round(position, 2)),
            *times,
            hashlib.sha256(instance.stored.array.tobytes()).digest(),
        )
        if key in kept:
            repeated.append(instance.path.name)
        else:
            kept[key] = instance
    if not repeated:
        return instances, ()
    names = ", ".join(repeated[:3]) + (", ..." if len(repeated) > 3 else "")
    return list(kept.values()), (f"left out {len(repeated)} repeated files ({names})",)


def _check_kinds(instances: list[Instance], source: str) -> None:
    """ImageError unless all images are of one kind and one grid, at most one series at a place."""
    groups: dict[tuple, list[Instance]] = {}
    for instance in instances:
        groups.setdefault(instance.group(), []).append(instance)
    if len(groups) == 1:
        return
    places = [
        {tuple(np.round(member.position, 1)) for member in members}
        for members in groups.values()
        if all(member.position is not None for member in members)
    ]
    own_places = len(places) == len(groups) and len(set().union(*places)) == sum(map(len, places))
    one_grid = len({group[2:] for group in groups}) == 1
    if own_places and one_grid:
        return
    # whoever removed the names gave every file a series of its own
    if len(groups) == len(instances) > 2 and len({group[1:] for group in groups}) == 1:
        return
    names = ("series", "kind", "size", "pixel spacing", "orientation")
    differ = [name for name, *values in zip(names, *groups, strict=True) if len(set(values)) > 1]
    listed = "; ".join(
        f"{members[0].described()}, {len(members)} files, {members[0].path.name} and on"
        for members in groups.values()
    )
    raise ImageError(
        f"{source}: holds {len(groups)} series or kinds of image, expected one; put the one to "
        f"read into a folder of its own: {listed} (they differ in {', '.join(differ)})"
    )


def _in_slices(instances: list[Instance], source: str):
    """(the instances of every slice, the geometry of the stack, notes); repeats are left out."""
    instances, notes = _without_repeats(instances)
    _check_kinds(instances, source)
    first = instances[0]
    orientation = first.orientation
    without = [instance for instance in instances if instance.position is None]
    if 0 < len(without) < len(instances):
        raise ImageError(f"{without[0].path}: has no position, which the others of its series have")
    if without or orientation is None:
        return [instances], first.stored.geometry, notes
    positions = np.stack([instance.position for instance in instances])
    levels, members = dicom.slices_of(positions, orientation, source)
    slices = [[instances[k] for k in planes] for planes in members]
    geometry, lowest = first.stored.geometry, slices[0][0]
    if len(levels) > 1:
        geometry = dicom.stack_geometry(
            levels,
            lowest.position,
            orientation,
            (len(levels), *geometry.shape[-2:]),
            geometry.spacing[-2:],
            source,
        )
        usual = lowest.number("SpacingBetweenSlices") or lowest.number("SliceThickness")
        distance = geometry.spacing[0]
        if usual and distance >= 1.9 * abs(usual):  # every other one may be missing
            told = f"{usual:g} mm according to the files: is one missing?"
            notes += (f"slices {distance:g} mm apart, {told}",)
    return slices, geometry, notes


def _of_cines(slices: list[list[Instance]], source: str):
    """(`[T, S, H, W]`, times as in `Stored`) of files that hold all frames of their slice."""
    lengths = [[len(instance.stored.array) for instance in files] for files in slices]
    if any(len(counts) > 1 or counts != lengths[0] for counts in lengths):
        counted = "; ".join(
            f"slice {k}: {' and '.join(map(str, counts))}" for k, counts in enumerate(lengths)
        )
        raise ImageError(
            f"{source}: expected one file with as many frames for every slice, found frames of "
            f"{counted}"
        )
    stored = [instance.stored for (instance,) in slices]
    times = [cine.times for cine in stored]
    known = all(in_slice is not None for in_slice in times)
    return (
        np.concatenate([cine.array for cine in stored], axis=1),
        dicom.seconds_of_frames(np.stack(times, axis=1)) if known else None,
    )


def _in_order(slices: list[list[Instance]], source: str):
    """(the instances of every slice in time, times as in `Stored`, notes)."""
    _check_numbers_of_frames(slices, source)
    count = len(slices[0])
    if count == 1:
        return slices, None, ()
    usable = []
    for name, value, seconds, belongs in _KEYS:
        values = [[value(instance) for instance in planes] for planes in slices]
        if any(None in in_slice for in_slice in values):
            continue
        if all(len(set(in_slice)) == count for in_slice in values):
            order = [sorted(planes, key=value) for planes in slices]
            usable.append((name, value, seconds, order))
            if belongs:
                break
        elif belongs and any(len(set(in_slice)) > 1 for in_slice in values):
            raise ImageError(f"{source}: {_repeated(slices, name, value)}")
    if not usable:
        raise ImageError(
            f"{source}: nothing tells the order of its frames: of "
            f"{slices[0][0].path.name}, {slices[0][1].path.name}, ... trigger times, temporal "
            "positions, acquisition times and instance numbers are missing or repeat"
        )
    name, value, seconds, slices = usable[0]
    for other, _, _, order in usable:
        if order != slices:
            raise ImageError(f"{source}: {name} and {other} put its frames in different orders")
    values = np.array([[value(instance) for instance in planes] for planes in slices]).T
    times = None if seconds is None else dicom.seconds_of_frames(values * seconds)
    return slices, times, (*_gaps(values, name), *_too_few(slices))


def _check_numbers_of_frames(slices: list[list[Instance]], source: str) -> None:
    """ImageError, naming what is missing, unless every slice has as many frames."""
    counts = [len(planes) for planes in slices]
    if len(set(counts)) == 1:
        return
    most = max(counts)
    lacking = []
    for k, planes in enumerate(slices):
        if len(planes) < most:
            text = f"slice {k} has {len(planes)}"
            if missing := _missing_values(planes, slices):
                text += f" (without {missing})"
            lacking.append(text)
    raise ImageError(
        f"{source}: frames are missing: of {len(slices)} slices, those that are whole have {most} "
        f"frames, but {'; '.join(lacking)}"
    )


def _missing_values(planes: list[Instance], slices: list[list[Instance]]) -> str:
    """The trigger times or temporal positions that a whole slice has and this one has not.

    Those of two slices differ by less than half a step, as heart rates vary between breath-holds.
    """
    whole = max(slices, key=len)
    for name, value, _, _ in _KEYS[:2]:
        here, there = ([value(instance) for instance in members] for members in (planes, whole))
        if None in here or None in there or len(set(there)) < len(there):
            continue
        half_step = np.median(np.diff(sorted(there))) / 2
        missing = [v for v in sorted(there) if min(abs(v - other) for other in here) >= half_step]
        return f"{name} {', '.join(f'{v:g}' for v in missing)}" if missing else ""
    return ""


def _repeated(slices, name, value) -> str:
    """Names two images with the same place and time, and what differs between them."""
    for planes in slices:
        seen: dict[float, Instance] = {}
        for instance in planes:
            other = seen.setdefault(value(instance), instance)
            if other is instance:
                continue
            differences = [
                f"{attribute} {other.header.get(attribute)} and {instance.header.get(attribute)}"
                for attribute in _DIFFERENCES
                if other.header.get(attribute) != instance.header.get(attribute)
            ]
            return (
                f"{other.path.name} and {instance.path.name} have the same place and the same "
                f"{name} {value(instance):g}; they differ in {', '.join(differences) or 'pixels'}"
            )
    raise AssertionError("nothing repeats")


def _gaps(values: np.ndarray, name: str) -> tuple[str, ...]:
    """Notes on steps in time, `[T, S]`, that are longer than the others."""
    steps = np.diff(values, axis=0)
    if len(steps) < 3:
        return ()
    long = steps > _LONG_STEP * np.median(steps, axis=0)
    notes = []
    for k in np.flatnonzero(long.any(axis=0)):
        places = " and ".join(
            f"between {values[t, k] - values[0, k]:g} and {values[t + 1, k] - values[0, k]:g}"
            for t in np.flatnonzero(long[:, k])
        )
        where = f"slice {k}: " if values.shape[1] > 1 else ""
        notes.append(f"{where}a frame seems to be missing, {name} {places} after the first")
    return tuple(notes)


def _too_few(slices: list[list[Instance]]) -> tuple[str, ...]:
    """A note where the header says that there are more frames."""
    here = len(slices[0])
    for name in ("CardiacNumberOfImages", "NumberOfTemporalPositions"):
        expected = slices[0][0].number(name)
        if expected is not None and expected > here:
            return (f"{here} frames of the {expected:g} that the files tell of ({name})",)
    return ()
