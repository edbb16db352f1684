"""The benchmark: its plan, restart, failures, claims, and that all files say the same."""

import contextlib
import copy
import csv
import functools
import html
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import browser
import jax
import killing
import numpy as np
import pytest
from tiny import tiny_config
from volume_run import volume_config

from ldm_morph_jax import evaluation
from ldm_morph_jax.config import config_from_json, experiment, grid_shape
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.methods.lddmm import LDDMM
from ldm_morph_jax.paper import run as benchmark
from ldm_morph_jax.paper.plan import all_evaluations, benchmark_config, tasks
from ldm_morph_jax.paper.run import describe, run_benchmark, typical_pair
from ldm_morph_jax.paper.statistics import holm
from ldm_morph_jax.runs.trained import load_method

pytestmark = pytest.mark.integration

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
        context.setattr(evaluation, "report_figures", lambda *_, **__: {})
        context.setattr(evaluation, "report_page", lambda *_, **__: "report")
        context.setattr(benchmark.jax, "clear_caches", lambda: None)
        yield context


# -- one real benchmark, small


def test_killed_and_restarted_gives_the_same_tables(data, tmp_path, monkeypatch, caplog):
    """Killed in training (after the checkpoint at step 2) and in evaluation."""
    caplog.set_level("INFO", logger=benchmark.__name__)

    def die_in_evaluation(name_or_path):
        if name_or_path == "initial":
            return load_method(name_or_path)
        raise killing.Killed

    config = tiny_benchmark(data)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    with numbers_only(monkeypatch):
        assert run_benchmark(config, whole) == []
        progress = [m.split("ETA ")[1] for m in caplog.messages if m.startswith("task ")]
        assert progress[0] == "1 to train and 2 to evaluate"
        assert progress[1] == "2 to evaluate"
        assert re.fullmatch(r"0:\d\d:\d\d", progress[2])
        with monkeypatch.context() as patch, pytest.raises(killing.Killed):
            killing.in_validation(patch, "registration", 2)
            run_benchmark(config, pieces)
        with monkeypatch.context() as patch, pytest.raises(killing.Killed):
            patch.setattr(benchmark, "load_method", die_in_evaluation)
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


def test_volumes_are_trained_scored_and_drawn(data, tmp_path, monkeypatch):
    """VoxelMorph on the 3-D phantom, with every picture and report; LDDMM for a few steps."""
    own = volume_config(data).unlock()
    own.data.update(depth=16)
    own.registration.train.update(steps=2, evaluate_every=2)
    config = benchmark_config(
        datasets={"hearts": own},
        methods=("initial", "lddmm", "voxelmorph"),
        baseline_size="small",
        ablation=False,
        betas=(),
    )
    monkeypatch.setattr(LDDMM, "__init__", functools.partialmethod(LDDMM.__init__, iterations=2))
    assert run_benchmark(config, tmp_path) == []
    rows = {row["method"]: row for row in rows_of(tmp_path, 4)}
    assert list(rows) == ["initial", "lddmm", "voxelmorph"]
    for row in rows.values():
        for structure in ("right_ventricle", "myocardium", "left_ventricle"):
            assert 0.2 < float(row[f"dsc_{structure}_mean"]) < 1
        assert float(row["hd95_mm_mean"]) > 1
    [folds] = {row["nonpositive_jacobian_percent_mean"] for row in rows_of(tmp_path, 1)}
    assert float(folds) == 0
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"fig4-hearts.png", "fig5-hearts.png"}
    assert (tmp_path / "runs/hearts/lddmm/evaluation/test/report.html").stat().st_size > 10_000
    header = (tmp_path / "tables/table4.md").read_text()
    assert "DSC, left ventricle" in header and "HD95, mm" in header


# -- the whole plan, with methods that need no training


