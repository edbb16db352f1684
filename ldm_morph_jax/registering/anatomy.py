"""What is known of the reference frame: masks, contours, landmarks, where the septum is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from contourpy import contour_generator
from numpy.typing import ArrayLike
from scipy import ndimage

from ldm_morph_jax.files.errors import FileError
from ldm_morph_jax.files.images import ImageError
from ldm_morph_jax.files.movies import Cine, frame_mask_of
from ldm_morph_jax.files.tables import numbers, read_rows
from ldm_morph_jax.ops.segments import LETTERS, levels_of

VIEWS = {"sax": "short-axis", "apical": "apical"}
WALL = 2  # of ACDC, M&Ms and CAMUS alike
_POINTS = 120  # along a contour made from a mask
# Share of a cavity's border that lies on its wall: 1 in short-axis views, about 0.8 in apical ones,
# where it opens to the atrium; below 0.5 for a wall or a right ventricle taken for the cavity.
_SURROUNDED = 0.55
# Below this share the wall is open: an apical view. Of 656 annotated slices of ACDC none has less
# than 0.98, of 838 apical images of CAMUS none more than 0.94 (training and validation patients).
_CLOSED = 0.96
# A label that encloses more than this share of its own area is a ring; papillary muscles that were
# left out of a cavity are less.
_HOLLOW = 0.2
# Share of endo that may lie outside epi: lines drawn by hand touch each other.
_OUTSIDE = 0.1
_LONGEST = 3.5  # a contour's length over that of a circle of the same area
_LEAST_AREA = 8  # pixels; of fewer, those on the border are too large a share to count by
_NOT_CHECKED = (
    "the view was not checked: it is taken for short-axis; for a picture along the long axis (two, "
    "three or four chambers) give `view` apical, which measures longitudinal strain and volume"
)


@dataclass(frozen=True)
class Anatomy:
    """A heart in the reference frame, a slice or a volume; points are (row, column) in pixels.

    view: "sax" (short-axis) or "apical".
    labels: `[*space]` integers, as they were given, or 1 cavity and 2 wall within contours.
    cavity, wall: `[*space]` bool, of the left ventricle; without any pixel where unknown.
    contours: name -> `[N, 2]`; "endo" is closed in short-axis views and runs from base over apex to
        base in apical ones. Ordered from row towards column. Volumes have none.
    septum: a point in the direction of the middle of the septum, or None.
    landmarks: name -> (row, column).
    level: of a short-axis slice, see `ops.segments`; 0 where it is not told.
    levels: of a volume, that of each slice.
    view_by: who says the view: "user", "mask", "network", or "default": nobody.
    notes: what is doubtful or assumed of the view.
    """

    view: str
    labels: np.ndarray | None = None
    cavity: np.ndarray | None = None
    wall: np.ndarray | None = None
    contours: dict[str, np.ndarray] = field(default_factory=dict)
    septum: tuple[float, float] | None = None
    landmarks: dict[str, tuple[float, float]] = field(default_factory=dict)
    level: int = 0
    levels: tuple[int, ...] = ()
    view_by: str = "user"
    notes: tuple[str, ...] = ()

    @property
    def closed(self) -> bool:
        """Whether contours are."""
        return self.view == "sax"

    @property
    def has_cavity(self) -> bool:
        return self.cavity is not None and bool(self.cavity.any())

    @property
    def has_wall(self) -> bool:
        return self.wall is not None and bool(self.wall.any())

    @property
    def centre(self) -> np.ndarray:
        """Centroid of the cavity, in axis order."""
        return np.argwhere(self.cavity).mean(axis=0)


def anatomy_of(
    cine: Cine,
    *,
    reference: int = 0,
    view: str | None = None,
    mask: Any = None,
    contours: Any = None,
    landmarks: Any = None,
    labels: tuple[int, int] | None = None,
    septum: tuple[float, float] | None = None,
    levels: str | None = None,
    slice: int | str | None = None,
) -> Anatomy:
    """What a caller tells of the heart in the reference frame.

    Args:
        cine: of one slice, or of volumes, which are short-axis stacks and take a mask alone.
        reference: the frame.
        view: "sax" or "apical"; None: as the mask's wall shows it, else "sax" (`seen_view`).
        mask: see `movies.frame_mask_of`; of the reference frame, or of all.
        contours: in its place, the path of a CSV or name -> `[N, 2]`, see `anatomy_of_contours`.
        landmarks: the path of a CSV, see `read_landmarks`, or name -> (row, column).
        labels: (cavity, wall) of the mask, see `anatomy_of_mask`.
        septum: (row, column) in the direction of the middle of the septum.
        levels: of a short-axis slice, its letter in `ops.segments.LETTERS`; of a volume, a letter
            for each slice (by default thirds of the ventricle's length).
        slice: of a file of several, the one that the cine shows.

    Raises:
        FileError: what the functions named here refuse (an ImageError, where an image is wrong).
    """
    shape = cine.first.array.shape
    if view not in (None, *VIEWS):
        raise ImageError(f"`view` is {view!r}, expected {' or '.join(map(repr, VIEWS))}")
    if mask is not None and contours is not None:
        raise ImageError("a mask and contours given, expected one of them")
    if septum and not all(0 <= s <= n - 1 for s, n in zip(septum, shape[-2:], strict=True)):
        raise ImageError(f"{cine.first.source}: septum {septum} lies outside its {shape} pixels")
    if len(shape) == 3:
        if contours is not None or landmarks is not None:
            raise ImageError("contours and landmarks are of one slice, expected a `slice` K")
        if view == "apical":
            raise ImageError("`view` is 'apical', but a volume is a stack of short-axis slices")
        view = "sax"
    letters = 1 if len(shape) == 2 else shape[0]
    if levels and (len(levels) != letters or set(levels) - set(LETTERS)):
        raise ImageError(f"`levels` is {levels!r}, expected a letter for each slice ({letters})")
    if levels and len(shape) == 3 and not set(levels) & set("bma"):
        raise ImageError(f"`levels` is {levels!r}, expected slices of the ventricle: b, m or a")
    closed = None
    if mask is not None:
        array = frame_mask_of(mask, cine, reference, slice).array
        source = str(mask) if isinstance(mask, str | Path) else "mask"
        labels = structures(array, source, labels)
        closed = closure(array, *labels)
    view, by, notes = seen_view(view, closed)
    if mask is not None:
        anatomy = anatomy_of_mask(array, view, source, cavity_and_wall=labels, septum=septum)
    elif contours is not None:
        anatomy = anatomy_of_contours(contours, shape, view, septum)
    else:
        anatomy = Anatomy(view, septum=septum)
    if anatomy.has_cavity:
        by = "default" if len(shape) == 3 else by
        anatomy = replace(anatomy, view_by=by, notes=notes)
    if landmarks is not None:
        anatomy = replace(anatomy, landmarks=read_landmarks(landmarks, shape))
    if levels:
        told = tuple(LETTERS[letter] for letter in levels)
        return replace(anatomy, **({"level": told[0]} if len(shape) == 2 else {"levels": told}))
    if len(shape) == 3 and anatomy.has_cavity:
        return with_levels(anatomy)
    return anatomy


def with_levels(anatomy: Anatomy) -> Anatomy:
    """That of a volume, with the levels of its slices."""
    found = levels_of(anatomy.cavity + WALL * anatomy.wall, 1, WALL)
    return replace(anatomy, levels=tuple(found.tolist()))


def anatomy_of_mask(
    labels: np.ndarray,
    view: str,
    source: str,
    *,
    cavity_and_wall: tuple[int, int] | None = None,
    septum: tuple[float, float] | None = None,
) -> Anatomy:
    """Cavity, wall and contours of a mask `[H, W]`; of a volume `[S, H, W]` without contours.

    Without `cavity_and_wall` the wall is label 2, as in ACDC, M&Ms and CAMUS, and the cavity the
    label of whose border the largest share lies on the wall; a single label is the cavity. The
    septum is looked for in the direction of the right ventricle: of the only other label in a
    short-axis view.

    Raises ImageError: no label, labels that cannot be told apart, no outline to be found.
    """
    cavity_label, wall_label = structures(labels, source, cavity_and_wall)
    cavity, wall = labels == cavity_label, labels == wall_label
    found = [label for label in np.unique(labels) if label]
    others = [label for label in found if label not in (cavity_label, wall_label)]
    contours = {} if labels.ndim == 3 else {"endo": closed_outline(cavity)}
    if view == "apical":
        other = np.isin(labels, others)
        contours["endo"] = _without_base(contours["endo"], wall, other, source)
    elif contours and wall.any():
        contours["epi"] = closed_outline(cavity | wall)
    if septum is None and view == "sax" and len(others) == 1:
        septum = tuple(map(float, np.argwhere(labels == others[0]).mean(axis=0)[-2:]))
    return Anatomy(view, labels, cavity, wall, contours, septum)


def seen_view(told: str | None, closed: float | None) -> tuple[str, str, tuple[str, ...]]:
    """(View, who says it, what is to be noted), see `Anatomy`.

    Args:
        told: by the user; None: not.
        closed: `closure` of the mask; None where there is no wall.
    """
    if closed is None:
        if told:
            return told, "user", ()
        return "sax", "default", (_NOT_CHECKED,)
    seen = "sax" if closed >= _CLOSED else "apical"
    ring = f"the wall lies on {100 * closed:.0f} % of the cavity's border"
    if told not in (None, seen):
        doubt = f"is this {VIEWS[told]}? {ring}, as in {VIEWS[seen]} views: check `view`"
        return told, "user", (doubt,)
    notes = (f"apical view, found by the mask: {ring}; `view` sax overrules it",)
    return seen, "user" if told else "mask", notes if seen == "apical" and not told else ()


def closure(labels: np.ndarray, cavity: int, wall: int) -> float | None:
    """Share of the cavity's border in a mask `[..., H, W]` that lies on the wall.

    None: the mask has no such cavity or no wall.
    """
    inside = labels == cavity
    if not inside.any() or not (labels == wall).any():
        return None
    # neighbours within the plane: a slice beside it may lie beyond the ventricle
    cross = np.expand_dims(ndimage.generate_binary_structure(2, 1), tuple(range(labels.ndim - 2)))
    border = inside & ~ndimage.binary_erosion(inside, cross, border_value=1)
    if not border.any():  # it fills the picture
        return None
    return float((border & ndimage.binary_dilation(labels == wall, cross)).sum() / border.sum())


def hollow(label: np.ndarray) -> float:
    """Area that a label `[..., H, W]` bool encloses in its planes, as a share of its own."""
    cross = np.expand_dims(ndimage.generate_binary_structure(2, 1), tuple(range(label.ndim - 2)))
    return float((ndimage.binary_fill_holes(label, cross) & ~label).sum() / label.sum())


def structures(
    labels: np.ndarray, source: str, cavity_and_wall: tuple[int, int] | None = None
) -> tuple[int, int]:
    """(cavity, wall) labels of a mask `[..., H, W]`, as given or as `anatomy_of_mask` says.

    Raises ImageError: no label, no cavity, labels that cannot be told apart, a wall that does not
        surround the cavity, a ring alone.
    """
    found = [int(label) for label in np.unique(labels) if label]
    if not found:
        raise ImageError(f"{source}: mask is empty, expected labels of the reference frame")
    hint = f"its labels are {found}; `labels` says which is which, the cavity's and the wall's"
    if cavity_and_wall:
        if len(cavity_and_wall) != 2 or len(set(cavity_and_wall)) != 2:
            raise ImageError(
                f"{source}: `labels` is {cavity_and_wall}, expected that of the cavity and another "
                "one of the wall"
            )
        if cavity_and_wall[0] not in found:
            raise ImageError(f"{source}: no cavity with label {cavity_and_wall[0]}; {hint}")
        return cavity_and_wall
    if found == [WALL] or (WALL not in found and len(found) > 1):
        raise ImageError(f"{source}: cannot tell the cavity from the wall; {hint}")
    if WALL not in found:
        if hollow(labels == found[0]) > _HOLLOW:
            raise ImageError(
                f"{source}: its only label {found[0]} is a ring, as the wall is, expected the "
                f"cavity; {hint}"
            )
        return found[0], WALL
    shares = {label: closure(labels, label, WALL) or 0.0 for label in found if label != WALL}
    cavity = max(shares, key=shares.get)
    if shares[cavity] < _SURROUNDED:
        raise ImageError(
            f"{source}: label {WALL}, taken for the wall, surrounds no other label ({cavity} at "
            f"{100 * shares[cavity]:.0f} % of its border, of a cavity at least "
            f"{100 * _SURROUNDED:.0f} %); {hint}"
        )
    return cavity, WALL


def anatomy_of_contours(
    given: str | Path | Mapping[str, ArrayLike],
    shape: tuple[int, int],
    view: str,
    septum: tuple[float, float] | None = None,
) -> Anatomy:
    """Contours "endo" and, if known, "epi": of a CSV, columns contour, row, column (pixels), or
    name -> `[N, 2]`.

    In short-axis views they are closed; in apical ones they run from base over apex to base, and a
    straight line closes them.

    Raises FileError: not such a table, points outside the image, fewer than three of a contour, a
        contour that crosses itself or encloses nothing, endo outside epi.
    """
    path = given if isinstance(given, str | Path) else "contours"
    points: dict[str, list] = {}
    for where, row in _rows(given, "contour"):
        if row["contour"] not in ("endo", "epi"):
            raise FileError(f"{where}: contour is {row['contour']!r}, expected endo or epi")
        points.setdefault(row["contour"], []).append(_point(row, shape, where))
    if "endo" not in points:
        raise FileError(f"{path}: has no contour endo")
    contours = {}
    for name, list_of_points in points.items():
        contour = np.array(list_of_points)
        if view == "sax" and np.allclose(contour[0], contour[-1]):
            contour = contour[:-1]
        if len(contour) < 3:
            raise FileError(f"{path}: {name} has {len(list_of_points)} points, expected at least 3")
        contours[name] = _even(_from_row_to_column(contour), closed=view == "sax")
        _check_simple(contours[name], shape, f"{path}: {name}")
    cavity = _inside(contours["endo"], shape)
    wall = np.zeros(shape, bool)
    if "epi" in contours:
        within = _inside(contours["epi"], shape)
        if (outside := (cavity & ~within).sum() / cavity.sum()) > _OUTSIDE:
            raise FileError(
                f"{path}: {100 * outside:.0f} % of endo lies outside epi, expected endo within epi"
            )
        wall = within & ~cavity
    labels = np.where(cavity, 1, np.where(wall, WALL, 0)).astype(np.uint8)
    return Anatomy(view, labels, cavity, wall, contours, septum)


def read_landmarks(
    given: str | Path | Mapping[str, ArrayLike], shape: tuple[int, int]
) -> dict[str, tuple[float, float]]:
    """Points in pixels of the reference frame: of a CSV, columns row, column and, optionally, name,
    or name -> (row, column).

    Raises FileError: not such a table, points outside the image, a name twice, no point.
    """
    landmarks: dict[str, tuple[float, float]] = {}
    for number, (where, row) in enumerate(_rows(given, "name"), start=1):
        name = row["name"] or str(number)
        if name in landmarks:
            raise FileError(f"{where}: repeats the landmark {name!r}")
        landmarks[name] = _point(row, shape, where)
    if not landmarks:
        path = given if isinstance(given, str | Path) else "landmarks"
        raise FileError(f"{path}: lists no landmark")
    return landmarks


def _rows(given, key) -> Iterator[tuple[str, dict]]:
    """(Where it is, {key, "row", "column"}) of every point of a CSV or a mapping."""
    if isinstance(given, str | Path):
        keys = ((key,), ()) if key == "contour" else ((), (key,))
        for line, row in read_rows(given, (*keys[0], "row", "column"), keys[1]):
            yield f"{given}, line {line}", row
        return
    for name, points in given.items():
        array = np.asarray(points, float)
        if array.shape[-1:] != (2,) or array.ndim > 2:
            raise FileError(f"{name}: has shape {array.shape}, expected (row, column) or [N, 2]")
        for row, column in array.reshape(-1, 2):
            yield name, {key: name, "row": row, "column": column}


def _point(row, shape, where) -> tuple[float, float]:
    point = numbers(row, ("row", "column"), where)
    if not all(0 <= x <= n - 1 for x, n in zip(point, shape, strict=True)):
        raise FileError(f"{where}: {point} lies outside the image of {shape} pixels")
    return point


def closed_outline(mask) -> np.ndarray:
    """Longest outline `[N, 2]` of a mask, its staircase smoothed, ordered from row to column."""
    soft = ndimage.gaussian_filter(np.pad(mask, 2).astype(np.float64), 1.0)
    lines = contour_generator(z=soft).lines(0.5) or contour_generator(z=soft).lines(soft.max() / 2)
    outline = max(lines, key=len)[:-1, ::-1] - 2
    return _even(_from_row_to_column(outline), closed=True)


def _without_base(outline, wall, other, source) -> np.ndarray:
    """The part of a closed outline that lies on the wall, or away from the atrium."""
    if other.any():
        keep = _distance(outline, other) > 2
    elif wall.any():
        keep = _distance(outline, wall) < 2
    else:
        raise ImageError(
            f"{source}: an apical mask of the cavity alone does not tell where its base is; "
            "expected a wall or an atrium, or `contours`"
        )
    if keep.all() or not keep.any():
        raise ImageError(
            f"{source}: cannot tell the base of the cavity; is it an apical view? Expected `view` "
            "sax, or `contours`"
        )
    start = np.flatnonzero(keep & ~np.roll(keep, 1))
    runs = [np.roll(np.arange(len(keep)), -s)[: np.argmin(np.roll(keep, -s))] for s in start]
    return _even(outline[max(runs, key=len)], closed=False)


def _distance(points, mask) -> np.ndarray:
    distance = ndimage.distance_transform_edt(~mask)
    return ndimage.map_coordinates(distance, points.T, order=1, mode="nearest")


def _from_row_to_column(contour):
    row, column = contour.T
    turns = (row * np.roll(column, -1) - column * np.roll(row, -1)).sum()
    return contour if turns > 0 else contour[::-1]


def _even(contour, *, closed: bool) -> np.ndarray:
    """`_POINTS` points at equal distances along a contour."""
    ring = np.concatenate([contour, contour[:1]]) if closed else contour
    at = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(ring, axis=0), axis=1))])
    wanted = np.linspace(0, at[-1], _POINTS, endpoint=not closed)
    return np.stack([np.interp(wanted, at, ring[:, k]) for k in (0, 1)], axis=-1)


def _check_simple(contour, shape, name) -> None:
    """FileError unless a contour goes around what it encloses once, in one direction."""
    (row, column), filled = contour.T, _inside(contour, shape).sum()
    area = abs(row @ np.roll(column, -1) - column @ np.roll(row, -1)) / 2
    length = np.linalg.norm(contour - np.roll(contour, -1, axis=0), axis=1).sum()
    # of a figure of eight one half is negative; points in any order make a long way
    if filled > 1.5 * area + _LEAST_AREA or length > _LONGEST * 2 * np.sqrt(np.pi * max(filled, 1)):
        raise FileError(f"{name} crosses itself, expected its points in order along it")
    if not filled or area < 1:
        raise FileError(f"{name} encloses no pixel")


def _inside(contour, shape) -> np.ndarray:
    from matplotlib.path import Path as Outline

    pixels = np.stack(np.indices(shape), axis=-1).reshape(-1, 2)
    return Outline(contour).contains_points(pixels).reshape(shape)
