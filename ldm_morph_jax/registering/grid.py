"""Grids on an image: from images of any size to what is registered, and back.

One chain of coordinates leads there and back:

    grid pixel <-> fixed image pixel <-> position in mm <-> moving image pixel

Two grids lie on the fixed image, along its rows and columns. The *model grid* is the network's
square, with its centre on the image's centre (or on a pixel that the caller names). Its pixels have
the spacing that the network was trained with, so that a heart has the size that it knows; where
either spacing is unknown, the longer side of the image fills the grid. What of the image exceeds
the grid is cropped, what of the grid exceeds the image is zero; intensities are normalised there,
as in training. A method that works on any grid gets one that the whole image fits into. The *whole
grid* covers the image with square pixels: its own, unless they are finer than the network's or
there are more than 256 of them. Refinement, and the comparison with no motion at all, live there.
Both images are sampled on each grid, the moving one at the same positions.

A volume has a grid of its own, in place of both: along its axes, its own slices and square pixels
of `_VOLUME_PIXEL_MM` or coarser. Motion is found there in three dimensions, and the volumes may lie
in any direction. A network sees its slices on the model grid, if they are thick; a network for
volumes has a model grid with slices.

A velocity on the model grid, fading to zero within half a grid beyond its border, is the start on
the whole grid. A displacement is read, linearly, at every pixel of the *original* fixed image and
turned into millimetres: T(p) = p + shift + d(p). `shift` is zero where both files say where they
lie ("world"); otherwise it puts the centres of the images on each other ("centre"). Nothing is
resampled twice: warped(p) = moving(T(p)).

Where a rigid or affine map was found before (`affine`), it takes the place of the shift, in two
halves: the grids then lie halfway between the images, d deforms there, and T = second o (id + d) o
first. Exchanging the images still exchanges all that is compared.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.geometry import Geometry, inside
from ldm_morph_jax.files.images import Image
from ldm_morph_jax.files.transforms import Affine, Transform, sample_vectors
from ldm_morph_jax.runs.trained import TrainedMethod

# A smaller overlap of the two images is a mistake, not a registration.
MIN_OVERLAP = 0.25
# Grids of methods that take any: few sizes, so that few programs are compiled.
_GRID_STEP = 32
_MOST_PIXELS = 256  # along the longer side of a grid on the whole image: bounds what it costs
# A finer grid finds no more of a heart's motion in a volume, and a larger one takes minutes.
_VOLUME_PIXEL_MM = 1.5
_MOST_VOXELS = 2**21
# From this distance of slices on the search in a volume starts from what the network predicts in
# each slice. 10 mm apart, in training patients of ACDC, that overlaps more than a start from no
# motion; 3 mm apart, in phantoms, it is worse (docs/results/volumes). 5 mm is a choice.
THICK_MM = 5.0
# Ratio of two images' grey ranges up to which they are taken to have the same unit.
_SAME_SCALE = 2.0


@dataclass(frozen=True)
class Grid:
    """Where a grid lies on the fixed image.

    All in axis order, (row, column) or, of a volume, (slice, row, column).

    shape: of the grid.
    centre: of the grid, in fixed pixels.
    scale: fixed pixels per grid pixel.
    """

    shape: tuple[int, ...]
    centre: tuple[float, ...]
    scale: tuple[float, ...]

    def fixed_pixels(self) -> np.ndarray:
        """Fixed index of every grid pixel, `[*shape, rank]`."""
        axes = [
            c + (np.arange(n) - (n - 1) / 2) * s
            for n, c, s in zip(self.shape, self.centre, self.scale, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)

    def pixels_at(self, fixed_pixels: np.ndarray) -> np.ndarray:
        """Grid index at fixed index `[..., rank]`."""
        middle = (np.array(self.shape) - 1) / 2
        return (fixed_pixels - np.array(self.centre)) / self.scale + middle

    def covers(self, shape: tuple[int, int]) -> np.ndarray:
        """`[H, W]` bool: which pixels of a fixed image of that shape lie on the grid."""
        at = self.pixels_at(_pixels(shape))
        return ((at >= 0) & (at <= np.array(self.shape) - 1)).all(axis=-1)


def place_model_grid(
    fixed: Image,
    size: int | None,
    spacing_mm: float | None,
    centre: tuple[float, float] | None = None,
) -> Grid:
    """The model grid on a fixed image; see the top of this file.

    Args:
        fixed: the image, or a stack of slices that all get the same grid.
        size: side of the model grid in pixels; None chooses one for the image.
        spacing_mm: what the method was trained with, or None.
        centre: (row, column) of the fixed image to put the grid's centre on; None for its centre.
    """
    shape, spacing = fixed.array.shape[-2:], fixed.spacing
    longer_side = _longer_side(fixed)
    if size is None:
        pixels = longer_side / min(spacing)
        size = min(_GRID_STEP * math.ceil(pixels / _GRID_STEP), _MOST_PIXELS)
    if centre is None:
        centre = _middle(shape)
    elif not all(0 <= c <= n - 1 for c, n in zip(centre, shape, strict=True)):
        raise ImageError(f"{fixed.source}: centre {centre} lies outside its {shape} pixels")
    if spacing_mm is None or not fixed.spacing_known:
        spacing_mm = longer_side / size
    scale = tuple(spacing_mm / s for s in spacing)
    return Grid((size, size), tuple(map(float, centre)), scale)


def place_whole_grid(fixed: Image, spacing_mm: float | None) -> Grid:
    """The grid that covers a fixed image; see the top of this file."""
    shape, spacing = fixed.array.shape[-2:], fixed.spacing
    pixel = max(min(spacing), _longer_side(fixed) / _MOST_PIXELS)
    if spacing_mm is not None and fixed.spacing_known:
        pixel = max(pixel, spacing_mm)
    # rounding must not add a pixel to an image on its own grid
    size = tuple(
        max(2, math.ceil(n * s / pixel - 1e-6)) for n, s in zip(shape, spacing, strict=True)
    )
    return Grid(size, _middle(shape), tuple(pixel / s for s in spacing))


def _longer_side(image: Image) -> float:
    """mm"""
    return max(n * s for n, s in zip(image.array.shape[-2:], image.spacing, strict=True))


def _middle(shape) -> tuple[float, float]:
    return tuple((n - 1) / 2 for n in shape)


@dataclass(frozen=True)
class OnGrid:
    """A pair on a grid.

    grid: the grid on the fixed image.
    moving, fixed: `[*grid.shape]` float32 in [0, 1]; on the model grid 0 where they are unknown.
    valid: `[*grid.shape]` bool, where both are known.
    """

    grid: Grid
    moving: np.ndarray
    fixed: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Alignment:
    """A rigid or affine map of a pair, in two halves.

    kind: "rigid" or "affine".
    first: from the fixed image halfway, positions in mm; the fixed image's centre stays.
    second: from there to the moving image.
    correlation: (before, after) mean local correlation of the images where they overlap.
    """

    kind: str
    first: Affine
    second: Affine
    correlation: tuple[float, float]

    @property
    def whole(self) -> Affine:
        """From the fixed to the moving image."""
        return self.second.after(self.first)


@dataclass(frozen=True)
class Slice:
    """One slice of a pair (a 2-D pair has one), or a whole volume, ready to be registered.

    model, whole: the slice on the two grids; a volume is on a model grid for a network of volumes.
    slices: of a volume with thick slices, each as the network takes it; `whole` is then a slice of
        the volume's.
    shift: `[n]` mm, from fixed to moving, before any registration.
    blank: whether a slice of a stack shows nothing in one of the images; it is not registered, and
        its arrays are zero.
    """

    model: OnGrid | None
    whole: OnGrid
    shift: np.ndarray
    blank: bool = False
    slices: "tuple[Slice, ...]" = ()

    @property
    def in_space(self) -> bool:
        """Whether it is a volume."""
        return len(self.whole.grid.shape) == 3


def prepare(
    method: TrainedMethod,
    moving: Image,
    fixed: Image,
    *,
    align: str = "auto",
    centre: tuple[float, float] | None = None,
    alignment: Alignment | None = None,
) -> list[Slice]:
    """Bring a pair (2-D, or two stacks with as many slices) to its grids.

    Args:
        method: what will register them.
        moving, fixed: the images.
        align: "world": positions as in the files; "centre": centre on centre (of every slice);
            "auto": world where both files tell their position.
        centre: see `place_model_grid`.
        alignment: of the pair; stacks may then have any number of slices and lie in any direction.

    Raises:
        ImageError: the two do not fit together: different dimensions, tilts or numbers of slices,
            or hardly any overlap; no slice shows something in both images.
    """
    stack = fixed.array.ndim == 3
    if alignment is None or not stack:
        align = _check_pair(moving, fixed, align)
    if alignment is not None and centre is not None:
        centre = _halfway(centre, fixed.geometry, alignment)
    model = place_model_grid(fixed, method.image_size, method.spacing_mm, centre)
    whole = place_whole_grid(fixed, method.spacing_mm)
    slices = []
    for k in range(len(_as_stack(fixed.array))):
        if alignment is not None:
            shift = _volume_shift(moving, fixed, align)
        elif align == "centre":
            shift = _slice_centre(moving.geometry, k) - _slice_centre(fixed.geometry, k)
        else:
            shift = np.zeros(fixed.geometry.dimension)

        values, values_on_whole = (
            _sample_slice(moving, fixed, k, grid, shift, alignment) for grid in (model, whole)
        )
        beyond = stack and alignment is not None and _overlap(values) < MIN_OVERLAP
        if not beyond:
            _check_overlap(values, moving, fixed)
        if beyond or (stack and _blank(values)):
            nothing = [OnGrid(grid, *np.zeros((3, *grid.shape))) for grid in (model, whole)]
            slices.append(Slice(*nothing, shift, blank=True))
            continue
        on_model = _as_in_training(method, model, values, moving, fixed)
        on_whole = _on_one_scale(whole, values_on_whole, method.intensity)
        slices.append(Slice(on_model, on_whole, shift))
    if all(part.blank for part in slices):
        raise ImageError(f"{moving.source} and {fixed.source}: no slice shows anything in both")
    return slices


def prepare_volume(
    method: TrainedMethod,
    moving: Image,
    fixed: Image,
    *,
    align: str = "auto",
    centre: tuple[float, float] | None = None,
    alignment: Alignment | None = None,
) -> list[Slice]:
    """Bring two volumes `[S, H, W]` to their grid; a list of one.

    Args:
        method: what will register them.
        moving, fixed: the volumes, however they lie.
        align: see `prepare`; "centre" is that of the volumes.
        centre: see `place_model_grid`.
        alignment: of the pair.

    Raises:
        ImageError: hardly any overlap.
    """
    shift = _volume_shift(moving, fixed, align)
    grid = place_volume_grid(fixed)
    values = _sample_both(moving, fixed, grid.fixed_pixels(), grid.scale, shift, alignment)
    _check_overlap(values, moving, fixed)
    for k in range(grid.shape[0]):
        if _blank(values[:, k]):
            values[:, k] = np.nan
    whole = _on_one_scale(grid, values, method.intensity)
    if not (method.depth or has_thick_slices(fixed)):
        return [Slice(None, whole, shift)]
    if alignment is not None and centre is not None:
        centre = _halfway(centre, fixed.geometry, alignment)
    model = _place_model_stack(method, fixed, grid, centre)
    values = _sample_both(moving, fixed, model.fixed_pixels(), model.scale, shift, alignment)
    if method.depth:
        return [Slice(_as_in_training(method, model, values, moving, fixed), whole, shift)]
    plane, flat = (Grid(g.shape[1:], g.centre[1:], g.scale[1:]) for g in (model, grid))
    slices = []
    for k, of_slice in enumerate(np.moveaxis(values, 1, 0)):
        on_whole = OnGrid(flat, whole.moving[k], whole.fixed[k], whole.valid[k])
        blank = _overlap(of_slice) < MIN_OVERLAP or _blank(of_slice)
        on_plane = None if blank else _as_in_training(method, plane, of_slice, moving, fixed)
        slices.append(Slice(on_plane, on_whole, shift, blank))
    return [Slice(None, whole, shift, slices=tuple(slices))]


def has_thick_slices(volume: Image) -> bool:
    """Whether the search in a volume starts from a network for slices, see `THICK_MM`."""
    return volume.spacing_known and volume.geometry.spacing[0] >= THICK_MM


def _place_model_stack(method, fixed: Image, grid: Grid, centre) -> Grid:
    """The model grid in a volume: its slices are the network's or, if it has none, the grid's."""
    plane = place_model_grid(fixed, method.image_size, method.spacing_mm, centre)
    count, step = grid.shape[0], grid.scale[0]
    if method.depth:
        count, step = method.depth, len(fixed.array) / method.depth
        if fixed.spacing_known and method.slice_mm is not None:
            step = method.slice_mm / fixed.geometry.spacing[0]
    return Grid((count, *plane.shape), (grid.centre[0], *plane.centre), (step, *plane.scale))


def placed_by(moving: Image, fixed: Image, align: str) -> str:
    """What `align` means for a pair: "world" or "centre"."""
    if align not in ("auto", "world", "centre"):
        raise ValueError(f"align: found {align!r}, expected 'auto', 'world' or 'centre'")
    if align == "auto":
        return "world" if moving.position_known and fixed.position_known else "centre"
    return align


def middle_of(geometry: Geometry) -> np.ndarray:
    """Position of an image's centre, mm."""
    return geometry.to_physical(np.array(_middle(geometry.shape)))