@contextlib.contextmanager
def faked_work(patch):
    """Runs "train" by writing what a finished stage leaves; methods that need no training.

    Trained ones move everything by a part of a pixel that depends on their name. On validation
    TransMorph likes the larger smoothness weight, all others the smaller; TransMorph is best at its
    last step. VoxelMorph fails in training, SyN in evaluation.
    """

    def train(config, workdir, *, stages):
        c = config.registration
        if c.method == "voxelmorph":
            raise RuntimeError("out of\n<memory> & patience")
        larger = c.method == "transmorph" and not c.integration_steps
        done = {"metrics": {"score": c.smoothness_weight * (1 if larger else -1)}}
        done["best_step"] = 4 if larger else 2
        for stage in stages:
            (workdir / stage).mkdir(parents=True)
            (workdir / stage / "complete.json").write_text(json.dumps(done))
        (workdir / "trained_with.json").write_text(json.dumps(c.smoothness_weight))

    def load_fake(name_or_path):
        if name_or_path == "syn":
            raise ValueError("SyN needs ANTsPy")
        shift = 0 if name_or_path == "initial" else len(Path(name_or_path).resolve().name) % 7 / 3

        def displacement(moving, fixed):
            return np.full((*moving.shape[:3], 2), shift, np.float32)

        return SimpleNamespace(displacement=displacement)

    def refined(method, moving, fixed, *, steps):
        return method.displacement(moving, fixed) / (1 + steps)

    with numbers_only(patch) as context:
        context.setattr(benchmark, "train", train)
        context.setattr(benchmark, "load_method", load_fake)
        context.setattr(benchmark, "refined_displacement", refined)
        yield


@pytest.fixture(scope="module")
def faked(data, tmp_path_factory):
    """A benchmark of every kind of run."""
    out = tmp_path_factory.mktemp("benchmark") / "out"
    own = tiny_config(data)
    own.registration.train.patience = 1
    own.registration.update({"integration_steps": 3, "velocity_sigma": 2.0, "symmetric": True})
    apical = copy.deepcopy(own)
    apical.data.options.look = "echo"
    config = benchmark_config(
        title="Every <kind> of run",
        datasets={"sax": own},
        methods=("initial", "syn", "voxelmorph", "transmorph", "ldm_morph"),
        our_head=("transmorph",),
        seeds=(0, 1),
        weights=(0.5, 2.0),
        refine=3,
        betas=(1.0, 0.2),
        unseen={"apical": apical},
        transfer=(("sax", "apical"),),
    )

    with pytest.MonkeyPatch.context() as patch, faked_work(patch):
        failed = run_benchmark(config, out)
    return config, out, failed


def test_failures_are_marked_and_stop_nothing(faked):
    _, out, failed = faked
    # VoxelMorph's two tries, choice, second seed and four evaluations, SyN on two datasets
    assert len(failed) == 2 + 1 + 1 + 4 + 2
    assert failed[0] == (
        "train voxelmorph-weight0.005 on sax seed 0: RuntimeError: out of <memory> & patience"
    )
    rows = {row["method"]: row for row in rows_of(out, 1)}
    assert list(rows) == [
        *("initial", "syn", "voxelmorph", "transmorph", "transmorph-velocity"),
        *("ldm_morph", "ldm_morph-refined"),
    ]
    assert "patience" in rows["voxelmorph"]["error"] and rows["voxelmorph"]["dsc_mean"] == ""
    assert "SyN needs ANTsPy" in rows["syn"]["error"]
    assert rows["transmorph"]["seeds"] == "2" and rows["ldm_morph"]["error"] == ""
    markdown = (out / "tables/table1.md").read_text()
    assert re.search(r"^\| VoxelMorph +\| +failed \|", markdown, re.MULTILINE)
    assert "* Failed: VoxelMorph, seed 1: RuntimeError: out of <memory> & patience" in markdown
    page = (out / "index.html").read_text()
    assert "out of &lt;memory&gt; &amp; patience" in page and "10 failed" not in page
    place = out / "runs/sax/voxelmorph-weight0.005-seed0/error.json"
    assert "RuntimeError" in json.loads(place.read_text())["traceback"]


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
    # beta 0.6 is LDM-Morph itself, asked for or not, beta 1 a row of the ablation: one run each
    assert record["fig7"]["sax"][1]["runs"] == [
        "runs/sax/ldm_morph-seed0",
        "runs/sax/ldm_morph-seed1",
    ]
    assert rows_of(out, 3)[2]["runs"].split() == record["fig7"]["sax"][2]["runs"]
    for one in record["evaluations"]:
        if one["error"] is None:
            assert (out / one["run"]).is_dir()
            summary = json.loads((out / one["results"] / "summary.json").read_text())
            assert one["dsc"] == summary["dsc"]


