"""register, warp, jacobian and the Python API, with an analytic method and with a real network."""

import contextlib
import csv
import dataclasses
import html
import io
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import browser
import jax
import numpy as np
import PIL.Image
import pytest
import SimpleITK
import threshold_anatomy
from analytic_method import AnalyticMethod, heart
from in_process import call
from in_process import exit_status as run

from ldm_morph_jax import __version__, jacobian, register, warp
from ldm_morph_jax.files.geometry import plain_geometry
from ldm_morph_jax.files.transforms import read_transform
from ldm_morph_jax.files.writing import write_image
from ldm_morph_jax.registering import pairs
from ldm_morph_jax.registering.method import Registrar, load
from ldm_morph_jax.runs.weights import WeightsError, save_weights

OUTPUTS = {
    "warped.nii.gz",
    "displacement.nii.gz",
    "displacement.npz",
    "jacobian.nii.gz",
    "metrics.json",
    "overview.png",
    "report.html",
}
INVERSE = {"inverse_displacement.nii.gz", "inverse_displacement.npz"}
SHAPE, SPACING = (70, 90), (1.5, 1.25)


@pytest.fixture
def pair(tmp_path):
    """ed.nii.gz, es.nii.gz and their masks: a ring that gets smaller."""
    geometry = replace(plain_geometry(SHAPE, SPACING), origin=np.array([10.0, -20.0]))
    for name, radius in (("ed", 0.55), ("es", 0.45)):
        write_image(tmp_path / f"{name}.nii.gz", heart(SHAPE, radius=radius), geometry)
        mask = (heart(SHAPE, radius=radius) > 420).astype(np.uint8)
        write_image(tmp_path / f"{name}_mask.nii.gz", mask, geometry)
    return tmp_path


@pytest.fixture
def analytic(monkeypatch):
    """The commands load an analytic method instead of weights."""
    method = AnalyticMethod()
    monkeypatch.setattr(register, "load_model", lambda name, calls="often": method)
    # pages are drawn here; in a process of its own: test_real_network_in_a_fresh_process
    monkeypatch.setattr(register, "drawing_apart", lambda wanted: contextlib.nullcontext())
    return method


def on(folder, *more):
    """The pair, as the analytic method alone registers it."""
    files = ("--moving", folder / "ed.nii.gz", "--fixed", folder / "es.nii.gz")
    return (*files, *(() if "--refine" in more else ("--refine", 0)), *more)


def names(folder):
    return {path.name for path in folder.iterdir()}


def array(path):
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))


def test_register_writes_everything(pair, analytic, capsys):
    out = pair / "out"
    masks = ("--moving-mask", pair / "ed_mask.nii.gz", "--fixed-mask", pair / "es_mask.nii.gz")
    assert run(register, *on(pair, "--out", out, *masks, "--inverse")) == 0
    assert names(out) == OUTPUTS | INVERSE | {"warped_mask.nii.gz"}
    told = capsys.readouterr().out
    assert "correlation" in told and "DSC label 1" in told and "report.html" in told
    assert re.search(r"\d s: .* registration \(compilation included\)", told)

    fixed = SimpleITK.ReadImage(pair / "es.nii.gz")
    for name in ("warped.nii.gz", "warped_mask.nii.gz", "jacobian.nii.gz", "displacement.nii.gz"):
        image = SimpleITK.ReadImage(out / name)
        assert image.GetSize() == fixed.GetSize() and image.GetSpacing() == fixed.GetSpacing()
        np.testing.assert_allclose(image.GetOrigin(), fixed.GetOrigin())
    assert set(np.unique(array(out / "warped_mask.nii.gz"))) == {0, 1}
    assert array(out / "warped_mask.nii.gz").dtype == np.uint8
    warped, moving = array(out / "warped.nii.gz"), array(pair / "ed.nii.gz")
    assert moving.min() - 1e-3 <= warped.min() < -50 and warped.max() > 600  # original intensities

    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["fixed"]["spacing_mm"] == pytest.approx(SPACING)
    assert 0 < metrics["dice"]["1"]["before"] < 1
    assert metrics["dice"]["1"]["hd95_mm"]["before"] > 0
    assert metrics["software"]["version"] == __version__
    assert datetime.fromisoformat(metrics["software"]["date"]).tzinfo is UTC
    assert metrics["fixed"]["axes"] == ["P", "L"]  # of a NIfTI file with a place in space
    assert metrics["inverse"]["residual_mm_largest"] < 1e-3
    assert metrics["jacobian"]["nonpositive_percent"] == 0
    blank = np.zeros((1, 64, 64, 1), np.float32)
    known = 2.0 * np.linalg.norm(analytic.displacement(blank, blank), axis=-1)  # of 2 mm pixels
    assert metrics["displacement_mm"]["largest"] == pytest.approx(known.max(), rel=0.01)
    assert metrics["seconds"]["total"] > 0
    verdict = metrics["verdict"]
    assert verdict["level"] == "implausible"  # a swirl, whatever the images show
    assert verdict["sentence"] in told
    page = html.unescape((out / "report.html").read_text())
    assert verdict["sentence"] in page and 'class="note implausible"' in page
    assert '<span class="letter left">R</span>' in page and "orientation unknown" not in page
    assert "HD95, label 1, mm" in page and f"ldm-morph {__version__}" in page
    with PIL.Image.open(out / "overview.png") as overview:
        assert overview.size[0] > 800


def test_example(tmp_path, analytic, capsys):
    assert run(register, "--example", "--refine", 0, "--out", tmp_path / "out") == 0
    assert "DSC label 1" in capsys.readouterr().out
    assert names(tmp_path / "out") == OUTPUTS | {"warped_mask.nii.gz"}


