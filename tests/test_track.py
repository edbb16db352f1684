"""track: what it writes, how it refuses, what it keeps; the page in a browser."""

import csv
import functools
import json
import re
from pathlib import Path

import browser
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pydicom
import pytest
import SimpleITK
from analytic_method import AnalyticMethod, searching
from files import samples
from in_process import exit_status

from ldm_morph_jax import __version__, track
from ldm_morph_jax.data.phantom_cine import phantom_cine
from ldm_morph_jax.data.windows import Window
from ldm_morph_jax.files import movies
from ldm_morph_jax.files.errors import FileError, ImageError
from ldm_morph_jax.files.geometry import Geometry
from ldm_morph_jax.files.images import read_image
from ldm_morph_jax.files.movies import cine_from_arrays
from ldm_morph_jax.files.writing import write_image
from ldm_morph_jax.registering import cine_files, tracking
from ldm_morph_jax.registering.anatomy import anatomy_of_mask
from ldm_morph_jax.registering.search import Refinement
from ldm_morph_jax.registering.tracking import Tracking

T, SIZE = 9, 48
LOOKS = ("sax", "echo")
SPACING = (3.0, 3.5)


@pytest.fixture(scope="module", autouse=True)
def quick_search():
    """Fewer steps: these tests look at files, not at accuracy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "SEARCH", Refinement(levels=(2, 1), steps=(15, 8)))
        patch.setattr(tracking, "DEFAULTS", Tracking(key_frames=6, chunk=3))
        yield


@pytest.fixture(scope="module")
def beats():
    return {look: phantom_cine((7, 1), look=look, image_size=SIZE, frames=T) for look in LOOKS}


def write_cine(path, frames):
    """4-D NIfTI with a place in space; `[T, H, W]` or `[T, S, H, W]`."""
    frames = frames if frames.ndim == 4 else frames[:, None]
    image = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(one) for one in frames])
    image.SetSpacing((*SPACING[::-1], 8.0, 0.04))
    image.SetOrigin((-20.0, 10.0, 5.0, 0.0))
    SimpleITK.WriteImage(image, path)


def write_mask(path, labels):
    labels = labels if labels.ndim == 3 else labels[None]
    origin = np.array([-20.0, 10.0, 5.0])
    write_image(path, labels, Geometry(labels.shape, (8.0, *SPACING), origin, np.eye(3)))


@pytest.fixture(scope="module")
def folder(beats, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cine")
    for look, beat in beats.items():
        write_cine(folder / f"{look}.nii.gz", beat.frames)
        write_mask(folder / f"{look}_mask.nii.gz", beat.masks[0])
    (folder / "landmarks.csv").write_text("name,row,column\napex,20,21.5\n")
    return folder


run = functools.partial(exit_status, track)


@pytest.fixture(scope="module")
def sax(folder):
    out = folder / "sax"
    options = ("--period", "whole", "--landmarks", folder / "landmarks.csv")
    files = ("--cine", folder / "sax.nii.gz", "--mask", folder / "sax_mask.nii.gz")
    valves = ("--valves", "avc=140,MVO=210")
    assert run(*files, *options, *valves, "--out", out) == 0
    return out


def array(path):
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def curve(out, name):
    return np.array([float(row[name]) for row in rows(out / "curves.csv")])


@pytest.mark.integration
def test_everything_is_written(sax, beats):
    names = {path.name for path in sax.iterdir()}
    assert names == set(
        "displacement inverse_displacement warped masks contours.csv landmarks.csv curves.csv "
        "segments.csv summary.json curves.png beat.gif report.html".split()
    )
    for name in ("displacement", "inverse_displacement", "warped", "masks"):
        files = sorted(path.name for path in (sax / name).iterdir())
        assert files == [f"frame_{t:03d}.nii.gz" for t in range(T)]
    content = json.loads((sax / "summary.json").read_text())
    assert content["cine"]["spacing_mm"] == list(SPACING)
    assert content["cine"]["times"] == pytest.approx(0.04 * np.arange(T))
    assert content["cine"]["axes"] == ["P", "L"]
    assert content["heart_rate_per_min"] == pytest.approx(60 / (0.04 * (T - 1)))
    assert content["software"]["version"] == __version__
    page = (sax / "report.html").read_text()
    assert f"ldm-morph {__version__}" in page
    assert "Circumferential strain by sector, %" in page and "<dd>188 / min</dd>" in page
    assert content["end_systole"] == beats["sax"].end_systole
    assert content["drift_px"]["tracked"] < 1e-3 < content["drift_px"]["registered_alone"]
    assert content["jacobian"]["nonpositive_percent"] == 0
    assert {"circumferential_strain", "radial_strain_anteroseptal"} < set(content["strain"])
    with PIL.Image.open(sax / "beat.gif") as animation:
        assert animation.n_frames == T and animation.info["duration"] == 40


def test_areas_and_strain_are_near_those_of_the_phantom(sax, beats):
    """Pixels are coarse and the search is short here; tests/registering/test_cine.py is exact."""
    beat, content = beats["sax"], json.loads((sax / "summary.json").read_text())
    areas = (beat.masks == 1).sum(axis=(1, 2)) * np.prod(SPACING)
    np.testing.assert_allclose(curve(sax, "cavity_area_mm2"), areas, rtol=0.16)
    strain = content["strain"]
    assert -0.3 < strain["circumferential_strain"]["peak"] < -0.08
    assert 0.08 < strain["radial_strain"]["peak"] < 0.8
    wall = strain["circumferential_strain"]
    # end-systolic strain is that of the aortic valve's closure, between two frames
    assert content["valves_ms"] == {"AVC": 140, "MVO": 210}
    values = curve(sax, "circumferential_strain")
    closed = np.interp(0.14, 0.04 * np.arange(T), values)
    assert wall["end_systolic"] == pytest.approx(closed, rel=1e-4)
    late = wall["time_to_peak"] > 0.14
    assert wall["post_systolic_index"] == pytest.approx(
        late * (1 - closed / wall["peak"]), abs=1e-4
    )
    page = (sax / "report.html").read_text()
    assert "AVC 140 ms, MVO 210 ms" in page
    moments = json.loads(re.search(r'"moments": (\[.*?\])', page)[1])
    assert [(one["name"], one["time"], one["valve"]) for one in moments] == [
        ("ED", 0, False),
        ("ES", pytest.approx(0.04 * beat.end_systole), False),
        ("AVC", 0.14, True),
        ("MVO", 0.21, True),
    ]
    assert wall["time_to_peak"] == pytest.approx(0.04 * beat.end_systole, abs=0.041)
    rates = curve(sax, "circumferential_strain_rate")
    assert wall["lowest_rate"] == pytest.approx(min(rates), abs=1e-5)
    assert wall["highest_rate"] == pytest.approx(max(rates), abs=1e-5)
    assert wall["systolic_rate"] < -0.7 and max(wall["early_rate"], wall["late_rate"]) > 0.5


def test_simpleitk_applies_the_transforms(sax, folder):
    """The exported frame transforms, by another program: our warped frames and masks."""
    cine = SimpleITK.ReadImage(folder / "sax.nii.gz")
    reference = SimpleITK.ReadImage(sax / "warped" / "frame_000.nii.gz")
    for t in range(T):
        file = f"frame_{t:03d}.nii.gz"
        frame = SimpleITK.Extract(cine, (SIZE, SIZE, 0, 0), (0, 0, 0, t))
        resampled = {}
        for name, image, how in (
            ("displacement", frame, SimpleITK.sitkLinear),
            ("inverse_displacement", masks_like(sax, reference), SimpleITK.sitkNearestNeighbor),
        ):
            field = SimpleITK.ReadImage(sax / name / file, SimpleITK.sitkVectorFloat64)
            transform = SimpleITK.DisplacementFieldTransform(field)
            resampled[name] = SimpleITK.GetArrayFromImage(
                SimpleITK.Resample(image, reference, transform, how)
            )
        inside = np.s_[6:-6, 6:-6]  # beyond its border ITK fills with zeros
        warped = array(sax / "warped" / file)
        np.testing.assert_allclose(resampled["displacement"][inside], warped[inside], atol=2e-4)
        masks = array(sax / "masks" / file)
        assert (resampled["inverse_displacement"] == masks)[inside].mean() > 0.999


def masks_like(sax, reference):
    labels = SimpleITK.ReadImage(sax / "masks" / "frame_000.nii.gz")
    labels.CopyInformation(reference)
    return labels


def test_what_is_carried_follows_the_tissue(sax, beats):
    beat = beats["sax"]
    for t in range(T):
        labels = array(sax / "masks" / f"frame_{t:03d}.nii.gz")
        both = ((labels == 1) & (beat.masks[t] == 1)).sum()
        assert 2 * both / ((labels == 1).sum() + (beat.masks[t] == 1).sum()) > 0.9
    apex = [row for row in rows(sax / "landmarks.csv") if row["landmark"] == "apex"]
    assert len(apex) == T and float(apex[0]["row"]) == 20
    assert float(apex[0]["x_mm"]) == pytest.approx(-20 + 21.5 * SPACING[1])
    for t, row in enumerate(apex):
        true = np.array([20, 21.5]) + beat.displacement[t][20, 21:23].mean(axis=0)
        assert np.hypot(float(row["row"]) - true[0], float(row["column"]) - true[1]) < 1
    names = {row["contour"] for row in rows(sax / "contours.csv")}
    assert names == {"endo", "epi"}


@pytest.mark.integration
def test_apical_view(folder, beats):
    beat, out = beats["echo"], folder / "apical"
    files = ("--cine", folder / "echo.nii.gz", "--mask", folder / "echo_mask.nii.gz")
    assert run(*files, "--out", out, "--no-report") == 0  # the mask shows the view
    assert not (out / "report.html").exists() and not (out / "beat.gif").exists()
    content = json.loads((out / "summary.json").read_text())
    assert (content["view"], content["view_by"]) == ("apical", "mask")
    assert any("`view` sax overrules it" in note for note in content["notes"])
    assert content["end_systole"] == beat.end_systole
    volume = curve(out, "volume_ml")
    assert 20 < volume[0] < 400
    assert 0.2 < content["ejection_fraction"] < 0.75
    assert -0.35 < content["strain"]["endocardial_longitudinal_strain"]["peak"] < -0.05
    assert content["strain"]["longitudinal_strain_basal_first"]["peak"] < 0
    assert "drift_px" not in content  # nobody said that the beat is whole


def test_in_python_as_on_the_command_line(sax, folder, tmp_path):
    heart = searching().track(
        str(folder / "sax.nii.gz"),
        mask=folder / "sax_mask.nii.gz",
        landmarks=folder / "landmarks.csv",
        period="whole",
        valves={"AVC": 140, "MVO": 210},
    )
    assert repr(heart) == (
        f"<TrackedHeart: {T} frames of {SIZE} x {SIZE} pixels, reference 0, by 'search'; sax, "
        "cavity and wall known>"
    )
    assert "measures" not in vars(heart)  # nothing was measured for it
    heart.save(tmp_path / "saved")
    names = [
        sorted(path.relative_to(out) for path in out.rglob("*"))
        for out in (tmp_path / "saved", sax)
    ]
    assert names[0] == names[1]
    told = [json.loads((out / "summary.json").read_text()) for out in (tmp_path / "saved", sax)]
    assert told[1].pop("arguments") and told[1].pop("seconds")
    assert all(one["software"].pop("date") for one in told)
    assert told[0] == told[1] and heart.summary["notes"] == heart.notes == told[1]["notes"]
    for name in ("curves.csv", "segments.csv", "contours.csv"):
        assert (tmp_path / "saved" / name).read_text() == (sax / name).read_text()
    found = heart.curves["radial_strain"]
    assert (found.quantity, found.region, found.direction, found.unit) == (
        *("strain", "wall", "radial"),
        "",
    )
    np.testing.assert_allclose(found.values, curve(sax, "radial_strain"), rtol=1e-4, atol=1e-6)
    assert heart.curves["cavity_area_mm2"].unit == "mm2"
    assert heart.plot().axes
    with pytest.raises(ImageError, match="exists; add `overwrite`"):
        heart.save(tmp_path / "saved")


def test_whatever_holds_a_cine_and_a_mask_is_tracked(beats, folder):
    beat, masks = beats["sax"], beats["sax"].masks
    image = read_image(folder / "sax_mask.nii.gz", labels=True)
    endo = anatomy_of_mask(masks[0], "sax", "mask").contours["endo"]
    options = {"spacing": SPACING, "times": 0.04 * np.arange(T), "period": "whole"}
    cine = cine_from_arrays(beat.frames, spacing=SPACING, times=options["times"])
    hearts = {
        "arrays": searching().track(beat.frames, mask=masks[0], **options),
        "masks of all frames": searching().track(beat.frames, mask=jnp.asarray(masks), **options),
        "cine": searching().track(cine, mask=image, period="whole"),
        "contour": searching().track(cine, contours={"endo": endo}, period="whole"),
    }
    expected = hearts.pop("arrays")
    np.testing.assert_allclose(
        hearts.pop("contour").curves["endocardial_circumferential_strain"].values,
        expected.curves["endocardial_circumferential_strain"].values,
        atol=1e-3,
    )
    for heart in hearts.values():
        assert heart.summary["strain"] == expected.summary["strain"]
    alone = searching().track(cine)
    assert alone.notes[-1].startswith("no areas, volumes or strain")
    with pytest.raises(ValueError, match="nothing to plot: no areas"):
        alone.plot()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": "apicall"}, "`view` is 'apicall', expected 'sax' or 'apical'"),
        ({"mask": np.ones((3, 3), int)}, "mask: mask is .* they must agree"),
        ({"mask": "auto", "contours": "endo.csv"}, "`anatomy` finds the heart"),
        ({"mask": "m.nii", "contours": "endo.csv"}, "expected one of them"),
        ({"landmarks": {"apex": (99, 3)}}, r"apex: \(99.0, 3.0\) lies outside the image"),
        ({"contours": {"endo": [[1, 2, 3]]}}, r"endo: has shape \(1, 3\)"),
        ({"levels": "x"}, "`levels` is 'x'"),
        ({"slice": 2}, "frames: `slice` is of files"),
    ],
)
def test_what_cannot_be_tracked_in_python(options, message, beats):
    with pytest.raises(FileError, match=message):
        searching().track(beats["sax"].frames, **options)


class AnyGrid(AnalyticMethod):
    """As LDDMM and SyN, on a grid of any size."""

    def displacement(self, moving, fixed):
        return AnalyticMethod(image_size=moving.shape[1]).displacement(moving, fixed)


@pytest.mark.parametrize("name", ["network", "any grid"])
def test_methods(name, beats):
    """A network is where the search starts; an iterative method takes its place."""
    method = AnalyticMethod() if name == "network" else AnyGrid(image_size=None)
    beat, steps = beats["sax"], []
    found = method.track(beat.frames, times=beat.times, period="whole", progress=steps.append)
    assert found.displacement.shape == found.inverse.shape == (T, SIZE, SIZE, 2)
    assert steps == sorted(steps) and steps[-1] == 1
    there = found.transform(2)
    back = found.inverse_transform(2)
    points = there.fixed.to_physical(np.argwhere(beat.masks[0] == 2))
    np.testing.assert_allclose(back.map_points(there.map_points(points)), points, atol=0.05)


@pytest.mark.parametrize("why", ["long sides", "fine pixels"])
def test_frames_are_tracked_on_a_coarser_grid(why, beats, monkeypatch):
    beat = beats["sax"]
    spacing, double_spacing = None, None
    if why == "long sides":
        monkeypatch.setattr(tracking, "LARGEST", SIZE)
    else:
        spacing, double_spacing = tracking.FINEST_MM, tracking.FINEST_MM / 2

    def displacement(frames, spacing):
        cine = movies.cine_from_arrays(frames, spacing=spacing, times=beat.times)
        return np.asarray(tracking.track_cine(cine).displacement)

    double = np.repeat(np.repeat(beat.frames, 2, axis=1), 2, axis=2)
    middle = np.s_[:, 10:-10, 10:-10]
    coarse = displacement(double, double_spacing)[:, ::2, ::2][middle] / 2
    assert np.abs(coarse - displacement(beat.frames, spacing)[middle]).mean() < 0.1


@pytest.mark.integration
def test_contours_by_hand_on_the_ultrasound_clip_of_pydicom(tmp_path, monkeypatch):
    """30 colour frames with burnt-in text."""
    monkeypatch.setattr(tracking, "LARGEST", 96)
    clip = Path(pydicom.__file__).parent / "data" / "test_files" / "examples_ybr_color.dcm"
    if not clip.is_file():
        pytest.skip("this pydicom comes without its ultrasound clip examples_ybr_color.dcm")
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = [f"endo,{120 + 25 * np.cos(a):.2f},{160 + 20 * np.sin(a):.2f}" for a in angle]
    (tmp_path / "drawn.csv").write_text("contour,row,column\n" + "\n".join(points) + "\n")
    out = tmp_path / "out"
    arguments = ("--contours", tmp_path / "drawn.csv", "--landmarks", tmp_path / "marks.csv")
    (tmp_path / "marks.csv").write_text("row,column\n120,160\n")
    assert run("--cine", clip, *arguments, "--out", out, "--no-report") == 0
    content = json.loads((out / "summary.json").read_text())
    assert content["cine"]["shape"][0] == 30 and content["cine"]["times_known"]
    contours = rows(out / "contours.csv")
    assert {row["frame"] for row in contours} == {str(t) for t in range(30)}
    assert np.isfinite([float(row["row"]) for row in contours]).all()
    assert any("luminance" in note for note in content["notes"])
    assert any("no strain of the wall" in note for note in content["notes"])


def test_example(tmp_path, monkeypatch, capsys):
    small = {"image_size": SIZE, "frames": T}
    monkeypatch.setattr(
        cine_files, "phantom_cine", lambda seed, look: phantom_cine(seed, look=look, **small)
    )
    assert run("--example", "--view", "apical", "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "ejection" in told and "longitudinal" in told and "report.html" in told


def test_slices_are_kept(beats, tmp_path, monkeypatch, capsys):
    """A run that was stopped goes on with the slice that it had not finished.

    The last slice but one has no cavity in the mask, the last one fills up the volume: left out.
    """
    beat = beats["sax"]
    blank = np.zeros_like(beat.frames)
    stack = np.stack([beat.frames, beat.frames[:, ::-1], beat.frames, blank], axis=1)
    write_cine(tmp_path / "stack.nii.gz", stack)
    apex = np.where(beat.masks[0] == 2, 2, 0).astype(beat.masks.dtype)  # wall alone
    masks = np.stack([beat.masks[0], beat.masks[0][::-1], apex, 0 * apex])
    write_mask(tmp_path / "mask.nii.gz", masks)
    out = tmp_path / "out"
    arguments = ("--cine", tmp_path / "stack.nii.gz", "--mask", tmp_path / "mask.nii.gz")
    arguments = (*arguments, "--slice", "all", "--no-report", "--out", out)
    calls, real = [], cine_files.track_heart

    def stops_at_the_second(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("power cut")
        return real(*arguments, **options)

    monkeypatch.setattr(cine_files, "track_heart", stops_at_the_second)
    assert run(*arguments) == 2
    assert {path.name for path in out.iterdir()} == {"slice-00"}
    assert run(*arguments) == 0
    assert len(calls) == 3
    content = json.loads((out / "summary.json").read_text())
    areas = [curve(out / f"slice-{k:02d}", "cavity_area_mm2") for k in (0, 1)]
    np.testing.assert_allclose(curve(out, "volume_ml"), 8e-3 * sum(areas), rtol=1e-4)
    assert content["end_systole"] == beat.end_systole and 0.1 < content["ejection_fraction"] < 0.7
    assert content["slices"] == ["slice-00", "slice-01"]
    assert content["notes"] == [
        "slice 2 has no cavity in the mask: left out",
        "slice 3 is blank in every frame: left out",
        cine_files.DOUBTFUL_TWIST,
    ]
    assert not (out / "slice-02").exists()
    assert run(*arguments) == 0 and len(calls) == 3
    several = [value if value != "all" else "0,2" for value in arguments]
    assert run(*several) == 0 and len(calls) == 3
    content = json.loads((out / "summary.json").read_text())
    assert content["cine"]["slice"] == [0, 2] and content["slices"] == ["slice-00"]
    assert content["notes"] == ["slice 2 has no cavity in the mask: left out"]
    assert run(*(value if value != "all" else "3-4" for value in arguments)) == 2
    assert "has no slice 4; its slices are 0 to 3" in capsys.readouterr().err


def test_ultrasound_of_two_scales_with_masks_of_all_frames(beats, tmp_path, monkeypatch):
    """The mask is that of the reference frame, and the scale that of the region it lies in."""
    beat, reference = beats["sax"], 2
    frames = np.round(255 * beat.frames / beat.frames.max()).astype(np.uint8)
    regions = [
        samples.item(
            RegionFlags=0,
            RegionDataType=1,
            RegionSpatialFormat=1,
            RegionLocationMinX0=first,
            RegionLocationMaxX1=first + SIZE - 1,
            RegionLocationMinY0=0,
            RegionLocationMaxY1=SIZE - 1,
            PhysicalUnitsXDirection=3,
            PhysicalUnitsYDirection=3,
            PhysicalDeltaX=cm,
            PhysicalDeltaY=cm,
        )
        for first, cm in ((0, 0.1), (SIZE, 0.3))
    ]
    both = np.concatenate([frames[:, ::-1], frames], axis=2)
    samples.dicom(
        both,
        samples.UltrasoundMultiFrameImageStorage,
        FrameTime=40,
        SequenceOfUltrasoundRegions=regions,
    )(tmp_path / "us.dcm")
    masks = np.concatenate([0 * beat.masks, beat.masks], axis=2)
    np.save(tmp_path / "masks.npy", masks)
    files = ("--cine", tmp_path / "us.dcm", "--mask", tmp_path / "masks.npy")
    tracked, labels, real = [], [], cine_files.anatomies.anatomy_of_mask

    def stops(known, *rest, **options):
        tracked.append(known.cine)
        raise OSError("far enough")

    def looks(mask, *rest, **options):
        labels.append(mask)
        return real(mask, *rest, **options)

    monkeypatch.setattr(cine_files, "track_heart", stops)
    monkeypatch.setattr(cine_files.anatomies, "anatomy_of_mask", looks)
    assert run(*files, "--reference", reference, "--out", tmp_path / "out", "--no-report") == 2
    np.testing.assert_array_equal(labels[0], masks[reference])
    assert tracked[0].first.spacing == (3, 3)
    assert tracked[0].first.notes[-1].startswith("spacing of the ultrasound region")


def test_batch(folder, tmp_path, capsys):
    table = folder / "many.csv"
    table.write_text(
        "id,cine,mask,valves\na,sax.nii.gz,sax_mask.nii.gz,AVC=140 MVO=210\nb,missing.nii.gz,,\n"
        "c,sax.nii.gz,,\n"
    )
    out = tmp_path / "out"
    assert run("--batch", table, "--shard", "1/2", "--no-report", "--out", out) == 0
    first = rows(out / "summary-1-of-2.csv")
    assert [row["id"] for row in first] == ["a", "c"]
    assert float(first[0]["fractional_area_change"]) > 0.1
    valves = json.loads((out / "a" / "summary.json").read_text())["valves_ms"]
    assert valves == {"AVC": 140, "MVO": 210}
    written = (out / "a" / "summary.json").stat().st_mtime_ns
    assert run("--batch", table, "--no-report", "--out", out) == 1
    assert "2 of 3 cines tracked" in capsys.readouterr().out
    everything = {row["id"]: row for row in rows(out / "summary.csv")}
    assert everything["b"]["status"] == "failed" and "no such file" in everything["b"]["error"]
    assert (out / "a" / "summary.json").stat().st_mtime_ns == written  # kept


def test_overwrite(folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ("--cine", folder / "sax.nii.gz", "--out", out, "--no-report")
    assert run(*arguments, "--mask", folder / "sax_mask.nii.gz") == 0
    (out / "mine.txt").write_text("stays")
    assert run(*arguments) == 2
    assert "exists; add --overwrite" in capsys.readouterr().err
    assert run(*arguments, "--overwrite") == 0
    names = {path.name for path in out.iterdir()}
    assert "masks" not in names and "contours.csv" not in names and "mine.txt" in names


BAD = {
    "one frame": "holds 1 frame",
    "no frame 9": "has no frame 9; its frames are 0 to 8",
    "fps": "expected a positive number",
    "times": "do not increase",
    "few times": "3 frame times, expected 9",
    "empty mask": "mask is empty",
    "other geometry": "covers",
    "no cavity": "no cavity with label 7",
    "contour outside": "lies outside the image",
    "two points": "has 2 points, expected at least 3",
    "septum outside": "septum (99.0, 3.0) lies outside",
    "short period": "expected it to be as long",
    "valve beyond": "--valves has AVC at 900 ms, expected 0, the reference frame, to 320",
    "no such valve": "--valves has 'AVR', expected MVC, AVO, AVC, MVO",
    "valve without name": "found '350', expected times in ms as in AVC=350,MVO=420",
    "valves unordered": "expected AVC to come first",
    "valves without times": "the times of the frames are not known",
    "sizes differ": "expected the same in all frames",
    "both": "expected one of them",
    "shard": "--shard needs --batch",
    "nothing": "expected one of --cine, --batch and --example",
    "example with mask": "--example does not go with --mask",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(case, folder, beats, tmp_path, capsys):
    def text(content):
        path = tmp_path / "table.csv"
        path.write_text(content)
        return path

    def mask(labels, shift=0.0):
        path = tmp_path / "mask.nii.gz"
        origin = np.array([-20.0 + shift, 10.0, 5.0])
        geometry = Geometry((1, *labels.shape), (8.0, *SPACING), origin, np.eye(3))
        write_image(path, labels[None], geometry)
        return path

    labels = beats["sax"].masks[0]
    arguments = ["--cine", folder / "sax.nii.gz"]
    if case == "one frame":
        np.savez(tmp_path / "one.npz", image=beats["sax"].frames[:1])
        arguments = ["--cine", tmp_path / "one.npz"]
    elif case == "sizes differ":
        (tmp_path / "frames").mkdir()
        for k, size in enumerate((32, 32, 40)):
            picture = np.random.default_rng(k).integers(0, 255, (size, 32), np.uint8)
            PIL.Image.fromarray(picture).save(tmp_path / "frames" / f"{k}.png")
        arguments = ["--cine", tmp_path / "frames"]
    elif case == "valves without times":
        np.savez(tmp_path / "cine.npz", image=beats["sax"].frames)
        arguments = ["--cine", tmp_path / "cine.npz", "--valves", "AVC=200"]
    elif case in ("shard", "nothing", "example with mask"):
        arguments = {
            "shard": [*arguments, "--shard", "1/2"],
            "nothing": [],
            "example with mask": ["--example", "--mask", folder / "sax_mask.nii.gz"],
        }[case]
    else:
        endo = "contour,row,column\nendo,10,10\nendo,20,10\n"
        arguments += {
            "no frame 9": lambda: ["--reference", "9"],
            "fps": lambda: ["--fps", "0"],
            "times": lambda: ["--frame-times", text("time\n0\n1\n2\n2\n3\n4\n5\n6\n7\n")],
            "few times": lambda: ["--frame-times", text("time\n0\n1\n2\n")],
            "empty mask": lambda: ["--mask", mask(0 * labels)],
            "other geometry": lambda: ["--mask", mask(labels, shift=300.0)],
            "no cavity": lambda: ["--mask", mask(labels), "--labels", "7", "2"],
            "contour outside": lambda: ["--contours", text(endo + "endo,99,3\n")],
            "two points": lambda: ["--contours", text(endo)],
            "septum outside": lambda: ["--mask", mask(labels), "--septum", "99", "3"],
            "short period": lambda: ["--period", "0.1"],
            "valve beyond": lambda: ["--valves", "AVC=900"],
            "no such valve": lambda: ["--valves", "AVR=300"],
            "valve without name": lambda: ["--valves", "350"],
            "valves unordered": lambda: ["--valves", "AVC=200,MVO=180"],
            "both": lambda: ["--mask", mask(labels), "--contours", text(endo)],
        }[case]()
    out = tmp_path / "out"
    assert run(*arguments, "--out", out) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("error: ") and BAD[case] in told[-1]
    assert "Traceback" not in "".join(told) and not out.exists()


@pytest.mark.integration
@pytest.mark.skipif(browser.find() is None, reason="no Chromium found")
def test_page_in_a_browser(sax):
    with browser.page() as page:
        page.open((sax / "report.html").as_uri())
        assert page.evaluate("document.getElementById('now').textContent").startswith("frame 0")

        def value(expression):
            return page.evaluate(expression)

        contour, cursor = (
            "document.getElementById('endo').getAttribute('d')",
            "document.querySelector('.cursor').getAttribute('x1')",
        )
        before = value(contour), float(value(cursor)), value("document.getElementById('frame').src")
        value(
            "(s => { s.value = 2; s.dispatchEvent(new Event('input')); })"
            "(document.getElementById('time'))"
        )
        after = value(contour), float(value(cursor)), value("document.getElementById('frame').src")
        assert before[0] != after[0] and after[1] > before[1] and before[2] != after[2]
        for name in ("show-strain", "show-grid", "show-contours"):
            value(f"document.getElementById('{name}').click()")
        assert not value("document.getElementById('strain').hidden")
        assert not value("document.getElementById('grid').hasAttribute('hidden')")
        assert value("document.getElementById('contours').hasAttribute('hidden')")
        assert value("document.getElementById('strain').naturalWidth") == SIZE

        value("document.getElementById('plots').scrollIntoView()")
        left, top, width, height = page.box("#plots svg")  # a curve leads to its frame
        page.drag((left + 0.3 * width, top + height / 2), (left + 0.97 * width, top + height / 2))
        assert value("document.getElementById('time').value") == str(T - 1)
        value("document.getElementById('play').click()")
        assert value("document.getElementById('play').textContent") == "Pause"
        value("document.getElementById('play').click()")

        for key, frame in (("ArrowLeft", T - 2), ("ArrowRight", T - 1), ("ArrowRight", 0)):
            page.press(key)
            assert value("document.getElementById('time').value") == str(frame)
        page.press(" ")
        assert value("document.getElementById('play').textContent") == "Pause"
        page.press(" ")
        assert value("document.getElementById('play').textContent") == "Play"
        told = value("document.querySelector('#plots').textContent")
        assert all(name in told for name in ("ED", "ES", "AVC", "MVO"))
        assert "Strain, %" in told and "e-" not in told.replace("end-", "")
        # every control says what it is
        named = "[...document.querySelectorAll('input, select, button')].every(c => c.ariaLabel || "
        assert value(named + "c.textContent || c.labels.length)")
        # nothing is wider than a phone
        page.open((sax / "report.html").as_uri(), 390, 844)
        assert value("document.documentElement.scrollWidth") <= 390
        beyond = """[...document.querySelectorAll('.bar')].filter(bar => {
            const text = document.createRange(); text.selectNodeContents(bar);
            return text.getBoundingClientRect().right > bar.getBoundingClientRect().right + 1;
        }).length"""
        assert value(beyond) == 0  # labels of scale bars are not cut off
        tiles = "[...document.querySelectorAll('.tiles div')]"
        assert value(f"{tiles}.every(tile => tile.scrollWidth <= tile.clientWidth)")
        shown, whole = page.box(".player .view"), page.box(".player .whole")
        value("document.getElementById('show-all').click()")
        assert whole[2] > shown[2] and page.box(".player .whole")[2] == pytest.approx(
            shown[2], abs=1
        )
        # nor are names of sectors cut where the picture is small
        value("document.getElementById('show-all').click()")
        value("document.querySelector('.player .view').style.width = '150px'")
        value("dispatchEvent(new Event('resize'))")
        left, top, width, height = page.box(".player .view")
        for k in range(1, 7):
            x, y, w, h = page.box(f"#labels span:nth-child({k})")
            assert left <= x and x + w <= left + width and top <= y and y + h <= top + height
        assert not page.errors
        assert {url.split(":")[0] for url in page.requests} <= {"file", "data"}


@pytest.mark.integration
@pytest.mark.skipif(browser.find() is None, reason="no Chromium found")
def test_pages_pass_an_accessibility_checker(sax, tmp_path):
    """Contrast, names of controls, structure, keyboard: axe-core's rules for WCAG 2.1 AA."""
    with browser.page() as page:
        for scheme in ("light", "dark"):
            page.look(scheme)
            for size in ((1400, 1000), (390, 844)):
                page.open((sax / "report.html").as_uri(), *size)
                assert page.violations() == [], (scheme, size)
        (tmp_path / "grey.html").write_text("<p style='color:#aaa'>grey on white</p>")
        page.open((tmp_path / "grey.html").as_uri())  # the checker checks
        assert any(text.startswith("color-contrast") for text in page.violations())
        assert {url.split(":")[0] for url in page.requests} <= {"file", "data"}


