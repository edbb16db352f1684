"""The benchmark: its plan, restart, failures, statistics, and that all files say the same."""

import contextlib
import copy
import csv
import html
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import browser
import jax
import numpy as np
import pytest
from scipy import stats
from tiny import tiny_config

from ldm_morph_jax import evaluation
from ldm_morph_jax.config import config_from_json, experiment
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.methods.syn import SyN
from ldm_morph_jax.paper import run as benchmark
from ldm_morph_jax.paper.plan import all_evaluations, benchmark_config, tasks
from ldm_morph_jax.paper.reported import TABLE_1, TABLE_2, TABLE_3
from ldm_morph_jax.paper.run import describe, run_benchmark, typical_pair
from ldm_morph_jax.paper.statistics import compare
from ldm_morph_jax.training import loop

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("configs/benchmark/*.py"))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def tiny_benchmark(data, **changes):
    """A benchmark of the tiny experiment, by default of one learned method."""
    settings = {"methods": ("initial", "voxelmorph"), "ablation": False, "betas": ()}
    return benchmark_config(datasets={"sax": tiny_config(data)}, **settings | changes)


def rows_of(out, number):
    with (out / "tables" / f"table{number}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@contextlib.contextmanager
def numbers_only(patch):
    """Leave out the pictures and reports of single runs, which take seconds each."""
    with patch.context() as context:
        context.setattr(evaluation, "_figures", lambda *_: {})
        context.setattr(evaluation.html, "render_report", lambda *_, **__: "report")
        context.setattr(benchmark.jax, "clear_caches", lambda: None)
        yield context


# -- one real benchmark, small


def test_killed_and_restarted_gives_the_same_tables(data, tmp_path, monkeypatch, caplog):
    """Killed in training (after the checkpoint at step 2) and in evaluation."""
    caplog.set_level("INFO", logger=benchmark.__name__)

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    def die_late(name, step, _):
        if name == "registration" and step == 4:
            raise Killed

    config = tiny_benchmark(data)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    with numbers_only(monkeypatch):
        assert run_benchmark(config, whole) == []
        progress = [m.split("ETA ")[1] for m in caplog.messages if m.startswith("cell ")]
        assert progress[0] == "1 to train and 2 to evaluate"
        assert progress[1] == "2 to evaluate"
        assert re.fullmatch(r"0:\d\d:\d\d", progress[2])
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(loop, "_check_finite", die_late)
            run_benchmark(config, pieces)
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(benchmark, "load_run", die)
            run_benchmark(config, pieces)
        assert not (pieces / "index.html").exists()
        told = describe(config, pieces).splitlines()
        assert [line.split()[2] for line in told] == ["done", "done", "to"]
        assert run_benchmark(config, pieces) == []

        before = {path: path.stat().st_mtime_ns for path in pieces.glob("runs/**/*.*")}
        assert run_benchmark(config, pieces) == []
        assert before == {path: path.stat().st_mtime_ns for path in pieces.glob("runs/**/*.*")}

    def without_times(out):
        return [
            {key: value for key, value in row.items() if "seconds" not in key}
            for row in rows_of(out, 1)
        ]

    assert without_times(whole) == without_times(pieces)
    ours = without_times(pieces)[1]
    assert ours["method"] == "voxelmorph" and 0.5 < float(ours["dsc_mean"]) < 1
    run = pieces / ours["runs"]
    summary = json.loads((run / "evaluation/test/summary.json").read_text())
    assert float(ours["dsc_mean"]) == summary["dsc"]["mean"]
    assert summary["seconds_first_call"] > summary["seconds_per_pair"]["mean"]


# -- the whole plan, with methods that need no training


@pytest.fixture(scope="module")
def faked(data, tmp_path_factory):
    """A benchmark of every kind of cell; VoxelMorph fails in training, SyN in evaluation.

    Cells "train" by writing what a finished stage leaves, and move everything by a part of a pixel
    that depends on their name.
    """
    out = tmp_path_factory.mktemp("benchmark") / "out"
    apical = copy.deepcopy(tiny_config(data))
    apical.data.options.look = "echo"
    config = tiny_benchmark(
        data,
        title="Every <kind> of cell",
        methods=("initial", "syn", "voxelmorph", "transmorph", "ldm_morph"),
        seeds=(0, 1),
        ablation=True,
        betas=(1.0, 0.2),
        unseen={"apical": apical},
        transfer=(("sax", "apical"),),
    )

    def train(config, workdir, *, stages):
        if config.registration.method == "voxelmorph":
            raise RuntimeError("out of\n<memory> & patience")
        for stage in stages:
            (workdir / stage).mkdir(parents=True)
            (workdir / stage / "complete.json").write_text('{"metrics": {}}')

    def load_run(workdir):
        shift = len(Path(workdir).name) % 7 / 3
        return SimpleNamespace(displacement=lambda m, f: np.full((*m.shape[:3], 2), shift, "f"))

    def without_ants(self):
        raise ValueError("SyN needs ANTsPy")

    with pytest.MonkeyPatch.context() as patch, numbers_only(patch):
        patch.setattr(benchmark, "train", train)
        patch.setattr(benchmark, "load_run", load_run)
        patch.setattr(SyN, "__init__", without_ants)
        failed = run_benchmark(config, out)
    return config, out, failed


def test_failures_are_marked_and_stop_nothing(faked):
    _, out, failed = faked
    assert len(failed) == 2 + 2 + 4  # VoxelMorph's trainings and evaluations, SyN on two datasets
    assert failed[0] == ("train voxelmorph on sax seed 0: RuntimeError: out of <memory> & patience")
    rows = {row["method"]: row for row in rows_of(out, 1)}
    assert list(rows) == ["initial", "syn", "voxelmorph", "transmorph", "ldm_morph"]
    assert "patience" in rows["voxelmorph"]["error"] and rows["voxelmorph"]["dsc_mean"] == ""
    assert "SyN needs ANTsPy" in rows["syn"]["error"]
    assert rows["transmorph"]["seeds"] == "2" and rows["ldm_morph"]["error"] == ""
    markdown = (out / "tables/table1.md").read_text()
    assert re.search(r"^\| VoxelMorph +\| +failed \|", markdown, re.MULTILINE)
    assert "* Failed: VoxelMorph, seed 1: RuntimeError: out of <memory> & patience" in markdown
    page = (out / "index.html").read_text()
    assert "out of &lt;memory&gt; &amp; patience" in page and "8 failed" not in page
    assert (
        "RuntimeError"
        in json.loads((out / "runs/sax/voxelmorph-seed0/error.json").read_text())["traceback"]
    )


def test_tables_and_figures_of_every_kind(faked):
    _, out, _ = faked
    assert [row["row"] for row in rows_of(out, 3)] == [
        "none of them",
        "LDM features",
        "LDM features + LGCA",
        "LDM features + LGCA + latent loss",
    ]
    assert {(row["trained_on"], row["tested_on"]) for row in rows_of(out, 2)} == {
        ("apical", "apical"),  # without weights
        ("sax", "apical"),
    }
    found = {path.name for path in (out / "figures").iterdir()}
    assert found == {"fig4-sax.png", "fig5-sax.png", "fig6-sax-apical.png", "fig7.png"}
    record = json.loads((out / "benchmark.json").read_text())
    assert [point["beta"] for point in record["fig7"]["sax"]] == [0.2, 0.6, 1.0]
    # beta 0.6 is LDM-Morph itself, asked for or not, beta 1 a row of the ablation: one cell each
    assert record["fig7"]["sax"][1]["runs"] == [
        "runs/sax/ldm_morph-seed0",
        "runs/sax/ldm_morph-seed1",
    ]
    assert rows_of(out, 3)[2]["runs"].split() == record["fig7"]["sax"][2]["runs"]
    for one in record["evaluations"]:
        assert (out / one["run"]).is_dir()
        if one["error"] is None:
            summary = json.loads((out / one["results"] / "summary.json").read_text())
            assert one["dsc"] == summary["dsc"]


def test_scores_are_averaged_over_seeds(faked):
    _, out, _ = faked
    means = [
        json.loads((out / f"runs/sax/transmorph-seed{k}/evaluation/test/summary.json").read_text())
        for k in (0, 1)
    ]
    row = next(row for row in rows_of(out, 1) if row["method"] == "transmorph")
    expected = np.mean([one["dsc"]["mean"] for one in means])
    assert float(row["dsc_mean"]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_markdown_latex_and_csv_have_the_same_numbers(faked, number):
    _, out, _ = faked
    markdown = (out / f"tables/table{number}.md").read_text()
    latex = (out / f"tables/table{number}.tex").read_text()
    in_markdown = [
        [cell.strip().strip("*") for cell in line[2:-2].split(" | ")]
        for line in markdown.splitlines()
        if line.startswith("|") and not line.startswith("| :")
    ]
    plain = latex.replace("$<$", "<").replace(r"$\leq$", "<=").replace(r"$\checkmark$", "✓")
    plain = re.sub(r"\\textbf\{(.*?)\}", r"\1", plain).replace(r"\%", "%")
    in_latex = [
        [cell.strip() for cell in line.removesuffix(r"\\").split(" & ")]
        for line in plain.splitlines()
        if line.endswith(r"\\")
    ]
    assert in_latex == in_markdown and len(in_latex) > 3
    body = [cells for cells in in_markdown if cells[0] not in ("Method", "LDM features")]
    records = rows_of(out, number)
    assert len(body) == len(records)
    for cells, record in zip(body, records, strict=True):
        if record["dsc_mean"]:
            dsc = f"{float(record['dsc_mean']):.3f} ({float(record['dsc_std']):.3f})"
            difference = f"{float(record['dsc_difference']):+.3f} ["
            assert dsc in cells and any(cell.startswith(difference) for cell in cells)


def test_page_needs_nothing_else(faked):
    _, out, _ = faked
    page = (out / "index.html").read_text()
    assert "Every &lt;kind&gt; of cell" in page
    assert set(re.findall(r'src="(.{5})', page)) == {"data:"}
    assert not re.search(
        r"https?://|<script|<link(?! rel=\"icon\" href=\"data:)|@import|url\(", page
    )
    links = re.findall(r'<a href="([^"]+)"', page)
    assert len(links) > 10 and all((out / html.unescape(link)).is_file() for link in links)
    with np.load(out / "runs/sax/initial/evaluation/test/example.npz") as example:
        assert {"moving", "fixed", "displacement", "id"} <= set(example)


@pytest.mark.skipif(browser.find() is None, reason="needs a Chromium")
def test_page_in_a_browser(faked):
    _, out, _ = faked
    url = (out / "index.html").as_uri()
    with browser.page() as tab:
        tab.open(url)
        assert [r for r in tab.requests if not r.startswith("data:")] == [url]
        assert tab.errors == []
        assert tab.evaluate("[...document.images].every(i => !i.src || i.naturalWidth > 0)")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_changed_configuration_is_refused(faked):
    config, out, _ = faked
    config = copy.deepcopy(config)
    config.datasets.sax.data.options.n_test = 3
    with pytest.raises(ValueError, match=r"n_test: found 2, now 3"):
        run_benchmark(config, out)


# -- the plan


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ({"methods": ["voxelmoprh"]}, r"--methods: voxelmoprh unknown, .*initial, voxelmorph$"),
        ({"datasets": ["acdc"]}, r"--datasets: acdc unknown, expected some of sax$"),
        ({"seeds": [3]}, r"--seeds: 3 unknown, expected some of 0$"),
    ],
)
def test_unknown_names_are_refused(data, tmp_path, only, message):
    with pytest.raises(ValueError, match=message):
        run_benchmark(tiny_benchmark(data), tmp_path / "out", **only)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("initial", "voxelmoprh")}, r"config\.methods: voxelmoprh unknown, .*syn"),
        ({"transfer": (("sax", "acdc"),)}, r"tested on: acdc unknown"),
        ({"seeds": (0, 0)}, r"config\.seeds is \(0, 0\)"),
    ],
)
def test_impossible_plans_are_refused(data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        all_evaluations(tiny_benchmark(data, **changes), tmp_path)


def test_restriction_keeps_what_is_needed(data, tmp_path):
    config = tiny_benchmark(data, seeds=(0, 1), methods=("initial", "voxelmorph", "ldm_morph"))
    told = describe(config, tmp_path, methods=["ldm_morph"], seeds=[1])
    assert [line.split(maxsplit=1)[1] for line in told.splitlines()] == [
        "train     to do          ldm on sax seed 0",
        "train     to do          ldm_morph on sax seed 1",
        "evaluate  to do          ldm_morph on sax seed 1",
    ]
    told = describe(config, tmp_path, methods=["initial", "voxelmorph"], seeds=[0])
    assert [line.split()[1:2] + line.split()[4:] for line in told.splitlines()] == [
        ["train", "voxelmorph", "on", "sax", "seed", "0"],
        ["evaluate", "initial", "on", "sax"],
        ["evaluate", "voxelmorph", "on", "sax", "seed", "0"],
    ]


def test_latent_diffusion_model_is_trained_once(data, tmp_path):
    config = tiny_benchmark(data, methods=("voxelmorph", "ldm_morph"), ablation=True, seeds=(4, 5))
    todo = tasks(all_evaluations(config, tmp_path))
    cells = [task for task in todo if getattr(task, "stages", ())]
    shared = [cell for cell in cells if cell.name == "ldm"]
    assert [cell.stages for cell in shared] == [("autoencoder", "diffusion")]
    for cell in cells:
        needs = cell.name in ("ldm_morph", "ldm_morph-concat", "ldm_morph-beta1")
        assert cell.config.ldm_from == (str(shared[0].workdir) if needs else None)
        assert cell.ldm is (shared[0] if needs else None)
    # one from elsewhere is not trained at all
    config.datasets.sax.ldm_from = "elsewhere"
    cells = [task for task in tasks(all_evaluations(config, tmp_path)) if hasattr(task, "stages")]
    assert {cell.config.ldm_from for cell in cells} == {None, "elsewhere"}
    assert "ldm" not in {cell.name for cell in cells}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_cell_of_every_configuration_builds(path):
    assert f"--config configs/benchmark/{path.name}" in path.read_text()
    todo = tasks(all_evaluations(experiment(path), Path("out")))
    trained = [task for task in todo if getattr(task, "stages", ())]
    places = [getattr(task, "directory", None) or task.workdir for task in todo]
    assert len(set(places)) == len(places)
    built = set()
    for cell in trained:
        restored = config_from_json(json.loads(json.dumps(cell.config.to_dict())))
        assert restored.to_dict() == cell.config.to_dict()
        network = repr((cell.config.registration.model, cell.config.data.image_size))
        if network not in built:
            method = build_method(cell.config)
            size = cell.config.data.image_size
            jax.eval_shape(lambda method=method, size=size: method.init(jax.random.key(0), size))
            built.add(network)
    budgets = {
        (
            cell.dataset,
            cell.config.registration.train.steps * cell.config.registration.train.batch_size,
        )
        for cell in trained
    }
    assert len(budgets) == len(experiment(path).datasets)  # equal for all methods


def test_command_refuses_what_it_does_not_know(tmp_path):
    arguments = ("--config", "configs/benchmark/phantom.py", "--out", tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-m", "ldm_morph_jax.benchmark", *map(str, arguments), "--methods=demons"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: --methods: demons unknown, expected some of initial, syn")
    assert not (tmp_path / "out").exists()


# -- statistics and the paper's numbers


def test_comparison_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.85, 0.05, 20), rng.normal(0.84, 0.05, 20)
    found = compare(a, b)
    assert found.n == 20 and found.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert found.p_value == stats.wilcoxon(a, b).pvalue
    interval = stats.bootstrap((a - b,), np.mean, n_resamples=9999, rng=0).confidence_interval
    assert (found.low, found.high) == tuple(interval)
    assert found.low < found.difference < found.high