def test_no_report(pair, analytic, capsys):
    assert run(register, *on(pair, "--out", pair / "out", "--no-report")) == 0
    assert names(pair / "out") == OUTPUTS - {"overview.png", "report.html"}
    assert "report.html" not in capsys.readouterr().out


def test_overwrite(pair, analytic, capsys):
    out = pair / "out"
    assert run(register, *on(pair, "--out", out, "--inverse")) == 0
    before = (out / "warped.nii.gz").stat().st_mtime_ns
    capsys.readouterr()
    assert run(register, *on(pair, "--out", out)) == 2
    assert "exists; add --overwrite" in capsys.readouterr().err
    assert (out / "warped.nii.gz").stat().st_mtime_ns == before
    assert run(register, *on(pair, "--out", out, "--overwrite")) == 0
    assert names(out) == OUTPUTS  # the earlier run's inverse went with it
    other = pair / "other"
    other.mkdir()
    (other / "report.html").write_text("of another run")
    assert run(register, *on(pair, "--out", other)) == 2
    assert "report.html: exists; add --overwrite" in capsys.readouterr().err
    assert names(other) == {"report.html"}


def test_nothing_half_written_stays(pair, analytic, monkeypatch, capsys):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("ldm_morph_jax.report.registered.write_report", fail)
    out = pair / "out"
    assert run(register, *on(pair, "--out", out)) == 2
    assert capsys.readouterr().err == "error: no space left on device\n"
    assert not out.exists()


def bad_command_lines(folder):
    """(arguments, what the one line says)."""
    (folder / "text.png").write_text("hello")
    colour = np.zeros((9, 7, 3), np.uint8)
    colour[2:5, 2:5, 1] = 200
    PIL.Image.fromarray(colour).save(folder / "colour.png")
    PIL.Image.fromarray(heart((40, 40)).clip(0, 255).astype(np.uint8)).save(folder / "grey.png")
    stack = np.stack([heart((40, 50), seed=k) for k in range(3)])
    write_image(folder / "stack.nii.gz", stack, plain_geometry(stack.shape))
    far = replace(plain_geometry(SHAPE, SPACING), origin=np.array([900.0, 0.0]))
    write_image(folder / "far.nii.gz", heart(SHAPE), far)
    empty = heart(SHAPE)
    empty[:] = 5
    write_image(folder / "constant.nii.gz", empty, far)
    (folder / "file").write_text("in the way")
    fixed = ("--fixed", folder / "es.nii.gz")
    out = ("--out", folder / "out")
    stack = folder / "stack.nii.gz"
    return [
        ((*fixed, *out), "--moving missing"),
        (("--moving", folder / "none.nii.gz", *fixed, *out), "no such file"),
        (("--moving", folder / "text.png", *fixed, *out), "not a readable image"),
        (("--moving", folder / "colour.png", *fixed, *out), "colour image"),
        (("--moving", folder / "constant.nii.gz", *fixed, *out), "is constant"),
        (("--moving", stack, *fixed, *out), "one is a stack of slices"),
        (("--moving", stack, *fixed, *out, "--slice", 7), "has no slice 7"),
        (("--moving", stack, *fixed, *out, "--slice", "all"), "one is a stack of slices"),
        (("--moving", folder / "far.nii.gz", *fixed, *out), "use --align centre"),
        (
            ("--moving", folder / "grey.png", *fixed, *out, "--spacing", -1),
            r"spacing \(-1, -1\) mm",
        ),
        (on(folder, *out, "--moving-mask", folder / "grey.png"), "they must agree"),
        (on(folder, *out, "--moving-mask", folder / "ed.nii.gz"), "not whole numbers"),
        (on(folder, *out, "--centre", 500, 20), "lies outside"),
        (on(folder, *out, "--refine", -3), "--refine is -3"),
        (on(folder, "--out", folder / "file"), "cannot write there"),
        (on(folder, "--out", folder / "file" / "deeper"), "cannot write there"),
        (on(folder, *out, "--batch", folder / "pairs.csv"), "takes moving, fixed from its CSV"),
        (("--example", *fixed, *out), "--example takes fixed from the package"),
        (("--example", "--batch", folder / "pairs.csv", *out), "expected one of them"),
        (("--batch", folder / "none.csv", *out), "no such file"),
        (("--batch", folder / "text.png", *out), "expected the columns moving,fixed"),
    ]


def test_bad_input_gets_one_clear_line(pair, analytic, capsys):
    for arguments, message in bad_command_lines(pair):
        assert run(register, *arguments) == 2, message
        error = capsys.readouterr().err
        assert re.search(message, error) and error.startswith("error: "), error
        assert error.count("\n") == 1, error
        assert not (pair / "out").exists()
        assert not list(pair.glob("**/.writing-*"))


def test_unknown_models(pair, capsys):
    assert run(register, *on(pair, "--out", pair / "out", "--model", "nonsense")) == 2
    error = capsys.readouterr().err
    assert "unknown model 'nonsense'" in error and error.count("\n") == 1
    (pair / "empty").mkdir()
    assert run(register, *on(pair, "--out", pair / "out", "--model", pair / "empty")) == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert not (pair / "out").exists()


def test_read_only_out_directory(pair, analytic, capsys):
    if os.geteuid() == 0:
        pytest.skip("root writes anywhere")
    out = pair / "out"
    out.mkdir(mode=0o500)
    assert run(register, *on(pair, "--out", out)) == 2
    assert "cannot write there" in capsys.readouterr().err