# ---------------------------------------------------------------------------- without a mask


class Threshold:
    """An anatomy network that takes what the phantom draws brightest for the cavity."""

    name, structures, least_confidence = "threshold", ("left ventricle",), 0.5
    window, largest_distance, view = Window(48, 3.0), 2.0, "sax"

    def __init__(self, level):
        self.level = level

    def distance(self, windows):
        return np.ones(len(windows))

    def probabilities(self, windows):
        cavity = np.clip((windows - self.level) / 0.05, 0, 1)
        return np.stack([1 - cavity, cavity], axis=-1).astype("f4")

    def label(self, structure):
        return {"left ventricle": 1}.get(structure)


@pytest.fixture
def discs(tmp_path):
    """A cine of a disc that is largest in frame 2 and smallest in frame 6; `[T, S, H, W]`."""
    rows, columns = np.indices((SIZE, SIZE)) - 23.0
    distance = np.hypot(3.0 * rows, 3.5 * columns)
    radii = [28, 30, 32, 28, 24, 20, 18, 22, 26]
    frames = np.stack([1 / (1 + np.exp((distance - r) / 2)) for r in radii])
    texture = 0.1 * np.sin(rows / 2) * np.cos(columns / 3)
    specks = 1.0 * ((rows % 6 == 0) & (columns % 6 == 0))
    stack = np.stack([frames + texture, specks + 0 * frames], axis=1)
    write_cine(tmp_path / "stack.nii.gz", stack.astype("f4"))
    write_cine(tmp_path / "disc.nii.gz", stack[:, 0].astype("f4"))
    np.save(tmp_path / "disc.npy", stack[:, 0].astype("f4"))
    return tmp_path


