"""Apical views merged: whose segments, whose times, and what is refused."""

import json

import numpy as np
import pytest

from ldm_morph_jax import views
from ldm_morph_jax.ops.segments import NAMES
from ldm_morph_jax.registering.apical import merged_segments
from ldm_morph_jax.registering.heart import APICAL_SEGMENTS


def record(values, *, step=0.05, frames=21, end_systole=8, reference=0, **changes):
    """Summary of a view in which each segment shortens in proportion to `values` `[6]`."""
    t = np.arange(frames) - reference
    shape = np.sin(np.pi / 2 * np.clip(t / (end_systole - reference), 0, 2))
    regions = dict(zip(APICAL_SEGMENTS, values, strict=True))
    return {
        "cine": {
            "times": (step * np.arange(frames)).tolist(),
            "times_known": True,
            "shape": [frames, 64, 64],
            "file": "cine.dcm",
        },
        "method": "search",
        "view": "apical",
        "reference": reference,
        "end_systole": end_systole,
        "heart_rate_per_min": 60.0,
        "verdict": {"level": "plausible", "sentence": "Plausible."},
        "segment_pixels": dict.fromkeys(regions, 50),
        "curves": {
            f"longitudinal_strain_{name}": (value * shape).tolist()
            for name, value in regions.items()
        },
        "software": {
            "name": "ldm-morph",
            "version": "0",
            "date": "2026-01-01T00:00:00+00:00",
            "weights_sha256": None,
        },
        "notes": [],
        **changes,
    }


FOUR = -np.array([10.0, 11, 12, 13, 14, 15]) / 100
TWO = -np.array([20.0, 21, 22, 23, 24, 25]) / 100
THREE = -np.array([16.0, 17, 18, 19, 20, 21]) / 100


def write(folder, content):
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(content))
    return str(folder)


def test_every_segment_comes_from_the_views_that_see_it():
    merged, times = merged_segments({"4ch": record(FOUR), "2ch": record(TWO), "3ch": record(THREE)})
    rows = {row["segment"]: row for row in merged.rows()}
    assert [row["number"] for row in merged.rows()[1:]] == list(range(1, 17))
    expected = {
        "basal inferoseptal": -10,  # the first wall of 4ch
        "mid inferoseptal": -11,
        # 4ch and 3ch see them; over the apex 3ch meets the lateral one first (Voigt 2015, fig. 5)
        "apical septal": (-12 - 19) / 2,
        "apical lateral": (-13 - 18) / 2,
        "basal anterolateral": -15,
        "basal inferior": -20,
        "basal anterior": -25,
        "basal inferolateral": -16,
        "basal anteroseptal": -21,
    }
    for name, value in expected.items():
        assert rows[name]["longitudinal_peak_percent"] == pytest.approx(value, abs=1e-6), name
    known = [row["longitudinal_peak_percent"] for name, row in rows.items() if name in NAMES]
    assert rows["wall"]["longitudinal_peak_percent"] == pytest.approx(np.mean(known))
    assert rows["apical septal"]["pixels"] == 100 and rows["basal anterior"]["pixels"] == 50
    assert len(times) == 21 and merged.end_systole == pytest.approx(0.4)


def test_beats_of_different_length_reach_end_systole_together():
    # the second view: another step, another frame of end-systole, a reference that is not the first
    slow = record(FOUR, step=0.04, frames=30, end_systole=14, reference=2)
    merged, times = merged_segments({"4ch": record(FOUR), "2ch": slow})
    assert merged.end_systole == pytest.approx(0.4)
    inferior = merged.curves["longitudinal", "basal_inferior"]
    septal = merged.curves["longitudinal", "basal_inferoseptal"]
    assert inferior.argmin() == septal.argmin() == 8
    assert inferior.min() == pytest.approx(FOUR[0], rel=1e-3)
    assert times[0] == 0 and times[-1] <= 0.4 + (29 - 14) * 0.04 + 1e-9  # what both views show
    # the closure of the aortic valve, where it was told, takes the place of end-systole's frame
    closed = record(FOUR, step=0.04, frames=30, reference=2, end_systole=14, valves_ms={"AVC": 520})
    merged, _ = merged_segments({"4ch": record(FOUR, valves_ms={"AVC": 425}), "2ch": closed})
    assert merged.end_systole == 0.425
    later = merged.curves["longitudinal", "basal_inferior"]
    assert later.argmin() == 8  # 480 of 520 ms, told of the first view's 425
    # twice the same view is that view
    alone, _ = merged_segments({"4ch": record(FOUR), "3ch": record(FOUR)})
    np.testing.assert_allclose(
        alone.curves["longitudinal", "mid_inferolateral"],
        alone.curves["longitudinal", "mid_inferoseptal"],
    )


def test_command(tmp_path, capsys):
    four = write(tmp_path / "four", record(FOUR))
    two = write(tmp_path / "two", record(TWO, heart_rate_per_min=80.0, notes=["its own note"]))
    out = tmp_path / "heart"
    arguments = ["--four-chamber", four, "--two-chamber", two, "--out", str(out)]
    views.main(arguments)
    printed = capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    names = "bullseye.png curves.csv report.html segments.csv summary.json".split()
    assert sorted(p.name for p in out.iterdir()) == names
    peak = summary["strain"]["longitudinal_strain"]["peak"]
    assert peak == pytest.approx(np.mean([*FOUR, *TWO])) and f"{100 * peak:.1f} %" in printed
    notes = " ".join(summary["notes"])
    assert "heart rates differ (4ch 60, 2ch 80 per minute)" in notes and "without 3ch" in notes
    assert "2ch: its own note" in notes and "Views" in (out / "report.html").read_text()
    assert 'href="../four/report.html"' in (out / "report.html").read_text()
    rows = (out / "segments.csv").read_text().splitlines()
    assert len(rows) == 1 + 1 + 12 and rows[0].startswith("segment,number,pixels,trusted")

    with pytest.raises(SystemExit) as stopped:
        views.main(arguments)
    assert stopped.value.code == 2 and "--overwrite" in capsys.readouterr().err
    views.main([*arguments, "--overwrite"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "summary.json: no result of track"),
        (record(FOUR, view="sax"), "the view is 'sax', expected 'apical'"),
        (
            record(FOUR, curves={}),
            "no longitudinal strain of segments; it needs a mask",
        ),
    ],
)
def test_other_results_are_refused(tmp_path, capsys, content, message):
    four = write(tmp_path / "four", record(FOUR))
    two = tmp_path / "two"
    if content is not None:
        write(two, content)
    for arguments, told in (
        (["--four-chamber", four, "--two-chamber", str(two)], message),
        (["--four-chamber", four], "views: found 1, expected two or three"),
    ):
        with pytest.raises(SystemExit) as stopped:
            views.main([*arguments, "--out", str(tmp_path / "heart")])
        assert stopped.value.code == 2 and told in capsys.readouterr().err
    assert not (tmp_path / "heart").exists()
