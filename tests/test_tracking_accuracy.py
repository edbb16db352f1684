"""The evaluation of tracking: its rows, its tables, and fractions known in closed form."""

import numpy as np
import pandas as pd
import pytest
import tracking_accuracy as accuracy

from ldm_morph_jax.registering import tracking
from ldm_morph_jax.registering.search import Refinement
from ldm_morph_jax.registering.tracking import Tracking

pytestmark = pytest.mark.integration


def test_a_beat_scored(monkeypatch):
    monkeypatch.setattr(tracking, "SEARCH", Refinement(levels=(2, 1), steps=(15, 8)))
    monkeypatch.setattr(tracking, "DEFAULTS", Tracking(key_frames=5, rounds=1, twicing=False))
    parts = [
        accuracy.score_beats(look, [(7, 1)], image_size=48, frames=7) for look in accuracy.TITLES
    ]
    beats, frames = (pd.concat(part) for part in zip(*parts, strict=True))
    assert (beats["epe_px"] < 0.6 * beats["motion_px"]).all()
    assert (beats["dsc_tracked"] > 0.8).all() and (beats["drift_px"] < 1e-4).all()
    short_axis = accuracy.strain_names(beats[beats["look"] == "sax"])
    assert short_axis == [
        "radial_strain", "circumferential_strain", "endocardial_circumferential_strain"
    ]  # fmt: skip
    assert frames[frames["frame"] == 0]["epe_px"].to_numpy() == pytest.approx([0, 0], abs=1e-5)
    assert accuracy.beats_figure(beats, frames).get_axes()
    assert "| 1 apical | peak longitudinal strain, relative error, RMS |" in accuracy.beats_table(
        beats
    )


def test_relative_errors():
    beats = pd.DataFrame({"x_true": [-0.2, 0.5], "x_found": [-0.19, 0.6]})
    np.testing.assert_allclose(accuracy.relative_errors(beats, "x"), [-5, 20])


def test_table_of_pairs():
    rows = pd.DataFrame(
        {"id": ["a", "b"], "method": "syn", "annotated": [0.5, 0.6], "found": [0.4, 0.7]}
    )
    limits = 1.96 * np.std([-10, 10], ddof=1)
    line = accuracy.pairs_table({"acdc": rows}).splitlines()[-1]
    expected = f"| 2 of acdc | syn | 10.0 | +0.0 | {-limits:+.1f} to {limits:+.1f} |"
    assert line == expected


def test_fractions_of_masks():
    rows, columns = np.indices((64, 64))
    discs = [3 * ((rows - 32) ** 2 + (columns - 32) ** 2 < r**2) for r in (20, 10)]
    assert accuracy.ejected("acdc", *discs, (1, 1)) == pytest.approx(0.75, abs=0.01)
    # a cylinder of fixed length: the volume goes with the squared diameter
    cylinders = []
    for half in (12, 6):
        mask = np.zeros((64, 64), int)
        mask[10:50, 32 - half : 32 + half] = 1
        mask[50:60, 20:44] = 3
        cylinders.append(mask)
    assert accuracy.ejected("camus_4ch", *cylinders, (1, 1)) == pytest.approx(0.75, abs=0.02)
