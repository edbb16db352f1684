"""Register images of any size and spacing with a method that works on one square grid.

The way there and back is one chain of coordinates:

    model grid pixel <-> fixed image pixel <-> position in mm <-> moving image pixel

The model grid lies on the fixed image, along its rows and columns, with its centre on the image's
centre (or on a pixel that the caller names). Its pixels have the spacing that the method was
trained with, so that a heart has the size that the network knows; where either spacing is unknown,
the longer side of the image fills the grid. What of the image exceeds the grid is cropped, what of
the grid exceeds the image is zero. Both images are sampled on this grid, the moving one at the same
positions; intensities are normalised there, as in training.

The network's displacement, linear between model pixels and fading to zero within half a grid beyond
its border, is read at every pixel of the *original* fixed image and turned into millimetres:
T(p) = p + shift + d(p).
`shift` is zero where both files say where they lie ("world"); otherwise it puts the centres of the
images on each other ("centre"). Nothing is resampled twice: warped(p) = moving(T(p)).
"""

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from ldm_morph_jax.files.images import (
    Geometry,
    Image,
    ImageError,
    check_spacing,
    image_from_array,
)
from ldm_morph_jax.files.transforms import Transform, sample_vectors
from ldm_morph_jax.ops.geometry import integrate_velocity, smooth_gaussian
from ldm_morph_jax.runs.weights import (
    DEFAULT_MODEL,
    save_compact,
)

# Less of the fixed image's view inside the moving image than this is a mistake, not a registration.
_MIN_OVERLAP = 0.25
_REFINE_LEARNING_RATE = 0.1  # pixels of the model grid per step, about
_REFINE_SIGMA = 2.0  # of the Gaussian that smooths corrections, pixels of the model grid


class Method(Protocol):
    """What can register here: a function of square images on the model grid.

    name: for reports.
    image_size: side of the model grid in pixels.
    spacing_mm: pixel spacing of the training data; None where unknown.
    intensity: how training images were brought to [0, 1]: "minmax" or "percentile".
    predicts_velocity: whether the network predicts a stationary velocity; the method then has
        field(moving, fixed), the velocity, and to_displacement(field), its integral.
    """

    name: str
    image_size: int
    spacing_mm: float | None
    intensity: str
    predicts_velocity: bool

    def displacement(self, moving: jax.Array, fixed: jax.Array) -> jax.Array:
        """`[B, H, W, 1]` twice -> `[B, H, W, 2]` in model pixels."""

    def dissimilarity(
        self, moving: jax.Array, fixed: jax.Array
    ) -> Callable[[jax.Array], jax.Array]:
        """Displacement -> training objective of every pair, `[B]`; differentiable."""


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
    fixed: Image, size: int, spacing_mm: float | None, centre: tuple[float, float] | None = None
) -> ModelGrid:
    """The model grid on a fixed image; see the top of this file.

    Args:
        fixed: the image, or a stack of slices that all get the same grid.
        size: side of the model grid in pixels.
        spacing_mm: what the method was trained with, or None.
        centre: (row, column) of the fixed image to put the grid's centre on; None for its centre.
    """
    shape = fixed.array.shape[-2:]
    spacing = fixed.spacing
    if centre is None:
        centre = tuple((n - 1) / 2 for n in shape)
    elif not all(0 <= c <= n - 1 for c, n in zip(centre, shape, strict=True)):
        raise ImageError(f"{fixed.source}: centre {centre} lies outside its {shape} pixels")
    if spacing_mm is None or not fixed.spacing_known:
        spacing_mm = max(n * s for n, s in zip(shape, spacing, strict=True)) / size
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
        if overlap < _MIN_OVERLAP:
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


@dataclass(frozen=True)
class Prediction:
    """What was found on the model grid.

    displacement: `[B, N, N, 2]` model pixels.
    network: the same before refinement.
    dissimilarity: `[B, 2]`, before and after refinement; None without.
    seconds: wall time, compilation included.
    """

    displacement: np.ndarray
    network: np.ndarray
    dissimilarity: np.ndarray | None
    seconds: float


