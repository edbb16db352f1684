"""The benchmark of beats: its files, its pairs, and what displacements score."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK
from in_process import call

from ldm_morph_jax.beat_scores import found_strains, score_beats, true_strains
from ldm_morph_jax.data import load_dataset
from ldm_morph_jax.data.phantom_cine import phantom_cine
from ldm_morph_jax.files.movies import read_cine
from ldm_morph_jax.files.transforms import Transform, read_transform, write_transform

pytestmark = pytest.mark.integration

SIZE = {"beats": 1, "seed": 7, "first": 1, "frames": 7, "image_size": 64}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folder of the prepared dataset."""
    out = tmp_path_factory.mktemp("phantom_cine")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SIZE.items()]
    done = call("prepare", "--dataset", "phantom_cine", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    return load_dataset("phantom_cine", directory=out, **SIZE).path


@pytest.fixture(scope="module")
def beat():
    return phantom_cine((7, 1), image_size=64, frames=7)


def test_files_hold_the_beat(prepared, beat):
    folder = prepared / "beats/sax-7-1"
    about = json.loads((folder / "beat.json").read_text())
    assert about == {"view": "sax", "seed": [7, 1], "end_systole": beat.end_systole}
    cine = read_cine(folder / "cine.nii.gz")
    np.testing.assert_array_equal(cine.frames, beat.frames)
    np.testing.assert_allclose(cine.times, beat.times, atol=1e-6)
    assert cine.first.spacing == (2.5, 2.5)
    # what is independent of this package's readers: the tissue of a point, by ITK
    t, es = beat.end_systole, SimpleITK.ReadImage(str(folder / "es.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(es), beat.frames[t])
    field = SimpleITK.ReadImage(
        str(folder / f"displacement/frame_{t:03}.nii.gz"), SimpleITK.sitkVectorFloat64
    )
    transform = SimpleITK.DisplacementFieldTransform(field)
    point = transform.TransformPoint(es.TransformIndexToPhysicalPoint((30, 26)))
    index = es.TransformPhysicalPointToContinuousIndex(point)
    np.testing.assert_allclose(index[::-1], [26, 30] + beat.displacement[t, 26, 30], atol=1e-4)
    # strain along x from two neighbouring columns of the motion, where it is smooth
    yy = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / "strain_yy.nii.gz")))
    gradient = np.gradient(beat.displacement[t], axis=(0, 1))
    rows = gradient[0]
    expected = rows[..., 0] + (rows**2).sum(-1) / 2
    assert np.abs(yy[t, 0] - expected)[beat.masks[0] == 2].mean() < 0.02


def test_inverse_leads_back(beat):
    t = beat.end_systole
    x = np.stack(np.indices((64, 64)), -1) + beat.inverse[t]
    from scipy.ndimage import map_coordinates

    there = [map_coordinates(beat.displacement[t, ..., k], np.moveaxis(x, -1, 0)) for k in (0, 1)]
    inside = (slice(16, 48),) * 2
    assert np.abs(np.stack(there, -1) + beat.inverse[t])[inside].max() < 0.1


def test_pairs_lead_from_end_diastole_to_end_systole(prepared, beat):
    dataset = load_dataset("phantom_cine", directory=prepared.parents[2], **SIZE)
    assert dataset.splits == {"test": 2} and dataset.ids("test") == ["sax-7-1", "echo-7-1"]
    pair = dataset.split("test")[0]
    np.testing.assert_allclose(pair["displacement"], beat.inverse[beat.end_systole], atol=1e-5)


