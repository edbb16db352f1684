"""The model grid on an image: from images of any size to the network's square, and back.

One chain of coordinates leads there and back:

    model grid pixel <-> fixed image pixel <-> position in mm <-> moving image pixel

The model grid lies on the fixed image, along its rows and columns, with its centre on the image's
centre (or on a pixel that the caller names). Its pixels have the spacing that the method was
trained with, so that a heart has the size that the network knows; where either spacing is unknown,
the longer side of the image fills the grid. A method that works on any grid gets one that the whole
image fits into, about as fine as the image. What of the image exceeds the grid is cropped, what of
the grid exceeds the image is zero. Both images are sampled on this grid, the moving one at the same
positions; intensities are normalised there, as in training.

A displacement on the grid, linear between its pixels and fading to zero within half a grid beyond
its border, is read at every pixel of the *original* fixed image and turned into millimetres:
T(p) = p + shift + d(p).
`shift` is zero where both files say where they lie ("world"); otherwise it puts the centres of the
images on each other ("centre"). Nothing is resampled twice: warped(p) = moving(T(p)).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from ldm_morph_jax.files.images import Geometry, Image, ImageError
from ldm_morph_jax.files.transforms import Transform, sample_vectors
from ldm_morph_jax.registering.method import Method

# Less of the fixed image's view inside the moving image than this is a mistake, not a registration.
MIN_OVERLAP = 0.25
# Grids of methods that take any: few sizes, so that few programs are compiled, and a bounded cost.
_GRID_STEP, _LARGEST_GRID = 32, 256


@dataclass(frozen=True)
class ModelGrid:
    """Where the model grid lies on the fixed image.

    size: side in pixels.
    centre: (row, column) of its centre in fixed pixels.
    scale: (row, column), fixed pixels per model pixel.
    """

    size: int
    centre: tuple[float, float]
    scale: tuple[float, float]

    def fixed_pixels(self) -> np.ndarray:
        """Fixed (row, column) of every model pixel, `[size, size, 2]`."""
        steps = np.arange(self.size) - (self.size - 1) / 2
        rows, columns = (c + steps * s for c, s in zip(self.centre, self.scale, strict=True))
        return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)

    def model_pixels(self, shape: tuple[int, int]) -> np.ndarray:
        """Model (row, column) of every fixed pixel, `[H, W, 2]`."""
        rows, columns = (
            (np.arange(n) - c) / s + (self.size - 1) / 2
            for n, c, s in zip(shape, self.centre, self.scale, strict=True)
        )
        return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)


def place_model_grid(
    fixed: Image,
    size: int | None,
    spacing_mm: float | None,
    centre: tuple[float, float] | None = None,
) -> ModelGrid:
    """The model grid on a fixed image; see the top of this file.

    Args:
        fixed: the image, or a stack of slices that all get the same grid.
        size: side of the model grid in pixels; None chooses one for the image.
        spacing_mm: what the method was trained with, or None.
        centre: (row, column) of the fixed image to put the grid's centre on; None for its centre.
    """
    shape, spacing = fixed.array.shape[-2:], fixed.spacing
    longer_side = max(n * s for n, s in zip(shape, spacing, strict=True))  # mm
    if size is None:
        pixels = longer_side / min(spacing)
        size = min(_GRID_STEP * math.ceil(pixels / _GRID_STEP), _LARGEST_GRID)
    if centre is None:
        centre = tuple((n - 1) / 2 for n in shape)
    elif not all(0 <= c <= n - 1 for c, n in zip(centre, shape, strict=True)):
        raise ImageError(f"{fixed.source}: centre {centre} lies outside its {shape} pixels")
    if spacing_mm is None or not fixed.spacing_known:
        spacing_mm = longer_side / size
    return ModelGrid(size, tuple(map(float, centre)), tuple(spacing_mm / s for s in spacing))


@dataclass(frozen=True)
class Prepared:
    """A pair on the model grid.

    moving, fixed: `[S, N, N]` float32 in [0, 1], one per slice (S = 1 for a 2-D pair).
    grid: the model grid on the fixed image.
    shift: `[S, n]` mm, from fixed to moving, before any registration.
    """

    moving: np.ndarray
    fixed: np.ndarray
    grid: ModelGrid
    shift: np.ndarray


def prepare(
    method: Method,
    moving: Image,
    fixed: Image,
    *,
    align: str = "auto",
    centre: tuple[float, float] | None = None,
) -> Prepared:
    """Bring a pair (2-D, or two stacks with as many slices) to the model grid.

    Args:
        method: the method that will register them.
        moving, fixed: the images.
        align: "world": positions as in the files; "centre": centre on centre (of every slice);
            "auto": world where both files tell their position.
        centre: see `place_model_grid`.

    Raises:
        ImageError: the two do not fit together: different dimensions, tilts or numbers of slices,
            or hardly any overlap.
    """
    align = _check_pair(moving, fixed, align)
    grid = place_model_grid(fixed, method.image_size, method.spacing_mm, centre)
    fixed_stack, moving_stack = _as_stack(fixed.array), _as_stack(moving.array)
    slices = len(fixed_stack)
    pixels = grid.fixed_pixels()
    shifts, outputs = [], ([], [])
    for k in range(slices):
        index = _with_slice(pixels, k, fixed.geometry)
        shift = np.zeros(fixed.geometry.dimension)
        if align == "centre":
            shift = _slice_centre(moving.geometry, k) - _slice_centre(fixed.geometry, k)
        moving_index = moving.geometry.to_index(fixed.geometry.to_physical(index) + shift)
        if moving.geometry.dimension == 3 and np.abs(moving_index[..., 0] - k).max() > 0.02:
            raise ImageError(
                f"{moving.source}: slice {k} does not lie in the plane of the fixed image's slice "
                f"{k}; use --align centre to register slice by slice all the same"
            )
        moving_scale = np.array(fixed.spacing) * grid.scale / moving.spacing
        moving_sample = _sample_plane(moving_stack[k], moving_index[..., -2:], moving_scale)
        fixed_sample = _sample_plane(fixed_stack[k], pixels, grid.scale)
        inside = np.isfinite(fixed_sample)
        overlap = np.isfinite(moving_sample[inside]).mean() if inside.any() else 0.0
        if overlap < MIN_OVERLAP:
            raise ImageError(
                f"{moving.source}: covers {100 * overlap:.0f} % of what is registered of "
                f"{fixed.source}; use --align centre to put their centres on each other"
            )
        shifts.append(shift)
        for values, image, output in zip(
            (moving_sample, fixed_sample), (moving, fixed), outputs, strict=True
        ):
            output.append(_normalise(values, method.intensity, image.source))
    return Prepared(np.stack(outputs[0]), np.stack(outputs[1]), grid, np.stack(shifts))


def _check_pair(moving: Image, fixed: Image, align: str) -> str:
    """Raise ImageError if the two cannot be registered; otherwise "world" or "centre"."""
    if align not in ("auto", "world", "centre"):
        raise ValueError(f"align: found {align!r}, expected 'auto', 'world' or 'centre'")
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
    if align == "auto":
        align = "world" if moving.position_known and fixed.position_known else "centre"
    if align == "world" and not same_tilt:
        raise ImageError(
            f"{names}: their slice planes are tilted differently (oblique to each other); use "
            "--align centre to put their centres on each other"
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
    middle = (np.array(geometry.shape[-2:]) - 1) / 2
    return geometry.to_physical(_with_slice(middle, k, geometry))


def _sample_plane(plane, index, scale):
    """`plane` `[H, W]` at (row, column), NaN outside; `scale` plane pixels per sample.

    Where samples are further apart than pixels, the plane is smoothed first, so that fine structure
    does not alias.
    """
    sigma = np.maximum(0.0, (np.asarray(scale) - 1) / 2)
    smooth = plane.astype(np.float64)
    if sigma.max() > 1e-3:
        smooth = gaussian_filter(smooth, sigma, mode="nearest")
    values = map_coordinates(smooth, np.moveaxis(index, -1, 0), order=1, mode="nearest")
    # a pixel reaches half a pixel beyond its centre
    inside = ((index >= -0.5) & (index <= np.array(plane.shape) - 0.5)).all(axis=-1)
    return np.where(inside, values, np.nan)


def _normalise(values, intensity, source):
    """Values with NaN outside the image -> `[N, N]` in [0, 1], zero outside."""
    from ldm_morph_jax.data.preprocessing import normalise

    inside = np.isfinite(values)
    out = np.zeros(values.shape, np.float32)
    out[inside] = normalise(values[inside][None], intensity, f"{source} (the part registered)")[0]
    return out


def to_transform(
    prepared: Prepared, displacement: np.ndarray, moving: Geometry, fixed: Geometry
) -> Transform:
    """Displacement `[S, N, N, 2]` on the model grid -> transform on the original fixed image."""
    margin = prepared.grid.size // 2
    at = prepared.grid.model_pixels(fixed.shape[-2:]) + margin
    planes = []
    for u, shift in zip(displacement, prepared.shift, strict=True):
        pixels = sample_vectors(_fade_out(u, margin), at) * prepared.grid.scale
        if fixed.dimension == 3:
            pixels = np.concatenate([np.zeros((*pixels.shape[:-1], 1)), pixels], axis=-1)
        planes.append(fixed.vectors_to_physical(pixels) + shift)
    stacked = np.stack(planes) if fixed.dimension == 3 else planes[0]
    return Transform(stacked, fixed, moving)


def _fade_out(u: np.ndarray, margin: int) -> np.ndarray:
    """`[N, N, 2]` -> `[N + 2 margin, N + 2 margin, 2]`: unchanged inside, zero at the outer end.

    Merely repeating the border values would draw every wrinkle at the border out into a streak;
    beyond the border they are blurred.
    """
    wide = np.pad(u, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    beyond = np.pad(np.zeros(len(u)), margin, mode="linear_ramp", end_values=margin)
    distance = np.maximum(beyond[:, None], beyond[None, :])[..., None] / margin
    faded = wide * (1 + np.cos(np.pi * distance)) / 2
    blurred = gaussian_filter(faded, (margin / 8, margin / 8, 0), mode="nearest")
    share = np.clip(4 * distance, 0, 1)
    return np.where(distance < 1, (1 - share) * faded + share * blurred, 0.0)
