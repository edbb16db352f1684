"""The tables of README and docs are recomputed from the committed rows per pair.

A table is checked when a comment above it says where its numbers come from:

    <!-- pairs.csv of docs/results/X/runs: initial, ldm_morph-seed* minus lddmm, ... -->

One entry per row, in order, each a folder below the named one that holds a pairs.csv; a name with a
star stands for several seeds. "A minus B" is a row of A that is also compared with B; "pairs.csv of
docs/results/X/runs minus B:" compares every row with B, but B itself. What a column holds is known
from its header: a score ("DSC", "myocardium", "% J <= 0", "HD95, px", "s per pair" and so on), a
difference to another row ("... [95 %]"), its "p", or "p, corrected" for all rows of the table.
Empty cells and other columns are text. With "columns of" in front, entries are the columns after
the first, and the rows quarters of the pairs, from the least overlap before registration to the
most. "{A,B}" in the folder's name stands for as many columns with DSC, each from one folder; "{}"
in an entry is that folder's part of the name.
"""

import re
from pathlib import Path

import guided_structures
import heart_verdict_limits
import interval_accuracy
import label_efficiency
import numpy as np
import pandas as pd
import phantom_peers
import pytest
import recognised_images
import speed_tables
import stack_ejection
import stack_twist
import stack_volumes
import tracking_accuracy
import verdict_limits
import volume_cine
import volume_motion
import volume_pairs

from ldm_morph_jax.evaluation import read_pairs
from ldm_morph_jax.ops.metrics import summarise
from ldm_morph_jax.paper.statistics import compare, holm
from ldm_morph_jax.registering.intervals import ERRORS

ROOT = Path(__file__).parents[1]
MARK = re.compile(
    r"<!--\s+(columns of )?pairs\.csv of ([^\s:]+)(?:\s+minus\s+(\S+))?:\s+(.*?)\s+-->", re.DOTALL
)
SCORES = {  # what a header says -> key in pairs.csv
    # folds, had the field been read in another convention (tests/syn_settings.py)
    "axes exchanged": "nonpositive_jacobian_percent_exchanged",
    "signs reversed": "nonpositive_jacobian_percent_negated",
    "axes and signs": "nonpositive_jacobian_percent_both",
    "DSC": "dsc",
    "J <= 0": "nonpositive_jacobian_percent",
    "HD95, mm": "hd95_mm",
    "HD95": "hd95_px",
    "squared error": "mse",
    "end-point error": "epe_px",
    "within structures": "epe_structures_px",
    "per pair": "seconds_per_pair",
    "right ventricle": "dsc_right_ventricle",
    "myocardium": "dsc_myocardium",
    "left ventricle": "dsc_left_ventricle",
    "SD of log J": "sd_log_jacobian",
}
DOCUMENTS = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if MARK.search(path.read_text(encoding="utf-8"))
]


def scores(folder, name, key):
    """(`[seeds, pairs]`, patients) of a run, or of its seeds."""
    files = sorted(folder.glob(f"{name}/pairs.csv"))
    assert files, f"{folder / name}: no pairs.csv"
    tables = [read_pairs(file) for file in files]
    for table in tables:
        assert list(table["id"]) == list(tables[0]["id"])
    return np.stack([table[key] for table in tables]), list(tables[0]["patient"])


def table_after(text):
    """(header, rows) of the first Markdown table of a text."""
    lines = [line.strip() for line in text.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    lines = lines[start:]
    end = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:end]]
    return cells[0], cells[2:]


def written_like(found, numbers):
    """The text of a cell with other numbers in it, in order, each with as many digits."""
    numbers = iter(numbers)

    def write(match):
        sign = "+" if match.group().startswith("+") else ""
        digits = len(match.group().partition(".")[2])
        return f"{next(numbers):{sign}.{digits}f}"

    return re.sub(r"[+-]?\d+\.\d+", write, found)


