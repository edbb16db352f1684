"""DICOM objects: what the validator, highdicom, pydicom and SimpleITK make of them."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import dicom_sources
import numpy as np
import pydicom
import pytest
import SimpleITK

from ldm_morph_jax.files.dicom_objects import contours, document, registration, report, segmentation
from ldm_morph_jax.files.dicom_objects.source import decimals, new_series, sop_class
from ldm_morph_jax.files.dicom_sources import read_source
from ldm_morph_jax.files.errors import FileError, ImageError, TransformError
from ldm_morph_jax.files.geometry import Geometry, plane_geometry
from ldm_morph_jax.files.images import read_mask
from ldm_morph_jax.files.movies import read_cine
from ldm_morph_jax.files.reading import read_stored
from ldm_morph_jax.files.transforms import Transform, read_transform

highdicom = pytest.importorskip("highdicom")
LABELS = dicom_sources.labels()[:, None]
STRUCTURES = {1: "cavity", 2: "wall", 3: "right_ventricle"}
SERIES = new_series(901, "test")


@pytest.fixture(params=dicom_sources.SOURCES)
def cine_and_source(request, tmp_path):
    path = dicom_sources.SOURCES[request.param](tmp_path)
    cine = read_cine(path, oblique=True)
    return cine, read_source(path, cine.first.space)


def assert_valid(path):
    """dciodvfy of dicom3tools finds no error; not looked at where it is not installed."""
    if shutil.which("dciodvfy"):
        told = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        lines = (told.stdout + told.stderr).splitlines()
        assert not [line for line in lines if line.startswith("Error")]
        assert "not present in standard" not in told.stderr


def assert_belongs(file, source):
    """Patient and study are the source's, series and UIDs are new, other files are referred to."""
    for name in "PatientName PatientID PatientBirthDate StudyInstanceUID StudyDate".split():
        assert file[name].value == source.header[name].value
    assert file.SeriesInstanceUID == SERIES.uid != source.header.SeriesInstanceUID
    assert file.SOPInstanceUID not in {header.SOPInstanceUID for header in source.headers()}


def test_frames_of_the_source_are_those_of_the_cine(cine_and_source):
    cine, source = cine_and_source
    assert (len(source.frames), len(source.frames[0])) == (len(cine.frames), 1)
    for image, (frame,) in zip(cine.frames, source.frames, strict=True):
        if frame.number is None:
            found = next(
                pixels
                for pixels in map(pydicom.dcmread, source.path.iterdir())
                if pixels.SOPInstanceUID == frame.header.SOPInstanceUID
            ).pixel_array
        else:
            found = pydicom.dcmread(source.path).pixel_array[frame.number - 1]
        assert np.array_equal(found, image)


def test_segmentation_over_time(cine_and_source, tmp_path):
    cine, source = cine_and_source
    path = tmp_path / "seg.dcm"
    segmentation.write_segmentation(path, LABELS, cine.first.space, source, STRUCTURES, SERIES)
    assert_valid(path)
    # our reader
    stored = segmentation.read(path, "seg.dcm")
    assert np.array_equal(stored.array, LABELS)
    place = cine.first.space
    place = replace(place, spacing=(float(source.thickness or 1), *place.spacing[1:]))
    assert stored.geometry.same_as(place) and stored.position_known == source.placed
    # highdicom's, by the frames that are referred to
    seg = highdicom.seg.segread(path)
    if source.header.get("NumberOfFrames"):
        numbers = [frame.number for (frame,) in source.frames]
        uid = source.header.SOPInstanceUID
        found = seg.get_pixels_by_source_frame(uid, numbers, combine_segments=True)
    else:
        uids = [frame.header.SOPInstanceUID for (frame,) in source.frames]
        found = seg.get_pixels_by_source_instance(uids, combine_segments=True)
    assert np.array_equal(found, LABELS[:, 0])
    assert [seg.get_segment_description(k).segment_label for k in (1, 2)] == [
        "left ventricular cavity",
        "left ventricular wall",
    ]
    # pydicom's: frames are in order of the dimension index, time first
    file = pydicom.dcmread(path)
    assert_belongs(file, source)
    assert file.get("FrameOfReferenceUID") == source.header.get("FrameOfReferenceUID")
    index = [g.FrameContentSequence[0].DimensionIndexValues for g in _groups(file)]
    assert index == sorted(index)
    first = file.DimensionIndexSequence[0]
    assert pydicom.datadict.keyword_for_tag(first.DimensionIndexPointer) == "TemporalPositionIndex"
    planes = file.pixel_array
    for values, plane in zip(index, planes, strict=True):
        assert np.array_equal(plane, LABELS[values[0] - 1, 0] == values[-1])


