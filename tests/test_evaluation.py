"""The scored evaluation of a split, against numbers computed here by hand."""

import csv
import json
import re

import numpy as np
import pytest

from ldm_morph_jax import evaluation
from ldm_morph_jax.evaluation import evaluate_split, patient_of, read_pairs

LABELS = {1: "LV cavity", 2: "myocardium"}


def identity(moving, fixed):
    return np.zeros((*moving.shape[:3], 2), np.float32)


def ground_truth(pairs):
    """A register function that knows the motion of each pair by its moving image."""
    known = {pair["moving"].tobytes(): pair["displacement"] for pair in pairs}
    return lambda moving, fixed: np.stack([known[image.tobytes()] for image in moving])


class Pairs:
    """As much of `data.Dataset` as is scored: two pairs of each patient."""

    name = "blobs"

    def __init__(self, pairs, labels=LABELS):
        self.pairs, self.labels = pairs, labels

    def split(self, split):
        return self.pairs

    def metadata(self, split):
        return [{"id": f"pair{i}", "patient": f"patient{i // 2}"} for i in range(len(self.pairs))]


def evaluate(register, pairs, out_dir, labels=LABELS, **changes):
    dataset = Pairs(pairs, labels)
    return evaluate_split(register, dataset, "test", out_dir, method="test method", **changes)


def read_rows(out_dir):
    with (out_dir / "pairs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def dice(a, b):
    return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))


@pytest.fixture
def numbers_only(monkeypatch):
    """Leave out figures and report, which take seconds, where a test is about numbers."""
    monkeypatch.setattr(evaluation, "report_figures", lambda *_, **__: {})
    monkeypatch.setattr(evaluation, "report_page", lambda *_, **__: "")