def predict(
    method: Method,
    moving: np.ndarray,
    fixed: np.ndarray,
    *,
    refine: int = 0,
    diffeomorphic: bool = False,
) -> Prediction:
    """Register pairs `[B, N, N]` on the model grid.

    Args:
        method: the method.
        moving, fixed: float32 in [0, 1].
        refine: steps of instance optimisation: Adam on a smooth correction of what the network
            predicts, down the method's training objective. Pairs do not see each other; of every
            pair the best field on the way is kept.
        diffeomorphic: take a predicted displacement (and what is refined) for a stationary velocity
            and integrate it by scaling and squaring. A predicted velocity always is.
    """
    start = time.perf_counter()
    moving, fixed = (jnp.asarray(a[..., None], jnp.float32) for a in (moving, fixed))
    if method.predicts_velocity:
        field, to_displacement = method.field(moving, fixed), method.to_displacement
    else:
        field = method.displacement(moving, fixed)
        to_displacement = _integrate if diffeomorphic else lambda field: field
    if not np.isfinite(field).all():
        raise ValueError(f"{method.name}: predicted NaN or infinity; the weights are not usable")
    network = to_displacement(field)
    displacement, dissimilarity = network, None
    if refine:
        field, dissimilarity = _refine(method, moving, fixed, field, refine, to_displacement)
        displacement = to_displacement(field)
    return Prediction(
        np.asarray(displacement, np.float64),
        np.asarray(network, np.float64),
        None if dissimilarity is None else np.asarray(dissimilarity),
        time.perf_counter() - start,
    )


def refined_displacement(method: Method, moving, fixed, *, steps: int) -> np.ndarray:
    """`[B, N, N, 1]` twice -> displacement `[B, N, N, 2]` after `steps` of refinement."""
    prediction = predict(method, moving[..., 0], fixed[..., 0], refine=steps)
    return prediction.displacement.astype(np.float32)


_integrate = jax.jit(integrate_velocity)


def _refine(method, moving, fixed, start, steps, to_displacement):
    """(best field of every pair, `[B, 2]` objective of the first and of the best)."""
    import optax

    dissimilarity = method.dissimilarity(moving, fixed)

    def total(correction):
        # The sum's gradient holds every pair's own: Adam works element by element, so no pair
        # changes another.
        displacement = to_displacement(_corrected(start, correction))
        each = dissimilarity(displacement)
        return each.sum(), each

    # Not jitted as a whole: the method's own compiled function takes its weights as arguments, here
    # they would become constants of the program.
    gradient = jax.value_and_grad(total, has_aux=True)
    optimiser = optax.adam(_REFINE_LEARNING_RATE)

    @jax.jit
    def update(correction, state, gradients):
        updates, state = optimiser.update(gradients, state)
        return optax.apply_updates(correction, updates), state

    @jax.jit
    def keep_better(best, lowest, correction, each):
        better = (each < lowest)[:, None, None, None]
        return jnp.where(better, correction, best), jnp.minimum(each, lowest)

    correction = best = jnp.zeros_like(start)
    state, first = optimiser.init(correction), None
    lowest = jnp.full(len(start), jnp.inf)
    for _ in range(steps):
        (_, each), gradients = gradient(correction)
        first = each if first is None else first
        best, lowest = keep_better(best, lowest, correction, each)
        correction, state = update(correction, state, gradients)
    best, lowest = keep_better(best, lowest, correction, total(correction)[1])
    return _corrected(start, best), jnp.stack([first, lowest], axis=-1)


@jax.jit
def _corrected(start, correction):
    """start + smoothed correction, `[B, N, N, 2]`.

    Adam moves every pixel by about the same step, however small its gradient is, which roughens the
    field where images are flat. Optimising what a Gaussian smooths prevents it; on the validation
    patients of Sunnybrook, from no displacement at all, that gave both higher DSC and fewer folds.
    """
    return start + smooth_gaussian(correction, _REFINE_SIGMA)


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


@dataclass(frozen=True)
class Registration:
    """One registered pair of images.

    transform: from fixed to moving, see `files.transforms.Transform`.
    moving, fixed: the images.
    prepared, prediction: the same on the model grid.
    diffeomorphic: whether the displacement is the integral of a velocity.
    """

    transform: Transform
    moving: Image
    fixed: Image
    prepared: Prepared
    prediction: Prediction
    diffeomorphic: bool = False

    @functools.cached_property
    def warped(self) -> np.ndarray:
        """Moving image on the fixed image's grid, float32, original intensities."""
        return self.transform.warp(self.moving.array)

    @functools.cached_property
    def moved_by_shift(self) -> np.ndarray:
        """Moving image on the fixed image's grid before registration."""
        return self.start.warp(self.moving.array)

    @functools.cached_property
    def inverse(self) -> tuple[Transform, np.ndarray]:
        """(transform from moving to fixed, residual in mm on the moving image)."""
        return self.transform.inverse()

    @functools.cached_property
    def pixel_displacement(self) -> np.ndarray:
        """`[*fixed.shape, 2]` in fixed pixels, without shift and change of grid: what moved."""
        moved = self.transform.displacement_mm - self.start.displacement_mm
        return self.fixed.geometry.vectors_to_index(moved)[..., -2:]

    @functools.cached_property
    def network_transform(self) -> Transform:
        """The transform before refinement."""
        return self._transform_of(self.prediction.network)

    def correlation(self, transform: Transform) -> float:
        """Correlation coefficient of fixed and warped image, where both are seen by the method."""
        grid = self.prepared.grid.model_pixels(self.fixed.array.shape[-2:])
        seen = ((grid >= 0) & (grid <= self.prepared.grid.size - 1)).all(axis=-1)
        for one in (self.start, transform):
            index = one.moving_indices()
            last = np.array(self.moving.array.shape) - 0.5
            seen = seen & ((index >= -0.5) & (index <= last)).all(axis=-1)
        if seen.sum() < 2:
            return float("nan")
        pair = np.stack([self.fixed.array[seen], transform.warp(self.moving.array)[seen]]).astype(
            np.float64
        )
        pair -= pair.mean(axis=1, keepdims=True)
        scale = np.linalg.norm(pair, axis=1).prod()
        return float(pair[0] @ pair[1] / scale) if scale else float("nan")

    @functools.cached_property
    def start(self) -> Transform:
        """The transform before registration: the shift alone."""
        return self._transform_of(np.zeros_like(self.prediction.network))

    def _transform_of(self, displacement):
        return to_transform(self.prepared, displacement, self.moving.geometry, self.fixed.geometry)


