"""Tables of pairs: what they may look like, and that one bad pair harms no other."""

import csv

import numpy as np
import pytest
from analytic_method import AnalyticMethod, heart

from ldm_morph_jax.files.errors import FileError
from ldm_morph_jax.files.images import plain_geometry, write_image
from ldm_morph_jax.registering.batch import read_jobs, register_batch
from ldm_morph_jax.registering.jobs import Options
from ldm_morph_jax.registering.registrar import Registrar

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
    jobs = read_jobs(tmp_path / "pairs.csv", tmp_path / "out")
    assert list(jobs) == ["a"]
    assert (jobs["a"].moving, jobs["a"].fixed) == (tmp_path / "ed.nii", tmp_path / "es.nii")
    assert jobs["a"].out == tmp_path / "out" / "a"


def test_optional_columns(tmp_path):
    (tmp_path / "pairs.csv").write_bytes(
        "moving,fixed,id,fixed_mask,slice,frame\n"
        "a.nii,b.nii,Jos\xe9,m.nii,all,0 9\n"
        "a.nii,b.nii,,,3,7\n".encode("latin-1")
    )
    first, second = read_jobs(tmp_path / "pairs.csv", tmp_path).items()
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
        ("moving,fixed,slice\nx,y,two\n", "neither a number"),
        ("moving,fixed,frame\nx,y,1 2 3\n", "found 3 numbers"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(FileError, match=message) as refusal:
        read_jobs(tmp_path / "pairs.csv", tmp_path / "out")
    assert str(tmp_path / "pairs.csv") in str(refusal.value)


@pytest.mark.parametrize(
    "error", [MemoryError("18 GiB"), RuntimeError("who\nknows"), KeyError("k")]
)
def test_a_pair_that_fails_in_any_way_is_a_row(tmp_path, capsys, error):
    class Fails(AnalyticMethod):
        calls = 0

        def displacement(self, moving, fixed):
            self.calls += 1
            if self.calls == 2:
                raise error
            return super().displacement(moving, fixed)

    for name, radius in (("ed", 0.55), ("es", 0.45)):
        image = heart(SHAPE, radius=radius)
        write_image(tmp_path / f"{name}.nii", image, plain_geometry(SHAPE, (2.0, 2.0)))
    (tmp_path / "pairs.csv").write_text("moving,fixed\n" + "ed.nii,es.nii\n" * 3)
    out = tmp_path / "out"
    jobs, options = read_jobs(tmp_path / "pairs.csv", out), Options(model="analytic", refine=0)
    rows, summary = register_batch(jobs, options, lambda: Registrar(Fails()), out)
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert rows[1]["error"].startswith(type(error).__name__) and "\n" not in rows[1]["error"]
    with open(summary, newline="", encoding="utf-8") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["ok", "failed", "ok"]
    assert sorted(path.name for path in out.iterdir()) == ["0001", "0003", "summary.csv"]
    assert "failed: " in capsys.readouterr().err
    assert np.isfinite(float(rows[2]["correlation_after"]))