def test_segmentation_of_a_stack_and_numbers_of_labels(tmp_path):
    folder = dicom_sources.mr_files(tmp_path / "mr", count=2, slices=3)
    normal = np.cross(dicom_sources.ACROSS, dicom_sources.DOWN)
    direction = np.stack([dicom_sources.ACROSS, dicom_sources.DOWN, normal], axis=1)
    spacing = (dicom_sources.THICKNESS, *dicom_sources.MR_SPACING)
    place = Geometry((3, *dicom_sources.SHAPE), spacing, dicom_sources.CORNER, direction)
    source = read_source(folder, place)
    assert (len(source.frames), len(source.frames[0])) == (2, 3)
    labels = np.zeros((2, 3, *dicom_sources.SHAPE), np.uint8)
    labels[:, 1:] = dicom_sources.labels(2)[:, None]
    labels[labels == 1] = 0  # wall 2, right ventricle 3: segments 1 and 2
    path = tmp_path / "seg.dcm"
    segmentation.write_segmentation(path, labels, place, source, STRUCTURES, SERIES)
    assert_valid(path)
    stored = segmentation.read(path, "seg.dcm")
    assert np.array_equal(stored.array, np.where(labels == 3, 1, labels))
    assert stored.geometry.same_as(place)


def test_labels_of_which_only_the_number_is_known(tmp_path):
    cine = read_cine(dicom_sources.us_file(tmp_path / "us.dcm"))
    labels, path = np.where(LABELS == 1, 7, LABELS), tmp_path / "seg.dcm"
    known = dict.fromkeys((2, 3, 7), "other")
    source = read_source(tmp_path / "us.dcm")
    segmentation.write_segmentation(path, labels, cine.first.space, source, known, SERIES)
    assert np.array_equal(segmentation.read(path, "seg.dcm").array, labels)
    assert highdicom.seg.segread(path).get_segment_description(3).segment_label == "label 7"


def test_segmentation_as_others_write_it(tmp_path):
    """highdicom's own object: no temporal index, empty frames left out."""
    path = dicom_sources.mr_file(tmp_path / "mr.dcm")
    image = pydicom.dcmread(path)
    one = pydicom.dcmread(dicom_sources.mr_files(tmp_path / "mr", 1) / "0-0")
    mask = np.zeros(dicom_sources.SHAPE, np.uint8)
    mask[3:9, 4:20] = 2
    describe = [
        highdicom.seg.SegmentDescription(
            n,
            name,
            pydicom.sr.codedict.codes.SCT.AnatomicalStructure,
            pydicom.sr.codedict.codes.SCT.LeftVentricle,
            "MANUAL",
        )
        for n, name in ((1, "a"), (2, "b"))
    ]
    for kind, tag in (("BINARY", "binary"), ("LABELMAP", "map"), ("FRACTIONAL", "fraction")):
        seg = highdicom.seg.Segmentation(
            [one], mask, kind, describe, highdicom.UID(), 1, highdicom.UID(), 1, "m", "m", "1", "1"
        )
        seg.save_as(tmp_path / tag)
        stored = segmentation.read(tmp_path / tag, tag)
        assert np.array_equal(stored.array, mask[None, None])
    with pytest.raises(ImageError, match="not a DICOM segmentation"):
        segmentation.read(path, "mr.dcm")
    assert image.NumberOfFrames == dicom_sources.FRAMES


