"""Tables of jobs: what they may look like, that one bad row harms no other, what is kept."""

import csv
import dataclasses
import os
import sys

import numpy as np
import pytest
from analytic_method import AnalyticMethod, heart
from in_process import exit_status

from ldm_morph_jax import register, track, warp
from ldm_morph_jax.files.errors import FileError
from ldm_morph_jax.files.geometry import plain_geometry
from ldm_morph_jax.files.writing import write_image
from ldm_morph_jax.register import read_batch
from ldm_morph_jax.registering import cine_files, pair_files, pair_result, tracking
from ldm_morph_jax.registering.batch import fingerprint, parse_shard, read_jobs
from ldm_morph_jax.registering.options import CineOptions, PairOptions
from ldm_morph_jax.registering.search import Refinement
from ldm_morph_jax.registering.tracking import Tracking

SHAPE = (40, 44)


@pytest.mark.parametrize(
    "content",
    [
        b"id,split,moving,fixed\na,train,ed.nii,es.nii\n",  # prepare's table
        b"id, moving, fixed\na, ed.nii, es.nii\n",
        b"\xef\xbb\xbfid,moving,fixed\r\na,ed.nii,es.nii\r\n,,\r\n",  # Excel
        b"id;moving;fixed;note\r\na;ed.nii;es.nii;gut, oder?\r\n",
        "id,moving,fixed\na,ed.nii,es.nii\n".encode("utf-16"),
    ],
)
def test_tables_that_others_wrote(tmp_path, content):
    (tmp_path / "pairs.csv").write_bytes(content)
    jobs = read_batch(tmp_path / "pairs.csv", tmp_path / "out")
    assert list(jobs) == ["a"]
    assert (jobs["a"].moving, jobs["a"].fixed) == (tmp_path / "ed.nii", tmp_path / "es.nii")
    assert jobs["a"].out == tmp_path / "out" / "a"


def test_optional_columns(tmp_path):
    (tmp_path / "pairs.csv").write_bytes(
        "moving,fixed,id,fixed_mask,slice,frame\n"
        "a.nii,b.nii,Jos\xe9,m.nii,all,0 9\n"
        "a.nii,b.nii,,,3,7\n".encode("latin-1")
    )
    first, second = read_jobs(PairOptions(batch=tmp_path / "pairs.csv", out=tmp_path)).items()
    assert first[0] == "Jos\xe9" and first[1].fixed_mask == tmp_path / "m.nii"
    assert first[1].slice == "all" and first[1].frames == (0, 9)
    assert second[0] == "0002" and second[1].fixed_mask is None
    assert second[1].slice == 3 and second[1].frames == (7, 7)