def test_smoothness_weights_are_chosen_on_validation(faked):
    _, out, _ = faked
    runs = out / "runs/sax"
    weights = {
        path.name: float((path / "trained_with.json").read_text())
        for path in runs.glob("*-*")
        if (path / "trained_with.json").exists()
    }
    # TransMorph's own weight is 0.02, LDM-Morph's 0.01, also for its head on another network
    assert (weights["transmorph-weight0.01-seed0"], weights["transmorph-weight0.04-seed0"]) == (
        0.01,
        0.04,
    )
    assert weights["transmorph-seed0"] == weights["transmorph-seed1"] == 0.04
    assert weights["transmorph-velocity-seed0"] == weights["transmorph-velocity-seed1"] == 0.005
    for name in ("ldm_morph", "ldm_morph-none", "ldm_morph-beta1", "ldm_morph-beta0.2"):
        assert weights[f"{name}-seed0"] == weights[f"{name}-seed1"] == 0.005
    assert (runs / "transmorph-seed0").resolve().name == "transmorph-weight0.04-seed0"
    rows = {row["method"]: row for row in rows_of(out, 1)}
    assert float(rows["transmorph"]["smoothness_weight"]) == 0.04
    assert rows["initial"]["smoothness_weight"] == ""
    summary = json.loads((runs / "transmorph-seed1/evaluation/test/summary.json").read_text())
    assert summary["config"]["registration"]["smoothness_weight"] == 0.04
    assert "each method's own times 0.5, 2, first seed: TransMorph 0.04" in (
        (out / "tables/table1.md").read_text()
    )


def test_a_further_try_may_be_the_best(data, tmp_path, monkeypatch):
    def weight_of_the_row():
        summary = tmp_path / "runs/sax/transmorph-seed0/evaluation/test/summary.json"
        return json.loads(summary.read_text())["config"]["registration"]["smoothness_weight"]

    with faked_work(monkeypatch):
        config = tiny_benchmark(data, methods=("initial", "transmorph"), weights=(0.5, 1.0))
        assert run_benchmark(config, tmp_path) == []
        assert weight_of_the_row() == 0.02
        config.weights = (0.5, 1.0, 2.0)
        assert run_benchmark(config, tmp_path) == []
        assert weight_of_the_row() == 0.04
    [row] = [row for row in rows_of(tmp_path, 1) if row["method"] == "transmorph"]
    assert float(row["smoothness_weight"]) == 0.04
    # a run that was made without tries is never replaced
    folder = tmp_path / "other"
    with faked_work(monkeypatch):
        config.weights = (1.0,)
        assert run_benchmark(config, folder) == []
        config.weights = (0.5, 1.0)
        [choice, evaluation] = run_benchmark(config, folder)
    assert "transmorph-seed0 is a run of its own, expected a link" in choice
    assert not (folder / "runs/sax/transmorph-seed0").is_symlink()


def test_what_has_not_converged_is_marked(faked):
    _, out, _ = faked
    rows = {row["method"]: row for row in rows_of(out, 1)}
    assert rows["transmorph"]["converged"] == "false" and rows["ldm_morph"]["converged"] == "true"
    assert rows["initial"]["converged"] == ""
    markdown = (out / "tables/table1.md").read_text()
    marked = [line for line in markdown.splitlines() if line.startswith("|") and "†" in line]
    assert len(marked) == 1 and marked[0].startswith("| TransMorph ")
    assert "† Not converged, validation was still getting better at the last step: TransMorph." in (
        markdown
    )