def test_pictures_in_pictures_out(tmp_path, analytic, capsys):
    for name, radius in (("ed", 0.55), ("es", 0.45)):
        picture = heart((60, 80), radius=radius)
        PIL.Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    files = ("--moving", tmp_path / "ed.png", "--fixed", tmp_path / "es.png", "--refine", 0)
    assert run(register, *files, "--out", tmp_path / "a") == 0
    assert "its spacing, where you know it, helps" in capsys.readouterr().out
    warped = np.asarray(PIL.Image.open(tmp_path / "a" / "warped.png"))
    np.testing.assert_allclose(warped, array(tmp_path / "a" / "warped.nii.gz"), atol=0.51)
    # without a spacing the longer side fills the model's 64 pixels
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["model_grid"]["fixed_pixels_per_model_pixel"] == [80 / 64, 80 / 64]
    assert run(register, *files, "--out", tmp_path / "b", "--spacing", 1.0, 2.0) == 0
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert metrics["model_grid"]["fixed_pixels_per_model_pixel"] == [2.0, 1.0]
    assert SimpleITK.ReadImage(tmp_path / "b" / "warped.nii.gz").GetSpacing() == (2.0, 1.0)


def test_one_slice_and_all_slices(tmp_path, analytic):
    geometry = plain_geometry((3, *SHAPE), (8.0, *SPACING))
    for name, radius in (("ed", 0.55), ("es", 0.45)):
        stack = np.stack([heart(SHAPE, radius=radius, seed=k) for k in range(3)])
        write_image(tmp_path / f"{name}.nii.gz", stack, geometry)
        write_image(tmp_path / f"{name}_mask.nii.gz", (stack > 420).astype(np.uint8), geometry)
    masks = ("--moving-mask", tmp_path / "ed_mask.nii.gz")
    masks += ("--fixed-mask", tmp_path / "es_mask.nii.gz")
    for which in ("1", "1-2", "all"):
        out = ("--out", tmp_path / which, "--slice", which, "--inverse")
        assert run(register, *on(tmp_path, *out, *masks)) == 0
    whole, one = (array(tmp_path / w / "warped.nii.gz") for w in ("all", "1"))
    assert whole.shape == (3, *SHAPE)
    np.testing.assert_allclose(whole[1], one, atol=0.05)
    np.testing.assert_allclose(array(tmp_path / "1-2" / "warped.nii.gz"), whole[1:], atol=0.05)
    field = SimpleITK.ReadImage(tmp_path / "all" / "displacement.nii.gz")
    assert field.GetDimension() == 3 and field.GetNumberOfComponentsPerPixel() == 3
    assert np.load(tmp_path / "all" / "displacement.npz")["displacement"].shape == (3, *SHAPE, 3)
    out = tmp_path / "again.nii.gz"
    arguments = ("--transform", tmp_path / "all" / "displacement.nii.gz", "--slice", "all")
    assert run(warp, *arguments, "--input", tmp_path / "ed.nii.gz", "--out", out) == 0
    np.testing.assert_allclose(array(out), whole, atol=0.05)


