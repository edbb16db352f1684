"""Figures are drawn without pyplot, show what they are given, and say what they leave out."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from ldm_morph_jax.report import figures, plots
from ldm_morph_jax.report.curves import curves_figure
from ldm_morph_jax.report.style import png_bytes


def stacked(pairs):
    return {key: np.stack([pair[key] for pair in pairs]) for key in pairs[0]}


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]


def test_pair_figure_shows_scores_and_panels(pairs):
    pair = pairs[0]
    figure = figures.pair_figure(**pair, labels={1: "cavity", 2: "wall"}, title="pair 7")
    assert isinstance(figure, Figure)
    assert len(figure.axes) >= 8
    shown = texts(figure)
    for text in ("pair 7", "DSC cavity", "DSC wall", "HD95 cavity, mm", "Jacobian determinant"):
        assert text in shown
    assert png_bytes(figure, dpi=40).startswith(b"\x89PNG")


def test_pair_figure_needs_no_masks(pairs):
    keys = ("moving", "fixed", "displacement")
    figure = figures.pair_figure(**{key: pairs[0][key] for key in keys})
    assert not any(text.startswith("DSC") for text in texts(figure))


def test_both_differences_share_one_scale(pairs):
    figure = figures.pair_figure(**pairs[0])
    limits = {
        axis.get_title(loc="left"): axis.images[0].get_clim() for axis in figure.axes if axis.images
    }
    assert limits["|difference| before"] == limits["|difference| after"]


def test_folds_are_marked(pairs):
    folding = pairs[0]["displacement"].copy()
    folding[20:24, 20:24, 0] += 5 * np.array([0, 1, -1, 0])[:, None]
    figure = figures.pair_figure(pairs[0]["moving"], pairs[0]["fixed"], folding)
    maps = [a for a in figure.axes if a.get_title(loc="left") == "Jacobian determinant"]
    assert np.ma.getmaskarray(maps[0].images[0].get_array()).any()
    assert "folding, J ≤ 0" in texts(figure)


def test_pairs_sheet_has_a_row_per_pair(pairs):
    figure = figures.pairs_sheet(**stacked(pairs[:3]), captions=["a", "b", "c"], title="sheet")
    assert len(figure.axes) >= 21
    assert {"a", "b", "c", "sheet"} <= set(texts(figure))
    grids = [axis for axis in figure.axes if axis.get_title() == "Grid"]
    assert any(isinstance(c, LineCollection) for c in grids[0].collections)
    with pytest.raises(ValueError, match="captions: found 1"):
        figures.pairs_sheet(**stacked(pairs[:3]), captions=["a"])


def test_image_grid(pairs):
    images = np.concatenate([stacked(pairs)["moving"], stacked(pairs)["fixed"]])
    figure = figures.image_grid(images, columns=4, row_names=("input", "output"))
    assert sum(len(axis.images) for axis in figure.axes) == 8
    assert {"input", "output"} <= set(texts(figure))
    with pytest.raises(ValueError, match="images: found shape"):
        figures.image_grid(images[..., 0])


def test_box_plot_says_what_it_leaves_out():
    figure = plots.box_plot({"A": [1.0, np.nan, 2.0], "B": [3.0]}, ylabel="DSC")
    assert "A\n(1 without a value)" in texts(figure)
    grouped = {"A": {"before": [1.0], "after": [np.nan]}}
    assert {"before", "after"} <= set(texts(plots.box_plot(grouped, ylabel="DSC", dark=True)))
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.box_plot({}, ylabel="DSC")


def test_structures_plot_has_a_group_per_structure():
    rows = [{"dsc_initial_lv": 0.5, "dsc_lv": 0.7, "dsc_initial_rv": 0.4, "dsc_rv": np.nan}]
    figure = plots.structures_plot(
        rows, {1: "LV", 2: "RV"}, before="dsc_initial", after="dsc", ylabel="DSC"
    )
    assert {"LV", "RV\n(1 without a value)", "before", "after"} <= set(texts(figure))


def test_curves_draw_every_stage():
    loss = [1.0 / (step + 1) for step in range(150)]
    loss[3] = np.nan
    stages = {
        "autoencoder": {
            "loss": {"training": (list(range(150)), loss), "validation": ([149], [0.5])},
            "speed": {"training": ([0, 149], [5.0, 5.0])},
        },
        "registration": {"dsc": {"validation": ([1], [0.7])}},
    }
    figure = curves_figure(stages)
    shown = texts(figure)
    for text in ("autoencoder: loss", "autoencoder: speed", "registration: dsc", "validation"):
        assert text in shown
    panel = next(a for a in figure.axes if a.get_title(loc="left") == "autoencoder: loss")
    assert panel.get_yscale() == "log"
    with pytest.raises(ValueError, match="nothing to draw"):
        curves_figure({"autoencoder": {}})


@pytest.mark.integration
def test_pyplot_is_not_used():
    code = "import sys, ldm_morph_jax.evaluation; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
