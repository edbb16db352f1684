"""Training curves are read back as they were logged."""

import json
import math
import os

import pytest

from ldm_morph_jax.runs.metrics import read_curves


def write(path, *records, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(record) for record in records) + end)
    return path


def test_stages_quantities_and_gaps(tmp_path):
    second = write(tmp_path / "a_later" / "metrics.jsonl", {"step": 1, "validation/dsc": 0.7})
    write(
        tmp_path / "registration" / "metrics.jsonl",
        {"step": 1, "loss": 1.0, "note": "text"},
        {"step": 2, "loss": None},
        {"step": 2, "validation/loss": 0.5},
    )
    os.utime(second, (2e9, 2e9))  # in the order of training, not of names
    curves = read_curves(tmp_path)
    assert list(curves) == ["registration", "a_later"]
    steps, values = curves["registration"]["loss"]["training"]
    assert steps == [1, 2] and values[0] == 1.0 and math.isnan(values[1])
    assert curves["registration"]["loss"]["validation"] == ([2], [0.5])
    assert curves["a_later"] == {"dsc": {"validation": ([1], [0.7])}}
    assert set(curves["registration"]) == {"loss"}


def test_a_cut_last_line_is_left_out_and_no_other(tmp_path):
    path = write(
        tmp_path / "registration" / "metrics.jsonl",
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        end='\n{"step": 3, "lo',
    )
    assert read_curves(tmp_path)["registration"]["loss"]["training"] == ([1, 2], [1.0, 0.5])
    path.write_text('{"step": 1, "loss": 1.0}\nnot json\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: found 'not json'"):
        read_curves(tmp_path)


def test_nothing_logged(tmp_path):
    assert read_curves(tmp_path) == {}