def expected_p(p):
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def wrong_cells(text, root=ROOT):
    """What does not follow from the files, one line each, of every marked table of a document."""
    wrong, marks = [], list(MARK.finditer(text))
    assert len(marks) == len(re.findall(r"<!--[^>]*pairs\.csv", text)), "a comment is no mark"
    for mark in marks:
        columns, folder, reference, entries = mark.groups()
        entries = [re.split(r"\s+minus\s+", entry.strip()) for entry in entries.split(",")]
        if reference:
            entries = [entry if entry == [reference] else [*entry, reference] for entry in entries]
        header, rows = table_after(text[mark.end() :])
        names = re.search(r"{(.*)}", folder)
        if names:
            folders = {n: root / folder.replace(names.group(), n) for n in names[1].split(",")}
            wrong += _side_by_side(folders, entries, header, rows)
        else:
            wrong += (_quarters if columns else _rows)(root / folder, entries, header, rows)
    return wrong


def _side_by_side(folders, entries, header, rows):
    wrong, columns = [], [i for i, column in enumerate(header) if "DSC" in column]
    for place, (name, folder) in zip(columns, folders.items(), strict=True):
        column = [[row[0], row[place]] for row in rows]
        named = [[entry.replace("{}", name) for entry in parts] for parts in entries]
        wrong += _rows(folder, named, [header[0], header[place]], column)
    return wrong


def _rows(folder, entries, header, rows):
    assert len(entries) == len(rows), f"{len(entries)} entries for {len(rows)} rows of {header}"
    wrong, checked, key, compared = [], 0, "dsc", {}

    def say(row, column, found, expected):
        if found != expected:
            wrong.append(f"{rows[row][0]!r}, {column}: found {found!r}, expected {expected!r}")

    for place, column in enumerate(header):
        named = next((k for name, k in SCORES.items() if name in column), None)
        cells = [
            (i, re.sub("[*† ]+$|^[*]+|[*]+(?= )", "", row[place])) for i, row in enumerate(rows)
        ]
        cells = [(i, found) for i, found in cells if found]
        if "[95 %]" in column:
            key = named or "dsc"
            for i, entry in enumerate(entries):
                if len(entry) == 2:
                    (first, patients), (second, _) = (scores(folder, n, key) for n in entry)
                    compared[i] = compare(first, second, patients)
            for i, found in cells:
                say(i, column, found, written_like(found, compared[i][:3]))
        elif column == "p":
            for i, found in cells:
                say(i, column, found, expected_p(compared[i].p_value))
        elif column == "p, corrected":
            corrected = dict(
                zip(compared, holm([c.p_value for c in compared.values()]), strict=True)
            )
            for i, found in cells:
                say(i, column, found, expected_p(corrected[i]))
        elif named:
            for i, found in cells:
                statistics = summarise(scores(folder, entries[i][0], named)[0].mean(axis=0))
                numbers = statistics["mean"], statistics["std"]
                say(i, column, found, written_like(found, numbers))
        else:
            continue
        checked += len(cells)
    assert checked, f"nothing to check in {header}"
    return wrong


def _quarters(folder, entries, header, rows):
    assert len(entries) == len(header) - 1 and len(rows) == 4
    before = scores(folder, entries[0][0], "dsc_initial")[0].mean(axis=0)
    quarters = np.array_split(np.argsort(before, kind="stable"), 4)
    wrong = []
    for place, (name,) in enumerate(entries, start=1):
        values = scores(folder, name, "dsc")[0].mean(axis=0)
        for row, quarter in zip(rows, quarters, strict=True):
            found = row[place].strip("*")
            expected = written_like(found, [values[quarter].mean()])
            if found != expected:
                wrong.append(f"{row[0]!r}, {header[place]}: found {found!r}, expected {expected!r}")
    return wrong


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_follow_from_the_rows_per_pair(path):
    assert wrong_cells(path.read_text(encoding="utf-8")) == []


