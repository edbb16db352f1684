"""The DICOM files that an image or a cine was read from, and objects that belong to them."""

import datetime
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm_morph_jax.files.errors import FileError
from ldm_morph_jax.files.writing import atomic

MAKER, MODEL = "ldm_morph_jax", "ldm-morph"
CREATOR = f"{MODEL}^"  # a person's name needs a caret
# of the patient and the study; the first few must be there, even if they are empty (type 2)
REQUIRED = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName "
    "StudyID AccessionNumber"
).split()
_COPIED = (
    "SpecificCharacterSet TimezoneOffsetFromUTC IssuerOfPatientID "
    "PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence "
    "StudyInstanceUID StudyDescription PatientAge PatientSize PatientWeight"
).split()


@dataclass(frozen=True)
class SourceFrame:
    """A frame of a DICOM file.

    header: the file without its pixels, a `pydicom.Dataset`.
    number: of the frame, from 1; None in a file of a single-frame class.
    """

    header: object
    number: int | None

    def reference(self):
        """The item of a sequence that refers to it (SOP instance reference macro)."""
        reference = item(
            ReferencedSOPClassUID=self.header.SOPClassUID,
            ReferencedSOPInstanceUID=self.header.SOPInstanceUID,
        )
        if self.number is not None:
            reference.ReferencedFrameNumber = self.number
        return reference


@dataclass(frozen=True)
class Source:
    """What an image or a cine was read from.

    path: the file or folder, for messages.
    frames: `[T][S]`, as the arrays are ordered that were read from it.
    placed: whether the frames tell where they lie. Those of most ultrasound files do not.
    """

    path: Path
    frames: tuple[tuple[SourceFrame, ...], ...]
    placed: bool

    @property
    def header(self):
        return self.frames[0][0].header

    @property
    def frame_of_reference(self) -> str:
        """Its UID; where the source has none, one that is made from the instance's.

        There positions are those of the image's plane in mm: x along a row, y along a column, from
        the centre of the first pixel.
        """
        from pydicom.uid import generate_uid

        own = self.header.get("FrameOfReferenceUID")
        return own or generate_uid(entropy_srcs=[self.header.SOPInstanceUID, "image plane"])

    @property
    def thickness(self):
        """Slice thickness in mm; None where unknown."""
        shared = list(self.header.get("SharedFunctionalGroupsSequence") or [])
        return group_value(shared, self.header, "PixelMeasuresSequence", "SliceThickness")

    def headers(self) -> list:
        """Every file once."""
        found = {f.header.SOPInstanceUID: f.header for row in self.frames for f in row}
        return list(found.values())

    def only(self, t: int) -> "Source":
        """Frame t alone."""
        return Source(self.path, (self.frames[t],), self.placed)

    def check_shape(self, shape: Sequence[int]) -> None:
        """FileError unless `shape` is `[T, S, H, W]` of these frames."""
        own = (len(self.frames), len(self.frames[0]), self.header.Rows, self.header.Columns)
        if tuple(shape) != own:
            raise FileError(
                f"{self.path}: found frames, slices, rows and columns {own}, expected "
                f"{tuple(shape)}, which is what was measured"
            )


@dataclass(frozen=True)
class Series:
    """A new series; `uid` is made by `new_series`."""

    uid: str
    number: int
    description: str


def new_series(number: int, description: str) -> Series:
    from pydicom.uid import generate_uid

    return Series(generate_uid(), number, description)


def sop_class(path: str | Path) -> str | None:
    """The SOP class of a DICOM file; None of any other file, and where there is none."""
    try:
        with open(path, "rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
    except OSError:
        return None
    import pydicom

    try:
        header = pydicom.dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True)
        return header.get("SOPClassUID")
    except Exception:  # of a damaged file anything can come; its reader says what is wrong
        return None


def new_object(source: Source, sop_class: str, modality: str, series: Series, instance: int = 1):
    """A dataset with its source's patient and study; series, equipment and UID are its own.

    `instance` is its number in the series, from 1.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    from ldm_morph_jax import __version__

    now, header, new = datetime.datetime.now(), source.header, item()
    new.file_meta = FileMetaDataset()
    new.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for name in (*REQUIRED, *_COPIED):
        if name in header:
            new[name] = header[name]
    new.SOPClassUID, new.SOPInstanceUID = sop_class, generate_uid()
    new.Modality, new.BodyPartExamined = modality, "HEART"
    new.SeriesInstanceUID, new.SeriesNumber = series.uid, series.number
    new.SeriesDescription = series.description
    new.InstanceNumber = instance
    new.Manufacturer, new.ManufacturerModelName = MAKER, MODEL
    new.DeviceSerialNumber, new.SoftwareVersions = __version__, __version__
    for name in ("InstanceCreation", "Content", "Series"):
        setattr(new, f"{name}Date", f"{now:%Y%m%d}")
        setattr(new, f"{name}Time", f"{now:%H%M%S}")
    return new


def refer(new, *sources: Source) -> None:
    """Fill in the Common Instance Reference module: every file that `new` refers to."""
    studies: dict[str, dict[str, dict[str, object]]] = {}
    for source in sources:
        for header in source.headers():
            series = studies.setdefault(header.StudyInstanceUID, {})
            files = series.setdefault(header.SeriesInstanceUID, {})
            files[header.SOPInstanceUID] = SourceFrame(header, None).reference()

    def series_items(series):
        return [
            item(SeriesInstanceUID=uid, ReferencedInstanceSequence=list(files.values()))
            for uid, files in series.items()
        ]

    own = studies.pop(new.StudyInstanceUID, {})
    if own:
        new.ReferencedSeriesSequence = series_items(own)
    if studies:
        new.StudiesContainingOtherReferencedInstancesSequence = [
            item(StudyInstanceUID=uid, ReferencedSeriesSequence=series_items(series))
            for uid, series in studies.items()
        ]


def item(**attributes):
    """A `pydicom.Dataset`, such as an item of a sequence, of attributes by their keywords."""
    from pydicom.dataset import Dataset

    new = Dataset()
    for name, value in attributes.items():
        setattr(new, name, value)
    return new


def code_item(code):
    """The item of a code sequence; `code` is a `pydicom.sr.coding.Code`."""
    return item(
        CodeValue=code.value,
        CodingSchemeDesignator=code.scheme_designator,
        CodeMeaning=code.meaning,
    )


def save(path: str | Path, dataset) -> None:
    """Write a DICOM file, whole or not at all."""
    with atomic(path) as part:
        dataset.save_as(part, enforce_file_format=True)


def decimals(values) -> list:
    """Numbers as DICOM's decimal strings, which hold 16 characters."""
    from pydicom.valuerep import DSfloat

    return [DSfloat(float(value), auto_format=True) for value in values]


def need_highdicom(path) -> None:
    """FileError where highdicom is not installed; silences what it logs of its copying."""
    try:
        import highdicom  # noqa: F401
    except ImportError:
        raise FileError(
            f"{path}: writing it needs highdicom: pip install 'ldm_morph_jax[dicom]'"
        ) from None
    logging.getLogger("highdicom").setLevel(logging.WARNING)


def group_value(groups, header, sequence: str, name: str):
    """An attribute of a frame: of its functional groups (own, then shared), else of the file."""
    for group in groups:
        items = group.get(sequence)
        if items and items[0].get(name) is not None:
            return items[0].get(name)
    return header.get(name)
