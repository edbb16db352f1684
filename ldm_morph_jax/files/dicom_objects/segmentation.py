"""Segmentations (SEG): written over time, read as labels.

A frame of the object is one structure in one slice at one time. Its dimension index counts time
first (Temporal Position Index), so that a viewer that sorts by it plays the beat; every frame
refers to the frame of the source that it outlines. BINARY, the type that every viewer reads.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.dicom_objects.source import (
    CREATOR,
    MODEL,
    Series,
    Source,
    code_item,
    decimals,
    group_value,
    item,
    need_highdicom,
    new_object,
    refer,
    save,
)
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.geometry import Geometry, orthonormal
from ldm_morph_jax.files.stored import Stored

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
MYOCARDIUM = "49848007"  # SNOMED CT
_SEGMENTED = ("113076", "DCM", "Segmentation")
WALL = 2  # the label of the myocardium in ACDC, M&Ms and CAMUS alike
_NUMBERED = "label "  # begins the name of a segment of which only the label is known
# what a label is -> (its name in the object, SNOMED CT code and meaning, CIELab colour)
STRUCTURES = {
    "cavity": ("left ventricular cavity", "87878005", "Left ventricle", (60.0, 60.0, 40.0)),
    "wall": ("left ventricular wall", MYOCARDIUM, "Left Ventricle Myocardium", (75.0, -50.0, 45.0)),
    "right_ventricle": ("right ventricle", "53085002", "Right ventricle", (45.0, 25.0, -75.0)),
    "left_atrium": ("left atrium", "82471001", "Left atrium", (80.0, 0.0, 75.0)),
    "other": ("", "80891009", "Heart", (70.0, 0.0, 0.0)),
}


def write_segmentation(
    path: str | Path,
    labels: np.ndarray,
    place: Geometry,
    source: Source,
    structures: Mapping[int, str],
    series: Series,
) -> None:
    """Write labels over time.

    Args:
        labels: `[T, S, H, W]` integers on the grid of the source, 0 where there is nothing.
        place: of one time, (S, H, W).
        source: the frames that they outline.
        structures: label -> name in `STRUCTURES`. Segments are numbered by rising labels.

    Raises:
        FileError: highdicom is missing, or shapes that do not fit.
        ValueError: labels without a structure.
    """
    need_highdicom(path)
    from pydicom.pixels import pack_bits
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    source.check_shape(labels.shape)
    found = [int(label) for label in np.unique(labels) if label]
    if not found or not set(found) <= set(structures):
        raise ValueError(f"labels: found {found}, expected some of {sorted(structures)}")
    new = new_object(source, SEGMENTATION, "SEG", series)
    if source.placed:
        new.FrameOfReferenceUID = source.frame_of_reference
        new.PositionReferenceIndicator = source.header.get("PositionReferenceIndicator", "")
    else:
        new.PatientOrientation = source.header.get("PatientOrientation", "")
    new.ImageType = ["DERIVED", "PRIMARY"]
    new.SamplesPerPixel, new.PhotometricInterpretation = 1, "MONOCHROME2"
    new.Rows, new.Columns = labels.shape[-2:]
    new.BitsAllocated = new.BitsStored = 1
    new.HighBit = new.PixelRepresentation = 0
    new.LossyImageCompression = source.header.get("LossyImageCompression", "00")
    for name in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if new.LossyImageCompression == "01" and name in source.header:
            new[name] = source.header[name]
    new.SegmentationType, new.SegmentsOverlap = "BINARY", "NO"
    new.ContentLabel, new.ContentCreatorName = "HEART", CREATOR
    new.ContentDescription = "Structures of the heart, carried from one frame to all"
    new.SegmentSequence = [
        _segment(number, label, structures[label]) for number, label in enumerate(found, start=1)
    ]

    measures = item(
        PixelSpacing=decimals(place.spacing[1:]),
        # that of ultrasound is not known, but must be there: 1 mm
        SliceThickness=source.thickness or decimals(place.spacing[:1])[0],
    )
    if place.shape[0] > 1:
        measures.SpacingBetweenSlices = decimals(place.spacing[:1])[0]
    shared = item(PixelMeasuresSequence=[measures])
    if source.placed:
        orientation = decimals(place.direction[:, :2].T.ravel())
        shared.PlaneOrientationSequence = [item(ImageOrientationPatient=orientation)]
    new.SharedFunctionalGroupsSequence = [shared]

    organization = generate_uid()
    new.DimensionOrganizationSequence = [item(DimensionOrganizationUID=organization)]
    pointers = [("TemporalPositionIndex", "FrameContentSequence")]
    if source.placed:
        pointers.append(("ImagePositionPatient", "PlanePositionSequence"))
    pointers.append(("ReferencedSegmentNumber", "SegmentIdentificationSequence"))
    new.DimensionIndexSequence = [_dimension(*pointer, organization) for pointer in pointers]

    groups, planes = [], []
    for t, row in enumerate(source.frames):
        for s, frame in enumerate(row):
            corner = decimals(place.to_physical(np.array([s, 0.0, 0.0])))
            for number, label in enumerate(found, start=1):
                at = [t + 1, s + 1, number] if source.placed else [t + 1, number]
                image = frame.reference()
                image.PurposeOfReferenceCodeSequence = [
                    code_item(codes.DCM.SourceImageForImageProcessingOperation)
                ]
                image.SpatialLocationsPreserved = "YES"
                derivation = item(
                    SourceImageSequence=[image],
                    DerivationCodeSequence=[code_item(Code(*_SEGMENTED))],
                )
                group = item(
                    FrameContentSequence=[
                        item(TemporalPositionIndex=t + 1, DimensionIndexValues=at)
                    ],
                    SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)],
                    DerivationImageSequence=[derivation],
                )
                if source.placed:
                    group.PlanePositionSequence = [item(ImagePositionPatient=corner)]
                groups.append(group)
                planes.append(labels[t, s] == label)
    new.NumberOfFrames = len(groups)
    new.PerFrameFunctionalGroupsSequence = groups
    new.PixelData = pack_bits(np.stack(planes).astype(np.uint8), pad=True)
    refer(new, source)
    save(path, new)


def read(path: Path, source: str) -> Stored:
    """The labels of a SEG: segment numbers, `[T, S, H, W]` uint16.

    Times are told apart by the Temporal Position Index, or else by the frames of the source that
    frames at one place refer to. The myocardium of the left ventricle becomes label 2, whatever its
    number, in exchange for what has that number, and segments named "label 3" become 3. Where
    segments overlap, the smaller one is seen. A fractional segment is where it holds at least half
    of the largest value.

    Raises ImageError: not a SEG, or frames that do not lie on a grid.
    """
    import pydicom

    file = pydicom.dcmread(path)
    if file.get("SOPClassUID") not in (SEGMENTATION, LABEL_MAP):
        raise ImageError(f"{source}: not a DICOM segmentation")
    count = int(file.NumberOfFrames)
    pixels = file.pixel_array.reshape(count, file.Rows, file.Columns)
    shared = list(file.get("SharedFunctionalGroupsSequence") or [])
    groups = [[own, *shared] for own in file.PerFrameFunctionalGroupsSequence]

    def values(sequence, name):
        return [group_value(group, {}, sequence, name) for group in groups]

    positions = values("PlanePositionSequence", "ImagePositionPatient")
    orientation = values("PlaneOrientationSequence", "ImageOrientationPatient")[0]
    spacing = values("PixelMeasuresSequence", "PixelSpacing")[0]
    placed = orientation is not None and all(p is not None for p in positions)
    slices, step, origin, direction = np.zeros(count, int), 1.0, np.zeros(3), np.eye(3)
    if placed:
        thickness = values("PixelMeasuresSequence", "SpacingBetweenSlices")[0]
        thickness = thickness or values("PixelMeasuresSequence", "SliceThickness")[0]
        slices, step, origin, direction = _slices(
            np.array(positions, float), np.array(orientation, float), thickness, source
        )
    depth = int(slices.max()) + 1
    times = _times(groups, values("FrameContentSequence", "TemporalPositionIndex"), slices)
    labels = np.zeros((int(times.max()) + 1, depth, file.Rows, file.Columns), np.uint16)
    if file.SOPClassUID == LABEL_MAP:
        labels[times, slices] = pixels
    else:
        numbers = np.array(values("SegmentIdentificationSequence", "ReferencedSegmentNumber"), int)
        level = file.MaximumFractionalValue / 2 if file.SegmentationType == "FRACTIONAL" else 1
        inside = pixels >= level
        size = {n: int(inside[numbers == n].sum()) for n in np.unique(numbers)}
        for k in sorted(range(count), key=lambda k: -size[numbers[k]]):
            labels[times[k], slices[k]][inside[k]] = numbers[k]
    becomes = _labels_of(file.SegmentSequence)
    table = np.arange(max(int(labels.max()), *becomes) + 1, dtype=labels.dtype)
    for number, label in becomes.items():
        table[number] = label
    labels = table[labels]
    names = ", ".join(
        f"{becomes[int(s.SegmentNumber)]} {s.get('SegmentLabel', '')}" for s in file.SegmentSequence
    )
    known = spacing is not None
    in_plane = tuple(map(float, spacing)) if known else (1.0, 1.0)
    return Stored(
        labels,
        Geometry(labels.shape[1:], (step, *in_plane), origin, direction),
        spacing_known=known,
        position_known=placed,
        orientation_known=placed,
        notes=(f"DICOM segments: {names}",),
    )


# ---------------------------------------------------------------------------- helpers


def _segment(number: int, value: int, structure: str):
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    from ldm_morph_jax import __version__

    label, code, meaning, colour = STRUCTURES[structure]
    label = label or f"{_NUMBERED}{value}"
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=Code(code, "SCT", meaning),
        algorithm_type="SEMIAUTOMATIC",  # a given outline, carried along
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            MODEL, codes.DCM.ImageContentBasedAlignment, __version__
        ),
        display_color=highdicom.color.CIELabColor(*colour),
    )


def _dimension(name: str, sequence: str, organization: str):
    from pydicom.datadict import tag_for_keyword

    return item(
        DimensionOrganizationUID=organization,
        DimensionIndexPointer=tag_for_keyword(name),
        FunctionalGroupPointer=tag_for_keyword(sequence),
        DimensionDescriptionLabel=name,
    )


def _labels_of(segments) -> dict[int, int]:
    """Number of a segment -> its label, see `read`."""
    names = {int(s.SegmentNumber): str(s.get("SegmentLabel", "")) for s in segments}
    texts = {n: name.removeprefix(_NUMBERED) for n, name in names.items()}
    if all(name.startswith(_NUMBERED) and texts[n].isdecimal() for n, name in names.items()):
        return {n: int(text) for n, text in texts.items()}
    labels = {number: number for number in names}
    wall = [int(s.SegmentNumber) for s in segments if _type(s) == MYOCARDIUM]
    if len(wall) == 1:
        if WALL in labels:
            labels[WALL] = wall[0]
        labels[wall[0]] = WALL
    return labels


def _type(segment) -> str:
    items = segment.get("SegmentedPropertyTypeCodeSequence")
    return str(items[0].get("CodeValue", "")) if items else ""


def _slices(positions, orientation, thickness, source):
    """Slice of every frame `[N]`; distance of slices, origin and direction of the grid."""
    across, down = orientation[:3], orientation[3:]
    normal = np.cross(across, down)
    depth = positions @ normal
    levels = np.unique(np.round(depth, 2))
    step = float(np.diff(levels).min()) if len(levels) > 1 else float(thickness or 1.0)
    index = (depth - levels[0]) / step
    slices = np.round(index).astype(int)
    beside = positions - np.outer(depth, normal)
    if np.abs(index - slices).max() > 0.05 or np.abs(beside - beside[0]).max() > 0.1:
        raise ImageError(f"{source}: its frames do not lie on each other as evenly spaced slices")
    origin = positions[np.argmin(depth)]
    direction = orthonormal(np.stack([across, down, normal], axis=1), source)
    return slices, step, origin, direction


def _times(groups, indices, slices) -> np.ndarray:
    """Time of every frame, `[N]` from 0."""
    if all(index is not None for index in indices):
        return np.unique(np.array(indices, int), return_inverse=True)[1]
    seen: dict[int, list] = {}
    times = []
    for group, s in zip(groups, slices, strict=True):
        sources = [
            (image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber"))
            for derivation in group[0].get("DerivationImageSequence") or []
            for image in derivation.get("SourceImageSequence") or []
        ]
        there = seen.setdefault(int(s), [])
        if sources not in there:
            there.append(sources)
        times.append(there.index(sources))
    return np.array(times)