@dataclass(frozen=True)
class Result:
    """What `load(name)(moving, fixed)` returns; arrays are `[H, W]` or `[B, H, W]` as given.

    Displacements are in pixels, components (row, column), pull-back:
    warped[x] = moving[x + displacement[x]].
    """

    registrations: tuple[Registration, ...]
    batched: bool

    @functools.cached_property
    def warped(self) -> np.ndarray:
        """Moving image on the fixed image's grid: `[H, W]` or `[B, H, W]` float32."""
        return self._stack(r.warped for r in self.registrations)

    @functools.cached_property
    def displacement(self) -> np.ndarray:
        """`[..., H, W, 2]` pixels; to positions in the moving *array*, also where sizes differ."""
        return self._stack(r.transform.displacement for r in self.registrations)

    @functools.cached_property
    def jacobian_determinant(self) -> np.ndarray:
        """`[..., H, W]`; area in the moving per area in the fixed image, below zero it folds."""
        return self._stack(r.transform.jacobian_determinant() for r in self.registrations)

    @functools.cached_property
    def inverse(self) -> np.ndarray:
        """`[..., H, W, 2]` pixels on the moving image's grid: carries the fixed image there."""
        return self._stack(r.inverse[0].displacement for r in self.registrations)

    @functools.cached_property
    def inverse_residual(self) -> np.ndarray:
        """`[..., H, W]` mm: how far the transform after its inverse lands from where it began."""
        return self._stack(r.inverse[1] for r in self.registrations)

    def warp(self, array, interpolation: str = "linear", *, inverse: bool = False) -> np.ndarray:
        """Carry anything on the moving image's grid to the fixed one (labels: "nearest").

        With `inverse`, from the fixed image's grid to the moving one.
        """
        array = np.asarray(array)
        arrays = array if self.batched else array[None]
        if len(arrays) != len(self.registrations):
            raise ImageError(
                f"array: found {len(arrays)} images, expected {len(self.registrations)}"
            )
        return self._stack(
            (r.inverse[0] if inverse else r.transform).warp(one, interpolation)
            for r, one in zip(self.registrations, arrays, strict=True)
        )

    def _stack(self, arrays):
        arrays = list(arrays)
        return np.stack(arrays) if self.batched else arrays[0]