def test_batch(pair, analytic, capsys):
    write_image(pair / "nan.nii.gz", heart(SHAPE) * np.nan, plain_geometry(SHAPE))
    (pair / "pairs.csv").write_text(
        "id,moving,fixed,moving_mask,fixed_mask\n"
        "first,ed.nii.gz,es.nii.gz,ed_mask.nii.gz,es_mask.nii.gz\n"
        "broken,nan.nii.gz,es.nii.gz,,\n"
        "last,es.nii.gz,ed.nii.gz,,\n"
    )
    assert run(register, "--refine", 0, "--batch", pair / "pairs.csv", "--out", pair / "out") == 1
    progress = capsys.readouterr().err.splitlines()
    assert [line[:5] for line in progress] == ["[1/3]", "[2/3]", "[3/3]"]
    assert "NaN" in progress[1]
    with open(pair / "out" / "summary.csv", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert [row["status"] for row in rows.values()] == ["ok", "failed", "ok"]
    assert rows["first"]["verdict"] == "implausible" and not rows["broken"]["verdict"]
    assert 0 < float(rows["first"]["dice_after"]) <= 1 and not rows["last"]["dice_after"]
    assert names(pair / "out") == {"first", "last", "summary.csv"}
    assert names(pair / "out" / "last") == OUTPUTS
    # a pair of a batch is what it is alone
    assert run(register, *on(pair, "--out", pair / "alone")) == 0
    for name in ("warped.nii.gz", "displacement.nii.gz"):
        np.testing.assert_array_equal(
            array(pair / "alone" / name), array(pair / "out" / "first" / name)
        )
    # started again: finished pairs are kept
    assert run(register, "--refine", 0, "--batch", pair / "pairs.csv", "--out", pair / "out") == 1
    assert "[1/3] first: implausible" in capsys.readouterr().err


# -- warp and jacobian


def test_warp_and_jacobian_commands(pair, analytic, capsys):
    out = pair / "out"
    masks = ("--moving-mask", pair / "ed_mask.nii.gz")
    assert run(register, *on(pair, "--out", out, "--inverse", *masks)) == 0
    expected = array(out / "warped.nii.gz")
    for transform in ("displacement.nii.gz", "displacement.npz"):
        arguments = ("--transform", out / transform, "--overwrite")
        target = pair / "target.nii.gz"
        image = ("--input", pair / "ed.nii.gz", "--out", target)
        assert run(warp, *arguments, *image) == 0
        np.testing.assert_allclose(array(target), expected, atol=0.05)
        labels = ("--input", pair / "ed_mask.nii.gz", "--out", target, "--interpolation", "nearest")
        assert run(warp, *arguments, *labels) == 0
        np.testing.assert_array_equal(array(target), array(out / "warped_mask.nii.gz"))
        capsys.readouterr()
        assert run(jacobian, *arguments, "--out", target) == 0
        assert "J <= 0: 0.0000 % (0 of 6300 pixels)" in capsys.readouterr().out
        np.testing.assert_allclose(array(target), array(out / "jacobian.nii.gz"), atol=1e-4)
        mask = ("--mask", pair / "es_mask.nii.gz")
        assert run(jacobian, "--transform", out / transform, *mask) == 0
        assert "6300" not in capsys.readouterr().out
    # the inverse carries the fixed image to the moving one
    target = pair / "back.nii.gz"
    image = ("--input", pair / "es.nii.gz", "--out", target, "--inverse")
    assert run(warp, "--transform", out / "displacement.npz", *image) == 0
    by_file = pair / "by_file.nii.gz"
    field = ("--transform", out / "inverse_displacement.nii.gz", "--input", pair / "es.nii.gz")
    assert run(warp, *field, "--out", by_file) == 0
    np.testing.assert_allclose(array(target), array(by_file), atol=0.05)
    with_grid = ("--transform", out / "displacement.nii.gz", "--moving", pair / "ed.nii.gz")
    assert run(warp, *with_grid, *image, "--overwrite") == 0
    np.testing.assert_allclose(array(target), array(by_file), atol=0.05)


def test_warp_points(pair, analytic):
    """A point follows the tissue, in millimetres and in pixels, there and back."""
    out = pair / "out"
    assert run(register, *on(pair, "--out", out)) == 0
    transform = read_transform(out / "displacement.npz")
    pixels = np.array([[30.0, 41.0], [44.0, 60.0]])
    positions = transform.moving.to_physical(pixels)
    (pair / "mm.csv").write_text(
        "name,x,y\n" + "".join(f"p{k},{x},{y}\n" for k, (x, y) in enumerate(positions))
    )
    (pair / "px.csv").write_text("row,column\n" + "".join(f"{r},{c}\n" for r, c in pixels))

    def table(path):
        with open(path, newline="") as file:
            return list(csv.DictReader(file))

    found = {}
    for name, columns in (("mm", "xy"), ("px", ("row", "column"))):
        arguments = ("--transform", out / "displacement.npz", "--input", pair / f"{name}.csv")
        there = pair / f"{name}_there.csv"
        assert run(warp, *arguments, "--out", there) == 0
        found[name] = np.array([[float(row[c]) for c in columns] for row in table(there)])
        back = pair / f"{name}_back.csv"
        arguments = ("--transform", out / "displacement.npz", "--input", there, "--inverse")
        assert run(warp, *arguments, "--out", back) == 0
        again = np.array([[float(row[c]) for c in columns] for row in table(back)])
        np.testing.assert_allclose(again, positions if name == "mm" else pixels, atol=1e-3)
    assert [row["name"] for row in table(pair / "mm_there.csv")] == ["p0", "p1"]
    np.testing.assert_allclose(transform.fixed.to_index(found["mm"]), found["px"], atol=1e-3)
    # T leads from the fixed to the moving image, so from where the points went to where they were
    np.testing.assert_allclose(transform.map_points(found["mm"]), positions, atol=1e-3)
    assert np.abs(found["px"] - pixels).max() > 1
    # a table with both, as track writes: no column stays behind
    both = [f"{x},{y},{r},{c}\n" for (x, y), (r, c) in zip(positions, pixels, strict=True)]
    (pair / "both.csv").write_text("x,y,row,column\n" + "".join(both))
    there = pair / "both_there.csv"
    arguments = ("--transform", out / "displacement.nii.gz", "--input", pair / "both.csv")
    assert run(warp, *arguments, "--out", there) == 0
    for columns, name in ((("x", "y"), "mm"), (("row", "column"), "px")):
        moved = [[float(row[c]) for c in columns] for row in table(there)]
        np.testing.assert_allclose(moved, found[name], atol=1e-3)


def reoriented(source, target):
    """The same values at the same places, columns stored the other way round."""
    image = SimpleITK.ReadImage(source)
    SimpleITK.WriteImage(SimpleITK.Flip(image, (True, False)), target)


def test_masks_are_compared_in_millimetres(pair, analytic, capsys):
    masks = {name: pair / f"{name}_mask.nii.gz" for name in ("ed", "es")}
    for name, path in masks.items():
        reoriented(path, pair / f"{name}_flipped.nii.gz")
    assert array(pair / "ed_flipped.nii.gz").shape == SHAPE
    found = {}
    for k, which in enumerate((("mask", "mask"), ("flipped", "mask"), ("mask", "flipped"))):
        files = [pair / f"{n}_{w}.nii.gz" for n, w in zip(("ed", "es"), which, strict=True)]
        more = ("--moving-mask", files[0], "--fixed-mask", files[1], "--out", pair / f"{k}")
        assert run(register, *on(pair, *more)) == 0
        found[which] = json.loads((pair / f"{k}" / "metrics.json").read_text())["dice"]
        capsys.readouterr()
        more = ("--mask", files[1])
        assert run(jacobian, "--transform", pair / f"{k}" / "displacement.npz", *more) == 0
        found[which]["jacobian"] = capsys.readouterr().out
    first, *others = found.values()
    assert all(other == first for other in others)
    # one that does not cover its image is refused
    part = SimpleITK.ReadImage(masks["ed"])[:60]
    SimpleITK.WriteImage(part, pair / "part.nii.gz")
    more = ("--moving-mask", pair / "part.nii.gz", "--out", pair / "out")
    assert run(register, *on(pair, *more)) == 2
    assert "covers 67 % of" in capsys.readouterr().err
    more = ("--mask", pair / "part.nii.gz", "--out", pair / "j.nii.gz")
    assert run(jacobian, "--transform", pair / "0" / "displacement.npz", *more) == 2
    assert "covers 67 % of" in capsys.readouterr().err
    assert not (pair / "out").exists() and not (pair / "j.nii.gz").exists()


def test_a_label_in_one_mask_alone_is_told(pair, analytic, capsys):
    for name, label in (("ed", 5), ("es", 7)):
        image = SimpleITK.ReadImage(pair / f"{name}_mask.nii.gz")
        image[3, 3] = label
        SimpleITK.WriteImage(image, pair / f"{name}_mask.nii.gz")
    masks = ("--moving-mask", pair / "ed_mask.nii.gz", "--fixed-mask", pair / "es_mask.nii.gz")
    assert run(register, *on(pair, "--out", pair / "out", *masks)) == 0
    dice = json.loads((pair / "out" / "metrics.json").read_text())["dice"]
    distances = ("hd95_mm", "mean_surface_distance_mm")
    nothing = dict.fromkeys(distances, {"before": None, "after": None})
    assert dice["5"] == {"before": 0, "after": 0, "lacking": "the fixed mask"} | nothing
    assert dice["7"] == {"before": 0, "after": 0, "lacking": "the moving mask"} | nothing
    assert dice["1"].keys() == {"before", "after", *distances}
    assert "(the fixed mask lacks it)" in capsys.readouterr().out
    assert "DSC label 7, the moving mask lacks it" in (pair / "out" / "report.html").read_text()


def test_frames(tmp_path, analytic, capsys):
    """One file of a whole cycle is both images; a mask of one frame belongs to whichever."""
    cine = np.stack([heart(SHAPE, radius=r) for r in (0.6, 0.55, 0.45)])[:, None]
    image = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(frame) for frame in cine])
    SimpleITK.WriteImage(image, tmp_path / "cine.nii.gz")
    geometry = plain_geometry((1, *SHAPE))
    mask = (cine[1] > 420).astype(np.uint8)
    write_image(tmp_path / "mask.nii.gz", mask, geometry)
    cine = tmp_path / "cine.nii.gz"
    files = ("--moving", cine, "--fixed", cine, "--refine", 0)
    assert run(register, *files, "--out", tmp_path / "none") == 2
    assert "has 3 frames; choose one with --frame 0 to 2" in capsys.readouterr().err
    more = ("--moving-mask", tmp_path / "mask.nii.gz", "--frame", 1, 2)
    assert run(register, *files, "--out", tmp_path / "out", *more) == 0
    arguments = ("--transform", tmp_path / "out" / "displacement.npz", "--frame", 1)
    again = ("--input", tmp_path / "cine.nii.gz", "--out", tmp_path / "again.nii.gz")
    assert run(warp, *arguments, *again) == 0
    expected = array(tmp_path / "out" / "warped.nii.gz")
    np.testing.assert_allclose(array(tmp_path / "again.nii.gz"), expected, atol=0.05)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [metrics[name]["frame"] for name in ("moving", "fixed")] == [1, 2]
    for frames, message in (((1, 7), "has no frame 7"), ((0, 1, 2), "found 3 numbers")):
        assert run(register, *files, "--out", tmp_path / "b", "--frame", *frames) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [b"J\xe9r\xf4me.npz", rb"a$\frac{$b.npz", "é 心 x.npz".encode(), b" cost$5 and\t$6 .npz"],
)
def test_any_file_name(tmp_path, analytic, name, capfd):
    moving, out = tmp_path / os.fsdecode(name), tmp_path / os.fsdecode(b"out of " + name)
    for path, radius in ((moving, 0.55), (tmp_path / "es.npz", 0.45)):
        with open(path, "wb") as file:
            np.savez(file, image=heart(SHAPE, radius=radius), spacing=SPACING)
    files = ("--moving", moving, "--fixed", tmp_path / "es.npz", "--refine", 0)
    assert run(register, *files, "--out", out) == 0
    assert names(out) == OUTPUTS
    told = capfd.readouterr()
    assert "warn" not in told.err.lower()
    metrics = json.loads((out / "metrics.json").read_text())
    assert os.fsencode(metrics["moving"]["file"]) == os.fsencode(moving)
    shown = moving.name.encode("utf-8", "backslashreplace").decode()
    assert shown.split()[0].split(".")[0] in (out / "report.html").read_text(encoding="utf-8")
    arguments = ("--transform", out / "displacement.nii.gz", "--input", moving)
    assert run(warp, *arguments, "--out", tmp_path / os.fsdecode(b"w " + name)) == 0