@pytest.mark.parametrize("slices", ("", "all"))
def test_a_table_finds_hearts_and_keeps_them(discs, slices, monkeypatch, capsys):
    monkeypatch.setattr(cine_files, "anatomy_network", lambda name: Threshold(0.6))
    table, name = discs / "cines.csv", "stack" if slices else "disc"
    table.write_text(f"id,cine,mask,slice\na,{name}.nii.gz,auto,{slices}\n")
    for kept in (False, True):
        assert run("--batch", table, "--out", discs / "out", "--no-report") == 0
        assert (", kept)" in capsys.readouterr().err) == kept
    content = json.loads((discs / "out/a/summary.json").read_text())
    assert content["reference"] == 2


def test_heart_and_end_diastole_are_found(discs, monkeypatch):
    monkeypatch.setattr(cine_files, "anatomy_network", lambda name: Threshold(0.6))
    out = discs / "out"
    arguments = ("--cine", discs / "disc.nii.gz", "--mask", "auto", "--no-report")
    assert run(*arguments, "--out", out) == 0
    content = json.loads((out / "summary.json").read_text())
    found = content["found"]
    assert (found["network"], found["end_diastole"], found["end_systole"]) == ("threshold", 2, 6)
    assert content["reference"] == 2 and content["end_systole"] == 6
    [note] = [note for note in content["notes"] if note.startswith("found by threshold")]
    change = 100 * found["fractional_area_change"]
    assert f"end-systole in frame 6, where the cavity is smaller by {change:.1f} %, a whole" in note
    assert content["arguments"]["anatomy"] == "anatomy"  # the default network
    assert (content["view"], content["view_by"], found["whole_beat"]) == ("sax", "network", True)
    assert curve(out, "cavity_area_mm2")[2] == pytest.approx(np.pi * 32**2, rel=0.1)
    # the option of today overrules
    assert run(*arguments, "--reference", "0", "--out", discs / "first") == 0
    assert json.loads((discs / "first" / "summary.json").read_text())["reference"] == 0


