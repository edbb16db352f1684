"""CONTRIBUTING's three ways to extend the project, as written there: each one file, no other."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the three files of CONTRIBUTING.md, and an experiment of a minute."""
    folder = tmp_path_factory.mktemp("extending")
    code = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    for name, text in zip(("shift", "squares", "l1"), code, strict=True):
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def ldm_morph(folder):
    """Runs a command in that folder; its standard output."""
    files = ("shift.py", "squares.py", "l1.py")
    environment = os.environ | {"LDM_MORPH_PLUGINS": os.pathsep.join(files)}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "ldm_morph_jax.cli", *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def trained(folder, ldm_morph):
    """The toy method, trained with the toy loss on the toy dataset."""
    ldm_morph(
        "train",
        "--config=method:shift:quickstart",
        "--config.data.name=squares",
        "--config.data.options={}",
        "--config.registration.similarity=l1",
        "--config.registration.train.steps=100",
        "--config.registration.augmentation.orientations=(0,)",  # squares always move down
        "--config.registration.train.learning_rate=0.1",  # a bias of three pixels
        "--config.registration.train.evaluate_every=100",
        "--workdir=run",
    )
    return folder / "run"


def test_train_and_evaluate(trained, ldm_morph):
    ldm_morph("evaluate", "--workdir", "run", "--split", "test")
    with (trained / "evaluation/test/pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    before, after = (sum(float(row[name]) for row in rows) for name in ("dsc_initial", "dsc"))
    assert len(rows) == 4 and after > before


def test_register(trained, ldm_morph, folder):
    ldm_morph("register", "--example", "--model", "run", "--out", "out")
    assert (folder / "out/warped.nii.gz").is_file()


def test_benchmark(ldm_morph, folder):
    (folder / "plan.py").write_text(
        "from ldm_morph_jax.config import experiment\n"
        "from ldm_morph_jax.paper.plan import benchmark_config\n\n\n"
        "def get_config():\n"
        "    squares = experiment('quickstart')\n"
        "    squares.data.name, squares.data.options = 'squares', {}\n"
        "    squares.registration.train.steps = 20\n"
        "    return benchmark_config(\n"
        "        datasets={'squares': squares}, methods=('initial', 'shift'),\n"
        "        ablation=False, betas=(),\n"
        "    )\n"
    )
    ldm_morph("benchmark", "--config", "plan.py", "--out", "benchmark")
    table = (folder / "benchmark/tables/table1.md").read_text()
    assert re.search(r"^\| Shift +\|", table, re.MULTILINE), table
