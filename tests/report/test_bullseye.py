"""The bull's-eye: places of the segments, colours, texts, hatching."""

import xml.etree.ElementTree as xml

import numpy as np
import pytest

from ldm_morph_jax.ops.segments import NAMES
from ldm_morph_jax.report.bullseye import COLOURS, bullseye_figure, bullseye_svg, parts
from ldm_morph_jax.report.style import png_bytes

VALUES = np.append(np.linspace(-24, 8, 16), -12.3)
TRUSTED = [True] * 4 + [False] + [True] * 12
SHOWN = {"title": "peak <strain>", "unit": "%", "limit": 25.0}


@pytest.mark.parametrize("count", [16, 17])
def test_segments_fill_the_disc_once(count):
    places = parts(count)
    assert [part.number for part in places] == list(range(1, count + 1))
    areas = [(p.outer**2 - p.inner**2) * (p.end - p.start) / 360 for p in places]
    assert sum(areas) == pytest.approx(1)
    middles = np.array([part.middle for part in places])
    apart = np.linalg.norm(middles[:, None] - middles[None], axis=-1) + np.eye(count)
    assert apart.min() > 0.2  # their numbers do not lie on each other


def test_segments_are_where_the_figure_of_the_guideline_has_them():
    at = {part.number: part.middle for part in parts(17)}
    right, up = 0, 1
    assert at[1][up] > 0.8 and at[4][up] < -0.8 and abs(at[1][right]) < 1e-9  # anterior above
    assert at[2][right] < 0 < at[2][up] and at[3][right] < 0 and at[3][up] < 0  # septum left
    assert at[14][right] < 0 and at[16][right] > 0 and at[13][up] > 0
    assert np.hypot(*at[1]) > np.hypot(*at[7]) > np.hypot(*at[13]) > np.hypot(*at[17]) == 0
    with pytest.raises(ValueError, match="expected 16 or 17"):
        parts(18)


def test_figure():
    figure = bullseye_figure(VALUES, trusted=TRUSTED, **SHOWN)
    axis = figure.axes[0]
    texts = [text.get_text() for text in axis.texts]
    assert len(texts) == 17 and texts[0] == "-24.0" and texts[16] == "-12.3"
    assert axis.get_title() == "peak <strain>" and figure.axes[1].get_xlabel() == "%"
    hatched = [patch.get_hatch() is not None for patch in axis.patches]
    assert hatched == [not trust for trust in TRUSTED]
    assert np.allclose(axis.patches[0].get_facecolor(), COLOURS((-24 / 25 + 1) / 2), atol=1e-2)
    assert png_bytes(figure).startswith(b"\x89PNG")


def test_svg_needs_nothing_else_and_tells_every_value():
    values = VALUES.copy()
    values[2] = np.nan
    text = bullseye_svg(values, names=NAMES, trusted=TRUSTED, key="a", **SHOWN)
    assert "http" not in text and "&lt;strain&gt;" in text
    root = xml.fromstring(text)
    titles = [one.text for one in root.iter("title")]
    assert len(titles) == 17
    assert titles[0] == "basal anterior: -24.0 %" and titles[2] == "basal inferoseptal: – %"
    assert titles[4].endswith("not to be trusted")
    assert sum("hatch" in path.get("fill", "") for path in root.iter("path")) == 1
    fills = [path.get("fill") for path in root.iter("path") if path.find("title") is not None]
    assert fills[2] == "#cbd5e1" and len(set(fills)) > 10
    shown = [one.text for one in root.iter("text")]
    assert {"-25", "0", "25", "%", "peak <strain>"} <= set(shown)


def test_texts_are_read_on_their_colours():
    """Contrast of at least 4.5 to 1 (WCAG 2, AA)."""

    def luminance(colour):
        c = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return c @ [0.2126, 0.7152, 0.0722]

    root = xml.fromstring(bullseye_svg(np.linspace(-25, 25, 16), names=NAMES, **SHOWN))
    fills = [path.get("fill") for path in root.iter("path") if path.find("title") is not None]
    colours = [text.get("fill") for text in root.find("g")]
    for fill, colour in zip(fills, colours, strict=True):
        dark, light = sorted([luminance(fill), luminance(colour)])
        assert (light + 0.05) / (dark + 0.05) > 4.5


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="limit"):
        bullseye_figure(VALUES, title="", unit="", limit=0)
    with pytest.raises(ValueError, match="trusted: found 3, expected 17"):
        bullseye_svg(VALUES, title="", unit="", limit=1, names=NAMES, trusted=[True] * 3)


def test_small_numbers_have_no_minus_sign():
    values = np.full(16, -0.01)
    drawn = bullseye_svg(values, title="strain", unit="%", limit=30, names=NAMES)
    assert ">0.0<" in drawn and ">-0.0<" not in drawn