def test_comparison_by_hand():
    # six differences, all positive: 2 of the 64 signs are as extreme
    found = compare(np.arange(1.0, 7.0), np.zeros(6))
    assert found.p_value == pytest.approx(2 / 64) and found.difference == 3.5
    # pairs without a score are left out; equal scores are no evidence
    found = compare(np.array([0.5, np.nan, 0.7]), np.array([0.5, 0.6, 0.7]))
    assert found == (2, 0.0, 0.0, 0.0, 1.0)
    assert compare(np.array([np.nan]), np.array([1.0])).n == 0
    with pytest.raises(ValueError, match=r"found shapes \(2,\), \(3,\)"):
        compare(np.zeros(2), np.zeros(3))


def test_the_papers_tables_are_consistent():
    """Rows that the paper prints twice are the same here, and no row is missing."""
    assert len(TABLE_1) == 9 * 4 and len(TABLE_2) == 9 * 2 and len(TABLE_3) == 4 * 4
    for dataset in ("camus_2ch", "camus_4ch", "echonet", "acdc"):
        ours = TABLE_1["ldm_morph", dataset]
        assert TABLE_3[(True, True, True), dataset][:2] == ours[:2]
        assert ours.dsc[0] == max(TABLE_1[key].dsc[0] for key in TABLE_1 if key[1] == dataset)
    for key, score in TABLE_2.items():
        if key[0] in ("initial", "syn", "lddmm"):
            assert score[:2] == TABLE_1[key][:2]


def test_typical_pair_is_the_median():
    def pair(overlap):
        moving, fixed = np.zeros((2, 10, 10, 1), np.uint8)
        fixed[0] = 1
        moving[0, :overlap] = 1
        return {"moving_mask": moving, "fixed_mask": fixed}

    assert typical_pair([pair(n) for n in (9, 1, 5, 7, 3)], [1]) == 2
    assert typical_pair([pair(4)], [1]) == 0