def test_registration(cine_and_source, tmp_path):
    cine, source = cine_and_source
    grid, path = cine.first.space, tmp_path / "reg.dcm"
    points = grid.to_physical(grid.indices())
    displacement = 2 * np.sin(points / 9)[..., ::-1] + [1.0, -2.0, 0.5]
    fixed, moving = source.only(0), source.only(2)
    registration.write_registration(path, displacement, grid, fixed, moving, SERIES)
    assert_valid(path)
    found, place = registration.read_registration(path)
    assert np.array_equal(found, displacement.astype(np.float32))
    assert place.same_as(grid)
    file = pydicom.dcmread(path)
    assert_belongs(file, source)
    assert file.FrameOfReferenceUID == source.frame_of_reference
    images = [item.ReferencedImageSequence[0] for item in file.DeformableRegistrationSequence]
    for image, one in zip(images, (fixed, moving), strict=True):
        assert image.ReferencedSOPInstanceUID == one.header.SOPInstanceUID
        assert image.get("ReferencedFrameNumber") == one.frames[0][0].number


@pytest.mark.parametrize("flipped", [False, True])
def test_registration_by_another_program(tmp_path, flipped):
    """SimpleITK, with what pydicom finds in the file, maps points as we do, with an affine."""
    folder = dicom_sources.mr_files(tmp_path / "mr", 2)
    source = read_source(folder)
    normal = np.cross(dicom_sources.ACROSS, dicom_sources.DOWN) * (-1 if flipped else 1)
    direction = np.stack([dicom_sources.ACROSS, dicom_sources.DOWN, normal], axis=1)
    grid = Geometry((4, 12, 10), (8.0, 1.5, 1.25), dicom_sources.CORNER, direction)
    points = grid.to_physical(grid.indices())
    affine = np.array([[1.02, 0.1, 0, 3], [-0.1, 0.99, 0.05, -2], [0, 0.02, 1, 1], [0, 0, 0, 1]])
    wanted = points @ affine[:3, :3].T + affine[:3, 3] + np.sin(points / 7)
    path = tmp_path / "reg.dcm"
    offset = wanted - points @ affine[:3, :3].T - affine[:3, 3]
    registration.write_registration(path, offset, grid, source.only(0), source.only(1), SERIES)
    file, matrix = pydicom.dcmread(path), pydicom.Dataset()
    item = file.DeformableRegistrationSequence[1]
    matrix.FrameOfReferenceTransformationMatrixType = "AFFINE"
    matrix.FrameOfReferenceTransformationMatrix = decimals(affine.ravel())
    item.PreDeformationMatrixRegistrationSequence = [matrix]
    file.save_as(path)
    assert_valid(path)

    item = pydicom.dcmread(path).DeformableRegistrationSequence[1]
    field = item.DeformableRegistrationGridSequence[0]
    shape = [*field.GridDimensions][::-1]
    vectors = np.frombuffer(field.VectorGridData, np.float32).reshape(*shape, 3)
    image = SimpleITK.GetImageFromArray(vectors.astype(float), isVector=True)
    image.SetOrigin([float(x) for x in field.ImagePositionPatient])
    image.SetSpacing([float(x) for x in field.GridResolution])
    axes = np.array(field.ImageOrientationPatient, float).reshape(2, 3)
    image.SetDirection(np.stack([*axes, np.cross(*axes)], axis=1).ravel().tolist())
    offsets = SimpleITK.DisplacementFieldTransform(image)
    matrix = item.PreDeformationMatrixRegistrationSequence[0].FrameOfReferenceTransformationMatrix
    before = np.array(matrix, float).reshape(4, 4)
    inner = points[:, 1:-1, 1:-1].reshape(-1, 3), wanted[:, 1:-1, 1:-1].reshape(-1, 3)
    for point, expected in list(zip(*inner, strict=True))[::7]:
        offset = np.array(offsets.TransformPoint(point)) - point
        assert np.abs(before[:3, :3] @ point + before[:3, 3] + offset - expected).max() < 1e-3
    found, place = registration.read_registration(path)
    where = place.to_physical(place.indices())
    order = slice(None, None, -1 if flipped else 1)
    assert np.abs(where[order] - points).max() < 1e-4
    assert np.abs((where + found)[order] - wanted).max() < 1e-3