def test_warp_checks_where_its_input_lies(pair, analytic, capsys):
    out, target = pair / "out", pair / "target.nii.gz"
    assert run(register, *on(pair, "--out", out)) == 0
    expected = array(out / "warped.nii.gz")
    arguments = ("--transform", out / "displacement.npz", "--out", target, "--overwrite")
    capsys.readouterr()
    # stored the other way round, and cut out of a larger field of view: the same
    reoriented(pair / "ed.nii.gz", pair / "flipped.nii.gz")
    larger = SimpleITK.ConstantPad(SimpleITK.ReadImage(pair / "ed.nii.gz"), (5, 9), (7, 3), 0.0)
    SimpleITK.WriteImage(larger, pair / "larger.nii.gz")
    inside = (slice(8, -8), slice(8, -8))
    for name in ("flipped", "larger"):
        assert run(warp, *arguments, "--input", pair / f"{name}.nii.gz") == 0
        np.testing.assert_allclose(array(target)[inside], expected[inside], atol=0.05)
    # without a place of its own it gets that of the moving image, if it has as many pixels
    write_image(pair / "nowhere.nii.gz", array(pair / "ed.nii.gz"), plain_geometry(SHAPE))
    capsys.readouterr()
    assert run(warp, *arguments, "--input", pair / "nowhere.nii.gz") == 0
    assert "taken pixel by pixel" in capsys.readouterr().out
    np.testing.assert_allclose(array(target), expected, atol=0.05)
    target.unlink()
    small = SimpleITK.ReadImage(pair / "ed.nii.gz")[:50]
    SimpleITK.WriteImage(small, pair / "small.nii.gz")
    far = SimpleITK.ReadImage(pair / "ed.nii.gz")
    far.SetOrigin((300.0, 0.0))
    SimpleITK.WriteImage(far, pair / "far.nii.gz")
    write_image(pair / "less.npz", array(pair / "ed.nii.gz")[1:], plain_geometry((69, 90)))
    for name, transform, message in (
        ("small.nii.gz", "displacement.npz", "covers 56 % of the image that was registered"),
        ("far.nii.gz", "displacement.npz", "covers 0 % of"),
        ("far.nii.gz", "displacement.nii.gz", "100 % of where the transform leads lies outside"),
        ("less.npz", "displacement.npz", r"(69, 90), the image that was registered (70, 90)"),
    ):
        arguments = ("--transform", out / transform, "--out", target, "--input", pair / name)
        assert run(warp, *arguments) == 2
        assert message in capsys.readouterr().err
        assert not target.exists()


