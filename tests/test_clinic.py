"""What a clinic takes away: `--dicom` of track and register, segments and bull's-eye of a stack."""

import csv
import json
import shutil
import subprocess
import xml.etree.ElementTree as xml

import dicom_sources
import numpy as np
import pydicom
import pytest
import SimpleITK
from analytic_method import AnalyticMethod
from in_process import exit_status as run

from ldm_morph_jax import jacobian, register, track, warp
from ldm_morph_jax.data.phantom_cine import phantom_cine
from ldm_morph_jax.files.dicom_objects import segmentation
from ldm_morph_jax.files.geometry import Geometry
from ldm_morph_jax.files.movies import read_cine
from ldm_morph_jax.files.transforms import read_transform
from ldm_morph_jax.files.writing import write_image
from ldm_morph_jax.registering import tracking
from ldm_morph_jax.registering.search import Refinement
from ldm_morph_jax.registering.tracking import Tracking

pytestmark = pytest.mark.integration

highdicom = pytest.importorskip("highdicom")


@pytest.fixture(scope="module", autouse=True)
def quick_search():
    """Fewer steps: these tests look at files, not at accuracy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "SEARCH", Refinement(levels=(2, 1), steps=(10, 5)))
        patch.setattr(tracking, "DEFAULTS", Tracking(key_frames=3, chunk=5))
        yield


def assert_valid(path):
    if shutil.which("dciodvfy"):
        told = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        lines = (told.stdout + told.stderr).splitlines()
        assert not [line for line in lines if line.startswith("Error")], path


def ranges(measurement):
    """(low, high, coverage in percent) as the properties of a measurement tell them, or None."""
    items = getattr(measurement[0], "ContentSequence", [])
    found = {item.name.value: item for item in items if item.relationship_type.value != "CONTAINS"}
    if "371886008" not in found:
        assert not {"371885007", "COVERAGE", "CALIBRATION"} & set(found)
        return None
    above, below, coverage = (found[k] for k in ("371886008", "371885007", "COVERAGE"))
    assert above.unit == below.unit == measurement.unit and coverage.unit.value == "%"
    assert "calibrated" in found["CALIBRATION"].value
    value = measurement.value
    return value - below.value, value + above.value, coverage.value


def assert_intervals(report, out, strains):
    """Those of summary.json and segments.csv and no others; `strains`: whether peaks have one."""
    summary = json.loads((out / "summary.json").read_text())
    with open(out / "segments.csv", newline="") as file:
        rows = {row["segment"]: row for row in csv.DictReader(file) if row["trusted"] == "yes"}
    assert summary["intervals"]["coverage"] == 0.9
    expected = [100 * np.array(summary["fractional_area_change_interval"])]
    for numbers in summary["strain"].values():
        if numbers["region"] in ("wall", "endocardium"):
            assert ("peak_interval" in numbers) == strains
            expected += [100 * np.array(numbers["peak_interval"])] if strains else []
    for name, row in rows.items():
        for direction in ("radial", "circumferential") if strains and name != "wall" else ():
            ends = [float(row[f"{direction}_peak_{end}_percent"]) for end in ("low", "high")]
            expected.append(ends)
    groups = report.content.get_image_measurement_groups()
    found = [ranges(m) for group in groups for m in group.get_measurements()]
    found = [one for one in found if one is not None]
    assert len(found) == len(expected) and {one[2] for one in found} == {90}
    for ends in expected:
        assert min(np.abs(np.subtract(one[:2], ends)).max() for one in found) < 1e-3
    change = [
        ranges(m)[:2]
        for m in groups[0].get_measurements()
        if m.name.meaning == "Left Ventricular Fractional Area Change"
    ]
    np.testing.assert_allclose(change, [expected[0]], atol=1e-5)


@pytest.mark.parametrize("kind", ["MR, single frames", "US, one file"])
def test_track_writes_dicom(tmp_path, kind):
    source = dicom_sources.SOURCES[kind](tmp_path)
    cine = read_cine(source, oblique=True)
    mask = tmp_path / "mask.nii.gz"
    write_image(mask, dicom_sources.labels()[:1], cine.first.space)
    out = tmp_path / "out"
    files = ("--cine", source, "--mask", mask, "--out", out)
    period = ("--period", "whole") if kind.startswith("US") else ()  # strain has an interval then
    assert run(track, *files, "--oblique", "--dicom", "--levels", "m", *period) == 0
    written = sorted(path.name for path in (out / "dicom").iterdir())
    frames = [f"{t:03d}.dcm" for t in range(dicom_sources.FRAMES)]
    assert written == sorted(
        [f"{name}_{t}" for name in ("displacement", "inverse_displacement") for t in frames]
        + ["page.dcm", "report.dcm", "segmentation.dcm"]
    )
    for name in ("displacement_003.dcm", "page.dcm", "report.dcm", "segmentation.dcm"):
        assert_valid(out / "dicom" / name)
    # the same motion as in the other files
    for t in (0, 3):
        for name in ("displacement", "inverse_displacement"):
            ours = read_transform(out / name / f"frame_{t:03d}.nii.gz")
            dicom = read_transform(out / "dicom" / f"{name}_{t:03d}.dcm")
            assert np.abs(ours.displacement_mm - dicom.displacement_mm).max() < 1e-4
            assert dicom.fixed.same_as(ours.fixed)
    # the same masks
    labels = segmentation.read(out / "dicom" / "segmentation.dcm", "seg").array[:, 0]
    for t, label in enumerate(labels):
        saved = SimpleITK.ReadImage(out / "masks" / f"frame_{t:03d}.nii.gz")
        assert np.array_equal(np.squeeze(SimpleITK.GetArrayFromImage(saved)), label)
    seg = pydicom.dcmread(out / "dicom" / "segmentation.dcm")
    assert [s.SegmentLabel for s in seg.SegmentSequence] == [
        "left ventricular cavity",
        "left ventricular wall",
        "right ventricle",
    ]
    # the same numbers, with the frames they were taken from
    summary = json.loads((out / "summary.json").read_text())
    report = highdicom.sr.srread(out / "dicom" / "report.dcm")
    groups = report.content.get_image_measurement_groups()
    sites = [group.finding_sites[0].value.value for group in groups]
    assert sites[0] == "87878005" and len(set(sites)) == len(sites) > 3
    values = {}
    for measurement in groups[0].get_measurements():
        values.setdefault(measurement.name.meaning, []).append(measurement.value)
    assert values["Left Ventricular Fractional Area Change"][0] == pytest.approx(
        100 * summary["fractional_area_change"], abs=1e-5
    )
    peak = 100 * summary["strain"]["circumferential_strain"]["peak"]
    assert min(abs(v - peak) for v in values["Circumferential Lagrangian Strain"]) < 1e-5
    assert_intervals(report, out, strains=bool(period))
    page = pydicom.dcmread(out / "dicom" / "page.dcm")
    assert page.EncapsulatedDocument.startswith(b"%PDF") and page.PatientID == "P-17"
    assert b"P-17" not in page.EncapsulatedDocument  # nothing burnt in


def test_a_segmentation_over_time_is_taken_as_mask(tmp_path, capsys):
    source = dicom_sources.us_file(tmp_path / "us.dcm")
    cine = read_cine(source)
    write_image(tmp_path / "mask.nii.gz", dicom_sources.labels()[:1], cine.first.space)
    first, second = tmp_path / "first", tmp_path / "second"
    more = ("--dicom", "--no-report")
    assert (
        run(track, "--cine", source, "--mask", tmp_path / "mask.nii.gz", "--out", first, *more) == 0
    )
    seg = first / "dicom" / "segmentation.dcm"
    options = ("--mask", seg, "--reference", "2", "--no-report")
    assert run(track, "--cine", source, "--out", second, *options) == 0
    used = SimpleITK.ReadImage(second / "masks" / "frame_002.nii.gz")
    carried = SimpleITK.ReadImage(first / "masks" / "frame_002.nii.gz")
    assert np.array_equal(*map(SimpleITK.GetArrayFromImage, (used, carried)))
    assert not (second / "dicom").exists()


def test_register_writes_registrations_that_warp_and_jacobian_read(tmp_path, capsys, monkeypatch):
    method = AnalyticMethod(image_size=32)
    monkeypatch.setattr(register, "load_model", lambda name, calls="often": method)
    folder = dicom_sources.mr_files(tmp_path / "mr")
    files = {pydicom.dcmread(f).TriggerTime: f for f in folder.iterdir()}
    moving, fixed = files[0.0], files[80.0]
    cine = read_cine(folder, oblique=True)
    write_image(tmp_path / "mask.nii.gz", dicom_sources.labels()[:1], cine.first.space)
    out = tmp_path / "out"
    options = ("--refine", "0", "--oblique", "--inverse", "--no-report")
    images = ("--moving", moving, "--fixed", fixed, "--moving-mask", tmp_path / "mask.nii.gz")
    assert run(register, *images, "--out", out, *options, "--dicom") == 0
    for name in ("displacement.dcm", "inverse_displacement.dcm", "warped_mask.dcm"):
        assert_valid(out / name)
    file = pydicom.dcmread(out / "displacement.dcm")
    [one, other] = [i.ReferencedImageSequence[0] for i in file.DeformableRegistrationSequence]
    assert one.ReferencedSOPInstanceUID == pydicom.dcmread(fixed).SOPInstanceUID
    assert other.ReferencedSOPInstanceUID == pydicom.dcmread(moving).SOPInstanceUID
    ours = read_transform(out / "displacement.npz")
    theirs = read_transform(out / "displacement.dcm")
    assert np.abs(ours.displacement_mm - theirs.displacement_mm).max() < 0.01
    told = []
    for name in ("displacement.npz", "displacement.dcm"):
        warped = tmp_path / f"{name}.nii.gz"
        arguments = ("--transform", out / name, "--input", moving, "--oblique")
        assert run(warp, *arguments, "--out", warped) == 0
        capsys.readouterr()
        assert run(jacobian, "--transform", out / name) == 0
        told.append(
            (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(warped)), capsys.readouterr().out)
        )
    assert np.abs(told[0][0] - told[1][0]).max() < 0.01
    assert told[0][1].split()[-1] == told[1][1].split()[-1]
    carried = tmp_path / "carried.dcm"
    files = ("--transform", out / "displacement.dcm", "--input", tmp_path / "mask.nii.gz")
    options = ("--interpolation", "nearest", "--oblique", "--out", carried)
    assert run(warp, *files, *options, "--dicom", fixed) == 0
    assert_valid(carried)
    assert run(warp, *files, *options) != 0
    assert "expected FILE.dcm with --dicom" in capsys.readouterr().err
    other = ("--dicom", dicom_sources.us_file(tmp_path / "us.dcm"), "--frame", "0")
    assert run(warp, *files, *options, "--overwrite", *other) != 0
    assert "is not the image on which" in capsys.readouterr().err
    labels = segmentation.read(carried, "seg").array[0, 0]
    expected = segmentation.read(out / "warped_mask.dcm", "seg").array[0, 0]
    assert np.array_equal(labels, expected)
    saved = SimpleITK.ReadImage(out / "warped_mask.nii.gz")
    assert np.array_equal(expected, np.squeeze(SimpleITK.GetArrayFromImage(saved)))


def test_sources_that_are_not_dicom_are_refused_before_anything_is_done(tmp_path, capsys):
    write_image(
        tmp_path / "a.nii.gz",
        dicom_sources.frames(),
        Geometry((5, 40, 48), (1, 1, 1), np.zeros(3), np.eye(3)),
    )
    out = tmp_path / "out"
    assert (
        run(track, "--cine", tmp_path / "a.nii.gz", "--out", out, "--dicom", "--spacing", "2") != 0
    )
    assert "is not DICOM" in capsys.readouterr().err
    assert run(track, "--example", "--out", out, "--dicom") != 0
    assert "--example does not go with --dicom" in capsys.readouterr().err
    assert run(register, "--example", "--out", out, "--dicom") != 0
    assert not out.exists()


SLICES, SIDE, FRAMES = 3, 40, 4


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A stack of three slices, two basal and an apical one with a smaller cavity, tracked."""
    folder = tmp_path_factory.mktemp("stack")
    images, masks = [], []
    for k in range(SLICES):
        beat = phantom_cine((7, 1), look="sax", image_size=SIDE, frames=FRAMES)
        images.append(beat.frames)
        mask = beat.masks[0].copy()
        if k == SLICES - 1:  # a smaller cavity: the apex
            rows, columns = np.argwhere(mask == 1).T
            edge = rows < np.median(rows) - 1
            mask[rows[edge], columns[edge]] = 2
        masks.append(mask)
    frames = np.stack(images, axis=1)  # [T, S, H, W]
    image = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(one) for one in frames])
    image.SetSpacing((2.0, 2.0, 8.0, 0.1))
    SimpleITK.WriteImage(image, folder / "stack.nii.gz")
    place = Geometry((SLICES, SIDE, SIDE), (8.0, 2.0, 2.0), np.zeros(3), np.eye(3))
    write_image(folder / "mask.nii.gz", np.stack(masks), place)
    files = ("--cine", folder / "stack.nii.gz", "--mask", folder / "mask.nii.gz")
    out = folder / "out"
    options = ("--slice", "all", "--septum", "20", "2", "--levels", "bba", "--valves", "AVC=150")
    assert run(track, *files, *options, "--out", out) == 0
    return out