def test_registration_refuses(tmp_path):
    path = dicom_sources.us_file(tmp_path / "us.dcm")
    with pytest.raises(TransformError, match="expected a Deformable Spatial Registration"):
        registration.read_registration(path)
    (tmp_path / "a.dcm").write_bytes(b"nothing")
    with pytest.raises(TransformError, match="not a readable DICOM"):
        registration.read_registration(tmp_path / "a.dcm")


def test_report(cine_and_source, tmp_path):
    _, source = cine_and_source
    path = tmp_path / "sr.dcm"
    one = report.Measurement
    interval = report.Interval(-19.5, -17.0, 0.9, "90 % intervals, calibrated: beats")
    groups = [
        report.Group(
            "left ventricle",
            (
                one("ejection_fraction", 55.123456, "%", method="discs", frames=(0, 2)),
                one("circumferential_strain", -18.25, "%", "peak", "endocardial", (2,), interval),
                one("torsion", 0.125, "deg/mm"),
                one("twist", float("nan"), "deg"),
            ),
        ),
        report.Group("basal anterior", (one("radial_strain", 30.5, "%", "peak", "wall"),), 1),
        report.Group("nothing known", (one("radial_strain", float("nan"), "%"),), 2),
    ]
    report.write_report(path, groups, source, SERIES)
    assert_valid(path)
    file = highdicom.sr.srread(path)
    assert_belongs(file, source)
    found = file.content.get_image_measurement_groups()
    assert len(found) == 2
    values = {
        m.name.meaning: (m.value, m.unit.value) for group in found for m in group.get_measurements()
    }
    assert values == {
        "Cardiac ejection fraction": (55.123456, "%"),
        "Circumferential Lagrangian Strain": (-18.25, "%"),
        "Left Ventricular Torsion": (0.125, "deg/mm"),
        "Radial Lagrangian Strain": (30.5, "%"),
    }
    sites = [group.finding_sites[0].value.meaning for group in found]
    assert sites == ["Left ventricle", "left ventricle basal anterior segment"]
    [strain] = [m for m in found[0].get_measurements() if m.name.value == "130677"]
    [image] = strain.referenced_images
    frame = source.frames[2][0]
    assert image.referenced_sop_instance_uid == frame.header.SOPInstanceUID
    assert image.referenced_frame_numbers == (None if frame.number is None else [frame.number])
    properties = {
        item.name.value: (item.value, item.unit.value)
        for item in strain[0].ContentSequence
        if item.relationship_type.value == "HAS PROPERTIES" and item.value_type.value == "NUM"
    }
    assert properties == {"371886008": (1.25, "%"), "371885007": (1.25, "%"), "COVERAGE": (90, "%")}
    with pytest.raises(ValueError, match="no measurement"):
        report.write_report(path, groups[2:], source, SERIES)
    beside = report.Group("heart", (one("twist", 3.0, "deg", interval=interval),))
    with pytest.raises(ValueError, match="twist: the interval -19.5 to -17 is without its value"):
        report.write_report(path, [beside], source, SERIES)


def test_document(cine_and_source, tmp_path):
    _, source = cine_and_source
    path, pdf = tmp_path / "page.dcm", b"%PDF-1.4 odd"
    document.write_document(path, pdf + b"!", "Strain", source, SERIES)
    assert_valid(path)
    file = pydicom.dcmread(path)
    assert_belongs(file, source)
    assert file.EncapsulatedDocument[: file.EncapsulatedDocumentLength] == pdf + b"!"
    assert file.BurnedInAnnotation == "NO"