def test_claims_say_what_they_rest_on(faked):
    _, out, _ = faked
    with (out / "tables/claims.csv").open(newline="") as file:
        claims = list(csv.DictReader(file))
    first = [c for c in claims if c["table"] == "1"]
    assert [c["claim"] for c in first] == [
        "LDM-Morph is ahead of Initial",
        "LDM-Morph is ahead of TransMorph",
        "LDM-Morph is ahead of TransMorph, our head",
        "LDM-Morph, refined is ahead of Initial",
        "LDM-Morph, refined is ahead of TransMorph",
        "LDM-Morph, refined is ahead of TransMorph, our head",
        "LDM-Morph, refined is ahead of LDM-Morph",
    ]
    assert [c["claim"] for c in claims if c["table"] == "3"] == [
        "adding LDM features helps",
        "adding LGCA helps",
        "adding latent loss helps",
        "LDM-Morph is ahead of none of its parts",
    ]
    one = first[1]
    assert (one["patients"], one["pairs"], one["seeds_first"], one["seeds_second"]) == (
        *("2", "2", "2", "2"),
    )
    # from the files that it names, by hand
    means = []
    for file in one["files"].split():
        with (out / file).open(newline="") as stored:
            means.append(np.mean([float(row["dsc"]) for row in csv.DictReader(stored)]))
    expected = np.mean(means[:2]) - np.mean(means[2:])
    assert float(one["difference"]) == pytest.approx(expected, abs=1e-12)
    corrected = holm([float(c["p"]) for c in first])
    assert [float(c["p_corrected"]) for c in first] == pytest.approx(list(corrected))
    for c in claims:
        holds = float(c["low"]) > 0 and float(c["p_corrected"]) < 0.05
        assert c["holds"] == ("yes" if holds else "no")
    # a row's own line is the claim the other way round
    row = next(row for row in rows_of(out, 1) if row["method"] == "transmorph")
    assert float(row["dsc_difference"]) == -float(one["difference"])
    assert (row["dsc_difference_low"], row["p_corrected"]) == (
        repr(-float(one["high"])),
        one["p_corrected"],
    )
    refined = next(row for row in rows_of(out, 1) if row["method"] == "ldm_morph-refined")
    assert refined["dsc_difference"] == first[-1]["difference"]


