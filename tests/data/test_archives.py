"""The readers of the paper's datasets, on small archives in exactly their formats.

tests/archives.py draws scenes in millimetres; here every prepared pixel is traced back by hand to
its place in the scene, so that resizing, padding, orientation and spacing are checked together.
"""

import json
import shutil
import subprocess
import sys
import textwrap

import archives
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from ldm_morph_jax.data import dataset_class, load_dataset, preprocessing
from ldm_morph_jax.data.acdc import SPACING_MM, is_rotated, resample
from ldm_morph_jax.data.echonet import fill_polygon, outline, read_frames
from ldm_morph_jax.data.ventricle import ventricle
from ldm_morph_jax.files.geometry import Geometry
from ldm_morph_jax.files.writing import write_image
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.metrics import dice

WRITERS = {
    "camus_2ch": archives.write_camus,
    "camus_4ch": archives.write_camus,
    "echonet": archives.write_echonet,
    "acdc": archives.write_acdc,
    "folder": archives.write_folder,
}
NAMES = list(WRITERS)


def options(name):
    return {} if name == "folder" else {"allow_partial": True}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    written = {writer: writer(root / writer.__name__) for writer in set(WRITERS.values())}
    return {name: written[writer] for name, writer in WRITERS.items()}


@pytest.fixture(scope="module")
def datasets(sources, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    return {
        name: load_dataset(name, source=source, directory=out, **options(name))
        for name, source in sources.items()
    }


def examples(dataset):
    for split in dataset.splits:
        yield from zip(dataset.metadata(split), dataset.split(split), strict=True)


def scene_and_map(name, example_id):
    """The scene of a pair, and A [2, 2], b [2] with (x, y) mm = A (row, column) + b."""
    if name.startswith("camus"):
        patient = int(example_id[7:11])
        (nx, ny), (sx, sy) = archives.CAMUS[patient]
        step_x, step_y = (nx - 1) * sx / 111, (ny - 1) * sy / 111
        a = np.array([[0, step_x], [step_y, 0]])
        return archives.camus_scene(patient), a, a @ [-8, -8]
    if name == "echonet":
        return archives.echonet_scene(example_id), np.array([[0, 1], [1, 0]]), np.array([-8, -8])
    if name == "acdc":
        patient = int(example_id[7:])
        (nx, ny, _), (sx, sy, _), _ = archives.ACDC[patient]
        rotated = patient in (96, 124)
        lengths = (ny * sy, nx * sx) if rotated else (nx * sx, ny * sy)
        # pixel -> sample of the 128 x 128 crop -> sample of the resampled volume -> mm
        counts = np.array([round(length / 1.5) for length in lengths])
        before = np.where(counts > 128, (counts - 128) // 2, -((128 - counts) // 2))
        step = 127 / 111 * 1.5
        a, b = np.eye(2) * step, (before * 1.5 - 8 * step)
        if rotated:  # rows run along y, columns against x
            a, b = a[::-1] * [[-1], [1]], np.array([(nx - 1) * sx - b[1], b[0]])
        return archives.acdc_scene(patient), a, b
    number = int(example_id.split("-")[1])
    h, w = [(128, 128), (90, 120), (100, 64), (128, 128)][number]
    size = np.round(np.array([h, w]) * 128 / max(h, w))
    step, pad = (np.array([h, w]) - 1) / (size - 1), (128 - size) // 2
    a = np.array([[0, step[1]], [step[0], 0]])
    return archives.Scene(w - 1, h - 1, shift=number), a, a @ -pad


def positions(a, b):
    return np.moveaxis(np.indices((128, 128)), 0, -1) @ a.T + b


def inside(points, scene, margin=0.03, border=False):
    low, high = margin * scene.size, (1 - margin) * scene.size
    content = np.pad(np.ones((112, 112), bool), 8) if border else np.ones((128, 128), bool)
    return ((points > low) & (points < high)).all(-1) & content


# What is in the examples ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_images_and_masks_are_where_they_belong(datasets, name):
    dataset = datasets[name]
    kinds = archives.ACDC_LABELS if name == "acdc" else {}
    for row, example in examples(dataset):
        scene, a, b = scene_and_map(name, row["id"])
        points = positions(a, b)
        valid = inside(points, scene, border=name == "acdc")
        assert row["phase"] == ("as listed" if name == "folder" else "ED-ES")
        for role, phase in (("moving", "ED"), ("fixed", "ES")):
            image, mask = example[role][..., 0], example[f"{role}_mask"][..., 0]
            assert image.min() == 0 and image.max() == 1
            expected = scene.image(points, phase)[valid]
            slope, offset = np.polyfit(expected, image[valid], 1)
            error = np.abs(slope * expected + offset - image[valid])
            assert slope > 0 and error.max() < 0.03, (row["id"], role, error.max())
            labels = scene.mask(points, phase, **kinds)
            if name == "echonet":  # only the left ventricle is traced
                labels = labels * (labels == 1)
            agreement = dice(mask * valid, labels * valid, np.unique(labels[labels > 0]))
            assert min(agreement.values()) > 0.95, (row["id"], role, agreement)


@pytest.mark.parametrize("name", NAMES)
def test_known_displacement_survives(datasets, name):
    for row, example in examples(datasets[name]):
        scene, a, b = scene_and_map(name, row["id"])
        points = positions(a, b)
        u = (scene.displacement(points) @ np.linalg.inv(a).T).astype(np.float32)  # pixels
        warped = np.asarray(warp(example["moving"][None], u[None]))[0, ..., 0]
        valid = inside(points, scene, 0.06, border=name == "acdc")
        if name == "acdc":  # a crop: what comes from outside it is not there
            came_from = np.moveaxis(np.indices((128, 128)), 0, -1) + u
            valid &= ((came_from > 9) & (came_from < 118)).all(-1)
        moving, fixed = example["moving"][..., 0][valid], example["fixed"][..., 0][valid]
        assert np.corrcoef(warped[valid], fixed)[0, 1] > 0.997
        assert np.corrcoef(moving, fixed)[0, 1] < 0.9
        warped_mask = warp(example["moving_mask"][None], u[None], interpolation="nearest")[0]
        warped_mask = np.asarray(warped_mask)
        before = dice(example["moving_mask"], example["fixed_mask"], datasets[name].labels)
        after = dice(warped_mask, example["fixed_mask"], datasets[name].labels)
        for label in (1, 2) if name == "folder" else datasets[name].labels:
            assert before[label] < 0.8 and after[label] > 0.93, (row["id"], label)


def test_splits_counts_and_labels(datasets):
    lv = {1: "left ventricle"}
    expected = {
        "camus_2ch": ({"train": 2, "validation": 1, "test": 1}, lv),
        "camus_4ch": ({"train": 2, "validation": 1, "test": 1}, lv),
        "echonet": ({"train": 2, "validation": 1, "test": 1}, lv),
        "acdc": (
            {"train": 1, "validation": 1, "test": 3},
            {3: "left ventricle", 2: "myocardium"},
        ),
        "folder": (
            {"train": 2, "validation": 1, "test": 1},
            {1: "label 1", 2: "label 2", 3: "label 3"},
        ),
    }
    for name, (splits, labels) in expected.items():
        assert datasets[name].splits == splits and datasets[name].labels == labels
        facts = json.loads((datasets[name].path / "preparation.json").read_text())
        assert facts["pairs"] == splits and facts["options"]["image_size"] == 128
    assert datasets["camus_4ch"].ids("train") == ["patient0001-4ch", "patient0002-4ch"]
    assert datasets["camus_4ch"].metadata("test")[0] | {} == {
        "id": "patient0421-4ch",
        "patient": "patient0421",
        "view": "4ch",
        "phase": "ED-ES",
        "slice": 0,
    }
    assert datasets["echonet"].ids("test") == ["0X4D"]
    assert datasets["acdc"].ids("test") == ["patient101", "patient117", "patient124"]
    left_out = datasets["camus_2ch"].preparation["left_out"]["not there"]
    assert len(left_out) == 496 and "patient0001" not in left_out
    assert datasets["echonet"].preparation["left_out"] == {
        "fewer than two traced frames": ["0X5E", "0X6F"],
        "not there": [],
    }
    assert datasets["echonet"].preparation["paper_pairs"]["train"] == 7460


def test_spacing_is_kept(datasets):
    found = {
        row["id"]: example["spacing"]
        for name in ("camus_2ch", "echonet", "acdc", "folder")
        for row, example in examples(datasets[name])
    }
    np.testing.assert_allclose(found["patient0001-2ch"], [409 * 0.4 / 111, 299 * 0.5 / 111])
    np.testing.assert_allclose(found["patient096"], [1.5 * 127 / 111] * 2, rtol=1e-6)
    np.testing.assert_allclose(found["0X1A"], [1, 1])
    np.testing.assert_allclose(found["heart-0"], [1, 1])
    np.testing.assert_allclose(found["heart-1"], [0.5 * 89 / 95, 0.8 * 119 / 127], rtol=1e-6)
    np.testing.assert_allclose(found["heart-2"], [0.5 * 99 / 127, 0.8 * 63 / 81], rtol=1e-6)


# Against SciPy and SimpleITK --------------------------------------------------------------------


def test_camus_is_what_scipy_makes_of_it(datasets, sources):
    stem = sources["camus_2ch"] / "database_nifti/patient0401/patient0401_2CH_ES"
    image = np.asarray(nibabel.load(f"{stem}.nii.gz").dataobj)[::-1].T
    mask = np.asarray(nibabel.load(f"{stem}_gt.nii.gz").dataobj)[::-1].T
    factors = np.divide(112, image.shape)
    image = np.pad(ndimage.zoom(image, factors, order=3), 8)
    mask = np.pad(ndimage.zoom(mask, factors, order=0), 8)
    example = datasets["camus_2ch"].split("validation")[0]
    expected = (image - image.min()) / (image.max() - image.min())
    # zoom's own border treatment may blacken the last row or column, see preprocessing.resize
    inner = (slice(0, 118), slice(0, 118))
    np.testing.assert_allclose(example["fixed"][..., 0][inner], expected[inner], atol=1e-5)
    np.testing.assert_array_equal(example["fixed_mask"][..., 0][inner], mask[inner])


@pytest.mark.parametrize("patient", [1, 101, 124])
def test_acdc_is_what_simpleitk_and_scipy_make_of_it(datasets, sources, patient):
    name, (_, _, (_, es)) = f"patient{patient:03d}", archives.ACDC[patient]
    part = "training" if patient <= 100 else "testing"
    stem = sources["acdc"] / f"database/{part}/{name}/{name}_frame{es:02d}"
    dataset = datasets["acdc"]
    split = "train" if patient == 1 else "test"
    example = dataset.split(split)[dataset.ids(split).index(name)]
    for suffix, linear, key in (("", True, "fixed"), ("_gt", False, "fixed_mask")):
        image = sitk.ReadImage(f"{stem}{suffix}.nii.gz", sitk.sitkFloat64)
        array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)  # x, y, z
        if patient == 124:
            spacing = image.GetSpacing()
            array = np.transpose(array, (1, 0, 2))[:, ::-1]
            image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
            image.SetSpacing(spacing)
        size = [round(n * s / t) for n, s, t in zip(array.shape, image.GetSpacing(), SPACING_MM)]  # noqa: B905
        method = sitk.sitkLinear if linear else sitk.sitkNearestNeighbor
        volume = sitk.Resample(
            image,
            size,
            sitk.Transform(),
            method,
            image.GetOrigin(),
            SPACING_MM,
            image.GetDirection(),
            0.0,
            sitk.sitkFloat64,
        )
        volume = sitk.GetArrayFromImage(volume).transpose(2, 1, 0)
        cropped = np.zeros((128, 128, 32))
        to, of = [], []
        for n, m in zip(volume.shape, cropped.shape, strict=True):
            start = abs(n - m) // 2
            of.append(slice(start, start + m) if n > m else slice(None))
            to.append(slice(start, start + n) if n <= m else slice(None))
        cropped[tuple(to)] = volume[tuple(of)]
        plane = ndimage.zoom(cropped[..., 16], 112 / 128, order=3 if linear else 0, mode="mirror")
        if linear:
            plane = (plane - plane.min()) / np.ptp(plane)
        # float32 files hold the scene to 1e-7; ties of the nearest sample may fall either way
        np.testing.assert_allclose(example[key][..., 0], np.pad(plane, 8), atol=1e-5)


@pytest.mark.parametrize(
    "shape, spacing", [((9, 12, 7), (1.1, 2.3, 9.0)), ((11, 8, 12), (2.9, 0.7, 3.15))]
)
@pytest.mark.parametrize("nearest", [False, True])
def test_resample_is_that_of_simpleitk(shape, spacing, nearest):
    array = np.random.default_rng(0).integers(1, 100, shape).astype(np.float64)
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(spacing)
    size = [round(n * s / t) for n, s, t in zip(shape, spacing, SPACING_MM, strict=True)]
    method = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    expected = sitk.Resample(
        image, size, sitk.Transform(), method, image.GetOrigin(), SPACING_MM, image.GetDirection()
    )
    found = resample(array, spacing, SPACING_MM, nearest=nearest)
    np.testing.assert_allclose(found, sitk.GetArrayFromImage(expected).transpose(2, 1, 0))


def test_which_acdc_volumes_are_rotated():
    assert is_rotated(5, (256, 216, 10)) and not is_rotated(5, (216, 256, 10))
    assert not any(is_rotated(patient, (256, 216, 10)) for patient in (117, 126, 141, 143))
    assert is_rotated(124, (216, 256, 10)) and not is_rotated(123, (216, 216, 10))


def test_resize_keeps_corners_and_centre_is_a_centre():
    image = np.random.default_rng(1).random((37, 53))
    small = preprocessing.resize(image, (20, 30))
    np.testing.assert_allclose(
        small[[0, 0, -1, -1], [0, -1, 0, -1]], image[[0, 0, -1, -1], [0, -1, 0, -1]]
    )
    assert preprocessing.resize(image, (37, 53)) is image
    line = np.arange(5)
    np.testing.assert_array_equal(preprocessing.centre(line, (2,)), [1, 2])
    np.testing.assert_array_equal(preprocessing.centre(line, (8,), 9), [9, 0, 1, 2, 3, 4, 9, 9])


# EchoNet-Dynamic's outlines and videos ----------------------------------------------------------


def test_polygon_by_hand():
    # a long axis, then three chords from x = 2.5 to 6.5 at y = 1.5, 3.5, 5.5
    chords = np.array(
        [[4, 1, 4, 6], [2.5, 1.5, 6.5, 1.5], [2.5, 3.5, 6.5, 3.5], [2.5, 5.5, 6.5, 5.5]]
    )
    polygon = outline(chords)
    np.testing.assert_array_equal(polygon[:3], chords[1:, :2])
    np.testing.assert_array_equal(polygon[3:], chords[:0:-1, 2:])
    expected = np.zeros((9, 10), bool)
    expected[2:6, 3:7] = True
    np.testing.assert_array_equal(fill_polygon(polygon, (9, 10)), expected)
    triangle = fill_polygon(np.array([[-0.5, -0.5], [8.5, -0.5], [-0.5, 8.5]]), (9, 9))
    np.testing.assert_array_equal(triangle, np.add.outer(np.arange(9), np.arange(9)) < 8)


def test_polygon_area():
    t = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    circle = np.stack([60.3 + 20 * np.cos(t), 50.7 + 30 * np.sin(t)], axis=-1)
    mask = fill_polygon(circle, (112, 112))
    assert mask.sum() == pytest.approx(np.pi * 600, rel=0.01)
    np.testing.assert_allclose(ndimage.center_of_mass(mask), [50.7, 60.3], atol=0.1)


def test_video_frames(sources):
    path = sources["echonet"] / "Videos" / "0X2B.avi"
    for number, frame in zip((9, 0, 2), read_frames(path, [9, 0, 2]), strict=True):
        expected = archives.echonet_frame("0X2B", number)
        assert frame.dtype == np.uint8 and np.abs(frame.astype(int) - expected).max() <= 6


def test_videos_of_another_size_are_resized(datasets, tmp_path):
    source = archives.write_echonet(tmp_path)
    frames = [ndimage.zoom(archives.echonet_frame("0X1A", n), 2, order=1) for n in range(8)]
    archives.write_avi(source / "Videos" / "0X1A.avi", frames)
    example = load("echonet", source).split("train")[0]
    plain = datasets["echonet"].split("train")[0]
    assert np.abs(example["moving"] - plain["moving"])[10:118, 10:118].max() < 0.05


# Options ----------------------------------------------------------------------------------------


def load(name, source, **more):
    return load_dataset(
        name, source=source, directory=source.parent / "out", **options(name), **more
    )


def test_reverse_size_and_intensity(datasets, sources, tmp_path):
    plain = datasets["camus_2ch"].split("test")[0]
    changed = load_dataset(
        "camus_2ch",
        source=sources["camus_2ch"],
        directory=tmp_path,
        allow_partial=True,
        reverse=True,
        image_size=64,
        intensity="percentile",
    )
    example = changed.split("test")[0]
    assert example["moving"].shape == (64, 64, 1) and not example["moving"][:4].any()
    assert changed.metadata("test")[0]["phase"] == "ES-ED"
    for role, other in (("moving", "fixed"), ("fixed", "moving")):
        area = 4 * np.sum(example[f"{role}_mask"] == 1)
        assert area == pytest.approx(np.sum(plain[f"{other}_mask"] == 1), rel=0.06)
    np.testing.assert_allclose(example["spacing"], plain["spacing"] * 111 / 55, rtol=1e-6)
    with pytest.raises(ValueError, match="multiple of 32 .* found 100"):
        load("camus_2ch", sources["camus_2ch"], image_size=100)


@pytest.mark.parametrize("name", ["camus_2ch", "echonet", "acdc"])
def test_part_of_the_patients_only_when_asked(sources, tmp_path, name):
    with pytest.raises(
        ValueError, match=r"found train \d, .* expected train \d+, .*--allow-partial"
    ):
        load_dataset(name, source=sources[name], directory=tmp_path)


def test_any_subset_will_do(tmp_path):
    source = archives.write_camus(tmp_path / "camus", patients=(421,), views=("4CH",))
    assert load("camus_4ch", source).splits == {"test": 1}
    with pytest.raises(
        ValueError, match="camus_2ch: found no pair in .*database_nifti/patient0001"
    ):
        load("camus_2ch", source)
    source = archives.write_echonet(tmp_path / "echonet", videos=("0X2B", "0X3C"))
    dataset = load("echonet", source)
    assert dataset.splits == {"train": 1, "validation": 1}
    assert dataset.preparation["left_out"]["not there"] == ["0X1A", "0X4D"]


def test_prepared_once_and_found_without_the_source(tmp_path, monkeypatch):
    source = archives.write_acdc(tmp_path / "acdc", patients=(101,))
    first = load("acdc", source)
    monkeypatch.setattr(dataset_class("acdc"), "read", lambda *_: pytest.fail("prepared again"))
    assert load("acdc", source).path == first.path
    again = load_dataset("acdc", directory=tmp_path / "out", allow_partial=True)
    assert again.path == first.path
    shutil.copytree(source, tmp_path / "elsewhere")
    assert load("acdc", tmp_path / "elsewhere").path == first.path


@pytest.mark.integration
def test_killed_preparation_is_not_taken_for_complete(tmp_path):
    source = archives.write_camus(tmp_path / "camus", views=("2CH",))
    killed = f"""
        import os
        from ldm_morph_jax.data import dataset_class, load_dataset
        read = dataset_class("camus_2ch").read
        def dying(self, entry):
            if entry.patient == "patient0421":
                os._exit(9)
            return read(self, entry)
        dataset_class("camus_2ch").read = dying
        load_dataset("camus_2ch", source={str(source)!r}, directory={str(tmp_path / "out")!r},
                     allow_partial=True)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(killed)], check=False)
    assert result.returncode == 9
    assert list((tmp_path / "out").rglob("*.array_record*"))  # something half-written is there
    with pytest.raises(ValueError, match="none is prepared"):
        load_dataset("camus_2ch", directory=tmp_path / "out", allow_partial=True)
    dataset = load("camus_2ch", source)
    assert dataset.splits == {"train": 2, "validation": 1, "test": 1}
    assert (dataset.path / "manifest.csv").read_text().count("\n") == 5


# Errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_empty_source_says_what_is_needed(tmp_path, name):
    where = {
        "camus_2ch": r"creatis.*database_nifti/patient0001",
        "camus_4ch": r"creatis.*database_nifti/patient0001",
        "echonet": r"echonet.github.io.*FileList.csv, VolumeTracings.csv and Videos",
        "acdc": r"creatis.*database/training/patient001/Info.cfg",
        "folder": r"CSV file with the columns id,split,moving,fixed",
    }[name]
    empty = tmp_path / "empty"
    empty.write_text("id,split,moving,fixed\n") if name == "folder" else empty.mkdir()
    for source in (empty, tmp_path / "missing", None):
        with pytest.raises(ValueError, match=f"(?s){where}"):
            load_dataset(name, source=source, directory=tmp_path / "out")


def nan_at(index):
    def change(array):
        array[index] = np.nan
        return array

    return change


def label(value):
    def change(array):
        array[tuple(n // 2 for n in array.shape)] = value
        return array

    return change


CAMUS_FILE = "database_nifti/patient0001/patient0001_2CH_"
ACDC_FILE = "database/training/patient001/patient001_frame"


@pytest.mark.parametrize(
    "file, damage, message",
    [
        ("ES.nii.gz", "unlink", "patient0001 is incomplete, missing patient0001_2CH_ES.nii.gz"),
        ("ED_gt.nii.gz", lambda a: a[:-1], r"ED_gt.nii.gz: mask is \(299, 410\), its image \(300,"),
        ("ED_gt.nii.gz", label(7), r"ED_gt.nii.gz: mask values must be among .* found \[7\]"),
        ("ES.nii.gz", "gzip", "2CH_ES.nii.gz: not a readable NIfTI file"),
        ("ES_gt.nii.gz", "bit", "2CH_ES_gt.nii.gz: .*damaged or cut short"),
        ("ES.nii.gz", "text", "2CH_ES.nii.gz: not a readable NIfTI file"),
        ("ED.nii.gz", nan_at((3, 4)), "2CH_ED.nii.gz: expected finite values, found 1 NaN"),
        ("ED.nii.gz", np.zeros_like, "2CH_ED.nii.gz: constant image"),
        (
            "ED.nii.gz",
            lambda a: a[..., None].repeat(3, -1),
            r"has shape \(300, 410, 3\), expected 2",
        ),
    ],
)
def test_damaged_camus(tmp_path, file, damage, message):
    source = archives.write_camus(tmp_path / "camus", patients=(1,), views=("2CH",))
    spoil(source / f"{CAMUS_FILE}{file}", damage)
    with pytest.raises(ValueError, match=message):
        load("camus_2ch", source)
    assert not list(tmp_path.rglob("dataset_info.json"))


@pytest.mark.parametrize(
    "file, damage, message",
    [
        ("12.nii.gz", "unlink", "patient001 is incomplete, missing patient001_frame12.nii.gz"),
        (
            "01_gt.nii.gz",
            lambda a: a[..., :-1],
            r"mask is \(110, 130, 8\), its image \(110, 130, 9",
        ),
        ("01_gt.nii.gz", label(4), r"frame01_gt.nii.gz: mask values must be among .* \[4\]"),
        ("12.nii.gz", "gzip", "frame12.nii.gz: not a readable NIfTI file"),
        ("12.nii.gz", nan_at((3, 4, 0)), "frame12.nii.gz: expected finite values, found 1 NaN"),
        ("01.nii.gz", np.zeros_like, "frame01.nii.gz, middle slice: constant image"),
        ("01.nii.gz", lambda a: a[..., 0], r"has shape \(110, 130\), expected 3 dimensions"),
    ],
)
def test_damaged_acdc(tmp_path, file, damage, message):
    source = archives.write_acdc(tmp_path / "acdc", patients=(1,))
    spoil(source / f"{ACDC_FILE}{file}", damage)
    with pytest.raises(ValueError, match=message):
        load("acdc", source)


def spoil(file, damage):
    if damage == "unlink":
        file.unlink()
    elif damage == "gzip":
        archives.damage_gzip(file)
    elif damage == "bit":
        archives.flip_bit(file)
    elif damage == "text":
        file.write_text("not found")
    else:
        archives.replace_array(file, damage)


def test_acdc_phases_that_differ(tmp_path):
    source = archives.write_acdc(tmp_path / "acdc", patients=(1,))
    for kind in ("", "_gt"):
        archives.replace_array(source / f"{ACDC_FILE}12{kind}.nii.gz", lambda a: a[:, :100])
    with pytest.raises(ValueError, match=r"ES is \(110, 100, 9\) .* ED \(110, 130, 9\)"):
        load("acdc", source)


def test_acdc_info(tmp_path):
    source = archives.write_acdc(tmp_path / "acdc", patients=(1,))
    info = source / "database/training/patient001/Info.cfg"
    info.write_text("ED: 1\nGroup: NOR\n")
    with pytest.raises(ValueError, match="Info.cfg: expected a line 'ES: frame number'"):
        load("acdc", source)
    info.unlink()
    with pytest.raises(ValueError, match="no file .*patient001/Info.cfg"):
        load("acdc", source)


def test_duplicate_and_unexpected_patients(tmp_path):
    camus = archives.write_camus(tmp_path / "camus", patients=(1,), views=("2CH",))
    folder = camus / "database_nifti"
    shutil.copytree(folder / "patient0001", folder / "patient001")
    with pytest.raises(ValueError, match="found patient 1 twice, in .*patient0001 and in"):
        load("camus_2ch", camus)
    (folder / "patient001").rename(folder / "patient0501")
    with pytest.raises(ValueError, match="unexpected .*patient0501, patients are 1 to 500"):
        load("camus_2ch", camus)
    acdc = archives.write_acdc(tmp_path / "acdc", patients=(1,))
    database = acdc / "database"
    shutil.copytree(database / "training", database / "testing")
    with pytest.raises(ValueError, match="found patient 1 twice, in .*testing.* and in"):
        load("acdc", acdc)
    shutil.rmtree(database / "training")
    with pytest.raises(ValueError, match="patients 1 to 100 are in training"):
        load("acdc", acdc)


def change_line(file, number, change):
    lines = file.read_text().splitlines()
    lines[number] = change(lines[number])
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "file, number, change, message",
    [
        ("FileList.csv", 0, lambda s: s.replace("Split", "Set"), "header is .*Set, expected"),
        ("FileList.csv", 2, lambda s: s.replace("0X2B", "0X1A"), "0X1A is listed twice"),
        ("FileList.csv", 1, lambda s: s.replace("TRAIN", "DEV"), "line 2: Split is 'DEV'"),
        ("VolumeTracings.csv", 0, lambda s: "a,b", "Tracings.csv: its header is a,b"),
        ("VolumeTracings.csv", 3, lambda s: s.rsplit(",", 1)[0], "found 5 values, expected 6"),
        ("VolumeTracings.csv", 3, lambda s: "v.avi,1,2,x,4,5", "line 4: X1 is .1., .* Y2 is .4."),
        (
            "VolumeTracings.csv",
            3,
            lambda s: "v.avi,1,2,nan,4,5",
            "line 4: .* X2 is 'nan', .* expected numbers",
        ),
        ("VolumeTracings.csv", 3, lambda s: "v.avi,1,2,3,4,5.5", "line 4: Frame is '5.5'"),
    ],
)
def test_wrong_echonet_tables(tmp_path, file, number, change, message):
    source = archives.write_echonet(tmp_path / "echonet", videos=())
    change_line(source / file, number, change)
    with pytest.raises(ValueError, match=message):
        load("echonet", source)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda file: file.write_bytes(b"RIFF" + bytes(500)), "0X1A.avi: not a readable video"),
        (
            lambda file: file.write_bytes(file.read_bytes()[:9000]),
            "0X1A.avi: not a readable video .cut short: 9000 bytes",
        ),
        (
            lambda file: archives.write_avi(file, [archives.echonet_frame("0X1A", 0)] * 3),
            "0X1A.avi: the video ends before frame 3, which VolumeTracings.csv traces",
        ),
        (
            lambda file: archives.write_avi(file, [np.full((112, 112), 80, np.uint8)] * 9),
            "0X1A.avi, frame 3: constant image",
        ),
        (
            lambda file: archives.write_avi(
                file, [archives.echonet_frame("0X1A", 3)[:32, :32]] * 9
            ),
            "0X1A.avi, frame 3: its outline .* contains no pixel of the 32 x 32 image",
        ),
    ],
)
def test_damaged_videos(tmp_path, damage, message):
    source = archives.write_echonet(tmp_path / "echonet", videos=("0X1A",))
    damage(source / "Videos" / "0X1A.avi")
    with pytest.raises(ValueError, match=message):
        load("echonet", source)


def test_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"needs PyAV: pip install 'ldm_morph_jax\[video\]'"):
        read_frames(tmp_path / "x.avi", [0])


def test_incomplete_outline(tmp_path):
    source = archives.write_echonet(tmp_path / "echonet", videos=("0X1A",))
    table = source / "VolumeTracings.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:3], *lines[22:]]) + "\n")  # frame 3: axis and one chord
    with pytest.raises(ValueError, match="0X1A.avi, frame 3: .* 2 rows .* at least two chords"):
        load("echonet", source)


@pytest.mark.parametrize(
    "number, change, message",
    [
        (0, lambda s: s.replace("moving,", "move,"), "header is id,split,move,.*expected"),
        (1, lambda s: s.replace("train", "training"), "line 2: split is 'training'"),
        (2, lambda s: s.replace("heart-1", "heart-0"), "id 'heart-0' is already on line 2"),
        (2, lambda s: s.replace("heart-1", ""), "line 3: id is empty"),
        (1, lambda s: s.replace("0_fixed.png", "no.png"), "line 2: no such file .*no.png"),
        (1, lambda s: s.replace("0_fixed_mask.png", ""), "line 2: has one mask"),
        (1, lambda s: s.replace("0_fixed.png", "pairs.csv"), "pairs.csv: not an image"),
        (1, lambda s: s.replace("0_fixed.", "tall."), r"fixed image is \(90, 80\), moving"),
        (1, lambda s: s.replace("0_fixed_mask.", "tall."), r"tall.png: mask is \(90, 80\), its"),
    ],
)
def test_wrong_folder_tables(tmp_path, number, change, message):
    import PIL.Image

    table = archives.write_folder(tmp_path / "folder")
    PIL.Image.fromarray(np.eye(90, 80, dtype=np.uint8)).save(table.parent / "tall.png")
    change_line(table, number, change)
    with pytest.raises(ValueError, match=message):
        load_dataset("folder", source=table, directory=tmp_path / "out")


def test_folder_without_masks_and_with_slices(tmp_path):
    volume = np.random.default_rng(0).random((3, 64, 64)).astype(np.float32)
    np.savez(tmp_path / "stack.npz", image=volume)
    (tmp_path / "pairs.csv").write_text(
        "id,split,moving,fixed,slice\na,train,stack.npz,stack.npz,1\nb,test,stack.npz,stack.npz,2\n"
    )
    dataset = load_dataset(
        "folder", source=tmp_path / "pairs.csv", directory=tmp_path / "out", image_size=64
    )
    example = dataset.split("test")[0]
    np.testing.assert_allclose(
        example["moving"][..., 0], preprocessing.min_max(volume[2]), atol=1e-6
    )
    assert dataset.labels == {} and not example["moving_mask"].any()
    assert dataset.metadata("test")[0]["slice"] == 2


def test_folder_of_volumes(tmp_path):
    """Slices fill the grid along their longer side, planes are scaled; spacing follows in mm."""
    heart = ventricle(3, (6, 40, 30), (10.0, 2.0, 2.0))
    spacing, names = (10.0, 2.0, 2.0), ("moving", "fixed", "moving_mask", "fixed_mask")
    geometry = Geometry((6, 40, 30), spacing, np.array([5.0, -3.0, 7.0]), np.eye(3))
    for name in names:
        write_image(tmp_path / f"{name}.nii.gz", getattr(heart, name), geometry)
    files = ",".join(f"{name}.nii.gz" for name in names)
    table = tmp_path / "pairs.csv"
    table.write_text(f"id,split,{','.join(names)}\na,test,{files}\n")
    options = {"source": table, "directory": tmp_path / "out", "image_size": 32, "depth": 11}
    pair = load_dataset("folder_3d", **options).split("test")[0]
    assert pair["moving"].shape == (11, 32, 32, 1)
    np.testing.assert_allclose(pair["spacing"], (5.0, 2 * 39 / 31, 2 * 29 / 23))
    inside = pair["fixed_mask"][..., 4:28, 0]  # 24 of 32 columns; the others are padding
    assert not pair["fixed_mask"][..., :4, 0].any() and not pair["fixed_mask"][..., 28:, 0].any()
    np.testing.assert_array_equal(
        inside[::2],
        [preprocessing.resize(plane, (32, 24), nearest=True) for plane in heart.fixed_mask],
    )
    table.write_text(f"id,split,slice,{','.join(names)}\na,test,2,{files}\n")
    with pytest.raises(ValueError, match="a: slice is 2, expected none: folder_3d takes volumes"):
        load_dataset("folder_3d", **options)


@pytest.mark.parametrize("flipped", ["fixed", "fixed_mask", "moving_mask", "fixed fixed_mask"])
def test_folder_compares_in_millimetres(tmp_path, flipped):
    """Whatever is stored the other way round, the pair is the same."""
    scene, points = archives.Scene(99, 79), archives.grid((100, 80), (1, 1))
    geometry = Geometry((100, 80), (1.0, 1.0), np.array([5.0, -3.0]), np.eye(2))
    turned = Geometry((100, 80), (1.0, 1.0), np.array([84.0, -3.0]), np.diag([-1.0, 1.0]))
    tables = []
    for turn in ("", flipped):
        folder = tmp_path / (turn or "straight")
        folder.mkdir()
        for role, phase in (("moving", "ED"), ("fixed", "ES")):
            image = scene.image(points, phase).astype(np.float32)
            for key, array in ((role, image), (f"{role}_mask", scene.mask(points, phase))):
                there = key in turn.split()
                array = array[:, ::-1] if there else array
                write_image(folder / f"{key}.nii.gz", array, turned if there else geometry)
        names = ("moving", "fixed", "moving_mask", "fixed_mask")
        row = ",".join(f"{name}.nii.gz" for name in names)
        (folder / "pairs.csv").write_text(f"id,split,{','.join(names)}\na,train,{row}\n")
        tables.append(folder / "pairs.csv")
    straight, other = (
        load_dataset("folder", source=table, directory=tmp_path / "out", image_size=96).split(
            "train"
        )[0]
        for table in tables
    )
    for key in ("moving", "fixed", "moving_mask", "fixed_mask"):
        np.testing.assert_allclose(other[key], straight[key], atol=1e-6)


def test_folder_refuses_images_that_lie_elsewhere(tmp_path):
    array = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    for name, x in (("a", 0.0), ("b", 20.0)):
        geometry = Geometry((64, 64), (1.0, 1.0), np.array([x, 5.0]), np.eye(2))
        write_image(tmp_path / f"{name}.nii.gz", array, geometry)
    (tmp_path / "pairs.csv").write_text("id,split,moving,fixed\na,train,a.nii.gz,b.nii.gz\n")
    with pytest.raises(ValueError, match=r"b.nii.gz: covers 69 % of .*a.nii.gz, expected all"):
        load_dataset("folder", source=tmp_path / "pairs.csv", directory=tmp_path / "out")


def test_camus_of_the_first_release(tmp_path):
    archives.write_camus(tmp_path / "camus", patients=(1,), views=("2CH",))
    for file in list(tmp_path.rglob("*.nii.gz")):
        file.rename(file.with_name(file.name.replace(".nii.gz", ".mhd")))
    with pytest.raises(ValueError, match=r"2CH_E.\S*.mhd is from the first release \(.mhd\), exp"):
        load("camus_2ch", tmp_path / "camus")


def test_acdc_slices_are_all_slices_of_all_patients(sources, tmp_path):
    options = {"allow_partial": True, "image_size": 160, "directory": tmp_path}
    dataset = load_dataset("acdc_slices", source=sources["acdc"], **options)
    depths = {name: archives.ACDC[name][0][2] for name in archives.ACDC}
    assert dataset.splits == {"train": depths[1], "validation": depths[96]} | {
        "test": depths[101] + depths[117] + depths[124]
    }
    assert dataset.metadata("validation")[3]["slice"] == 3
    pair = dataset.split("validation")[3]
    assert pair["spacing"].tolist() == [1.25, 1.25]
    scene = archives.acdc_scene(96)
    shape, spacing, _ = archives.ACDC[96]
    # the volume's first sample keeps its place, and its middle is the image's
    sizes = [round(n * s / 1.25) for n, s in zip(shape[:2], spacing[:2], strict=True)]
    starts = [(size - 160) // 2 for size in sizes]
    points = archives.grid((160, 160), (1.25, 1.25)) + 1.25 * np.array(starts)
    truth = scene.mask(points, "ES", **archives.ACDC_LABELS)
    inside = truth > 0
    assert (pair["fixed_mask"][..., 0][inside] == truth[inside]).mean() > 0.95

    lost = load_dataset("acdc_slices", source=sources["acdc"], field_mm=192.0, **options)
    scale = 192 / max(shape[:2]) / spacing[0]
    areas = [(d.split("validation")[3]["fixed_mask"] > 0).sum() for d in (lost, dataset)]
    assert areas[0] / areas[1] == pytest.approx(scale**2, rel=0.05)
    with pytest.raises(ValueError, match="145 of 150 patients are missing"):
        load_dataset("acdc_slices", source=sources["acdc"], **options | {"allow_partial": False})


def test_splits_of_acdc_slices_and_patients_that_acdc_does_not_have(sources, tmp_path):
    source = tmp_path / "acdc"
    shutil.copytree(sources["acdc"], source)
    for name, other in ((101, 151), (96, 95)):
        for folder in list(source.rglob(f"patient{name:03d}")):
            copy = folder.with_name(f"patient{other:03d}")
            shutil.copytree(folder, copy)
            for file in list(copy.glob(f"{folder.name}_*")):
                file.rename(copy / file.name.replace(folder.name, copy.name))
    options = {"allow_partial": True, "directory": tmp_path / "out"}
    dataset = load_dataset("acdc_slices", source=source, **options)
    assert {
        split: {int(row["patient"][-3:]) for row in dataset.metadata(split)}
        for split in dataset.splits
    } == {"train": {1, 95}, "validation": {96}, "test": {101, 117, 124}}