def test_contours_become_labels(tmp_path):
    cine = read_cine(dicom_sources.mr_file(tmp_path / "mr.dcm"), oblique=True)
    place = cine.first.space

    def circle(radius, row=19.0, column=24.0, depth=0.0):
        angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
        index = np.stack([row + radius * np.cos(angle), column + radius * np.sin(angle)], -1)
        return place.to_physical(np.insert(index, 0, depth, axis=1))

    path = dicom_sources.structure_set(
        tmp_path / "rt.dcm",
        {
            "endo": [circle(7.3), circle(3, depth=1.0)],
            "epi": [circle(12.2)],
            "ring": [circle(4.2, 34, 41), circle(2.1, 34, 41)],
        },
        pydicom.dcmread(tmp_path / "mr.dcm").FrameOfReferenceUID,
    )
    labels, notes = contours.read_contours(path, place)
    rows, columns = np.indices(dicom_sources.SHAPE)
    distance, other = np.hypot(rows - 19, columns - 24), np.hypot(rows - 34, columns - 41)
    expected = np.where(distance < 7.3, 1, np.where(distance < 12.2, 2, 0))
    expected = np.where((other < 4.2) & (other > 2.1), 3, expected)
    assert np.array_equal(labels[0], expected)
    assert notes == ("DICOM structures: 1 endo, 2 epi, 3 ring",)
    elsewhere = replace(place, origin=place.origin + 500.0)
    with pytest.raises(ImageError, match="none of its contours"):
        contours.read_contours(path, elsewhere)
    across = replace(place, direction=place.direction[:, [0, 2, 1]])
    with pytest.raises(ImageError, match="crosses"):
        contours.read_contours(path, across)
    with pytest.raises(ImageError, match="not a readable structure set"):
        contours.read_contours(tmp_path / "mr.dcm", place)
    assert sop_class(path) == contours.STRUCTURE_SET
    assert sop_class(Path(__file__)) is None


def test_contours_of_the_structure_set_of_pydicom(tmp_path):
    file = pydicom.dcmread(pydicom.data.get_testdata_file("rtstruct.dcm"), force=True)
    file.save_as(
        tmp_path / "rt.dcm", implicit_vr=True, little_endian=True, enforce_file_format=True
    )
    contour = file.ROIContourSequence[0].ContourSequence[0]
    points = np.array(contour.ContourData, float).reshape(-1, 3)
    size = np.ceil(np.ptp(points, axis=0)).astype(int) + 1
    place = Geometry((1, size[1], size[0]), (1.0, 1.0, 1.0), points.min(axis=0), np.eye(3))
    labels, notes = contours.read_contours(tmp_path / "rt.dcm", place)
    assert labels.max() == 1 and notes[0].startswith("DICOM structures: 1 ")
    x, y = points[:, 0], points[:, 1]
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
    assert abs((labels == 1).sum() / area - 1) < 0.05


def test_sources_that_are_refused(tmp_path):
    (tmp_path / "cine.nii.gz").write_bytes(b"no")
    with pytest.raises(FileError, match="needs a DICOM source.*it is not DICOM"):
        read_source(tmp_path / "cine.nii.gz")
    folder = dicom_sources.mr_files(tmp_path / "mr", count=3, slices=2)
    place = Geometry((1, 2, 2), (8.0, 1, 1), np.full(3, 999.0), np.eye(3))
    with pytest.raises(FileError, match=r"found \[0\] DICOM frames"):
        read_source(folder, place)
    file = pydicom.dcmread(folder / "0-0")
    del file.StudyInstanceUID
    file.save_as(folder / "0-0")
    with pytest.raises(FileError, match="has no StudyInstanceUID"):
        read_source(folder)


def test_shapes_and_labels_must_fit(tmp_path):
    cine = read_cine(dicom_sources.us_file(tmp_path / "us.dcm"))
    source = read_source(tmp_path / "us.dcm")
    place = cine.first.space
    with pytest.raises(FileError, match="rows and columns"):
        segmentation.write_segmentation(
            tmp_path / "s", LABELS[:, :, 1:], place, source, STRUCTURES, SERIES
        )
    with pytest.raises(ValueError, match=r"found \[1, 2, 3\], expected some of \[1\]"):
        segmentation.write_segmentation(
            tmp_path / "s", LABELS, place, source, {1: "cavity"}, SERIES
        )
    assert not (tmp_path / "s").exists()


def _groups(file):
    return file.PerFrameFunctionalGroupsSequence