def test_segments_of_a_stack(stack):
    summary = json.loads((stack / "summary.json").read_text())
    assert summary["levels"] == [1, 1, 3]
    with open(stack / "segments.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["segment"] for row in rows][:2] == ["wall", "basal anterior"]
    assert [row["number"] for row in rows] == ["", *map(str, [1, 2, 3, 4, 5, 6, 13, 14, 15, 16])]
    columns = {"circumferential_peak_percent", "radial_time_to_peak_s", "radial_early_rate"}
    assert columns <= set(rows[0])
    # a segment is the mean over its pixels of the slices of its level
    slices = [json.loads((stack / name / "summary.json").read_text()) for name in summary["slices"]]
    members = [s for s, level in zip(slices, summary["levels"], strict=True) if level == 1]
    sizes = [s["segment_pixels"]["basal_inferior"] for s in members]
    curves = [s["curves"]["circumferential_strain_basal_inferior"] for s in members]
    expected = 100 * np.average(curves, axis=0, weights=sizes).min()
    row = rows[4]
    assert row["segment"] == "basal inferior" and int(row["pixels"]) == sum(sizes)
    assert float(row["circumferential_peak_percent"]) == pytest.approx(expected, rel=1e-4)
    # at the closure of the aortic valve, between frames 1 and 2
    expected = 100 * np.average(curves, axis=0, weights=sizes)[1:3].mean()
    assert float(row["circumferential_end_systolic_percent"]) == pytest.approx(expected, rel=1e-4)
    assert summary["valves_ms"] == {"AVC": 150}
    timing = summary["timing"]["circumferential"]
    times = [float(r["circumferential_time_to_peak_s"]) for r in rows[1:] if r["trusted"] == "yes"]
    assert timing["mechanical_dispersion"] == pytest.approx(np.std(times, ddof=1), abs=1e-6)
    assert timing["earliest_to_latest"] == pytest.approx(np.ptp(times), abs=1e-6)
    assert 0.5 < timing["uniformity"] <= 1
    assert summary["twist"]["slices"] == [0, SLICES - 1]
    assert any(note.startswith("twist: the base moves through") for note in summary["notes"])
    with open(stack / "curves.csv") as file:
        header = next(csv.reader(file))
    assert {"volume_ml", "twist_deg", "circumferential_strain_apical_septal"} <= set(header)


def test_the_page_of_a_stack_has_the_bulls_eye(stack):
    assert (stack / "bullseye.png").read_bytes().startswith(b"\x89PNG")
    text = (stack / "report.html").read_text()
    assert text.count("<svg") == 2 and "http" not in text.replace("http-equiv", "")
    svg = text[text.index("<svg") : text.index("</svg>") + 6]
    assert len([one for one in xml.fromstring(svg).iter("title")]) == 16
    for k in range(SLICES):
        assert (stack / f"slice-{k:02d}" / "report.html").exists()
        assert f'href="slice-{k:02d}/report.html"' in text


def test_levels_given_by_hand(stack, tmp_path, capsys):
    files = ("--cine", stack.parent / "stack.nii.gz", "--mask", stack.parent / "mask.nii.gz")
    assert run(track, *files, "--slice", "all", "--out", tmp_path / "o", "--levels", "bm") != 0
    assert "has 2 letters, expected one for each of 3 slices" in capsys.readouterr().err
    assert run(track, *files, "--slice", "1", "--out", tmp_path / "o", "--levels", "x") != 0
    assert "expected b, m, a, c or -" in capsys.readouterr().err
    more = ("--slice", "1", "--levels", "a", "--septum", "20", "2", "--no-report")
    assert run(track, *files, "--out", tmp_path / "o", *more) == 0
    with open(tmp_path / "o" / "segments.csv") as file:
        assert [row["number"] for row in csv.DictReader(file)] == ["", "13", "14", "15", "16"]
