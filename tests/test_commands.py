"""The commands as a user types them: what they print, where they write, how they refuse."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from in_process import call

from ldm_morph_jax.registering.method import load
from ldm_morph_jax.runs.weights import sha256

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent
TINY = """
import sys
sys.path.insert(0, {tests!r})
from tiny import tiny_config
def get_config():
    return tiny_config({data!r})
"""


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    path = folder / "tiny.py"
    path.write_text(TINY.format(tests=str(ROOT / "tests"), data=str(folder / "data")))
    return path


@pytest.fixture(scope="session")
def trained(config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "tiny"
    done = call("train", "--config", config_file, "--workdir", workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done


@pytest.fixture(scope="session")
def evaluated(trained):
    workdir, _ = trained
    done = call("evaluate", "--workdir", workdir, "--split", "test")
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_train_tells_progress_and_results(trained):
    workdir, done = trained
    assert "registration 4/4 (100%)" in done.stderr and "ETA 0:00:00" in done.stderr
    assert done.stdout.splitlines()[-1] == f"trained: {workdir}"
    assert "Traceback" not in done.stderr and "WARNING" not in done.stderr


def test_evaluate_writes_what_it_promises(evaluated):
    workdir, done = evaluated
    out = workdir / "evaluation" / "test"
    assert done.stdout.splitlines()[-1] == f"report: {out / 'report.html'}"
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["method"], summary["dataset"], summary["split"], summary["n_pairs"]) == (
        "ldm_morph",
        "phantom",
        "test",
        2,
    )
    for score in (
        "dsc_initial",
        "dsc",
        "nonpositive_jacobian_percent",
        "sd_log_jacobian",
        "hd95_px",
        "seconds_per_pair",
        "epe_px",
        "epe_initial_px",
    ):
        assert {"mean", "std", "median", "n"} <= summary[score].keys(), score
    rows = list(csv.DictReader((out / "pairs.csv").open()))
    assert len(rows) == 2
    mean = sum(float(row["dsc"]) for row in rows) / 2
    assert summary["dsc"]["mean"] == pytest.approx(mean, abs=1e-4)
    assert "<html" in (out / "report.html").read_text()[:200].lower()


def test_evaluate_without_registration(trained):
    workdir, _ = trained
    done = call("evaluate", "--workdir", workdir, "--method", "initial")
    assert done.returncode == 0, done.stderr
    summary = json.loads((workdir / "evaluation/test-initial/summary.json").read_text())
    assert summary["dsc"]["mean"] == summary["dsc_initial"]["mean"]
    assert summary["epe_px"]["mean"] == summary["epe_initial_px"]["mean"]
    assert summary["nonpositive_jacobian_percent"]["mean"] == 0


def test_evaluate_with_refinement(evaluated):
    workdir, _ = evaluated
    done = call("evaluate", "--workdir", workdir, "--refine", 82)
    assert done.returncode == 0, done.stderr
    rows = {
        name: list(csv.DictReader((workdir / f"evaluation/{name}/pairs.csv").open()))
        for name in ("test", "test-refine82")
    }
    for plain, refined in zip(*rows.values(), strict=True):
        assert float(refined["mse"]) < float(plain["mse"])
    message = refused("evaluate", "--workdir", workdir, "--refine", 82, "--method", "initial")
    assert "--refine starts from a trained network" in message


def test_scores_on_images_that_changed_since_the_training_say_so(evaluated, tmp_path):
    workdir = shutil.copytree(evaluated[0], tmp_path / "run")
    arguments = ("evaluate", "--workdir", workdir, "--out", tmp_path / "out")
    assert "note:" not in call(*arguments).stdout
    record = json.loads((workdir / "dataset.json").read_text())
    record["fingerprints"]["test"] = "of other images"
    (workdir / "dataset.json").write_text(json.dumps(record))
    note = "the images or masks of phantom, test, have changed since the run began to train"
    done = call(*arguments)
    assert done.returncode == 0 and f"note: {note}" in done.stdout
    assert note in json.loads((tmp_path / "out/summary.json").read_text())["notes"][0]
    assert note in (tmp_path / "out/report.html").read_text()


def test_a_run_as_one_compact_file(evaluated, tmp_path):
    workdir, _ = evaluated
    (tmp_path / "card.json").write_text('{"intended_use": "a test"}')
    file = tmp_path / "model.safetensors"
    arguments = ("--to-weights", workdir, "--card", tmp_path / "card.json", "--out", file)
    done = call("convert", *arguments)
    assert done.returncode == 0, done.stderr
    registrar = load(file)
    assert done.stdout.splitlines()[-1] == f"sha256: {sha256(file)}"
    assert registrar.card["intended_use"] == "a test"
    assert registrar.card["data"]["name"] == "phantom"
    assert registrar.card["validation"]["dsc"] > 0
    assert registrar.card["metrics"]["test"]["dsc"]["n"] == 2
    assert registrar.image_size == 32
    assert str(workdir).encode() not in file.read_bytes()
    images = np.random.default_rng(0).uniform(size=(2, 1, 32, 32, 1)).astype(np.float32)
    expected = np.asarray(load(workdir).displacement(*images))
    tolerance = 0.02 * np.abs(expected).max()  # parameters are stored in half precision
    np.testing.assert_allclose(registrar.displacement(*images), expected, atol=tolerance)
    assert str(registrar.config.data.directory) == "data"
    assert f"{file} exists; choose a new name" in refused("convert", *arguments)
    file.unlink()
    (tmp_path / "card.json").write_text("[1]")
    message = refused("convert", *arguments)
    assert "card.json holds a list, expected an object" in message


def refused(*arguments, status=2):
    """The one line that a command says before it stops."""
    done = call(*arguments)
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_directory_that_is_no_run(tmp_path):
    message = refused("evaluate", "--workdir", tmp_path)
    assert message == f"error: {tmp_path} is not a run directory: it has no config.json"


def test_run_that_is_not_finished(trained, tmp_path):
    for name in ("config.json", "dataset.json"):
        (tmp_path / name).write_text((trained[0] / name).read_text())
    message = refused("evaluate", "--workdir", tmp_path)
    assert "the stage 'registration' is not complete" in message


def test_unknown_config_key(config_file, tmp_path):
    flag = "--config.registration.learning=1"
    arguments = ("--config", config_file, flag, "--workdir", tmp_path)
    done = call("train", *arguments)
    assert done.returncode != 0 and "learning" in done.stderr
    assert not list(tmp_path.iterdir())


def test_value_of_another_type(config_file, tmp_path):
    flag = "--config.registration.train.steps=many"
    message = call("train", "--config", config_file, flag, "--workdir", tmp_path)
    assert message.returncode != 0 and "steps" in message.stderr


def test_wrong_data_directory(tmp_path):
    message = refused(
        "train",
        *("--config", ROOT / "configs/sunnybrook_small.py", "--workdir", tmp_path / "run"),
        f"--config.data.source={tmp_path / 'nowhere'}",
        f"--config.data.directory={tmp_path / 'data'}",
    )
    assert message.startswith(f"error: dataset sunnybrook: source {tmp_path / 'nowhere'} is not a ")
    assert "expected Data/Train/Images" in message and "SegNetCMR" in message


def test_profile_steps_are_checked(config_file, tmp_path):
    arguments = ("--config", config_file, "--workdir", tmp_path / "run", "--profile_steps=5")
    assert "expected FIRST:LAST" in refused("train", *arguments)
