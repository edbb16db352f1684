"""Which part of an image a page shows, how large it is, and how it lies in the patient."""

from collections.abc import Iterable, Sequence

import numpy as np

_MARGIN = 0.3  # of the heart's larger side, on either side
_FEWEST = 4  # pixels of margin
_BARS_MM = (1, 2, 5, 10, 20, 50, 100)
_LONGEST_BAR = 0.35  # of the width shown
_OPPOSITE = dict(zip("LRAPHF", "RLPAFH", strict=True))


def viewport(
    shape: Sequence[int],
    spacing: Sequence[float],
    lines: Iterable[np.ndarray],
    *,
    spacing_known: bool,
    axes: Sequence[str] | None,
) -> dict:
    """The part of an image around the heart, as the templates' `.view` takes it.

    Args:
        shape: (rows, columns).
        spacing: of pixels, (row, column): mm, or their ratio alone.
        lines: outlines of the heart, `[N, 2]` (row, column) each; none: the whole image is shown.
        spacing_known: whether spacing is in mm.
        axes: where rows and columns run in the patient, such as ("P", "L"); None where unknown.

    Returns:
        style: the CSS variables; zoomed: whether it is only a part; bar_mm: of the scale bar, None
        without a spacing; letters: side -> letter, None where unknown.
    """
    size, spacing = np.asarray(shape, float), np.asarray(spacing, float)
    low, high = _box(size, spacing, [np.asarray(line) for line in lines if len(line)])
    extent, whole = (high - low) * spacing, size * spacing
    bar = max((b for b in _BARS_MM if b <= _LONGEST_BAR * extent[1]), default=None)
    bar = bar if spacing_known else None
    percent = {
        "left": -100 * low[1] / (high - low)[1],
        "top": -100 * low[0] / (high - low)[0],
        "width": 100 * size[1] / (high - low)[1],
        "height": 100 * size[0] / (high - low)[0],
    }
    if bar:
        percent |= {"bar": 100 * bar / extent[1], "all-bar": 100 * bar / whole[1]}
    ratios = {"ratio": extent[1] / extent[0], "all-ratio": whole[1] / whole[0]}
    style = [f"--{name}: {value:.3f}%" for name, value in percent.items()]
    style += [f"--{name}: {value:.4f}" for name, value in ratios.items()]
    return {
        "style": "; ".join(style),
        "zoomed": bool((high - low < size).any()),
        "bar_mm": bar,
        "letters": None if axes is None else _letters(*axes),
    }


def _box(size, spacing, lines) -> tuple[np.ndarray, np.ndarray]:
    """(first, last) edge of what is shown, in pixels, within the image."""
    if not lines:
        return np.zeros(2), size
    points = np.concatenate(lines) + 0.5
    low, high = points.min(axis=0), points.max(axis=0)
    margin = max(_MARGIN * ((high - low) * spacing).max(), _FEWEST * spacing.max()) / spacing
    return np.maximum(low - margin, 0), np.minimum(high + margin, size)


def _letters(rows: str, columns: str) -> dict[str, str]:
    def opposite(letters):
        return "".join(_OPPOSITE[letter] for letter in letters)

    return {"left": opposite(columns), "right": columns, "top": opposite(rows), "bottom": rows}
