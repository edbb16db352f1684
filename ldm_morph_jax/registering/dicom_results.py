"""Results as DICOM objects, for `--dicom`, each kind in a series of its own (docs/dicom.md)."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ldm_morph_jax.files.dicom_objects.document import write_document
from ldm_morph_jax.files.dicom_objects.registration import write_registration
from ldm_morph_jax.files.dicom_objects.report import Group, Interval, Measurement, write_report
from ldm_morph_jax.files.dicom_objects.segmentation import write_segmentation
from ldm_morph_jax.files.dicom_objects.source import Series, Source, need_highdicom, new_series
from ldm_morph_jax.files.dicom_sources import read_source
from ldm_morph_jax.files.errors import FileError
from ldm_morph_jax.files.geometry import Geometry
from ldm_morph_jax.files.images import Image
from ldm_morph_jax.files.transforms import Transform
from ldm_morph_jax.ops.segments import NAMES
from ldm_morph_jax.registering.result import Registration

if TYPE_CHECKING:
    from ldm_morph_jax.registering.anatomy import Anatomy
    from ldm_morph_jax.registering.heart_result import TrackedHeart

_FIRST_SERIES = 9000  # far from the numbers that scanners give
_KINDS = ("segmentation", "displacements", "inverse displacements", "measurements", "page")


def source_of(path: Path, image: Image, frames: int = 1, frame: int | None = None) -> Source:
    """The DICOM files that an image or a cine was read from.

    Args:
        path: of the file or folder.
        image: what was read; of a cine, its first frame.
        frames: how many there are.
        frame: the one that was read, of a file of several.

    Raises FileError: no DICOM, pixels of unknown size, or frames that do not fit what was read.
    """
    if not image.spacing_known:
        raise FileError(f"{path}: `dicom` needs millimetres, and the pixel spacing is not known")
    need_highdicom(path)
    place = place_of(image)
    source = read_source(path, place, frame=frame)
    source.check_shape((frames, *place.shape))
    return source


def place_of(image: Image) -> Geometry:
    """Its 3-D geometry, (S, H, W)."""
    place = image.geometry if image.geometry.dimension == 3 else image.space
    if place is None:
        raise FileError(f"{image.source}: `dicom` needs DICOM images")
    return place


def write_pair(
    folder: Path,
    registration: Registration,
    moving: Source,
    fixed: Source,
    moving_mask: Image | None,
    *,
    inverse: bool,
) -> None:
    """The objects of a pair; they belong to the study of the fixed image."""
    series, sources = _series(), (fixed, moving)
    places = place_of(registration.fixed), place_of(registration.moving)
    there, path = registration.transform, folder / "displacement.dcm"
    _write_transform(path, there, places, sources, series["displacements"])
    if inverse:
        back, path = registration.inverse.transform, folder / "inverse_displacement.dcm"
        of_kind = series["inverse displacements"]
        _write_transform(path, back, places[::-1], sources[::-1], of_kind)
    if moving_mask is not None:
        labels = registration.transform.warp(moving_mask.array, "nearest")
        if labels.any():
            write_labels(folder / "warped_mask.dcm", labels, registration.fixed, fixed, series)


def write_labels(
    path: Path,
    labels: np.ndarray,
    image: Image,
    source: Source,
    series: Mapping[str, Series] | None = None,
) -> None:
    """Write labels on the grid of an image as a segmentation; their meaning is not known.

    `series` are those of other objects that are written with it.
    """
    place, found = place_of(image), [int(label) for label in np.unique(labels) if label]
    write_segmentation(
        path,
        labels.reshape(1, *place.shape),
        place,
        source,
        dict.fromkeys(found, "other"),
        (series or _series())["segmentation"],
    )


def write_cine(
    folder: Path,
    source: Source,
    heart: "TrackedHeart",
    content: Mapping,
    figures: Sequence,
) -> None:
    """The objects of a cine, into `folder`, which is made.

    Args:
        folder: the new one.
        source: of all frames.
        heart: the motion, and what the labels are.
        content: of summary.json.
        figures: of matplotlib, the pages of the document; none: no document.
    """
    folder.mkdir()
    series, place, anatomy = _series(), place_of(heart.cine.first), heart.anatomy
    digits = max(3, len(str(len(heart.times) - 1)))
    reference = source.only(heart.reference)
    for t in range(len(heart.times)):
        pair = reference, source.only(t)
        for name, transform, sources in (
            ("displacement", heart.transform(t), pair),
            ("inverse_displacement", heart.inverse_transform(t), pair[::-1]),
        ):
            of_kind = series[f"{name.replace('_', ' ')}s"]
            path = folder / f"{name}_{t:0{digits}d}.dcm"
            _write_transform(path, transform, (place, place), sources, of_kind, t + 1)
    if anatomy.labels is not None and anatomy.labels.any():
        labels = [heart.carried(anatomy.labels, t) for t in range(len(heart.times))]
        write_segmentation(
            folder / "segmentation.dcm",
            np.stack(labels).reshape(len(labels), *place.shape),
            place,
            source,
            _structures(anatomy),
            series["segmentation"],
        )
    write_findings(folder, source, content, heart.segment_rows, figures, series)


def write_findings(
    folder: Path,
    source: Source,
    content: Mapping,
    rows: Sequence[Mapping],
    figures: Sequence,
    series: Mapping[str, Series] | None = None,
) -> None:
    """report.dcm and page.dcm, where there is something to tell.

    Arguments as in `write_cine`; rows: of segments.csv.
    """
    series = series or _series()
    groups = _groups(content, rows)
    if groups:
        write_report(folder / "report.dcm", groups, source, series["measurements"])
    if figures:
        from matplotlib.backends.backend_pdf import PdfPages

        pages = io.BytesIO()
        with PdfPages(pages) as pdf:
            for figure in figures:
                pdf.savefig(figure)
        write_document(
            folder / "page.dcm", pages.getvalue(), "Tracked beat", source, series["page"]
        )


# ---------------------------------------------------------------------------- helpers


def _series() -> dict[str, Series]:
    return {
        kind: new_series(_FIRST_SERIES + k, f"ldm-morph {kind}")
        for k, kind in enumerate(_KINDS, start=1)
    }


def _write_transform(
    path: Path,
    transform: Transform,
    places: tuple[Geometry, Geometry],
    sources: tuple[Source, Source],
    series: Series,
    instance: int = 1,
) -> None:
    """`places` and `sources` are of the fixed and of the moving image."""
    placed = transform.in_space(*places)
    write_registration(
        path, placed.displacement_mm, placed.fixed, *sources, series, instance=instance
    )


def _structures(anatomy: "Anatomy") -> dict[int, str]:
    """Label -> what it is; the only other label is the right ventricle or the left atrium."""
    found = [int(label) for label in np.unique(anatomy.labels) if label]
    known = {
        label: name
        for name, mask in (("cavity", anatomy.cavity), ("wall", anatomy.wall))
        if mask is not None
        for label in found
        if (anatomy.labels[mask] == label).any()
    }
    others = [label for label in found if label not in known]
    alone = "right_ventricle" if anatomy.view == "sax" else "left_atrium"
    return known | {label: alone if len(others) == 1 else "other" for label in others}


def _groups(content: Mapping, rows: Sequence[Mapping]) -> list[Group]:
    """Summary and segments as groups of measurements; the reference counts as end-diastole."""
    ends = {"reference": ("end_diastolic", content["reference"])}
    if content.get("end_systole") is not None:
        ends["end_systole"] = ("end_systolic", content["end_systole"])
    both = tuple(frame for _, frame in ends.values())
    in_seconds = "s" if content["cine"]["times_known"] else None
    one, found = Measurement, []
    given = content.get("intervals")

    def interval(ends, percent=100.0):
        """Of a number that has one, in per cent."""
        if ends is None:
            return None
        low, high = (percent * end for end in ends)
        return Interval(low, high, given["coverage"], given["sentence"])

    apical = content.get("view") == "apical"
    for key, quantity, unit, method in (
        ("volume_ml", "volume", "ml", "discs" if apical else "slices"),
        ("cavity_area_mm2", "area", "mm2", None),
    ):
        for end, (name, frame) in ends.items():
            if key in content:
                value = content[key][end]
                found.append(one(f"{name}_{quantity}", value, unit, "", method, (frame,)))
    for key, method in (
        ("ejection_fraction", "discs" if apical else "slices"),
        ("fractional_area_change", None),
    ):
        if key in content:
            ends = interval(content.get(f"{key}_interval"))
            found.append(one(key, 100 * content[key], "%", "", method, both, ends))
    for numbers in content.get("strain", {}).values():
        method = {"wall": "wall", "endocardium": "endocardial"}.get(numbers["region"])
        if method:
            quantity = f"{numbers['direction']}_strain"
            ends = interval(numbers.get("peak_interval"))
            found += _of_strain(quantity, numbers, method, in_seconds, 100.0, ends)
    for direction, numbers in content.get("timing", {}).items():
        if in_seconds:
            for key in ("mechanical_dispersion", "earliest_to_latest"):
                found.append(one(key, 1000 * numbers[key], "ms", direction))
        if direction != "longitudinal":
            found.append(one(f"{direction}_uniformity", numbers["uniformity"], "1"))
    if "twist" in content:
        found.append(one("twist", content["twist"]["peak_deg"], "deg", "peak"))
        found.append(one("torsion", content["twist"]["peak_deg_per_mm"], "deg/mm", "peak"))
    groups = [Group("left ventricle", tuple(found))]
    for row in rows:
        if row["number"] is None or not row["trusted"]:
            continue
        measured = []
        for direction in ("radial", "circumferential", "longitudinal"):
            numbers = {
                "peak": row.get(f"{direction}_peak_percent"),
                "end_systolic": row.get(f"{direction}_end_systolic_percent"),
                "time_to_peak": row.get(f"{direction}_time_to_peak"),
                "post_systolic_index": row.get(f"{direction}_post_systolic_index_percent"),
            }
            if numbers["peak"] is not None:
                quantity = f"{direction}_strain"
                ends = [row.get(f"{direction}_peak_{end}_percent") for end in ("low", "high")]
                ends = None if None in ends else interval(ends, 1.0)
                measured += _of_strain(quantity, numbers, "wall", in_seconds, 1.0, ends)
        groups.append(Group(NAMES[row["number"] - 1], tuple(measured), row["number"]))
    finite = [m for group in groups for m in group.measurements if np.isfinite(m.value)]
    return groups if finite else []


def _of_strain(quantity, numbers, method, in_seconds, percent, interval) -> list[Measurement]:
    """`interval` is that of the peak."""
    name = quantity.replace("_", " ")
    peak = percent * numbers["peak"]
    found = [
        Measurement(quantity, peak, "%", "peak", method, interval=interval),
        Measurement(quantity, percent * numbers["end_systolic"], "%", "end-systolic", method),
        Measurement(
            "post_systolic_index", percent * numbers["post_systolic_index"], "%", name, method
        ),
    ]
    if in_seconds:
        found.append(Measurement("time_to_peak", numbers["time_to_peak"], "s", name, method))
        for phase in ("systolic", "early", "late"):
            if f"{phase}_rate" in numbers:
                rate = numbers[f"{phase}_rate"]
                found.append(Measurement(f"{quantity}_rate", rate, "/s", f"peak {phase}", method))
    return found
