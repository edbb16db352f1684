"""Pages of results: units, zoom, orientation, colours that everybody can tell apart."""

import importlib.resources
import itertools
import re
from typing import NamedTuple

import numpy as np
import pytest

from ldm_morph_jax.report import tracked
from ldm_morph_jax.report.style import DASHES, series_colours
from ldm_morph_jax.report.viewport import viewport
from ldm_morph_jax.report.views import sector_labels, sector_lines

# Machado, Oliveira and Fernandes, IEEE TVCG 15:1291, 2009, severity 1; for linear RGB
DEFICIENCIES = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}
TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(colour):
    values = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    share = TO_XYZ @ np.clip(rgb, 0, 1) / TO_XYZ.sum(axis=1)
    x, y, z = np.where(share > (6 / 29) ** 3, np.cbrt(share), share * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def closest(colours, deficiency):
    """Smallest CIE 1976 colour difference of two of them, as a person sees them."""
    seen = [lab(np.array(DEFICIENCIES[deficiency]) @ linear(c)) for c in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("dark", [False, True])
def test_the_colour_blind_tell_lines_apart(deficiency, dark):
    # the six of version 0.2.0, two pairs of which nobody with a deficiency could tell apart
    old = ("#0e7490", "#d97706", "#7c3aed", "#be123c", "#4d7c0f", "#64748b")
    assert closest(series_colours(dark), deficiency) > 15 > closest(old, deficiency)
    assert len(set(DASHES)) == len(DASHES) == len(series_colours(dark))


def variables(theme):
    source = importlib.resources.files("ldm_morph_jax.report") / "templates" / "page.css"
    light, dark, printed = re.split(r"@media \((?=prefers)|@media print", source.read_text())[:3]
    found = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light))
    other = {"light": "", "dark": dark, "print": printed}[theme]
    return found | dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", other))


@pytest.mark.parametrize("theme", ["light", "dark", "print"])
def test_text_has_contrast(theme):
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    colours = variables(theme)
    for text, ground in itertools.product(("text", "quiet", "accent"), ("page", "card")):
        if (theme, text) == ("print", "accent"):
            continue  # controls are not printed
        darker, lighter = sorted(TO_XYZ[1] @ linear(colours[name]) for name in (text, ground))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (text, ground)


# ---------------------------------------------------------------------------- units


class Curve(NamedTuple):
    quantity: str
    unit: str
    values: np.ndarray
    direction: str = ""
    of_sector: bool = False
    label: str = "cavity"
    column: str = "c"


def test_curves_are_shown_in_one_unit():
    strain = Curve("strain", "", np.array([0.0, -0.2]), "radial", label="radial")
    sector = strain._replace(of_sector=True, label="anterior")
    area = Curve("area", "mm2", np.array([2900.0, 1700.0]))
    rate = strain._replace(quantity="strain rate", unit="1/s")
    groups = {group.title: group for group in tracked.curve_groups([strain, sector, area, rate])}
    assert [f"{g.title}, {g.unit.name}" for g in groups.values()] == [
        "Strain, %",
        "Radial strain by sector, %",
        "Area, cm²",
        "Strain rate, 1/s",
    ]
    np.testing.assert_allclose(groups["Strain"].lines["radial"], [0, -20])
    np.testing.assert_allclose(groups["Area"].lines["cavity"], [29, 17])
    figure = tracked.curves_figure(
        np.arange(2.0), list(groups.values()), "time, s", {"ED": 0.0, "AVC": 1.0}
    )
    assert [axis.get_ylabel() for axis in figure.axes[:4]] == ["%", "%", "cm²", "1/s"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["ED", "AVC"]


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [("", 5.68e-17, "0.0"), ("", -1e-9, "0.0"), ("", -0.1786, "−17.9"), ("mm2", 1758.26, "17.6"),
     ("1/s", -1.2345, "−1.23"), ("ml", float("nan"), "–")],
)  # fmt: skip
def test_numbers_have_fixed_decimals(unit, value, text):
    assert tracked.UNITS[unit].text(value) == text


# ---------------------------------------------------------------------------- the image


def test_zoom_to_the_heart():
    outline = np.array([[40.0, 50.0], [60.0, 50.0], [60.0, 70.0], [40.0, 70.0]])
    port = viewport((200, 100), (1.0, 2.0), [outline], spacing_known=True, axes=("P", "L"))
    style = dict(item[2:].split(": ") for item in port["style"].split("; "))
    # columns 50 to 70 of 2 mm are the larger side, 40 mm, of which 30 % are added on every side:
    # 12 rows and 6 columns
    assert style["ratio"] == f"{(20 + 12) * 2 / (20 + 24):.4f}"
    assert style["left"] == f"{-100 * 44.5 / 32:.3f}%" and style["height"] == f"{20000 / 44:.3f}%"
    assert port["zoomed"] and port["bar_mm"] == 20
    assert style["bar"] == f"{100 * 20 / 64:.3f}%" and style["all-bar"] == "10.000%"
    assert port["letters"] == {"left": "R", "right": "L", "top": "A", "bottom": "P"}


def test_nothing_is_claimed_of_an_unknown_image():
    port = viewport((64, 64), (1.0, 1.0), [], spacing_known=False, axes=None)
    assert not port["zoomed"] and port["bar_mm"] is None and port["letters"] is None
    assert "bar" not in port["style"]


def test_sectors_are_drawn_between_sectors():
    rows, columns = np.mgrid[-30:31, -30:31]
    radius, angle = np.hypot(rows, columns), np.degrees(np.arctan2(rows, columns)) % 360
    numbers = np.where((radius > 14) & (radius < 24), (angle // 60).astype(int) + 1, 0)
    lines = sector_lines(numbers)
    assert len(lines) == 6
    for line in lines:
        rows, columns = (line - 30).T
        radii, angles = np.hypot(rows, columns), np.degrees(np.arctan2(rows, columns)) % 60
        assert radii.min() == pytest.approx(14, abs=1.5) and radii.max() == pytest.approx(24, abs=2)
        assert np.minimum(angles, 60 - angles).max() < 4
    labels = sector_labels(numbers)
    assert (np.hypot(*(labels - 30).T) > 24).all()  # beside the wall, not on it
    angles = np.degrees(np.arctan2(*(labels - 30).T)) % 360
    np.testing.assert_allclose(angles, 60 * np.arange(6) + 30, atol=2)