def test_the_truth_scores_best_and_nothing_moved_worst(prepared, tmp_path):
    beats = prepared / "beats"
    rows = score_beats(beats, beats)  # the truth as a result
    assert list(rows["id"]) == ["echo-7-1", "sax-7-1"] and set(rows["frames"]) == {6}
    assert rows["epe_px"].max() < 1e-5 and rows["dsc"].min() > 0.93
    for name, limit in (("tangential", 0.15), ("endocardial", 1e-3)):
        assert np.abs(rows[f"{name}_found"] / rows[f"{name}_true"] - 1).max() < limit
    for row in rows.itertuples():
        file = f"{row.id}/displacement/frame_{_end_systole(beats / row.id):03}.nii.gz"
        (tmp_path / file).parent.mkdir(parents=True)
        true = read_transform(beats / file)
        write_transform(tmp_path / file, Transform(0 * true.displacement_mm, true.fixed))
    still = score_beats(beats, tmp_path)
    assert set(still["frames"]) == {1} and (still["tangential_found"] == 0).all()
    np.testing.assert_allclose(still["epe_end_systole_px"], still["motion_px"])
    assert (still["dsc"] < rows["dsc"] - 0.05).all()


def _end_systole(folder):
    return json.loads((folder / "beat.json").read_text())["end_systole"]


def test_the_command(prepared, tmp_path):
    beats = prepared / "beats"
    arguments = ("evaluate", "--beats", beats, "--displacements", beats, "--out", tmp_path / "s")
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    assert "| 1 short-axis | beats | 0.00 |" in done.stdout
    assert len((tmp_path / "s/beats.csv").read_text().splitlines()) == 3
    done = call(*arguments[:3])
    assert done.returncode == 2 and "go together" in done.stderr
    shutil.copytree(beats, tmp_path / "r")
    file = tmp_path / f"r/sax-7-1/displacement/frame_{_end_systole(beats / 'sax-7-1'):03}.nii.gz"
    true = read_transform(file)
    grid = type(true.fixed)(true.fixed.shape, (1.0, 1.0), true.fixed.origin, true.fixed.direction)
    write_transform(file, Transform(true.displacement_mm, grid))
    done = call("evaluate", "--beats", beats, "--displacements", tmp_path / "r")
    assert done.returncode == 2 and f"{file}: lies on another grid" in done.stderr
    file.unlink()
    done = call("evaluate", "--beats", beats, "--displacements", tmp_path / "r")
    assert done.returncode == 2 and f"{file}: no such file" in done.stderr
    done = call("evaluate", "--beats", tmp_path, "--displacements", beats)
    assert done.returncode == 2 and "has no beats" in done.stderr


@pytest.mark.parametrize(
    "option, message",
    [
        ("--look=mri", "look must be sax, echo or both, found 'mri'"),
        ("--frames=2", "frames must be at least 3, found 2"),
    ],
)
def test_bad_options(option, message, tmp_path):
    done = call("prepare", "--dataset", "phantom_cine", "--out", tmp_path, option)
    assert done.returncode == 2 and message in done.stderr


def test_strains_of_an_even_shortening():
    """A wall that shrinks by a tenth: Green and Lagrange's strain is (0.81 - 1) / 2 everywhere."""
    from ldm_morph_jax.files.movies import cine_from_arrays
    from ldm_morph_jax.registering.anatomy import anatomy_of_mask
    from ldm_morph_jax.registering.result import Tracked

    radius = np.hypot(*(np.indices((48, 48)) - 24))
    mask = np.where(radius < 8, 1, np.where(radius < 14, 2, 0)).astype(np.uint8)
    u = -0.1 * (np.stack(np.indices((48, 48)), -1) - 24.0)[None].astype(np.float32)
    cine = cine_from_arrays(np.random.default_rng(0).random((2, 48, 48)), spacing=1.0)
    tracked = Tracked(cine, 0, np.arange(2.0), u, u, None, None, "")
    anatomy = anatomy_of_mask(mask, "sax", "disc", cavity_and_wall=(1, 2))
    found = found_strains(u, tracked, anatomy)
    true = true_strains(np.eye(2) * np.full((1, 48, 48, 1, 1), -0.095), u, tracked, anatomy)
    for name in ("radial_strain", "circumferential_strain"):
        assert found[name] == pytest.approx(-0.095, abs=1e-4)
        assert true[name] == pytest.approx(-0.095, abs=1e-6)
    assert found["endocardial_circumferential_strain"] == pytest.approx(-0.1, abs=1e-4)