@pytest.fixture(scope="module")
def truth_run(pairs, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("truth")
    summary = evaluate(
        ground_truth(pairs),
        pairs,
        out_dir,
        batch_size=3,
        config={"depths": (2, 2), "note": "<script>alert(1)</script>"},
        curves={"registration": {"loss": {"training": ([1, 2], [2.0, 1.0])}}},
    )
    return summary, out_dir


def test_truth_scores_as_truth(pairs, truth_run):
    summary, out_dir = truth_run
    rows = read_rows(out_dir)
    assert [row["id"] for row in rows] == ["pair0", "pair1", "pair2", "pair3"]
    assert [row["patient"] for row in rows] == ["patient0", "patient0", "patient1", "patient1"]
    for row, pair in zip(rows, pairs, strict=True):
        initial = [dice(pair["moving_mask"] == k, pair["fixed_mask"] == k) for k in LABELS]
        assert float(row["dsc_initial_lv_cavity"]) == pytest.approx(initial[0])
        assert float(row["dsc_initial_myocardium"]) == pytest.approx(initial[1])
        assert float(row["dsc_initial"]) == pytest.approx(np.mean(initial))
        assert float(row["dsc"]) > 0.95 > float(row["dsc_initial"])
        assert float(row["epe_px"]) == 0
        length = np.linalg.norm(pair["displacement"], axis=-1)
        assert float(row["epe_initial_px"]) == pytest.approx(length.mean(), rel=1e-5)
        inside = pair["fixed_mask"][..., 0] > 0
        expected = length[inside].mean()
        assert float(row["epe_structures_initial_px"]) == pytest.approx(expected, rel=1e-5)
        mse = np.mean((pair["moving"] - pair["fixed"]) ** 2, dtype=np.float64)
        assert float(row["mse_initial"]) == pytest.approx(mse)
        assert float(row["mse"]) < 1e-9
        assert float(row["nonpositive_jacobian_percent"]) == 0
        assert float(row["hd95_initial_mm"]) == pytest.approx(1.5 * float(row["hd95_initial_px"]))
    for key in ("dsc", "dsc_initial", "hd95_px", "sd_log_jacobian", "seconds_per_pair"):
        values = [float(row[key]) for row in rows]
        assert summary[key]["mean"] == pytest.approx(np.mean(values))
        assert summary[key]["std"] == pytest.approx(np.std(values))
        assert summary[key]["median"] == pytest.approx(np.median(values))
        assert (summary[key]["n"], summary[key]["n_excluded"]) == (4, 0)


def test_files_are_complete(truth_run):
    summary, out_dir = truth_run
    assert json.loads((out_dir / "summary.json").read_text()) == summary
    assert summary["n_pairs"] == 4 and summary["batch_size"] == 3
    assert (summary["method"], summary["dataset"], summary["split"]) == (
        "test method",
        "blobs",
        "test",
    )
    assert summary["hardware"] and "jax" in summary["versions"]
    assert set(summary["structures"]) == set(LABELS.values())
    assert summary["structures"]["LV cavity"]["dsc"]["mean"] > 0.95
    names = {path.name for path in (out_dir / "figures").iterdir()}
    pictures = ("pair_best", "pair_median", "pair_worst", "pairs", "dsc", "hd95", "curves")
    assert names == {f"{name}.png" for name in pictures}
    assert not list(out_dir.rglob("*.tmp"))


def test_report_needs_nothing_else(truth_run):
    page = (truth_run[1] / "report.html").read_text(encoding="utf-8")
    assert (
        "http:" not in page
        and "https:" not in page
        and "@import" not in page
        and "url(" not in page
    )
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "<script>alert(1)" not in page and "alert(1)" in page  # shown, not run
    for text in ("pair0", "LV cavity", "Training", "test method", "median"):
        assert text in page


def test_identity_changes_nothing(pairs, tmp_path, numbers_only):
    summary = evaluate(identity, pairs, tmp_path)
    for before, after in (
        ("dsc_initial", "dsc"),
        ("hd95_initial_px", "hd95_px"),
        ("mse_initial", "mse"),
        ("epe_initial_px", "epe_px"),
    ):
        assert summary[before] == summary[after]
    assert summary["nonpositive_jacobian_percent"]["mean"] == 0
    assert summary["sd_log_jacobian"]["mean"] == 0


def test_calls_have_one_shape_and_one_warm_up(pairs, tmp_path, numbers_only):
    shapes = []

    def register(moving, fixed):
        shapes.append(moving.shape)
        return identity(moving, fixed)

    evaluate(register, pairs, tmp_path, batch_size=3)
    assert shapes == [(3, 48, 48, 1)] * 3  # warm-up and two batches, the last one filled up
    shapes.clear()
    evaluate(register, pairs, tmp_path)
    assert shapes == [(1, 48, 48, 1)] * 5


def test_missing_scores_are_null_and_counted(pairs, tmp_path, numbers_only):
    changed = [dict(pair) for pair in pairs[:3]]
    for key in ("moving_mask", "fixed_mask"):
        changed[1][key] = np.where(changed[1][key] == 2, 0, changed[1][key])  # no myocardium
        changed[2][key] = np.zeros_like(changed[2][key])  # nothing at all
    for pair in changed:
        del pair["displacement"]
    summary = evaluate(identity, changed, tmp_path)
    rows = read_rows(tmp_path)
    assert rows[1]["dsc_myocardium"] == "" and rows[2]["dsc"] == ""
    assert rows[1]["dsc"] == rows[1]["dsc_lv_cavity"]  # the mean of what there is
    assert (summary["dsc"]["n"], summary["dsc"]["n_excluded"]) == (2, 1)
    myocardium = summary["structures"]["myocardium"]["dsc"]
    assert (myocardium["n"], myocardium["n_excluded"]) == (1, 2)
    assert "epe_px" not in summary and "epe_px" not in rows[0]
    assert "NaN" not in (tmp_path / "summary.json").read_text()


def test_no_structure_anywhere(pairs, tmp_path):
    empty = np.zeros_like(pairs[0]["moving_mask"])
    blank = [pair | {"moving_mask": empty, "fixed_mask": empty} for pair in pairs[:2]]
    summary = evaluate(identity, blank, tmp_path)
    text = json.loads((tmp_path / "summary.json").read_text())
    expected = {"mean": None, "std": None, "median": None, "n": 0, "n_excluded": 2}
    assert text["dsc"] == expected == summary["dsc"]
    assert "No pair has a structure" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_one_pair_is_enough(pairs, tmp_path):
    evaluate(identity, pairs[:1], tmp_path)
    assert (tmp_path / "figures" / "pair_best.png").exists()
    assert not (tmp_path / "figures" / "pair_worst.png").exists()


def test_clear_errors(pairs, tmp_path):
    def broken(moving, fixed):
        displacement = identity(moving, fixed)
        displacement[0, 0, 0, 0] = np.nan
        return displacement

    with pytest.raises(ValueError, match="NaN or infinity in the displacement of pair pair0"):
        evaluate(broken, pairs, tmp_path)
    with pytest.raises(ValueError, match=r"displacement of shape \(1, 2\)"):
        evaluate(lambda moving, fixed: np.zeros((1, 2)), pairs, tmp_path)
    with pytest.raises(ValueError, match="blobs test: found 0 pairs, 2 structures"):
        evaluate(identity, [], tmp_path)
    with pytest.raises(ValueError, match="pair pair0: found no spacing"):
        evaluate(identity, [{k: v for k, v in pairs[0].items() if k != "spacing"}], tmp_path)
    with pytest.raises(ValueError, match="names that differ"):
        evaluate(identity, pairs, tmp_path, labels={1: "LV", 2: "lv"})
    assert not (tmp_path / "summary.json").exists()


def test_pairs_are_read_as_written(truth_run):
    _, out_dir = truth_run
    table, rows = read_pairs(out_dir / "pairs.csv"), read_rows(out_dir)
    assert list(table) == list(rows[0])
    for i, row in enumerate(rows):
        for key, text in row.items():
            if key in ("id", "patient"):
                assert table[key][i] == text
            else:
                assert table[key][i] == float(text)  # to the last digit


def test_patients_of_earlier_files(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("id,dsc\nSC-HF-I-05-slice01,0.5\nSC-HF-I-05-slice02,\npatient101,0.25\n")
    table = read_pairs(path)
    assert list(table["patient"]) == ["SC-HF-I-05", "SC-HF-I-05", "patient101"]
    assert table["dsc"].isna().tolist() == [False, True, False]
    assert patient_of("A-slice3-b") == "A-slice3-b"  # a slice's number ends the id, or is none


@pytest.mark.parametrize("text", ["", "id,score\na,1\n", "id,dsc\na,high\n", "dsc\n1,2,3\n4\n"])
def test_tables_that_are_no_pairs(tmp_path, text):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(ValueError, match=r"pairs\.csv: (not a CSV|found the columns)"):
        read_pairs(tmp_path / "pairs.csv")
