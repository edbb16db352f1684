"""The 16 and 17 segments of the left ventricle's wall (American Heart Association).

Cerqueira et al., Circulation 105:539, 2002: the ventricle is cut in thirds of its length; basal and
middle third have six segments of 60 degrees, the apical third four of 90. Segment 17 is the apical
cap, beyond the cavity; the 16 are without it.
"""

from collections.abc import Sequence

import numpy as np

BASAL, MIDDLE, APICAL, CAP = 1, 2, 3, 4
LETTERS = {"-": 0, "b": BASAL, "m": MIDDLE, "a": APICAL, "c": CAP}  # "-": not of the ventricle
# level -> its first segment, and how many it has
NUMBERS = {BASAL: (1, 6), MIDDLE: (7, 6), APICAL: (13, 4), CAP: (17, 1)}
NAMES = (
    "basal anterior",
    "basal anteroseptal",
    "basal inferoseptal",
    "basal inferior",
    "basal inferolateral",
    "basal anterolateral",
    "mid anterior",
    "mid anteroseptal",
    "mid inferoseptal",
    "mid inferior",
    "mid inferolateral",
    "mid anterolateral",
    "apical anterior",
    "apical septal",
    "apical inferior",
    "apical lateral",
    "apex",
)
REGIONS = tuple(name.replace(" ", "_") for name in NAMES)  # as columns of tables have them
# from base over apex to base, first wall first: segments of an apical view (Voigt 2015, fig. 5)
VIEWS = {
    "4ch": (3, 9, 14, 16, 12, 6),
    "2ch": (4, 10, 15, 13, 7, 1),
    "3ch": (5, 11, 16, 14, 8, 2),
}


def slice_levels(cavity: np.ndarray, wall: np.ndarray) -> np.ndarray:
    """Level of every slice of a short-axis stack, `[S]`: `BASAL` to `CAP`, 0 outside the heart.

    The ventricle reaches from the middle between the first slice with a cavity and the one before
    it to that behind the last; its length is cut in thirds, and a slice is of the third that its
    middle lies in. Slices beyond the last cavity that still show wall are the cap.

    Args:
        cavity, wall: `[S]` bool, from base to apex: whether the slice shows them.
    """
    levels = np.zeros(len(cavity), int)
    if not np.any(cavity):
        return levels
    first, last = np.flatnonzero(cavity)[[0, -1]]
    count, beyond = last + 1 - first, slice(last + 1, None)
    levels[first : last + 1] = 1 + (3 * (np.arange(count) + 0.5) / count).astype(int)
    levels[beyond] = np.where(np.asarray(wall, bool)[beyond], CAP, 0)
    return levels


def levels_of(labels: np.ndarray, cavity: int, wall: int) -> np.ndarray:
    """Level of every slice of a mask `[S, H, W]`, see `slice_levels`.

    The base is the end with the larger cavity.
    """
    areas = (labels == cavity).sum(axis=(1, 2))
    inside = areas[areas > 0]
    third = max(1, len(inside) // 3)
    backwards = len(inside) > 1 and inside[:third].mean() < inside[-third:].mean()
    order = slice(None, None, -1 if backwards else 1)
    shows_wall = (labels == wall).any(axis=(1, 2))
    return slice_levels(areas[order] > 0, shows_wall[order])[order]


def outermost(levels: Sequence[int], known: Sequence[int]) -> tuple[int, int] | None:
    """The basal and the apical one of the slices `known` that are furthest apart, for twist.

    None where there are not both.
    """
    basal = [k for k in known if levels[k] == BASAL]
    apical = [k for k in known if levels[k] == APICAL]
    pairs = [(b, a) for b in basal for a in apical]
    return max(pairs, key=lambda pair: abs(pair[0] - pair[1]), default=None)


def segments(
    points: np.ndarray,
    centre: Sequence[float],
    septum: Sequence[float],
    level: int,
    spacing: Sequence[float] = (1.0, 1.0),
    *,
    mirrored: bool = False,
) -> np.ndarray:
    """Segment 1 to 17 in which each of `points` `[..., 2]` lies, `[...]`; 0 at level 0.

    Anticlockwise on an image seen, as usual, from the apex, and clockwise on a mirrored one. The
    four apical segments are centred where septum, inferior, lateral and anterior wall are.

    Args:
        points: (row, column) pixels.
        centre: of the left ventricle.
        septum: a point in the direction of the middle of the septum.
        level: of the slice, see `slice_levels`.
        spacing: of a pixel.
        mirrored: whether the array, rows downwards, shows the heart as seen from the base.
    """
    points = np.asarray(points, np.float64)
    if level in (0, CAP):
        return np.full(points.shape[:-1], 17 if level == CAP else 0)

    def angle(point):
        row, column = np.moveaxis((point - np.asarray(centre, float)) * spacing, -1, 0)
        return np.arctan2(row if mirrored else -row, column)  # anticlockwise: rows count downwards

    turn = (angle(points) - angle(np.asarray(septum, np.float64))) / (2 * np.pi) % 1
    if level == APICAL:
        quarter = (4 * turn + 0.5).astype(int) % 4  # septal, inferior, lateral, anterior
        return np.array([14, 15, 16, 13])[quarter]
    sixth = (6 * turn).astype(int) % 6
    return (sixth + 2) % 6 + 1 + 6 * (level - BASAL)
