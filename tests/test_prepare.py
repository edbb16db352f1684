"""The command `prepare`, and training on what it prepared, for every dataset of the paper."""

import csv
import hashlib
import importlib.util
import shutil
from pathlib import Path

import archives
import jax
import numpy as np
import pytest
from tiny import tiny_config

from ldm_morph_jax import prepare
from ldm_morph_jax.data import load_dataset
from ldm_morph_jax.training import run
from ldm_morph_jax.training.stages import STAGES

ROOT = Path(__file__).parent.parent
WRITERS = {
    "camus_2ch": archives.write_camus,
    "camus_4ch": archives.write_camus,
    "echonet": archives.write_echonet,
    "acdc": archives.write_acdc,
    "folder": archives.write_folder,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("prepare")


@pytest.fixture(scope="module", params=WRITERS)
def prepared(request, root):
    """Dataset, its source and what the command prints."""
    name = request.param
    source = WRITERS[name](root / WRITERS[name].__name__)
    return name, source, command(name, source, root / "data")


def command(name, source, out, *more):
    """Runs the command in this process; returns what it printed."""
    import contextlib
    import io

    printed = io.StringIO()
    arguments = ["--dataset", name, "--out", str(out), *more]
    arguments += [] if source is None else ["--source", str(source)]
    with contextlib.redirect_stdout(printed):
        prepare.main(arguments + ([] if name in ("folder", "phantom") else ["--allow-partial"]))
    return printed.getvalue()


def dataset_of(prepared, root):
    name, _, _ = prepared
    options = {} if name == "folder" else {"allow_partial": True}
    return load_dataset(name, directory=root / "data", **options)


def test_prints_and_writes(prepared, root):
    name, source, printed = prepared
    dataset = dataset_of(prepared, root)
    assert f"prepared: {dataset.path}" in printed
    paper = {"camus_2ch": "400", "camus_4ch": "400", "echonet": "7460", "acdc": "95", "folder": "-"}
    row = next(line for line in printed.splitlines() if line.startswith("train")).split()
    assert row[1:3] == [str(dataset.splits["train"]), paper[name]]
    base = source.parent if source.is_file() else source
    with (dataset.path / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "split", "files", "sha256", "dsc_initial"]
    for split in dataset.splits:
        of_split = [row for row in rows if row["split"] == split]
        assert [row["id"] for row in of_split] == dataset.ids(split)
        assert (dataset.path / f"contact_sheet_{split}.png").stat().st_size > 5000
        scores = []
        for row, example in zip(of_split, dataset.split(split), strict=True):
            files = row["files"].split(";")
            assert len(files) >= (2 if name == "echonet" else 4)
            hashes = [hashlib.sha256((base / file).read_bytes()).hexdigest() for file in files]
            assert row["sha256"].split(";") == hashes
            overlaps = []
            for label in dataset.labels:
                a, b = example["moving_mask"] == label, example["fixed_mask"] == label
                overlaps.append(2 * (a & b).sum() / (a.sum() + b.sum()))
            scores.append(np.mean(overlaps))
            assert float(row["dsc_initial"]) == pytest.approx(scores[-1], abs=1e-4)
        shown = next(line for line in printed.splitlines() if line.startswith(split)).split()[3]
        assert float(shown) == pytest.approx(np.mean(scores), abs=1e-3)


def test_counts_what_was_left_out(prepared):
    name, _, printed = prepared
    if name == "echonet":
        assert "left out, fewer than two traced frames: 2 (0X5E, 0X6F)" in printed
    elif name != "folder":
        assert "left out, not there: " in printed


def test_second_run_changes_nothing_and_two_labs_agree(prepared, root, tmp_path):
    name, source, printed = prepared
    path = dataset_of(prepared, root).path
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    assert command(name, source, root / "data") == printed
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before
    if name != "echonet":
        return
    shutil.copytree(source, tmp_path / "other")
    command(name, tmp_path / "other", tmp_path / "data")
    [other] = (tmp_path / "data").rglob("manifest.csv")
    assert other.read_text() == (path / "manifest.csv").read_text()


def config_for(name, root):
    """`--config configs/X.py:small`, made as small as tests/tiny.py."""
    config, tiny = load_config(name, "small"), tiny_config(root)
    for stage in STAGES:
        config[stage] = tiny[stage]
        config[stage].train.log_every = 1
    config.data.update(directory=str(root / "data"), image_size=32)
    if name != "folder":
        config.data.options.allow_partial = True
    return config.lock()


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """A run of every stage on one of the datasets, and its metrics."""
    source = WRITERS["folder"](root / WRITERS["folder"].__name__)
    command("folder", source, root / "data", "--image-size", "32")
    workdir = tmp_path_factory.mktemp("trained") / "run"
    return workdir, run.train(config_for("folder", root), workdir)


@pytest.mark.integration
def test_four_training_steps(trained):
    workdir, metrics = trained
    assert list(metrics) == list(STAGES)
    assert 0 < metrics["registration"]["dsc"] <= 1
    for stage in metrics:
        rows = (workdir / stage / "metrics.jsonl").read_text().splitlines()
        assert len(rows) >= 4


@pytest.mark.integration
def test_what_training_reads(prepared, root, trained, tmp_path, monkeypatch):
    """Every stage's step gets batches of the shapes that it was compiled for, and finds its labels.

    The datasets differ in no more: in place of its steps a stage gets what another dataset's left.
    """
    name, source, _ = prepared
    command(name, source, root / "data", "--image-size", "32")
    reached = []

    def read_and_done(program, directory, *, frozen, batches, validation, **_):
        batch = next(batches)
        for key, shape in program.batch.items():
            found = jax.tree.map(lambda a: (np.shape(a), a.dtype), batch[key])
            assert found == jax.tree.map(lambda a: (a.shape, a.dtype), shape), (program.name, key)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(batch[key]))
        shapes = [jax.tree.map(np.shape, tree) for tree in (frozen, program.frozen)]
        assert shapes[0] == shapes[1]
        images = [batch[key] for key in ("image", "moving", "fixed") if key in batch]
        if program.name == "registration":
            pairs, labels = validation
            assert labels == dataset_of(prepared, root).labels
            for moving, fixed in zip(pairs["moving_mask"], pairs["fixed_mask"], strict=True):
                assert np.isin(moving, list(labels)).any() and np.isin(fixed, list(labels)).any()
            images += [pairs["moving"], pairs["fixed"]]
        else:
            images.append(validation)
        for image in images:
            assert image.shape[1:] == (32, 32, 1) and image.dtype == np.float32
            assert 0 <= image.min() and image.max() <= 1 and image.std() > 0.05
        reached.append(program.name)
        shutil.copytree(trained[0] / program.name, directory, dirs_exist_ok=True)
        return trained[1][program.name]

    monkeypatch.setattr(run, "run_stage", read_and_done)
    assert run.train(config_for(name, root), tmp_path / "run") == trained[1]
    assert reached == list(STAGES)