def test_no_table_of_scores_is_unchecked():
    """But those that the benchmark wrote itself, of which the documents are made."""
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        if path.parent.name == "tables":
            continue
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        for before, line, after in zip(lines, lines[1:], lines[2:], strict=False):
            is_header = line.startswith("|") and after.startswith("|--")
            if is_header and re.search(r"\bDSC\b", line):
                assert before.endswith("-->"), f"{path}: no mark above {line}"


def test_every_result_has_a_checked_table():
    """Whoever commits rows per pair commits a table that is made of them."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    for folder in sorted((ROOT / "docs/results").iterdir()):
        if any(folder.rglob("pairs.csv")):
            assert f"pairs.csv of docs/results/{folder.name}/" in text, folder


def test_tables_of_tracking_follow_from_the_rows_per_beat():
    text = (ROOT / "docs/results/tracking/README.md").read_text(encoding="utf-8")
    for table in tracking_accuracy.read_tables(ROOT / "docs/results/tracking"):
        missing = [line for line in table.splitlines() if line not in text]
        assert missing == []


def test_tables_of_intervals_and_of_other_programs_follow_from_their_rows():
    folder = ROOT / "docs/results/tracking"
    text = (folder / "README.md").read_text(encoding="utf-8")
    intervals = interval_accuracy.scored(*interval_accuracy.read_rows())
    assert interval_accuracy.bias(*interval_accuracy.read_rows()) in text
    for table in (intervals, phantom_peers.markdown(folder / "peers.csv")):
        assert [line for line in table.splitlines() if line not in text] == []


def test_intervals_are_those_of_the_calibration_and_hold():
    """Those that cover at least 85 % of unseen hearts, and no others."""
    calibration, unseen = interval_accuracy.read_rows()
    seeds = [set(zip(rows["look"], rows["seed"], strict=True)) for rows in (calibration, unseen)]
    assert not seeds[0] & seeds[1]
    errors = interval_accuracy.quantiles(calibration)
    held = [
        (row.look, row.what)
        for row in interval_accuracy.coverage(unseen, errors).itertuples()
        if round(row.covered) >= interval_accuracy.LEAST
    ]
    assert ERRORS == {
        (interval_accuracy.VIEW[look], what): errors[look, what] for look, what in held
    }


@pytest.mark.parametrize(
    "page, rows, markdown",
    (
        ("registering", "register/verdict.csv", verdict_limits.markdown),
        ("registering", "register/recognised.csv", recognised_images.markdown),
        ("tracking", "tracking/verdict.csv", heart_verdict_limits.markdown),
    ),
)
def test_a_table_follows_from_its_rows(page, rows, markdown):
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    _, found = table_after(text.partition(f"{rows} -->")[2])
    assert found == table_after(markdown(pd.read_csv(ROOT / "docs/results" / rows)))[1]


def test_tables_of_times_follow_from_the_logs():
    text = (ROOT / "docs/results/speed/README.md").read_text(encoding="utf-8")
    assert [table for table in speed_tables.tables() if table not in text] == []


TABLE = """
<!-- pairs.csv of runs: a, b-seed* minus a -->
| | DSC, mean (std) | difference to a [95 %] | p | p, corrected |
|---|---|---|---|---|
| a | 0.50 (0.10) | | | |
| b | **0.65** (0.15) † | +0.150 [+0.100, +0.200] | 0.500 | 0.500 |
"""


def test_differences_between_volumes_follow_from_the_rows_per_pair():
    folder = ROOT / "docs/results/volumes"
    text = (folder / "README.md").read_text(encoding="utf-8")

    def difference(rows, one, other, columns, digits):
        table = rows.assign(score=rows[columns].mean(axis=1))
        table = table.pivot_table(index="patient", columns="mode", values="score")
        of_patient = (table[one] - table[other]).to_numpy()
        draws = np.random.default_rng(0).choice(of_patient, (2000, len(of_patient)))
        ends = np.percentile(draws.mean(axis=1), [2.5, 97.5])
        mean, low, high = (f"{x:+.{digits}f}" for x in (of_patient.mean(), *ends))
        return f"{mean} [{low}, {high}]"

    dsc, distance = ([name.format(k) for k in (1, 2, 3)] for name in ("dice_{}", "hd95_{}_mm"))
    training, guidance, test = (
        pd.read_csv(folder / f"{name}.csv") for name in ("training", "guidance", "test")
    )
    assert volume_pairs.table(training) in text and volume_pairs.table(guidance) in text
    for rows, one, other, digits in (
        (training, "unguided-volume", "still", 3),
        (training, "unguided-volume", "slices", 3),
        (training, "volume", "unguided-volume", 4),
        (guidance, "volume", "unguided-volume", 4),
        (test, "volume", "slices", 4),
        (test, "volume", "unguided-volume", 4),
        (test, "unguided-volume", "slices", 4),
        (test, "unguided-volume", "still", 3),
        (test, "guided-volume", "volume", 3),
    ):
        assert difference(rows, one, other, dsc, digits) in text, (one, other)
    for one, other in (("volume", "slices"), ("volume", "unguided-volume")):
        shown = difference(test, one, other, distance, 2)
        assert shown.replace(" [", " mm [") in text
    assert (test.nonpositive_percent == 0).all() and "No map folds." in text


def test_table_of_volumes_follows_from_the_rows_of_the_test_patients():
    folder = ROOT / "docs/results/volumes"
    text = (folder / "README.md").read_text(encoding="utf-8")
    rows = pd.read_csv(folder / "test.csv")
    assert volume_pairs.table(rows) in text
    rows = pd.concat([rows, pd.read_csv(folder / "ants.csv")])
    of_syn = rows[rows["mode"] == "ants-syn"]["patient"]
    assert volume_pairs.table(rows[rows["patient"].isin(of_syn)]) in text
    assert not rows.duplicated(["patient", "way", "mode"]).any()


def test_tables_of_motion_in_volumes_follow_from_their_rows():
    folder = ROOT / "docs/results/volumes"
    text = (folder / "README.md").read_text(encoding="utf-8")
    rows = pd.read_csv(folder / "motion.csv")
    assert volume_motion.table(rows) in text
    assert not rows.duplicated(["seed", "heart", "method"]).any()
    same = rows["heart"] < (rows["method"] == "track").sum()  # of both methods
    assert volume_motion.table(rows[same]) in text
    tracked = rows[rows["method"] == "track"]
    near = tracked["epe_voxels"] <= 0.5
    turned = (tracked["twist_found"] - tracked["twist_true"]).abs()
    assert f"{near.sum()} of {len(tracked)} with `track`" in text
    assert f"{(turned <= 1).sum()} of {len(tracked)} ({turned.max():.1f})" in text
    by = {
        d: 100 * np.sqrt(np.mean(tracked[f"{d}_segments"] ** 2)) for d in volume_motion.DIRECTIONS
    }
    told = ", ".join(f"{direction} {error:.1f}" for direction, error in by.items())
    assert f"`track`: {told}." in " ".join(text.split())
    twists = pd.read_csv(folder / "twist.csv")
    assert stack_twist.sentence(twists) in " ".join(text.split())
    assert not twists.duplicated(["seed", "heart"]).any()
    assert volume_cine.table(pd.read_csv(folder / "cine.csv")) in text


def test_tables_of_ejection_fractions_of_stacks_follow_from_their_rows():
    folder = ROOT / "docs/results/volumes"
    text = (folder / "README.md").read_text(encoding="utf-8")
    rows = pd.read_csv(folder / "ejection.csv")
    development = rows["patient"].isin(range(1, 83, 9))
    for part in (rows[development], rows[rows["patient"] > 100]):
        assert stack_ejection.table(part) in text
    assert not rows.duplicated(["patient", "mode"]).any()


def test_a_wrong_digit_is_found(tmp_path):
    for name, dsc in {"a": (0.4, 0.6), "b-seed0": (0.5, 0.8), "b-seed1": (0.5, 0.8)}.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        rows = "".join(f"P{i}-slice01,{value}\n" for i, value in enumerate(dsc))
        (tmp_path / "runs" / name / "pairs.csv").write_text("id,dsc\n" + rows)
    text = TABLE
    assert wrong_cells(text, tmp_path) == []
    assert (
        wrong_cells(
            text.replace("b-seed* minus a", "b-seed*").replace("runs:", "runs minus a:"), tmp_path
        )
        == []
    )
    for right, wrong in (
        ("0.50 (", "0.51 ("),
        ("(0.15)", "(0.16)"),
        ("+0.150", "+0.151"),
        ("+0.200]", "+0.210]"),
        ("| 0.500 | 0.500 |", "| <0.001 | 0.500 |"),
        ("| 0.500 | 0.500 |", "| 0.500 | 1.000 |"),
    ):
        assert len(wrong_cells(text.replace(right, wrong), tmp_path)) == 1, (right, wrong)
    with pytest.raises(AssertionError, match="a comment is no mark"):
        wrong_cells(text.replace("runs:", "runs"), tmp_path)
    with pytest.raises(AssertionError, match="1 entries for 2 rows"):
        wrong_cells(text.replace("a, b-seed*", "b-seed*"), tmp_path)
    with pytest.raises(AssertionError, match=r"no pairs\.csv"):
        wrong_cells(text.replace("b-seed*", "c"), tmp_path)


def test_table_of_label_efficiency_follows_from_its_rows():
    folder = ROOT / "docs/results/anatomy"
    rows = pd.read_csv(folder / "label_efficiency.csv")
    assert label_efficiency.markdown(rows) in (folder / "README.md").read_text(encoding="utf-8")
    assert not rows.duplicated(["encoder", "labelled", "seed", "patient"]).any()


def test_table_of_volumes_without_a_mask_follows_from_its_rows():
    folder = ROOT / "docs/results/anatomy"
    table = stack_volumes.table(pd.read_csv(folder / "stack_volumes.csv"))
    assert table in (folder / "README.md").read_text(encoding="utf-8")


def test_table_of_guided_structures_follows_from_its_rows():
    folder = ROOT / "docs/results/anatomy"
    table = guided_structures.markdown(pd.read_csv(folder / "structures.csv"))
    assert table in (folder / "README.md").read_text(encoding="utf-8")


def test_table_of_anatomy_follows_from_the_rows_per_patient():
    """Dice of docs/results/anatomy: mean, SD and interval of patients.csv."""
    folder = ROOT / "docs/results/anatomy"
    text = (folder / "README.md").read_text(encoding="utf-8")
    header, rows = table_after(text.split("<!-- anatomy -->", 1)[1])
    assert header[2:] == ["ED", "ES"] and len(rows) >= 6
    for weights, structure, *cells in rows:
        name = re.match(r"`([\w-]+)`", weights)[1]
        other = "-on-acdc" if "ACDC" in weights and name == "anatomy" else ""
        table = pd.read_csv(folder / "runs" / f"{name}{other}" / "patients.csv")
        for phase, cell in zip(("ED", "ES"), cells, strict=True):
            chosen = (table["phase"] == phase) & (table["structure"] == structure)
            dice = table.loc[chosen, "dice"].dropna().to_numpy()
            draws = np.random.default_rng(0).choice(dice, (2000, len(dice))).mean(axis=1)
            numbers = dice.mean(), dice.std(ddof=1), *np.quantile(draws, (0.025, 0.975))
            assert cell == "{:.3f} ({:.3f}) [{:.3f}, {:.3f}]".format(*numbers), (name, structure)
