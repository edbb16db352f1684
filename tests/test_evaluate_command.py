"""`evaluate`: what registers, whose data, where it writes."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from absl.testing import flagsaver
from tiny import tiny_config

from ldm_morph_jax import evaluate
from ldm_morph_jax.runs.directory import save_config

ROOT = Path(__file__).parent.parent
TINY = """
import sys
sys.path.insert(0, {tests!r})
from tiny import tiny_config
def get_config():
    return tiny_config({data!r})
"""


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ldm_morph_jax.evaluate", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


@pytest.fixture
def flags():
    """The command's flags, given; the others as they are by default."""
    evaluate.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver():
        yield lambda **given: flagsaver.flagsaver(**given).__enter__()


@pytest.fixture
def run(tmp_path):
    save_config(tiny_config("data"), tmp_path / "run")
    return tmp_path / "run"


def model(config=None):
    """As much of a trained method as the choice of data asks for."""
    size = None if config is None else config.data.image_size
    return SimpleNamespace(config=config, image_size=size)


def test_a_method_without_a_run(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY.format(tests=str(ROOT / "tests"), data="unused"))
    arguments = ("--config", tmp_path / "tiny.py", "--data", tmp_path / "data")
    done = call("--model", "initial", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["method"], summary["dataset"], summary["n_pairs"]) == ("initial", "phantom", 2)
    assert summary["dsc"] == summary["dsc_initial"]
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'out/report.html'}"


def test_nothing_to_evaluate_and_unknown_models():
    done = call()
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected --workdir RUN, or --model with a run, a file")
    done = call("--model", "sunnybrok")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "unknown model 'sunnybrok'" in done.stderr and "sunnybrook-small" in done.stderr


@pytest.mark.parametrize(
    ("given", "named", "expected"),
    [
        ({}, "RUN", "RUN/evaluation/test"),
        ({"refine": 5, "split": "validation"}, "RUN", "RUN/evaluation/validation-refine5"),
        ({"model": "lddmm"}, "lddmm", "RUN/evaluation/test-lddmm"),
        ({"dataset": "sunnybrook"}, "RUN", "RUN/evaluation/test-sunnybrook"),
        ({"out": "elsewhere"}, "RUN", "elsewhere"),
    ],
)
def test_where_it_writes(flags, run, given, named, expected):
    flags(**given)
    config = evaluate.data_config(model(), run)
    found = evaluate.output_directory(named.replace("RUN", str(run)), run, config)
    assert str(found) == expected.replace("RUN", str(run))


def test_where_it_writes_without_a_run(flags):
    flags(dataset="acdc", refine=5)
    config = evaluate.data_config(model(tiny_config("data")), None)
    found = evaluate.output_directory("some/where/file.safetensors", None, config)
    assert str(found) == "evaluation/file-acdc-test-refine5"


def test_whose_data(flags, run):
    trained = tiny_config("elsewhere").unlock()
    trained.data.intensity = "percentile"
    flags(source="files", data="prepared")
    data = evaluate.data_config(model(trained), None).data
    assert (data.name, data.intensity, data.image_size) == ("phantom", "percentile", 32)
    assert (data.source, data.directory, data.options.n_test) == ("files", "prepared", 2)
    assert evaluate.data_config(model(trained), run).data.intensity == "minmax"  # of the run
    flags(dataset="camus_4ch", allow_partial=True)
    data = evaluate.data_config(model(trained), None).data
    assert (data.name, data.intensity) == ("camus_4ch", "percentile")
    assert data.options.to_dict() == {"allow_partial": True}
    larger = tiny_config("data").unlock()
    larger.data.image_size = 64
    with pytest.raises(ValueError, match=r"data\.image_size is 32, expected 64"):
        evaluate.data_config(model(larger), run)