def load_config(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*arguments)


@pytest.mark.parametrize("name", WRITERS)
def test_configs(name):
    paper = load_config(name)
    assert paper.to_dict() == load_config(name, "paper").to_dict()
    assert paper.data.name == name and paper.registration.train.steps == 24_000
    small = load_config(name, "small")
    assert small.data.to_dict() == paper.data.to_dict()
    assert small.registration.model.embed_dim < paper.registration.model.embed_dim
    with pytest.raises(ValueError, match="config argument 'tiny', expected nothing or 'paper'"):
        load_config(name, "tiny")


def test_training_prepares_from_the_source(root, tmp_path):
    source = archives.write_folder(tmp_path / "folder")
    config = load_config("folder", "small")
    config.data.source, config.data.directory = str(source), str(tmp_path / "data")
    dataset = run.dataset_of(config)
    assert dataset.splits == {"train": 2, "validation": 1, "test": 1}
    assert (dataset.path / "manifest.csv").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dataset", "camus"], "the dataset is 'camus', expected one of .*camus_2ch"),
        (["--dataset", "acdc"], "give --source, the original files .*database/training/patient001"),
        (["--dataset", "folder", "--source", "no.csv"], "source no.csv is not a file"),
        (
            ["--dataset", "phantom", "--allow-partial"],
            "Unknown option: --allow-partial",
        ),
        (["--dataset", "echonet", "--source", "."], "no file FileList.csv; download EchoNet"),
    ],
)
def test_errors_take_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    import re

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        prepare.main([*arguments, "--out", "data"])
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and re.search(message, line)


def test_help_lists_the_options_of_the_dataset(capsys):
    with pytest.raises(SystemExit) as stop:
        prepare.main(["--dataset", "phantom", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--n-train" in shown and "training pairs (default: 200)" in shown
    assert "--image-size" in shown and "--allow-partial" not in shown


def test_options_of_the_dataset_are_flags(tmp_path):
    printed = command("phantom", None, tmp_path, *"--n-train 3 --n-test 1 --look echo".split())
    assert "left atrium" in printed and "train             3" in printed