def test_a_stack_has_one_heart_and_slices_without_it_are_left_out(discs, monkeypatch):
    monkeypatch.setattr(cine_files, "anatomy_network", lambda name: Threshold(0.6))
    arguments = ("--slice", "all", "--anatomy", "x", "--no-report", "--out", discs / "all")
    assert run("--cine", discs / "stack.nii.gz", *arguments) == 0
    content = json.loads((discs / "all" / "summary.json").read_text())
    assert (content["reference"], content["end_systole"]) == (2, 6)
    assert 0.4 < content["ejection_fraction"] < 0.8
    found = content["found"]
    assert (found["end_diastole"], found["end_systole"], found["whole_beat"]) == (2, 6, True)
    assert found["cavity_area_mm2"][2] == pytest.approx(np.pi * 32**2, rel=0.1)
    assert content["slices"] == ["slice-00"]
    assert "slice 1 has no cavity that x finds: left out" in content["notes"]
    assert any(note.startswith("found by threshold: end-diastole") for note in content["notes"])


def test_every_slice_stands_for_what_lies_between_its_neighbours(discs, monkeypatch):
    monkeypatch.setattr(cine_files, "anatomy_network", lambda name: Threshold(0.6))
    stack = np.repeat(np.load(discs / "disc.npy")[:, None], 3, axis=1)
    write_cine(discs / "three.nii.gz", stack)
    volumes = {}
    for slices in ("all", "0,2"):
        arguments = ("--slice", slices, "--mask", "auto", "--no-report", "--out", discs / slices)
        assert run("--cine", discs / "three.nii.gz", *arguments) == 0
        volumes[slices] = json.loads((discs / slices / "summary.json").read_text())["volume_ml"]
    assert volumes["0,2"]["reference"] == pytest.approx(volumes["all"]["reference"] * 4 / 3)