def _volume_shift(moving: Image, fixed: Image, align: str) -> np.ndarray:
    """From fixed to moving in mm, of images or volumes that are placed as a whole."""
    if placed_by(moving, fixed, align) == "centre":
        return middle_of(moving.geometry) - middle_of(fixed.geometry)
    return np.zeros(fixed.geometry.dimension)


def _halfway(centre, fixed: Geometry, alignment: Alignment) -> tuple[float, float]:
    """A pixel of the fixed image's middle slice, moved halfway to the moving image."""
    index = np.array(_middle(fixed.shape))
    index[-2:] = centre
    row, column = fixed.to_index(alignment.first(fixed.to_physical(index)))[-2:]
    last = np.array(fixed.shape[-2:]) - 1
    return tuple(np.clip((row, column), 0, last).tolist())


def place_volume_grid(fixed: Image) -> Grid:
    """The grid that covers a volume; see the top of this file."""
    own = np.array(fixed.geometry.spacing)
    spacing, shape = lattice(fixed, np.array(fixed.array.shape) * own)
    return Grid(shape, _middle(fixed.array.shape), tuple((spacing / own).tolist()))


def lattice(fixed: Image, size: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """(spacing in mm, shape) of one of `size` mm that shows all of a motion.

    Its pixels are at least as large as those of the fixed image, and as few as memory bounds.
    """
    own, in_space = fixed.geometry.spacing, fixed.geometry.dimension == 3
    most = _MOST_VOXELS if in_space else _MOST_PIXELS**2
    pixel = min(own)
    if in_space and fixed.spacing_known:
        pixel = max(pixel, _VOLUME_PIXEL_MM)
    while True:
        spacing = np.maximum(pixel, own)
        # rounding must not add a pixel to an image on its own grid
        shape = tuple(max(2, math.ceil(n - 1e-6)) for n in size / spacing)
        if math.prod(shape) <= most:
            return spacing, shape
        pixel *= 1.05


def _blank(values) -> bool:
    """Whether one of two images shows nothing."""
    return any(np.isnan(v).all() or np.nanmin(v) == np.nanmax(v) for v in values)


def _as_in_training(method, grid, values, moving, fixed) -> OnGrid:
    images = [
        _normalise(sampled, method.intensity, image.source)
        for sampled, image in zip(values, (moving, fixed), strict=True)
    ]
    return OnGrid(grid, *images, np.isfinite(values).all(axis=0))


def _overlap(values) -> float:
    """Share of the fixed image's known pixels that the moving image covers."""
    known = np.isfinite(values[1])
    return float(np.isfinite(values[0][known]).mean()) if known.any() else 0.0


def _check_overlap(values, moving: Image, fixed: Image) -> None:
    overlap = _overlap(values)
    if overlap < MIN_OVERLAP:
        raise ImageError(
            f"{moving.source}: covers {100 * overlap:.0f} % of what is registered of "
            f"{fixed.source}; use `align` centre to put their centres on each other"
        )


def _sample_both(moving, fixed, index, scale, shift, alignment) -> np.ndarray:
    """Both images, NaN where unknown, at indices `[..., n]` of the fixed image's lattice.

    Halfway between them where there is an alignment. scale: fixed pixels per sample.
    """
    at = fixed.geometry.to_physical(index)
    steps = fixed.geometry.vectors_to_physical(np.diag(scale))
    if alignment is None:
        of_moving, of_fixed = Affine(np.eye(len(shift)), shift), None
    else:
        of_moving, of_fixed = alignment.second, alignment.first.inverse()
    values = []
    for image, way in ((moving, of_moving), (fixed, of_fixed)):
        if way is None:
            values.append(sample_image(image.array, index, scale))
            continue
        apart = np.abs(image.geometry.vectors_to_index(steps @ way.matrix.T)).max(axis=0)
        values.append(sample_image(image.array, image.geometry.to_index(way(at)), apart))
    return np.stack(values)


def _sample_slice(moving, fixed, k, grid, shift, alignment) -> np.ndarray:
    """`[2, rows, columns]`: slice k of moving and fixed image on a grid, NaN where unknown."""
    pixels = grid.fixed_pixels()
    index = _with_slice(pixels, k, fixed.geometry)
    if alignment is not None:
        scale = (*[1.0] * (fixed.geometry.dimension - 2), *grid.scale)
        return _sample_both(moving, fixed, index, scale, shift, alignment)
    moving_index = moving.geometry.to_index(fixed.geometry.to_physical(index) + shift)
    if moving.geometry.dimension == 3 and np.abs(moving_index[..., 0] - k).max() > 0.02:
        raise ImageError(
            f"{moving.source}: slice {k} does not lie in the plane of the fixed image's slice "
            f"{k}; use `align` centre to register slice by slice all the same"
        )
    moving_scale = np.array(fixed.spacing) * grid.scale / moving.spacing
    return np.stack(
        [
            sample_image(_as_stack(moving.array)[k], moving_index[..., -2:], moving_scale),
            sample_image(_as_stack(fixed.array)[k], pixels, grid.scale),
        ]
    )


def _on_one_scale(grid: Grid, values: np.ndarray, intensity: str) -> OnGrid:
    """A pair with grey values in [0, 1].

    Both on the same scale, so that their difference is that of the images, unless their ranges
    show that their units differ. Outside an image its border goes on.
    """
    shares = (0, 100) if intensity == "minmax" else (1, 99)
    limits = [grey_limits(sampled, shares) for sampled in values]
    ranges = [high - low for low, high in limits]
    if max(ranges) <= _SAME_SCALE * min(ranges):
        limits = [(min(low for low, _ in limits), max(high for _, high in limits))] * 2
    valid = np.isfinite(values).all(axis=0)
    unit = [_to_unit(sampled, *ends) for sampled, ends in zip(values, limits, strict=True)]
    return OnGrid(grid, *unit, valid)


def to_unit(values: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    """Values, NaN where unknown, in [0, 1] float32, from percentile to percentile."""
    return _to_unit(values, *grey_limits(values, shares))


def grey_limits(values: np.ndarray, shares: tuple[float, float]) -> tuple[float, float]:
    """Percentiles of what is known (not NaN); its ends where these are one value."""
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, shares)
    return (low, high) if high > low else (known.min(), known.max())


def _to_unit(values, low, high):
    filled = np.where(np.isfinite(values), values, low)
    return np.clip((filled - low) / max(high - low, 1e-30), 0, 1).astype(np.float32)


def _check_pair(moving: Image, fixed: Image, align: str) -> str:
    """Raise ImageError if the two cannot be registered; otherwise "world" or "centre"."""
    align = placed_by(moving, fixed, align)
    names = f"{moving.source} and {fixed.source}"
    if moving.array.ndim != fixed.array.ndim:
        raise ImageError(f"{names}: one is a stack of slices, the other a single image")
    if moving.array.ndim == 3:
        if len(moving.array) != len(fixed.array):
            raise ImageError(
                f"{names}: stacks of {len(moving.array)} and {len(fixed.array)} slices, expected "
                "the same number"
            )
        if abs(moving.direction[:, 2] @ fixed.direction[:, 2]) < np.cos(np.radians(0.5)):
            raise ImageError(f"{names}: their slices are not parallel (oblique to each other)")
    tilts = [np.eye(3) if image.plane is None else image.plane for image in (moving, fixed)]
    # an oblique plane differs from eye(3) by more than this tolerance, or it were not oblique
    same_tilt = np.allclose(*tilts, atol=5e-3)
    if align == "world" and not same_tilt:
        raise ImageError(
            f"{names}: their slice planes are tilted differently (oblique to each other); use "
            "`align` centre to put their centres on each other"
        )
    return align


def _as_stack(array):
    return array if array.ndim == 3 else array[None]


def _with_slice(pixels, k, geometry):
    """(row, column) -> array index of the geometry's dimension."""
    if geometry.dimension == 2:
        return pixels
    return np.concatenate([np.full((*pixels.shape[:-1], 1), float(k)), pixels], axis=-1)


def _slice_centre(geometry: Geometry, k: int) -> np.ndarray:
    middle = np.array(_middle(geometry.shape[-2:]))
    return geometry.to_physical(_with_slice(middle, k, geometry))


def sample_image(image: np.ndarray, index: np.ndarray, scale: Sequence[float]) -> np.ndarray:
    """`image` `[*space]` at indices `[..., rank]`, NaN outside; `scale` image pixels per sample.

    Where samples are further apart than pixels, the image is smoothed first, so that fine structure
    does not alias.
    """
    sigma = np.maximum(0.0, (np.asarray(scale) - 1) / 2)
    smooth = image.astype(np.float64)
    if sigma.max() > 1e-3:
        smooth = gaussian_filter(smooth, sigma, mode="nearest")
    values = map_coordinates(smooth, np.moveaxis(index, -1, 0), order=1, mode="nearest")
    return np.where(inside(index, image.shape), values, np.nan)


def _normalise(values, intensity, source):
    """Values with NaN outside the image -> the same in [0, 1], zero outside."""
    from ldm_morph_jax.data.preprocessing import normalise

    known = np.isfinite(values)
    out = np.zeros(values.shape, np.float32)
    out[known] = normalise(values[known][None], intensity, f"{source} (the part registered)")[0]
    return out


def velocity_on_whole(plane: Slice, velocity: np.ndarray) -> np.ndarray:
    """`[*model.shape, rank]` model pixels -> `[*whole.shape, rank]` whole pixels."""
    model, whole = plane.model.grid, plane.whole.grid
    scale = np.array(model.scale) / whole.scale
    return (_sample_fading(velocity, model, whole.fixed_pixels()) * scale).astype(np.float32)


def to_transform(
    slices: Sequence[Slice],
    displacements: Sequence[tuple[Grid, np.ndarray]],
    moving: Geometry,
    fixed: Geometry,
    alignment: Alignment | None = None,
) -> Transform:
    """Displacements of every slice `[*grid.shape, 2]`, or of a volume, with its grid: transform.

    An alignment takes the place of the shift.
    """
    if alignment is not None:
        here = [replace(part, shift=0 * part.shift) for part in slices]
        halfway = to_transform(here, displacements, moving, fixed).displacement_mm
        positions = fixed.to_physical(fixed.indices())
        at = alignment.first(positions)
        at = at + sample_vectors(halfway, fixed.to_index(at))
        return Transform(alignment.second(at) - positions, fixed, moving)
    in_space = slices[0].in_space
    pixels = fixed.indices() if in_space else _pixels(fixed.shape[-2:])
    parts = []
    for part, (grid, u) in zip(slices, displacements, strict=True):
        if part.model is not None and grid is part.model.grid:
            steps = _sample_fading(u, grid, pixels) * grid.scale
        else:
            steps = sample_vectors(u, grid.pixels_at(pixels)) * grid.scale
        if fixed.dimension > len(grid.shape):
            steps = np.concatenate([np.zeros((*steps.shape[:-1], 1)), steps], axis=-1)
        parts.append(fixed.vectors_to_physical(steps) + part.shift)
    whole = np.stack(parts) if fixed.dimension == 3 and not in_space else parts[0]
    return Transform(whole, fixed, moving)


def _pixels(shape) -> np.ndarray:
    """(row, column) of every pixel, `[*shape, 2]` float64."""
    return np.moveaxis(np.indices(shape, np.float64), 0, -1)


def _sample_fading(u: np.ndarray, grid: Grid, fixed_pixels: np.ndarray) -> np.ndarray:
    """A motion on a model grid at indices of the fixed image, also beyond the grid."""
    margins = np.array(grid.shape) // 2
    return sample_vectors(_fade_out(u, margins), grid.pixels_at(fixed_pixels) + margins)


def _fade_out(u: np.ndarray, margins: Sequence[int]) -> np.ndarray:
    """`[*shape, rank]`, wider by the margins on every side: as it is inside, zero at the outer end.

    Merely repeating the border values would draw every wrinkle at the border out into a streak;
    beyond the border they are blurred.
    """
    wide = np.pad(u, [*((m, m) for m in margins), (0, 0)], mode="edge")
    beyond = [
        np.pad(np.zeros(n), m, mode="linear_ramp", end_values=m) / m
        for n, m in zip(u.shape[:-1], margins, strict=True)
    ]
    distance = functools.reduce(np.maximum.outer, beyond)[..., None]
    faded = wide * (1 + np.cos(np.pi * distance)) / 2
    blurred = gaussian_filter(faded, [*(m / 8 for m in margins), 0], mode="nearest")
    share = np.clip(4 * distance, 0, 1)
    return np.where(distance < 1, (1 - share) * faded + share * blurred, 0.0)
