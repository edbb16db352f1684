"""DICOM made by pydicom: a short-axis MR cine and an ultrasound clip, in one file or many."""

from pathlib import Path

import numpy as np
from files.samples import item
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

FRAMES, SHAPE = 5, (40, 48)
MR_SPACING, THICKNESS = (1.5, 1.25), 8.0
US_SPACING = (0.4, 0.4)
# a short axis, tilted against all axes of the patient
ACROSS = np.array([0.8, 0.6, 0.0])
DOWN = np.array([0.36, -0.48, -0.8])
CORNER = np.array([-40.5, 12.25, 88.0])


def frames(count=FRAMES, shape=SHAPE):
    """A bright ring that beats, `[T, H, W]` uint8."""
    rows, columns = np.indices(shape)
    images = []
    for t in range(count):
        radius = 12 - 3 * np.sin(np.pi * t / count)
        distance = np.hypot(rows - 19, columns - 24)
        texture = 25 * np.sin(0.7 * rows) * np.cos(0.6 * columns)
        images.append(60 + 120 * np.exp(-(((distance - radius) / 3) ** 2)) + texture)
    return np.clip(images, 0, 255).astype(np.uint8)


def labels(count=FRAMES, shape=SHAPE):
    """1 cavity, 2 wall, 3 right ventricle, in every frame, `[T, H, W]` uint8."""
    rows, columns = np.indices(shape)
    found = []
    for t in range(count):
        distance = np.hypot(rows - 19, columns - 24)
        radius = 10 - 3 * np.sin(np.pi * t / count)
        mask = np.where(distance < radius, 1, np.where(distance < 14, 2, 0))
        found.append(np.where((mask == 0) & (columns < 9) & (abs(rows - 19) < 6), 3, mask))
    return np.array(found, np.uint8)


def mr_files(folder: Path, count=FRAMES, slices=1) -> Path:
    """A file per frame (and slice); the folder."""
    folder.mkdir(exist_ok=True)
    study, series, place = generate_uid(), generate_uid(), generate_uid()
    for s in range(slices):
        for t, image in enumerate(frames(count)):
            file = _base(MRImageStorage, study, series, image)
            file.FrameOfReferenceUID, file.PositionReferenceIndicator = place, ""
            file.Modality, file.InstanceNumber = "MR", 100 - t
            file.TriggerTime = 40.0 * t
            file.PixelSpacing, file.SliceThickness = list(MR_SPACING), THICKNESS
            file.ImageOrientationPatient = [*ACROSS, *DOWN]
            file.ImagePositionPatient = list(CORNER + s * THICKNESS * np.cross(ACROSS, DOWN))
            file.ImageType, file.EchoTime, file.RepetitionTime = ["ORIGINAL", "PRIMARY"], 1, 3
            file.save_as(folder / f"{s}-{(7 * t) % 10}", enforce_file_format=True)
    return folder


def mr_file(path: Path, count=FRAMES) -> Path:
    """One enhanced file of all frames, not in the order of their times."""
    times = list(range(count))[::-1]
    file = _base(EnhancedMRImageStorage, generate_uid(), generate_uid(), frames(count)[::-1])
    file.FrameOfReferenceUID, file.PositionReferenceIndicator = generate_uid(), ""
    file.Modality, file.InstanceNumber, file.NumberOfFrames = "MR", 1, count
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=list(MR_SPACING), SliceThickness=THICKNESS)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[*ACROSS, *DOWN])],
        PlanePositionSequence=[item(ImagePositionPatient=list(CORNER))],
    )
    file.SharedFunctionalGroupsSequence = [shared]
    file.PerFrameFunctionalGroupsSequence = [
        item(CardiacSynchronizationSequence=[item(NominalCardiacTriggerDelayTime=40.0 * t)])
        for t in times
    ]
    file.save_as(path, enforce_file_format=True)
    return path


def us_file(path: Path, count=FRAMES) -> Path:
    """One multi-frame ultrasound file: spacing by its region, no frame of reference."""
    file = _base(UltrasoundMultiFrameImageStorage, generate_uid(), generate_uid(), frames(count))
    file.Modality, file.InstanceNumber, file.NumberOfFrames = "US", 3, count
    file.FrameTime = 25.0
    file.SequenceOfUltrasoundRegions = [_region()]
    file.save_as(path, enforce_file_format=True)
    return path


def us_files(folder: Path, count=FRAMES) -> Path:
    """The same, a file per frame."""
    folder.mkdir(exist_ok=True)
    study, series = generate_uid(), generate_uid()
    for t, image in enumerate(frames(count)):
        file = _base(UltrasoundImageStorage, study, series, image)
        file.Modality, file.InstanceNumber = "US", t + 1
        file.SequenceOfUltrasoundRegions = [_region()]
        file.save_as(folder / f"{(7 * t) % 10}.dcm", enforce_file_format=True)
    return folder


SOURCES = {
    "MR, single frames": lambda folder: mr_files(folder / "mr"),
    "MR, one file": lambda folder: mr_file(folder / "mr.dcm"),
    "US, single frames": lambda folder: us_files(folder / "us"),
    "US, one file": lambda folder: us_file(folder / "us.dcm"),
}


def structure_set(path: Path, contours: dict[str, list[np.ndarray]], place: str) -> Path:
    """An RTSTRUCT: name -> closed contours `[N, 3]` in mm."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.481.3", generate_uid()
    file.Modality, file.StructureSetLabel = "RTSTRUCT", "heart"
    file.StructureSetROISequence = [
        item(ROINumber=n, ROIName=name, ReferencedFrameOfReferenceUID=place)
        for n, name in enumerate(contours, start=1)
    ]
    file.ROIContourSequence = [
        item(
            ReferencedROINumber=n,
            ContourSequence=[
                item(
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(points),
                    ContourData=[f"{x:.6g}" for x in points.ravel()],
                )
                for points in closed
            ],
        )
        for n, closed in enumerate(contours.values(), start=1)
    ]
    file.save_as(path, enforce_file_format=True)
    return path


def _base(storage, study, series, pixels) -> Dataset:
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = storage, generate_uid()
    file.StudyInstanceUID, file.SeriesInstanceUID = study, series
    file.SpecificCharacterSet = "ISO_IR 100"
    file.PatientName, file.PatientID = "Müller^Anna", "P-17"
    file.PatientBirthDate, file.PatientSex = "19700101", "F"
    file.StudyDate, file.StudyTime, file.StudyID = "20260102", "101500", "S1"
    file.AccessionNumber, file.ReferringPhysicianName = "A1", "Roe^Jo"
    file.SeriesNumber = 4
    file.Rows, file.Columns = pixels.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit, file.PixelRepresentation = 7, 0
    file.PixelData = pixels.tobytes()
    return file


def _region() -> Dataset:
    return item(
        RegionSpatialFormat=1,
        RegionDataType=1,
        RegionFlags=0,
        RegionLocationMinX0=0,
        RegionLocationMinY0=0,
        RegionLocationMaxX1=SHAPE[1] - 1,
        RegionLocationMaxY1=SHAPE[0] - 1,
        PhysicalUnitsXDirection=3,
        PhysicalUnitsYDirection=3,
        PhysicalDeltaX=US_SPACING[1] / 10,
        PhysicalDeltaY=US_SPACING[0] / 10,
    )