@pytest.mark.parametrize("axial", [True, False])
def test_a_transform_of_slices_comes_back(tmp_path, axial):
    """Written in space, read in the slice's plane: the same displacements, also across planes."""
    source = read_source(dicom_sources.mr_file(tmp_path / "mr.dcm"))
    axes = np.stack([dicom_sources.ACROSS, dicom_sources.DOWN], axis=1)
    normal = np.cross(axes[:, 0], axes[:, 1])[:, None]
    direction = np.diag([-1.0, -1.0, 1.0]) if axial else np.concatenate([axes, normal], axis=1)
    fixed = Geometry((1, 12, 10), (8.0, 1.5, 1.25), dicom_sources.CORNER, direction)
    away = dicom_sources.CORNER + direction @ [2.0, -3.0, 16.0]
    moving = Geometry((1, 14, 9), (8.0, 1.0, 1.1), away, direction)
    planes = [plane_geometry(one, 0)[0] for one in (fixed, moving)]
    displacement = np.sin(planes[0].to_physical(planes[0].indices()) / 5)
    transform = Transform(displacement, *planes)
    placed = transform.in_space(fixed, moving)
    path = tmp_path / "reg.dcm"
    registration.write_registration(
        path, placed.displacement_mm, placed.fixed, source.only(0), source.only(1), SERIES
    )
    found = read_transform(path)
    assert np.abs(found.displacement_mm - displacement).max() < 1e-5
    assert found.fixed.same_as(planes[0]) and found.moving is None
    assert np.abs(found.jacobian_determinant() - transform.jacobian_determinant()).max() < 1e-5
    image = np.random.default_rng(0).normal(size=moving.shape[1:])
    assert np.abs(found.warp(image, moving=planes[1]) - transform.warp(image)).max() < 1e-4


def test_masks_may_be_segmentations_and_structure_sets(tmp_path):
    cine = read_cine(dicom_sources.mr_file(tmp_path / "mr.dcm"), oblique=True)
    source, place = read_source(tmp_path / "mr.dcm"), cine.first.space
    path = tmp_path / "seg.dcm"
    segmentation.write_segmentation(path, LABELS, place, source, STRUCTURES, SERIES)
    assert np.array_equal(read_mask(path, cine.first, frame=3).array, LABELS[3, 0])
    # on another grid, found in mm
    other = replace(place, shape=(1, 20, 24), spacing=(1.0, 3.0, 2.5))
    image = replace(cine.first, array=cine.first.array[::2, ::2], space=other)
    image = replace(image, geometry=plane_geometry(other, 0)[0])
    assert np.array_equal(read_mask(path, image, frame=3).array, LABELS[3, 0, ::2, ::2])
    index = np.array([[0, 5, 6], [0, 5, 20], [0, 25, 20], [0, 25, 6]]) + [0, 0.5, 0.5]
    square = dicom_sources.structure_set(
        tmp_path / "rt.dcm", {"endo": [place.to_physical(index)]}, "1.2"
    )
    expected = np.zeros(dicom_sources.SHAPE)
    expected[6:26, 7:21] = 1
    assert np.array_equal(read_mask(square, cine.first).array, expected)
    nowhere = read_cine(dicom_sources.us_file(tmp_path / "us.dcm")).first
    with pytest.raises(ImageError, match="does not tell where it lies"):
        read_mask(square, nowhere)


@pytest.mark.parametrize("name", ["examples_ybr_color.dcm", "MR_small.dcm"])
def test_sources_that_come_with_pydicom(tmp_path, name):
    """An ultrasound clip of many frames and a single MR image, as their makers wrote them."""
    path = Path(pydicom.data.get_testdata_file(name))
    stored = read_stored(path, luminance=True)
    place = stored.geometry
    source = read_source(path, place)
    labels = np.zeros(stored.array.shape, np.uint8)
    labels[..., 20:40, 10:30] = 1
    labels[1::2, :, 22:30, 12:20] = 2
    segmentation.write_segmentation(tmp_path / "seg.dcm", labels, place, source, STRUCTURES, SERIES)
    assert np.array_equal(segmentation.read(tmp_path / "seg.dcm", "seg").array, labels)
    field = np.ones((*place.shape, 3))
    registration.write_registration(
        tmp_path / "reg.dcm", field, place, source.only(0), source.only(-1), SERIES
    )
    one = report.Measurement("ejection_fraction", 50.0, "%", frames=(0, len(source.frames) - 1))
    report.write_report(tmp_path / "sr.dcm", [report.Group("heart", (one,))], source, SERIES)
    for file in ("seg.dcm", "reg.dcm", "sr.dcm"):
        assert_valid(tmp_path / file)
        assert_belongs(pydicom.dcmread(tmp_path / file), source)