def test_volumes_are_tracked_from_what_the_network_finds_in_their_slices(discs, monkeypatch):
    monkeypatch.setattr(cine_files, "anatomy_network", lambda name: Threshold(0.6))
    seen = []

    def track_heart(known, *args, **options):
        seen.append((known, options["slice"]))
        raise ValueError("enough")

    monkeypatch.setattr(cine_files, "track_heart", track_heart)
    arguments = ("--slice", "volume", "--mask", "auto", "--out", discs / "out")
    assert run("--cine", discs / "stack.nii.gz", *arguments) != 0
    [(known, shown)] = seen
    assert shown == "volume" and known.reference == 2 and known.findings.end_systole == 6
    cavity = known.anatomy.cavity
    assert cavity.shape == (2, SIZE, SIZE) and cavity[0].any() and not cavity[1].any()


def test_a_time_that_is_none_is_named_with_its_line(discs, capsys):
    (discs / "times.csv").write_text("time\n0.0\nsoon\n")
    times = ("--frame-times", discs / "times.csv", "--out", discs / "out")
    assert run("--cine", discs / "disc.nii.gz", *times) == 2
    assert (
        "times.csv, line 3 (seconds): time is 'soon', expected a number" in capsys.readouterr().err
    )


def test_no_heart_is_no_result(discs, monkeypatch, capsys):
    monkeypatch.setattr(cine_files, "anatomy_network", lambda name: Threshold(1.5))
    arguments = ("--cine", discs / "disc.nii.gz", "--anatomy", "x", "--out", discs / "none")
    assert run(*arguments) == 2
    assert "finds no heart in frame" in capsys.readouterr().err
    assert not (discs / "none").exists()
    assert run(*arguments, "--mask", "auto", "--contours", "c.csv") == 2
    assert (
        run("--cine", discs / "disc.nii.gz", "--out", "o", "--mask", "auto", "--view", "apical")
        == 2
    )
    assert "--anatomy anatomy-echo" in capsys.readouterr().err