def test_scores_are_averaged_over_seeds(faked):
    _, out, _ = faked
    means = [
        json.loads((out / f"runs/sax/transmorph-seed{k}/evaluation/test/summary.json").read_text())
        for k in (0, 1)
    ]
    row = next(row for row in rows_of(out, 1) if row["method"] == "transmorph")
    expected = np.mean([one["dsc"]["mean"] for one in means])
    assert float(row["dsc_mean"]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_markdown_latex_and_csv_have_the_same_numbers(faked, number):
    _, out, _ = faked
    markdown = (out / f"tables/table{number}.md").read_text()
    latex = (out / f"tables/table{number}.tex").read_text()
    in_markdown = [
        [cell.strip().strip("*") for cell in line[2:-2].split(" | ")]
        for line in markdown.splitlines()
        if line.startswith("|") and not line.startswith("|:")
    ]
    plain = latex.replace("$<$", "<").replace(r"$\leq$", "<=").replace(r"$\checkmark$", "✓")
    plain = plain.replace(r"$\dagger$", "†")
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
            assert any(cell.split(" †")[0] == dsc for cell in cells)
        if record["dsc_difference"]:
            difference = f"{float(record['dsc_difference']):+.3f} ["
            assert any(cell.startswith(difference) for cell in cells)


def test_structures_have_a_table(faked):
    _, out, _ = faked
    rows = {row["method"]: row for row in rows_of(out, 4)}
    assert list(rows) == [row["method"] for row in rows_of(out, 1)]
    summary = json.loads((out / "runs/sax/initial/evaluation/test/summary.json").read_text())
    ours = rows["initial"]
    assert float(ours["hd95_mm_mean"]) == pytest.approx(summary["hd95_mm"]["mean"])
    for name, structure in summary["structures"].items():
        found = float(ours[f"dsc_{name.replace(' ', '_')}_mean"])
        assert found == pytest.approx(structure["dsc"]["mean"])


def test_page_needs_nothing_else(faked):
    _, out, _ = faked
    page = (out / "index.html").read_text()
    assert "Every &lt;kind&gt; of run" in page
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
        ({"weights": ()}, r"config\.weights is \(\), expected at least one"),
        ({"our_head": ("lddmm",)}, r"config\.our_head: lddmm unknown"),
        ({"seeded": ("initial",)}, r"config\.seeded: initial unknown, .*voxelmorph"),
        (
            {"unseen": {"acdc_3d": experiment("acdc_3d")}, "methods": ("initial", "transmatch")},
            r"config\.methods: transmatch register images; of volumes \(acdc_3d\) expected some of "
            r".*initial, .*syn, transmorph, voxelmorph$",
        ),
        ({"unseen": {"acdc_3d": experiment("acdc_3d")}, "refine": 3}, r"refine is 3, expected 0"),
        (
            {"unseen": {"b": experiment("acdc_3d")}, "transfer": (("sax", "b"),)},
            r"images of 32x32 and 32x128x128 pixels, expected one size",
        ),
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
def test_every_run_of_every_configuration_builds(path):
    assert f"ldm-morph benchmark --config benchmark/{path.stem}" in path.read_text()
    config = experiment(path)
    todo = tasks(all_evaluations(config, Path("out")))
    trained = [task for task in todo if getattr(task, "stages", ())]
    places = [getattr(task, "directory", None) or task.workdir for task in todo]
    assert len(set(places)) == len(places)
    built = set()
    for run in trained:
        restored = config_from_json(json.loads(json.dumps(run.config.to_dict())))
        assert restored.to_dict() == run.config.to_dict()
        network = repr((run.config.registration.model, grid_shape(run.config)))
        if network not in built:
            method = build_method(run.config)
            space = grid_shape(run.config)
            jax.eval_shape(lambda m=method, space=space: m.init(jax.random.key(0), space))
            built.add(network)
    equal = ("steps", "batch_size", "evaluate_every", "patience")
    budgets = {(run.dataset, *(run.config.registration.train[k] for k in equal)) for run in trained}
    assert len(budgets) == len(config.datasets)  # equal for all methods
    tries = {len(run.tries) for run in trained if run.stages == ("registration",)}
    assert tries <= {0, len(config.weights)}


def test_fair_rows_differ_in_their_network_alone(data, tmp_path):
    own = tiny_config(data)
    own.registration.update({"integration_steps": 3, "velocity_sigma": 2.0, "symmetric": True})
    own.registration.update({"similarity": "ncc", "smoothness_weight": 0.5})
    own.registration.train.update({"patience": 3, "learning_rate": 3e-3, "schedule": "cosine"})
    config = benchmark_config(
        datasets={"sax": own},
        methods=("voxelmorph", "ldm_morph"),
        our_head=("voxelmorph",),
        baseline_size="small",
        ablation=False,
        betas=(),
    )
    runs = {one.run.name: one.run.config for one in all_evaluations(config, tmp_path)}
    assert set(runs) == {"voxelmorph", "voxelmorph-velocity", "ldm_morph-mse", "ldm_morph"}
    plain, ours = runs["voxelmorph"].registration, runs["voxelmorph-velocity"].registration
    assert (plain.integration_steps, plain.similarity, plain.smoothness_weight) == (0, "mse", 0.01)
    for key in ("integration_steps", "velocity_sigma", "symmetric", "similarity"):
        assert ours[key] == own.registration[key], key
    assert (ours.smoothness_weight, ours.smoothness_of) == (0.5, "displacement")
    assert ours.model == plain.model and build_method(runs["voxelmorph-velocity"]).predicts_velocity
    papers = runs["ldm_morph-mse"].registration
    assert (papers.similarity, papers.smoothness_weight, papers.symmetric) == ("mse", 0.01, True)
    for found in runs.values():
        train = found.registration.train
        assert (train.patience, train.learning_rate, train.schedule) == (3, 3e-3, "cosine")


def test_seeds_and_tries_of_a_plan(data, tmp_path):
    config = tiny_benchmark(
        data,
        methods=("initial", "voxelmorph", "ldm_morph"),
        seeds=(0, 1),
        seeded=("ldm_morph",),
        weights=(0.5, 1.0),
    )
    told = [line.split(maxsplit=1)[1] for line in describe(config, tmp_path).splitlines()]
    assert [" ".join(line.replace("to do", "").split()) for line in told] == [
        "train voxelmorph-weight0.005 on sax seed 0",
        "train voxelmorph-weight0.01 on sax seed 0",
        "choose voxelmorph on sax seed 0",
        "train ldm on sax seed 0",
        "train ldm_morph-weight0.005 on sax seed 0",
        "train ldm_morph-weight0.01 on sax seed 0",
        "choose ldm_morph on sax seed 0",
        "train ldm_morph on sax seed 1",
        "evaluate initial on sax",
        "evaluate voxelmorph on sax seed 0",
        "evaluate ldm_morph on sax seed 0",
        "evaluate ldm_morph on sax seed 1",
    ]


def test_an_experiment_is_no_benchmark(tmp_path):
    with pytest.raises(ValueError, match="names an experiment, expected a benchmark"):
        all_evaluations(experiment("quickstart"), tmp_path)


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


def test_typical_pair_is_the_median():
    def pair(overlap):
        moving, fixed = np.zeros((2, 10, 10, 1), np.uint8)
        fixed[0] = 1
        moving[0, :overlap] = 1
        return {"moving_mask": moving, "fixed_mask": fixed}

    assert typical_pair([pair(n) for n in (9, 1, 5, 7, 3)], [1]) == 2
    assert typical_pair([pair(4)], [1]) == 0