def test_warp_refusals(pair, analytic, capsys):
    out = pair / "out"
    assert run(register, *on(pair, "--out", out)) == 0
    (pair / "points.csv").write_text("a,b\n1,2\n")
    (pair / "words.csv").write_text("x,y\n1,two\n")
    (pair / "pixels.csv").write_text("row,column\n1,2\n")
    (pair / "none.csv").write_text("x,y\n")
    capsys.readouterr()
    field, target = out / "displacement.nii.gz", pair / "target.nii.gz"
    for arguments, message in [
        ((pair / "es.nii.gz", "--out", target, "--inverse"), "does not tell the moving"),
        ((pair / "points.csv", "--out", pair / "t.csv"), "expected x, y (mm) or row, column"),
        (
            (pair / "words.csv", "--out", pair / "t.csv"),
            "line 2: x is '1', y is 'two', expected numbers",
        ),
        ((pair / "none.csv", "--out", pair / "t.csv"), "lists no points"),
        ((pair / "words.csv", "--out", pair / "t.nii.gz"), "expected FILE.csv, which holds the po"),
        ((pair / "pixels.csv", "--out", pair / "t.csv"), "does not tell the moving"),
        ((pair / "ed.nii.gz", "--out", pair / "es.nii.gz"), "add --overwrite"),
        ((pair / "ed.nii.gz", "--out", pair / "a.jpg"), "unknown suffix"),
    ]:
        assert run(warp, "--transform", field, "--input", *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert run(jacobian, "--transform", pair / "ed.nii.gz") == 2
    assert "not a displacement field" in capsys.readouterr().err


# -- refinement and velocities


def test_refine_on_the_command_line(pair, analytic, capsys):
    analytic.amplitude = 0.0
    assert run(register, *on(pair, "--out", pair / "none")) == 0
    alone = json.loads((pair / "none" / "metrics.json").read_text())
    assert run(register, *on(pair, "--out", pair / "out", "--refine", 30)) == 0
    metrics = json.loads((pair / "out" / "metrics.json").read_text())
    assert metrics["correlation"]["after"] > alone["correlation"]["after"] + 0.01
    assert metrics["refinement"] == {"steps": 30} and alone["refinement"] == {"steps": 0}
    assert metrics["scale"] == [1.0] and metrics["jacobian"]["nonpositive_percent"] == 0
    assert "refined, 30 steps" in (pair / "out" / "report.html").read_text()


@pytest.mark.integration
def test_a_predicted_velocity_is_always_integrated_and_refined_as_one(pair, analytic, monkeypatch):
    class Velocity(AnalyticMethod):
        predicts_velocity = True

        def velocity(self, moving, fixed):
            return 4 * self.displacement(moving, fixed)

    registrar = Velocity()
    arrays = heart((64, 64), radius=0.5), heart((64, 64), radius=0.45)
    plain = registrar(*arrays, spacing=2.0, refine=0)
    assert plain.jacobian_determinant.min() > 0
    assert registrar(*arrays, spacing=2.0, refine=5).jacobian_determinant.min() > 0
    monkeypatch.setattr(register, "load_model", lambda name, calls="often": registrar)
    assert run(register, *on(pair, "--out", pair / "out")) == 0
    metrics = json.loads((pair / "out" / "metrics.json").read_text())
    assert metrics["diffeomorphic"] is True
    assert not any("velocity" in note for note in metrics["notes"])


# -- the report


@pytest.mark.integration
@pytest.mark.skipif(browser.find() is None, reason="no Chromium found")
@pytest.mark.parametrize("which", ["flat", "stack"])
def test_report_in_a_browser(pair, analytic, which):
    if which == "stack":
        geometry = plain_geometry((3, *SHAPE), (8.0, *SPACING))
        for name, radius in (("ed", 0.55), ("es", 0.45)):
            slices = np.stack([heart(SHAPE, radius=radius, seed=k) for k in range(3)])
            write_image(pair / f"{name}.nii.gz", slices, geometry)
    else:
        geometry = None
    masks = ("--moving-mask", pair / "ed_mask.nii.gz", "--fixed-mask", pair / "es_mask.nii.gz")
    more = ("--slice", "all") if which == "stack" else masks
    assert run(register, *on(pair, "--out", pair / "out", *more)) == 0
    url = (pair / "out" / "report.html").as_uri()
    with browser.page() as page:
        page.open(url)
        grid = "getComputedStyle(document.querySelector('.maps svg'))"  # lies on its image
        assert page.evaluate(f"{grid}.maxHeight") == "none"
        assert page.evaluate("document.title") == "ed.nii.gz registered to es.nii.gz"
        # every picture of the page has been decoded
        pictures = "[...document.images]"
        assert page.evaluate(f"{pictures}.length") >= 6
        assert page.evaluate(f"{pictures}.every(i => i.complete && i.naturalWidth > 0)")
        view = ".slice:not([hidden]) .compare"
        page.evaluate("document.getElementById('show-all')?.click()")
        page.evaluate("document.querySelector('[aria-label=Comparison]').scrollIntoView()")
        left, top, width, height = page.box(view)
        assert width > 300 and height / width == pytest.approx(70 * 1.5 / (90 * 1.25), abs=0.02)

        def picture():
            shot = PIL.Image.open(io.BytesIO(page.screenshot())).convert("L")
            box = [round(v) for v in (left, top, left + width, top + height)]
            return np.asarray(shot.crop(box), np.float64)

        start = picture()
        assert start.std() > 10  # an image, not an empty box
        # the slider: its thumb dragged to the right end shows the left image everywhere
        x, y, w, h = page.box("#position")
        page.drag((x + w / 2, y + h / 2), (x + w - 1, y + h / 2))
        assert page.evaluate("Number(document.getElementById('position').value)") > 98
        assert page.evaluate(f"getComputedStyle(document.querySelector('{view} .layer')).clipPath")
        right_end = picture()
        half = round(width / 2)
        changed = np.abs(right_end - start)
        assert changed[:, half + 20 : -60].mean() > 1  # what was fixed has become warped
        assert changed[40:, 20 : half - 20].mean() < 0.5  # the left half already was
        # dragging across the image moves the line, too
        page.drag((left + 0.7 * width, top + 50), (left + 0.2 * width, top + 50))
        assert page.evaluate("Number(position.value)") == pytest.approx(20, abs=1)
        for mode, pair_of in (("checkerboard", "warped fixed"), ("slider", "moving warped")):
            before = picture()
            page.evaluate(
                f"mode.value = '{mode}'; pair.value = '{pair_of}';"
                "mode.dispatchEvent(new Event('input'))"
            )
            assert np.abs(picture() - before).mean() > 0.3
        assert page.evaluate("document.querySelector('.tag.left').textContent") == "before"
        if which == "stack":
            visible = "[...document.querySelectorAll('.slice')].findIndex(s => !s.hidden)"
            assert page.evaluate(visible) == 1
            page.evaluate("slice.value = 2; slice.dispatchEvent(new Event('input'))")
            assert page.evaluate(visible) == 2
        assert page.errors == []
        assert [u for u in page.requests if not u.startswith("data:")] == [url]
        # and it could not reach out if it wanted to
        page.evaluate(
            "fetch('https://example.org/').catch(() => {}); new Image().src='https://example.org/a.png'"
        )
        time.sleep(0.3)
        page.evaluate("1")
        assert any("Content Security Policy" in error for error in page.errors)


def test_report_names_are_escaped(tmp_path, analytic):
    name = "<script>alert(1)<!-- .nii.gz"
    for radius, file in ((0.55, name), (0.45, "es.nii.gz")):
        write_image(tmp_path / file, heart(SHAPE, radius=radius), plain_geometry(SHAPE, SPACING))
    files = ("--moving", tmp_path / name, "--fixed", tmp_path / "es.nii.gz", "--refine", 0)
    assert run(register, *files, "--out", tmp_path / "out") == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert "default-src 'none'" in text
    assert "orientation unknown" in text and "20 mm" in text


# -- a real network, its weights file, and a fresh process


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """An untrained network of two levels as a weights file."""
    from ldm_morph_jax.config import paper_config, with_method
    from ldm_morph_jax.methods import build_method

    config = paper_config()
    config.data.name = "phantom"
    config.data.image_size = 32
    config = with_method(config, "voxelmorph", "small")
    config.registration.model.update(encoder_channels=(4,) * 2, decoder_channels=(4,) * 2)
    network, rng = build_method(config.lock()), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: network.init(key, (32, 32)), jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype), shapes)
    method = Registrar(network, params=params, config=config, spacing_mm=3.0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(method, path, {"name": "tiny"})
    return path, method


def test_weights_file_gives_the_same_network(weights_file):
    path, method = weights_file
    registrar = load(path)
    assert registrar.card == {"name": "tiny"} and registrar.spacing_mm == 3.0
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(2, 1, 32, 32, 1)).astype(np.float32)
    expected = np.asarray(method.displacement(*images))
    assert np.abs(expected).max() > 0.05  # pixels
    found = np.asarray(registrar.displacement(*images))
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    tampered = path.with_name("tampered.safetensors")
    tampered.write_bytes(data)
    tampered.with_name("tampered.safetensors.sha256").write_bytes(
        path.with_name("tiny.safetensors.sha256").read_bytes()
    )
    with pytest.raises(WeightsError, match="tampered with"):
        load(tampered)