class Registrar:
    """A method that registers images of any size. Made by `load`.

    method: see `Method`.
    card: the model card that came with the weights, {} without.
    """

    # pairs per call of the network: bounds its memory, whatever the caller passes
    _CHUNK = 16

    def __init__(self, method: Method, card: Mapping[str, Any] | None = None):
        self.method = method
        self.card = dict(card or {})

    def __call__(
        self,
        moving,
        fixed,
        *,
        spacing=None,
        moving_spacing=None,
        centre: tuple[float, float] | None = None,
        refine: int = 0,
        diffeomorphic: bool = False,
    ) -> Result:
        """Register arrays.

        Args:
            moving, fixed: NumPy or JAX arrays, `[H, W]` or `[B, H, W]` with the same B, grey values
                of any range. Sizes may differ; centres are then put on each other.
            spacing: mm, one number or (row, column); None where unknown.
            moving_spacing: of the moving image where it differs.
            centre: (row, column) of the fixed image that the model grid is centred on; by default
                the image's centre.
            refine: steps of instance optimisation.
            diffeomorphic: see `predict`.

        Raises:
            ImageError: NaN, constant images, shapes or spacing that cannot be used.
        """
        moving, fixed = np.asarray(moving), np.asarray(fixed)
        if (
            moving.ndim != fixed.ndim
            or moving.ndim not in (2, 3)
            or (moving.ndim == 3 and len(moving) != len(fixed))
        ):
            raise ImageError(
                f"moving and fixed have shapes {moving.shape} and {fixed.shape}, expected [H, W] "
                "or [B, H, W] with the same B"
            )
        batched = moving.ndim == 3
        spacing = None if spacing is None else check_spacing(spacing, "fixed")
        if moving_spacing is None:
            moving_spacing = spacing
        images = [
            (
                image_from_array(m, moving_spacing, source="moving"),
                image_from_array(f, spacing, source="fixed"),
            )
            for m, f in zip(_as_stack(moving), _as_stack(fixed), strict=True)
        ]
        options = {"refine": refine, "diffeomorphic": diffeomorphic}
        return Result(tuple(self.register_images(images, centre=centre, **options)), batched)

    def register_images(
        self,
        pairs: Sequence[tuple[Image, Image]],
        *,
        align: str = "auto",
        centre: tuple[float, float] | None = None,
        refine: int = 0,
        diffeomorphic: bool = False,
    ) -> list[Registration]:
        """Register (moving, fixed) `Image`s; a stack is registered slice by slice."""
        if refine < 0:
            raise ValueError(f"refine: found {refine}, expected 0 or more steps")
        prepared = [
            prepare(self.method, moving, fixed, align=align, centre=centre)
            for moving, fixed in pairs
        ]
        moving = np.concatenate([p.moving for p in prepared])
        fixed = np.concatenate([p.fixed for p in prepared])
        parts = [
            predict(
                self.method,
                moving[i : i + self._CHUNK],
                fixed[i : i + self._CHUNK],
                refine=refine,
                diffeomorphic=diffeomorphic,
            )
            for i in range(0, len(moving), self._CHUNK)
        ]
        whole = Prediction(
            np.concatenate([p.displacement for p in parts]),
            np.concatenate([p.network for p in parts]),
            np.concatenate([p.dissimilarity for p in parts]) if refine else None,
            sum(p.seconds for p in parts),
        )
        integrated = diffeomorphic or self.method.predicts_velocity
        registrations, first = [], 0
        for (moving, fixed), one in zip(pairs, prepared, strict=True):
            mine = slice(first, first + len(one.shift))
            first = mine.stop
            prediction = replace(
                whole,
                displacement=whole.displacement[mine],
                network=whole.network[mine],
                dissimilarity=None if not refine else whole.dissimilarity[mine],
            )
            transform = to_transform(one, prediction.displacement, moving.geometry, fixed.geometry)
            registrations.append(
                Registration(transform, moving, fixed, one, prediction, integrated)
            )
        return registrations


def load(name_or_path: str | Path = DEFAULT_MODEL) -> Registrar:
    """What registers: shipped weights or an iterative method by name, a run or a file by path.

    See `runs.trained.load_method`.
    """
    from ldm_morph_jax.runs.trained import load_method

    method = load_method(name_or_path)
    return Registrar(method, method.card)


def export_weights(
    workdir: str | Path, path: str | Path, additions: str | Path | None = None
) -> str:
    """Write a finished run as one compact file that `load` reads; its sha256.

    The model card holds the run's dataset ("data"), environment (revision, versions, devices), best
    validation scores and the summaries of its evaluations ("metrics"), and what the JSON file
    `additions` says. Commands and paths of the machine are left out.

    Raises:
        ValueError: no finished run, or `additions` is no JSON object.
    """
    from ldm_morph_jax.runs.directory import completed
    from ldm_morph_jax.runs.trained import load_run

    workdir = Path(workdir)
    method = load_run(workdir)
    card = {
        "method": method.name,
        "data": json.loads((workdir / "dataset.json").read_text()),
        "environment": {
            key: value
            for key, value in json.loads((workdir / "environment.json").read_text()).items()
            if key != "command"
        },
        "validation": completed(workdir / "registration"),
        "metrics": {
            file.parent.name: {
                key: value
                for key, value in json.loads(file.read_text()).items()
                if isinstance(value, dict) and "mean" in value
            }
            for file in sorted(workdir.glob("evaluation/*/summary.json"))
        },
    }
    if additions is not None:
        try:
            more = json.loads(Path(additions).read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{additions} is not JSON: {error}") from None
        if not isinstance(more, dict):
            raise ValueError(f"{additions} holds a {type(more).__name__}, expected an object")
        card |= more
    return save_weights(method, path, card)


def save_weights(method, path: str | Path, card: Mapping[str, Any]) -> str:
    """Write a `TrainedMethod` as one compact file (float16) that `load` reads; its sha256."""
    params = {"params": method.params, "frozen": method.frozen}
    config = method.config.to_dict()
    # where things lay when it was trained is nobody else's business
    config |= {"ldm_from": None, "data": config["data"] | {"source": None, "directory": "data"}}
    config = {"config": config, "spacing_mm": method.spacing_mm}
    return save_compact(params, path, config, card)
