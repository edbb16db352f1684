"""`evaluate`: what registers, whose data, where it writes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from in_process import call
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
    done = call("evaluate", "--model", "initial", *arguments, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["method"], summary["dataset"], summary["n_pairs"]) == ("initial", "phantom", 2)
    assert summary["dsc"] == summary["dsc_initial"]
    assert done.stdout.splitlines()[-1] == f"report: {tmp_path / 'out/report.html'}"


def test_nothing_to_evaluate_and_unknown_models():
    done = call("evaluate")
    assert done.returncode == 2
    assert done.stderr.startswith("error: expected --workdir RUN, or --model with a run, a file")
    done = call("evaluate", "--model", "sunnybrok")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "unknown model 'sunnybrok'" in done.stderr and "sunnybrook-small" in done.stderr


@pytest.mark.parametrize(
    ("given", "named", "expected"),
    [
        ({}, "RUN", "RUN/evaluation/test"),
        ({"refine": 5, "split": "validation"}, "RUN", "RUN/evaluation/validation-refine5"),
        ({"model": "lddmm"}, "lddmm", "RUN/evaluation/test-lddmm"),
        ({"dataset": "sunnybrook"}, "RUN", "RUN/evaluation/test-sunnybrook"),
        ({"out": Path("elsewhere")}, "RUN", "elsewhere"),
    ],
)
def test_where_it_writes(run, given, named, expected):
    options = evaluate.Options(**given)
    config = evaluate.data_config(options, model(), run)
    found = evaluate.output_directory(options, named.replace("RUN", str(run)), run, config)
    assert str(found) == expected.replace("RUN", str(run))


def test_where_it_writes_without_a_run():
    options = evaluate.Options(dataset="acdc", refine=5)
    config = evaluate.data_config(options, model(tiny_config("data")), None)
    found = evaluate.output_directory(options, "some/where/file.safetensors", None, config)
    assert str(found) == "evaluation/file-acdc-test-refine5"


def test_whose_data(run):
    trained = tiny_config("elsewhere").unlock()
    trained.data.intensity = "percentile"
    options = evaluate.Options(source="files", data="prepared")
    data = evaluate.data_config(options, model(trained), None).data
    assert (data.name, data.intensity, data.image_size) == ("phantom", "percentile", 32)
    assert (data.source, data.directory, data.options.n_test) == ("files", "prepared", 2)
    of_run = evaluate.data_config(options, model(trained), run).data
    assert of_run.intensity == "minmax"
    options = evaluate.Options(dataset="camus_4ch", allow_partial=True)
    data = evaluate.data_config(options, model(trained), None).data
    assert (data.name, data.intensity) == ("camus_4ch", "percentile")
    assert data.options.to_dict() == {"allow_partial": True}
    larger = tiny_config("data").unlock()
    larger.data.image_size = 64
    with pytest.raises(ValueError, match=r"data\.image_size is 32, expected 64"):
        evaluate.data_config(evaluate.Options(), model(larger), run)
