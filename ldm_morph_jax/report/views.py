"""One registered pair, prepared for drawing: what the figures and the HTML report both show.

Curves are lists of polylines, each `[N, 2]` (row, column) in pixels; pixel centres are integers.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
from contourpy import contour_generator

from ldm_morph_jax.ops.jacobian import jacobian_determinant

GRID_LINES = 20  # lines along the longer side of an image
_LABEL_DISTANCE = 1.45  # from the middle of the heart, that of the wall being 1


@dataclasses.dataclass(frozen=True)
class PairView:
    """A pair and its registration. Images `[H, W]` in [0, 1]; `displacement` `[H, W, 2]` px.

    jacobian: `[H, W]`, area in the moving image per area in the fixed image
    moving_lines, fixed_lines, warped_lines: outlines of the structures; empty without masks
    grid: see `deformed_grid_lines`
    aspect: height of a pixel over its width
    """

    moving: np.ndarray
    fixed: np.ndarray
    warped: np.ndarray
    displacement: np.ndarray
    jacobian: np.ndarray
    moving_lines: list[np.ndarray]
    fixed_lines: list[np.ndarray]
    warped_lines: list[np.ndarray]
    grid: list[np.ndarray]
    aspect: float

    @property
    def difference_before(self) -> np.ndarray:
        return np.abs(self.moving - self.fixed)

    @property
    def difference_after(self) -> np.ndarray:
        return np.abs(self.warped - self.fixed)

    @property
    def difference_limit(self) -> float:
        """The common upper end of both difference maps: their 99.8 % quantile, at least 0.05."""
        both = np.stack([self.difference_before, self.difference_after])
        return max(float(np.quantile(both, 0.998)), 0.05)

    @property
    def window(self) -> float:
        """The value shown white in moving, fixed and warped: their 99.5 % quantile, at least 0.1.

        For display only: a little bright fat would otherwise leave the heart dark.
        """
        return max(float(np.quantile(np.stack([self.moving, self.fixed]), 0.995)), 0.1)

    @property
    def magnitude(self) -> np.ndarray:
        """|u| `[H, W]` in pixels."""
        return np.linalg.norm(self.displacement, axis=-1)

    @property
    def motion_limit(self) -> float:
        """The upper end of a scale of |u|: its largest value, at least 1 px, so that a small
        displacement looks small."""
        return max(float(self.magnitude.max()), 1.0)

    def magnitude_at(self, points: np.ndarray) -> np.ndarray:
        """|u| at the pixels nearest to `points` `[N, 2]` (row, column)."""
        row, column = np.rint(points).astype(int).T
        height, width = self.moving.shape
        return self.magnitude[row.clip(0, height - 1), column.clip(0, width - 1)]


def pair_view(
    moving,
    fixed,
    displacement,
    *,
    moving_mask=None,
    fixed_mask=None,
    labels=None,
    spacing=None,
    warped=None,
    warped_mask=None,
    jacobian=None,
) -> PairView:
    """Warp a pair and collect what is drawn of it.

    Args:
        moving, fixed: `[H, W]` or `[H, W, 1]` in [0, 1].
        displacement: `[H, W, 2]`, pixels, pull-back.
        moving_mask, fixed_mask: integer labels of the same size, or None.
        labels: which labels to outline; None for all but 0.
        spacing: pixel size (row, column); only its ratio is used. None for square pixels.
        warped, warped_mask, jacobian: of a plane of a volume, where they do not follow from the
            motion within the plane; None: they do.

    Raises:
        ValueError: when the shapes do not fit each other or a displacement is not finite.
    """
    moving, fixed = _plane("moving", moving), _plane("fixed", fixed)
    displacement = np.asarray(displacement, np.float32)
    for name, array, expected in (
        ("fixed", fixed, moving.shape),
        ("displacement", displacement, (*moving.shape, 2)),
    ):
        if array.shape != expected:
            raise ValueError(f"{name}: found shape {array.shape}, expected {expected} as `moving`")
    if not np.isfinite(displacement).all():
        raise ValueError("displacement: found NaN or infinity, expected finite pixels")

    moving_planes = _label_planes("moving_mask", moving_mask, labels, moving.shape)
    fixed_planes = _label_planes("fixed_mask", fixed_mask, labels, moving.shape)
    # the warped outline is the 0.5 level of the linearly warped structure: the boundary of the
    # nearest-neighbour mask that is scored, without its staircase
    if warped_mask is None:
        warped_planes = [_warp(plane, displacement) for plane in moving_planes]
    else:
        warped_planes = _label_planes("warped_mask", warped_mask, labels, moving.shape)

    row, column = (1.0, 1.0) if spacing is None else np.asarray(spacing, np.float64)
    if not (np.isfinite([row, column]).all() and row > 0 and column > 0):
        raise ValueError(f"spacing: found {spacing}, expected two positive numbers (row, column)")
    return PairView(
        moving=moving,
        fixed=fixed,
        warped=_warp(moving, displacement) if warped is None else _plane("warped", warped),
        displacement=displacement,
        jacobian=jacobian_determinant(displacement) if jacobian is None else jacobian,
        moving_lines=_outlines(moving_planes),
        fixed_lines=_outlines(fixed_planes),
        warped_lines=_outlines(warped_planes),
        grid=deformed_grid_lines(displacement, max(moving.shape) / GRID_LINES),
        aspect=float(row / column),
    )


def deformed_grid_lines(displacement, spacing: float) -> list[np.ndarray]:
    """A regular grid ruled on the moving image, as it looks after warping, over the fixed image.

    warped(x) = moving(x + u(x)), so the straight line "row = k" of the moving image is seen in the
    warped image at all x with x_row + u_row(x) = k: a level line of x + u. Level lines are drawn
    for rows and columns every `spacing` pixels, centred on the image, none on its border. The grid
    therefore moves with the tissue: cells shrink where tissue contracts from moving to fixed, and a
    line doubles back on itself or closes to a loop where the displacement folds. (Drawing the
    points x + u(x) themselves would show the opposite motion: it belongs over the moving image.)

    Args:
        displacement: `[H, W, 2]`, pixels.
        spacing: distance between lines in pixels, > 0.

    Returns:
        Polylines `[N, 2]` (row, column) in pixels of the fixed image.
    """
    displacement = np.asarray(displacement, np.float64)
    if displacement.ndim != 3 or displacement.shape[-1] != 2:
        raise ValueError(f"displacement: found shape {displacement.shape}, expected [H, W, 2]")
    if not spacing > 0:
        raise ValueError(f"spacing: found {spacing}, expected a positive number of pixels")
    lines = []
    for axis in (0, 1):
        size = displacement.shape[axis]
        position = np.expand_dims(np.arange(size), 1 - axis) + displacement[..., axis]
        count = math.ceil((size - 1) / spacing)
        first = ((size - 1) - (count - 1) * spacing) / 2
        for k in range(count):
            lines += _isolines(position, first + k * spacing)
    return lines


def sector_lines(numbers: np.ndarray) -> list[np.ndarray]:
    """Straight lines between neighbouring sectors, across the wall.

    Args:
        numbers: `[H, W]`, of sectors from 1; 0 elsewhere.

    Returns:
        Polylines `[5, 2]` (row, column), points enough to be carried along by a motion.
    """
    borders: dict[tuple[int, int], list[np.ndarray]] = {}
    for axis in (0, 1):
        first, second = np.delete(numbers, -1, axis), np.delete(numbers, 0, axis)
        there = (first != second) & (first > 0) & (second > 0)
        for at in np.argwhere(there):
            pair = sorted((int(first[tuple(at)]), int(second[tuple(at)])))
            borders.setdefault(tuple(pair), []).append(at + 0.5 * (np.arange(2) == axis))
    lines = []
    for points in map(np.array, borders.values()):
        centre = points.mean(axis=0)
        main = np.linalg.svd(points - centre)[2][0]
        along = (points - centre) @ main
        steps = np.linspace(along.min() - 0.5, along.max() + 0.5, 5)
        lines.append(centre + steps[:, None] * main)
    return lines


def sector_labels(numbers: np.ndarray) -> np.ndarray:
    """Where names of sectors stand beside the wall: `[K, 2]` (row, column), of sectors 1 to K.

    On the line from the middle of all through the sector's own, beyond the wall; NaN for a sector
    without pixels.
    """
    middle = np.argwhere(numbers > 0).mean(axis=0)
    places = np.full((int(numbers.max()), 2), np.nan)
    for k in range(len(places)):
        pixels = np.argwhere(numbers == k + 1)
        if len(pixels):
            places[k] = middle + _LABEL_DISTANCE * (pixels.mean(axis=0) - middle)
    return places


def _plane(name, array):
    array = np.asarray(array, np.float32)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2:
        raise ValueError(f"{name}: found shape {array.shape}, expected [H, W] or [H, W, 1]")
    return array


def _label_planes(name, mask, labels: Iterable[int] | None, shape) -> list[np.ndarray]:
    """One `[H, W]` float plane, 1 inside and 0 outside, of each label; none without a mask."""
    if mask is None:
        return []
    mask = _plane(name, mask)
    if mask.shape != shape:
        raise ValueError(f"{name}: found shape {mask.shape}, expected {shape} as `moving`")
    labels = [label for label in np.unique(mask) if label != 0] if labels is None else labels
    return [(mask == label).astype(np.float32) for label in labels]


def _outlines(planes) -> list[np.ndarray]:
    return [line for plane in planes for line in _isolines(plane, 0.5)]


def _isolines(values, level) -> list[np.ndarray]:
    """Polylines (row, column) along which `values` equals `level`."""
    return [line[:, ::-1] for line in contour_generator(z=values).lines(level) if len(line) > 1]


# As in `ops.geometry`, without JAX: pages are also drawn by a process that does nothing else.


def _warp(plane, displacement) -> np.ndarray:
    last = np.array(plane.shape) - 1
    at = np.clip(np.moveaxis(np.indices(plane.shape), 0, -1) + displacement, 0, last)
    corner = np.minimum(np.floor(at), np.maximum(last - 1, 0)).astype(int)
    row, column = np.moveaxis(at - corner, -1, 0).astype(plane.dtype)
    (r, c), (below, right) = np.moveaxis(corner, -1, 0), np.moveaxis(corner + 1, -1, 0)
    top = plane[r, c] * (1 - column) + plane[r, right] * column
    bottom = plane[below, c] * (1 - column) + plane[below, right] * column
    return top * (1 - row) + bottom * row


def warp_labels(mask: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Labels `[H, W]` warped by a displacement `[H, W, 2]`, nearest neighbour; halves round up."""
    at = np.moveaxis(np.indices(mask.shape), 0, -1) + displacement
    row, column = np.moveaxis(np.clip(np.floor(at + 0.5), 0, np.array(mask.shape) - 1), -1, 0)
    return mask[row.astype(int), column.astype(int)]