@pytest.mark.integration
def test_real_network_in_a_fresh_process(pair, weights_file, tmp_path):
    """The command as it is typed; the second call finds its compiled programs."""
    environment = os.environ | {"LDM_MORPH_CACHE": str(tmp_path / "cache")}
    seconds = []
    for out in ("a", "b"):
        more = ("--out", pair / out, "--model", weights_file[0], "--refine", "2", "--inverse")
        command = [sys.executable, "-m", "ldm_morph_jax.register", *map(str, on(pair, *more))]
        done = subprocess.run(
            command,
            env=environment,
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "wrote" in done.stdout
        seconds.append(json.loads((pair / out / "metrics.json").read_text())["seconds"])
        assert names(pair / out) == OUTPUTS | INVERSE
    # two programs are traced by the first process and neither by the second
    assert len(list((tmp_path / "cache" / "traced").iterdir())) == 2
    np.testing.assert_array_equal(
        array(pair / "a" / "displacement.nii.gz"), array(pair / "b" / "displacement.nii.gz")
    )
    assert seconds[1]["registration"] < seconds[0]["registration"]


def test_help_says_what_it_does(capsys):
    for command in (register, warp, jacobian):
        assert not run(command, "--help")
        text = capsys.readouterr().out
        assert "docs/registering.md" in text and "--overwrite" in text


# -- the documentation

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.integration
def test_notebook_runs(tmp_path):
    """docs/registering.ipynb from top to bottom in a kernel of its own."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(DOCS / "registering.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert "largest difference to SimpleITK" in outputs[-1]["text"]


def test_documentation_names_every_option():
    text = (DOCS / "registering.md").read_text()
    for field in dataclasses.fields(register.Options):
        name = field.name.replace("_", "-")
        assert f"--{name}" in text or f"--no-{name}" in text, (
            f"docs/registering.md does not mention --{name}"
        )


def test_documented_commands_and_code_run(pair, analytic, monkeypatch):
    """The shell commands and Python blocks of docs/registering.md, on the files they name."""
    monkeypatch.chdir(pair)
    for phase in ("ed", "es"):
        (pair / f"{phase}_mask.nii.gz").rename(pair / f"{phase}_gt.nii.gz")
    (pair / "landmarks.csv").write_text("x,y\n60.5,31.0\n")
    text = (DOCS / "registering.md").read_text()
    commands = {"register": register, "warp": warp, "jacobian": jacobian}
    typed = re.findall(r"^    ldm-morph (\w+) (.*)$", text, re.MULTILINE)
    assert [name for name, _ in typed] == ["register", "warp", "warp", "warp", "jacobian"]
    for name, arguments in typed:
        assert run(commands[name], *arguments.split()) == 0, arguments
    scipy_and_itk = [
        block
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if "warped =" in block
    ]
    expected = array(pair / "out" / "warped.nii.gz")
    checked = 0
    for block in scipy_and_itk:
        if "import ants" in block:
            continue  # tests/files/test_transforms.py, where ANTs is installed
        names = {"moving": array(pair / "ed.nii.gz")}
        exec(block, names)
        warped = names["warped"]
        if isinstance(warped, SimpleITK.Image):
            warped = SimpleITK.GetArrayFromImage(warped)
        np.testing.assert_allclose(warped[8:-8, 8:-8], expected[8:-8, 8:-8], atol=0.5)
        checked += 1
    assert checked == 2


def test_a_search_guided_by_anatomy(tmp_path, analytic, monkeypatch):
    """What guided it is written down; where the network is unsure, a note says so."""
    structures = ("left ventricle", "myocardium", "left atrium")
    model = dataclasses.replace(threshold_anatomy.Threshold(), structures=structures)
    object.__setattr__(model, "probabilities", bright_is_cavity)
    monkeypatch.setattr(pairs, "anatomy_network", lambda name: model)
    files = {}
    for name, radius in (("moving", 16), ("fixed", 12)):
        image, _ = threshold_anatomy.heart(radius, centre=(48, 48), shape=(96, 96))
        files[name] = tmp_path / f"{name}.npz"
        np.savez(files[name], image=image.astype("f4"))
    arguments = [x for name, path in files.items() for x in (f"--{name}", path)]
    arguments += ["--anatomy", "x", "--no-report", "--spacing", "1.5", "--refine"]
    done = call("register", *arguments, "6", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["anatomy"]["network"] == "threshold" and metrics["anatomy"]["used"] == [True]
    result = analytic(**files, anatomy="x", spacing=1.5, refine=6)
    assert result.metrics["anatomy"] == metrics["anatomy"]
    object.__setattr__(model, "least_confidence", 1.1)
    done = call("register", *arguments, "6", "--out", tmp_path / "unsure")
    metrics = json.loads((tmp_path / "unsure" / "metrics.json").read_text())
    assert metrics["anatomy"]["used"] == [False]
    assert any("the search was not guided there" in note for note in metrics["notes"])
    done = call("register", *arguments, "0", "--out", tmp_path / "no")
    assert done.returncode == 2 and "anatomy guides a search" in done.stderr


def bright_is_cavity(windows):
    cavity = np.clip((windows - 0.7) / 0.1, 0, 1)
    nothing = np.zeros_like(cavity)
    return np.stack([1 - cavity, cavity, nothing, nothing], axis=-1).astype("f4")
