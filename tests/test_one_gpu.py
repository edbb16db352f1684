"""launch/one_gpu.sh, rehearsed with tiny networks: trains, is preempted, resumes, scores, times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "launch/one_gpu.sh"


def run(*arguments, **environment):
    variables = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(
        [SCRIPT, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )


@pytest.mark.integration
def test_errors(tmp_path):
    assert run().returncode == 2 and "usage" in run().stderr
    failed = run(str(tmp_path / "out"), "--config.no_such_key=1", CONFIG="quickstart")
    assert failed.returncode != 0 and "no_such_key" in failed.stderr


@pytest.mark.slow
def test_rehearsal(tmp_path):
    out = tmp_path / "out"
    flags = {
        "data.directory": tmp_path / "data",
        "data.options.n_train": 4,
        "data.options.n_validation": 2,
        "data.options.n_test": 2,
        "autoencoder.train.steps": 1,
        "diffusion.train.steps": 2,
        "registration.train.steps": 200,
        "registration.train.evaluate_every": 10,
    }
    arguments = [f"--config.{key}={value}" for key, value in flags.items()]
    done = run(str(out), *arguments, CONFIG="quickstart")
    assert done.returncode == 0, done.stderr
    assert "ended with status 75" in done.stdout
    assert "registration: resumed at step" in done.stdout
    for steps in (0, 82):
        assert (out / f"test-refine{steps}" / "pairs.csv").is_file()
    timed = json.loads((out / "speed.json").read_text())
    assert {row["stage"] for row in timed["steps"]} == {"autoencoder", "diffusion", "registration"}
    lines = (out / "registration/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 200
    assert sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) < 60e6