@pytest.mark.parametrize(
    "text,message",
    [
        ("id,moving,fixed\na,x,y\n\na,x,y\n", "line 4: repeats the id 'a'"),
        ("id,moving,fixed\n../up,x,y\n", "not usable as a folder name"),
        ("id,moving,fixed\nsummary.csv,x,y\n", "not usable as a folder name"),
        ("id,moving,fixed\n.hidden,x,y\n", "not usable as a folder name"),
        ("moving,target\nx,y\n", "expected the columns moving,fixed"),
        ("moving,fixed\n", "lists no pairs"),
        ("moving,fixed\nx,\n", "lacks moving or fixed"),
        ("moving,fixed,slice\nx,y,two\n", "found 'two', expected a number, several"),
        ("moving,fixed,frame\nx,y,1 2 3\n", "found 3 numbers"),
        ("moving,fixed,frame\nx,y,0 2.0\n", "line 2: frame: found '2.0', expected a whole number"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(FileError, match=message) as refusal:
        read_jobs(PairOptions(batch=tmp_path / "pairs.csv", out=tmp_path / "out"))
    assert str(tmp_path / "pairs.csv") in str(refusal.value)


def test_a_mask_and_contours_in_one_row(tmp_path):
    (tmp_path / "cines.csv").write_text("cine,mask,contours\nc.nii,m.nii,drawn.csv\n")
    with pytest.raises(FileError, match=r"line 2: a mask and contours given"):
        read_jobs(CineOptions(batch=tmp_path / "cines.csv", out=tmp_path))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3"])
def test_bad_shards(text):
    with pytest.raises(ValueError, match="expected i/n with i from 1 to n"):
        parse_shard(text)


# ---------------------------------------------------------------------------- the work


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without_times(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


class Cohort:
    """Six rows of tiny images, and a command that does them."""

    def __init__(self, command, folder, monkeypatch):
        self.command, self.folder = command, folder
        rng = np.random.default_rng(0)
        if command is register:
            for k in range(7):
                image = heart(SHAPE, radius=0.4 + 0.02 * k)
                write_image(folder / f"{k}.nii.gz", image, plain_geometry(SHAPE, (2.0, 2.0)))
            rows = ["moving,fixed", *(f"{k}.nii.gz,6.nii.gz" for k in range(6))]
            monkeypatch.setattr(
                register, "load_model", lambda name, calls="often": AnalyticMethod()
            )
            self.works_in, self.works_by = pair_result, "measure"
            self.options = ("--refine", "0")
        else:
            for k in range(6):
                frames = np.stack([heart((32, 32), radius=0.5), heart((32, 32), radius=0.4)])
                np.save(folder / f"{k}.npy", frames + rng.normal(size=frames.shape))
            rows = ["cine", *(f"{k}.npy" for k in range(6))]
            monkeypatch.setattr(tracking, "SEARCH", Refinement(levels=(2,), steps=(3,)))
            monkeypatch.setattr(tracking, "IMPROVE", Refinement(levels=(1,), steps=(1,)))
            monkeypatch.setattr(tracking, "DEFAULTS", Tracking(rounds=1, chunk=1))
            self.works_in, self.works_by = cine_files, "track_heart"
            self.options = ()
        (folder / "table.csv").write_text("\n".join(rows) + "\n")
        self.done, self.fails_at, self.error = 0, None, None
        real = getattr(self.works_in, self.works_by)

        def counted(*arguments, **options):
            self.done += 1
            if self.done == self.fails_at:
                raise self.error
            return real(*arguments, **options)

        monkeypatch.setattr(self.works_in, self.works_by, counted)

    def run(self, out, *more):
        """Exit status; `done` counts what was computed."""
        self.done = 0
        arguments = ["--batch", self.folder / "table.csv", "--out", out, "--no-report"]
        return exit_status(self.command, *arguments, *self.options, *more)


@pytest.fixture(params=[register, track], ids=["register", "track"])
def cohort(request, tmp_path, monkeypatch):
    return Cohort(request.param, tmp_path, monkeypatch)


def test_a_cohort_with_a_row_that_fails(cohort, capsys):
    """Five results and one row with the reason; started again it computes that row only."""
    out = cohort.folder / "out"
    cohort.fails_at, cohort.error = 3, RuntimeError("INTERNAL:\nout of memory")
    assert cohort.run(out) == 1
    rows = read_table(out / "summary.csv")
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "ok", "ok", "ok"]
    assert rows[2]["error"] == "RuntimeError: INTERNAL: out of memory"
    told = capsys.readouterr()
    assert "5 of 6" in told.out and "[3/6] 0003: failed: RuntimeError" in told.err
    assert " s left)" in told.err
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert folders == ["0001", "0002", "0004", "0005", "0006"]

    cohort.fails_at = None
    assert cohort.run(out) == 0 and cohort.done == 1
    again = read_table(out / "summary.csv")
    assert [row["status"] for row in again] == ["ok"] * 6
    others = [0, 1, 3, 4, 5]
    assert [again[k] for k in others] == [rows[k] for k in others]  # their seconds, too
    assert cohort.run(out) == 0 and cohort.done == 0

    assert cohort.run(out, "--overwrite") == 0 and cohort.done == 6


def test_two_shards_give_the_same_table(cohort):
    whole, parts = cohort.folder / "whole", cohort.folder / "parts"
    assert cohort.run(whole) == 0
    for shard in ("1/2", "2/2"):
        assert cohort.run(parts, "--shard", shard) == 0 and cohort.done == 3
    shards = [read_table(parts / f"summary-{k}-of-2.csv") for k in (1, 2)]
    assert [row["id"] for row in shards[0]] == ["0001", "0003", "0005"]
    together = sorted(sum(shards, []), key=lambda row: row["id"])
    assert without_times(together) == without_times(read_table(whole / "summary.csv"))
    assert cohort.run(parts, "--shard", "7/7") == 0 and cohort.done == 0
    assert read_table(parts / "summary-7-of-7.csv") == []  # more shards than rows
    assert cohort.run(parts) == 0 and cohort.done == 0  # the whole table, without work
    assert without_times(read_table(parts / "summary.csv")) == without_times(together)


def test_a_batch_that_is_stopped_leaves_its_table(cohort, monkeypatch):
    out = cohort.folder / "out"
    cohort.fails_at, cohort.error = 3, KeyboardInterrupt()
    monkeypatch.setattr(os, "_exit", sys.exit)  # it would end the tests
    assert cohort.run(out) == 130
    assert [row["status"] for row in read_table(out / "summary.csv")] == ["ok", "ok"]
    cohort.fails_at = None
    assert cohort.run(out) == 0 and cohort.done == 4


def test_what_has_changed_is_not_kept(cohort):
    """A file exported anew, other weights, another option: told, as --overwrite is not given."""
    out, file = cohort.folder / "out", None
    assert cohort.run(out) == 0
    file = next(cohort.folder.glob("2.*"))
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert cohort.run(out) == 1
    rows = read_table(out / "summary.csv")
    failed = [row["id"] for row in rows if row["status"] == "failed"]
    assert failed == ["0003"] and "add --overwrite" in rows[2]["error"]


def test_other_weights_are_noticed(tmp_path, monkeypatch):
    cohort = Cohort(register, tmp_path, monkeypatch)
    assert cohort.run(tmp_path / "out") == 0
    other = AnalyticMethod()
    other.params = {"scale": np.float32(2)}
    monkeypatch.setattr(register, "load_model", lambda name, calls="often": other)
    assert cohort.run(tmp_path / "out") == 1
    rows = read_table(tmp_path / "out" / "summary.csv")
    assert [row["status"] for row in rows] == ["failed"] * 6


@pytest.mark.parametrize(
    "error", [MemoryError("18 GiB"), RuntimeError("who\nknows"), KeyError("k")]
)
def test_a_row_that_fails_in_any_way(tmp_path, monkeypatch, error):
    cohort = Cohort(register, tmp_path, monkeypatch)
    cohort.fails_at, cohort.error = 2, error
    assert cohort.run(tmp_path / "out") == 1
    rows = read_table(tmp_path / "out" / "summary.csv")
    assert [row["status"] for row in rows] == ["ok", "failed", "ok", "ok", "ok", "ok"]
    assert rows[1]["error"].startswith(type(error).__name__) and "\n" not in rows[1]["error"]
    assert np.isfinite(float(rows[2]["correlation_after"]))


def test_all_files_of_an_input_count(tmp_path):
    """Those of a folder, and the data beside a header."""
    folder = tmp_path / "cine"
    folder.mkdir()
    for k in range(3):
        (folder / f"IM{k}.dcm").write_bytes(b"dicom")
    (tmp_path / "a.mhd").write_text("NDims = 4\nElementDataFile = a.raw\n")
    (tmp_path / "a.raw").write_bytes(b"data")
    (tmp_path / "other.raw").write_bytes(b"data")

    def changes(path, touched):
        before = fingerprint(path)
        status = touched.stat()
        os.utime(touched, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
        return fingerprint(path) != before

    assert changes(folder, folder / "IM1.dcm")
    assert changes(tmp_path / "a.mhd", tmp_path / "a.raw")
    assert not changes(tmp_path / "a.mhd", tmp_path / "other.raw")
    before = fingerprint(folder)
    (folder / "IM3.dcm").write_bytes(b"new")
    assert fingerprint(folder) != before


def test_warp_of_a_table(tmp_path, monkeypatch, capsys):
    """The same runner: each input keeps its name, what is done is kept, a bad row is a row."""
    cohort = Cohort(register, tmp_path, monkeypatch)
    assert cohort.run(tmp_path / "out") == 0
    field = "out/0001/displacement.npz"
    (tmp_path / "points.csv").write_text("row,column\n20,21\n")
    (tmp_path / "warps.csv").write_text(
        "id,transform,input,interpolation,inverse\n"
        f"image,{field},0.nii.gz,,\n"
        f"points,{field},points.csv,,yes\n"
        f"lost,{field},none.nii.gz,nearest,\n"
    )
    out = tmp_path / "warped"

    def run():
        return exit_status(warp, "--batch", str(tmp_path / "warps.csv"), "--out", str(out))

    assert run() == 1
    rows = {row["id"]: row for row in read_table(out / "summary.csv")}
    assert [row["status"] for row in rows.values()] == ["ok", "ok", "failed"]
    assert "no such file" in rows["lost"]["error"] and rows["image"]["file"] == "0.nii.gz"
    assert "2 of 3 inputs carried" in capsys.readouterr().out
    assert (out / "points" / "points.csv").is_file() and not (out / "lost").exists()
    written = (out / "image" / "0.nii.gz").stat().st_mtime_ns
    write_image(
        tmp_path / "none.nii.gz",
        (heart(SHAPE) > 300).astype(np.uint8),
        plain_geometry(SHAPE, (2.0, 2.0)),
    )
    assert run() == 0
    assert (out / "image" / "0.nii.gz").stat().st_mtime_ns == written


def test_options_are_documented():
    """Every field is an option with a help text; a batch row replaces only what is its own."""
    for options in (PairOptions, CineOptions):
        names = {field.name for field in dataclasses.fields(options)}
        assert {*options.INPUTS, *options.REQUIRED, *options.COLUMNS} <= names


def test_two_runs_into_one_folder(tmp_path, monkeypatch):
    """Neither with --overwrite: the second to finish is refused, and nothing of it is left."""
    Cohort(register, tmp_path, monkeypatch)
    out, real, first = tmp_path / "out", pair_result.measure, {}
    options = PairOptions(
        moving=tmp_path / "0.nii.gz", fixed=tmp_path / "6.nii.gz", out=out, refine=0, report=False
    )

    def slow(*arguments, **settings):
        if not first:  # meanwhile another run begins and ends
            first["metrics"] = {}
            quick = dataclasses.replace(options, moving=tmp_path / "1.nii.gz")
            first["metrics"] = pair_files.register_files(quick, AnalyticMethod)
        return real(*arguments, **settings)

    monkeypatch.setattr(pair_result, "measure", slow)
    with pytest.raises(ValueError, match="exists; add `overwrite`"):
        pair_files.register_files(options, AnalyticMethod)
    assert not list(out.glob(".writing-*"))
    assert "1.nii.gz" in (out / "metrics.json").read_text()
