"""Find the rigid or affine map of a pair before anything deforms, in two and in three dimensions.

The map is A = exp(X), X a matrix of the Lie algebra. At every step both images are brought half the
way to each other, moving(exp(X/2) q) and fixed(exp(-X/2) q), and compared there by the local
correlation of `search`: exchanging the images changes X to -X, and the same image twice does not
move. One step is one of Gauss and Newton's, as in `search`, for a motion that has few parameters
(Lucas and Kanade 1981, Baker and Matthews 2004): forces and squared contrasts are summed over the
whole overlap, not over a neighbourhood.

Lengths are millimetres along the axes of the fixed image, so that a rotation is one where slices
are further apart than pixels. Both images lie on one lattice, each with its own centre in the
lattice's; X then also holds the way from one centre to the other. The search begins with the
images as they lie and, where moments of their intensities disagree, also with the centres of mass
and the principal axes on each other; after the coarse levels the most alike one goes on.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import lax

from ldm_morph_jax.devices.programs import Program, options_for
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.geometry import inside
from ldm_morph_jax.files.images import FEWEST_SLICES, Image
from ldm_morph_jax.files.transforms import Affine
from ldm_morph_jax.ops import separable
from ldm_morph_jax.ops.geometry import identity_grid, warp
from ldm_morph_jax.ops.similarity import correlation_gradient, local_correlation
from ldm_morph_jax.registering.grid import (
    Alignment,
    Grid,
    lattice,
    middle_of,
    placed_by,
    sample_image,
    to_unit,
)
from ldm_morph_jax.registering.search import SIZE_STEP, Level, Refinement

NONE, RIGID, AFFINE = KINDS = ("none", "rigid", "affine")
# As in the search, but from twice as coarse: a shift is longer than a motion of the heart.
_SETTINGS = Refinement(levels=(8, 4, 2, 1), steps=(20, 10, 6, 4))
_COARSE = 2  # levels on which all starts are tried
_STARTS = 3
_DAMPING = 0.01  # of a step, as a share of the squared contrast (Levenberg, Marquardt)
_STIFFNESS = 0.01  # see `Refinement.stiffness`; here it only keeps steps finite
_LONGEST_STEP = 1.0  # of any point of the lattice, in lengths of the level
_LEAST_OVERLAP = 0.5  # of two images, as a share of what it was as they lay
_DISAGREE_MM, _DISAGREE_DEGREES = 3.0, 3.0  # of moments, so that they are worth a start
_ROUND = 1.1  # ratio of axes below which an image has no direction
_KNOWN = 0.999  # what is known in a smaller share does not count
_TERMS = 12  # of the exponential series
_MOST_DEGREES = 120.0  # of a start: nobody lies upside down


def find_affine(
    moving: Image, fixed: Image, kind: str, *, align: str = "auto", calls: str = "often"
) -> Alignment:
    """The map of two images `[H, W]` or two stacks `[S, H, W]`, by the rank of the arrays.

    Args:
        moving, fixed: of one rank; sizes and geometries may differ.
        kind: "rigid" or "affine".
        align: how they lie before, see `grid.prepare`; "centre" is that of the volumes.
        calls: see `devices.programs.options_for`.

    Raises:
        ImageError: ranks differ, or a stack has too few slices for a motion in space.
        ValueError: unknown kind.
    """
    if kind not in (RIGID, AFFINE):
        raise ValueError(f"affine: found {kind!r}, expected one of {', '.join(KINDS)}")
    for image, other in ((moving, fixed), (fixed, moving)):
        if image.array.ndim != other.array.ndim:
            raise ImageError(
                f"{moving.source} and {fixed.source}: one is a stack of slices, the other a single "
                "image"
            )
        if image.array.ndim == 3 and len(image.array) < FEWEST_SLICES:
            raise ImageError(
                f"{image.source}: `affine` moves stacks in space, expected {FEWEST_SLICES} or more "
                f"slices, found {len(image.array)}; choose one `slice`"
            )
    spacing, shape = _lattice(moving, fixed)
    images, known = zip(
        *(_on_lattice(image, fixed, spacing, shape) for image in (moving, fixed)), strict=True
    )
    way = np.zeros(fixed.geometry.dimension)
    if placed_by(moving, fixed, align) == "world":
        way = _along_axes(fixed, middle_of(fixed.geometry) - middle_of(moving.geometry))
    starts = [_matrix(np.eye(len(way)), way), *_by_moments(images, known, spacing, way)]
    starts = [scipy.linalg.logm(start).real for start in starts]
    starts += [starts[0]] * (_STARTS - len(starts))
    found = _aligning(_SETTINGS.on(spacing), calls)(
        np.stack(images),
        np.stack(known),
        np.stack(starts)[:, :-1].astype(np.float32),
        _basis(kind, np.multiply(shape, spacing).max() / 2, len(shape)).astype(np.float32),
        np.asarray(spacing, np.float32),
    )
    before, after = (float(value) for value in found["correlation"])
    algebra = np.zeros((len(way) + 1,) * 2)
    if after > before:
        algebra[:-1] = np.asarray(found["algebra"], np.float64)
    else:
        algebra[:-1, -1], after = way, before
    return _alignment(kind, algebra, moving, fixed, (before, after))


def _alignment(kind, algebra, moving, fixed, correlation) -> Alignment:
    """exp of a matrix of the algebra, along the fixed image's axes between centres: positions.

    The rotation, and what is linear besides, is halved about the fixed image's centre; the way
    between the images is not, so that what lies halfway still covers the fixed image.
    """
    axes = fixed.geometry.axis_directions().T  # a vector along the axes, in mm -> (x, y[, z])
    centre, other = middle_of(fixed.geometry), middle_of(moving.geometry)
    half = axes @ scipy.linalg.expm(algebra[:-1, :-1] / 2) @ axes.T
    first = Affine(half, centre - half @ centre)
    way = other + axes @ scipy.linalg.expm(algebra)[:-1, -1] - centre
    return Alignment(kind, first, Affine(half, first.offset + way), correlation)


# ---------------------------------------------------------------------------- the lattice


def _lattice(moving: Image, fixed: Image) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """(spacing in mm, shape) of one that has room for either image, along the fixed one's axes."""
    sizes = []
    for image in (moving, fixed):
        shape = np.array(image.array.shape)
        corners = np.stack(np.meshgrid(*[(-n / 2, n / 2) for n in shape], indexing="ij"), axis=-1)
        vectors = _along_axes(fixed, image.geometry.vectors_to_physical(corners))
        sizes.append(2 * np.abs(vectors).reshape(-1, len(shape)).max(axis=0))
    spacing, shape = lattice(fixed, np.max(sizes, axis=0))
    blocks = _SETTINGS.on(spacing.tolist()).levels[0]
    multiples = [SIZE_STEP if n == max(blocks) else 4 for n in blocks]
    # an even number more, so that the centre of the image stays that of a lattice pixel or edge
    return tuple(spacing.tolist()), tuple(
        m * math.ceil(n / m) for n, m in zip(shape, multiples, strict=True)
    )


def _on_lattice(image, fixed, spacing, shape) -> tuple[np.ndarray, np.ndarray]:
    """(values in [0, 1], 1 where they are known), `shape` float32, centre on centre.

    Beyond the image its border goes on: a step there would be seen as a contrast.
    """
    vectors = _places(shape, spacing) / fixed.geometry.spacing
    at = middle_of(image.geometry) + fixed.geometry.vectors_to_physical(vectors)
    steps = np.diag(np.array(spacing) / fixed.geometry.spacing)
    steps = image.geometry.vectors_to_index(fixed.geometry.vectors_to_physical(steps))
    index, last = image.geometry.to_index(at), np.array(image.array.shape) - 1
    values = sample_image(image.array, np.clip(index, 0, last), np.abs(steps).max(axis=0))
    known = inside(index, image.array.shape)
    return to_unit(values, (1, 99)), known.astype(np.float32)


def _places(shape, spacing) -> np.ndarray:
    """`[*shape, n]` mm from the lattice's centre."""
    return Grid(shape, (0.0,) * len(shape), spacing).fixed_pixels()


def _along_axes(fixed: Image, vectors: np.ndarray) -> np.ndarray:
    """Vectors (x, y[, z]) along the axes of the fixed image's array, still in mm."""
    return fixed.geometry.vectors_to_index(vectors) * fixed.geometry.spacing


# ---------------------------------------------------------------------------- where to begin


def _by_moments(images, known, spacing, way) -> list[np.ndarray]:
    """Maps `[n + 1, n + 1]` that put moments of intensity on each other, where they disagree.

    images, known: of moving and fixed image, on the lattice; way: between them as they lie.
    """
    (of_moving, axes_moving), (of_fixed, axes_fixed) = (
        _moments(image * seen, spacing) for image, seen in zip(images, known, strict=True)
    )
    starts = []
    if np.linalg.norm(of_moving - of_fixed - way) > _DISAGREE_MM:
        starts.append(_matrix(np.eye(len(way)), of_moving - of_fixed))
    if axes_moving is not None and axes_fixed is not None:
        turns = [
            axes_moving * signs @ axes_fixed.T
            for signs in np.array(np.meshgrid(*[(1, -1)] * len(way))).reshape(len(way), -1).T
        ]
        # an axis has no sign: the proper rotation that turns least
        turn = max((turn for turn in turns if np.linalg.det(turn) > 0), key=np.trace)
        if _DISAGREE_DEGREES < degrees_of(turn) < _MOST_DEGREES:
            starts.append(_matrix(turn, of_moving - turn @ of_fixed))
    return starts


def _moments(image: np.ndarray, spacing) -> tuple[np.ndarray, np.ndarray | None]:
    """Centre of mass `[n]` in mm from the lattice's centre, and principal axes in columns."""
    points = _places(image.shape, spacing).reshape(-1, image.ndim)
    weight = image.ravel().astype(np.float64)
    centre = weight @ points / weight.sum()
    points = points - centre
    squared, directions = np.linalg.eigh((points * weight[:, None]).T @ points / weight.sum())
    distinct = np.all(squared[1:] > _ROUND**2 * squared[:-1])
    return centre, directions if distinct else None


def degrees_of(turn: np.ndarray) -> float:
    """The angle of a rotation `[n, n]`, n of 2 or 3, from 0 to 180."""
    cosine = (np.trace(turn) - (len(turn) - 2)) / 2
    sine = np.linalg.norm(turn - turn.T) / (2 * math.sqrt(2))
    return math.degrees(math.atan2(sine, cosine))


def _matrix(linear: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """`[n + 1, n + 1]` of x -> linear x + offset."""
    matrix = np.eye(len(offset) + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = linear, offset
    return matrix


# ---------------------------------------------------------------------------- the search


@functools.cache
def _aligning(settings: Refinement, calls: str) -> Program:
    """(images, known `[2, *space]`, starts `[S, n, n + 1]`, basis, spacing `[n]`) -> found."""
    options = options_for("few" if calls == "once" else calls)
    make = functools.partial(functools.partial, _align, settings=settings)
    return Program(make, f"align {settings}", options)


def _align(images, known, starts, basis, spacing, *, settings: Refinement):
    """{"algebra": `[n, n + 1]`, "correlation": `[2]`, before and after}."""
    first, x = starts[:1], starts
    for k, (blocks, steps) in enumerate(zip(settings.levels, settings.steps, strict=True)):
        here = _OneLevel(images, known, blocks, spacing, settings, basis)
        state = (x, jnp.zeros(len(x)), jnp.zeros(len(x)))
        x, alike, overlap = lax.fori_loop(
            0, steps, lambda _, state, here=here: here.step(state[0]), state
        )
        if k == _COARSE - 1:
            alike = jnp.where(overlap >= _LEAST_OVERLAP * overlap[0], alike, -1)
            x = x[jnp.argmax(alike)][None]
    return {"algebra": x[0], "correlation": here.likeness(jnp.concatenate([first, x]))}


def _basis(kind: str, radius: float, rank: int) -> np.ndarray:
    """`[K, n, n + 1]` of the algebra; each moves points at that radius by about one length.

    K is that of an affine map; what a rigid one has not is zero, so that one program serves both.
    """
    basis = np.zeros((rank, rank + 1, rank, rank + 1))
    for i in range(rank):
        basis[i, rank, i, rank] = 1
        for j in range(rank):
            basis[i, j, i, j] = 1 / radius
            if kind == RIGID:
                basis[i, j, j, i] -= 1 / radius
                basis[i, j] *= i > j
    return basis.reshape(-1, rank, rank + 1)


def _exponential(x):
    """exp of `x` `[S, n, n + 1]`, whose last row, of zeros, is left out: a series, by Horner."""
    rank = x.shape[1]
    unit, offset = jnp.eye(rank, rank + 1), x.at[..., :rank].set(0)

    def term(k, total):
        product = jnp.matmul(x[..., :rank], total, precision="highest") + offset
        return unit + product / (_TERMS - k)

    return lax.fori_loop(0, _TERMS, term, jnp.broadcast_to(unit, x.shape))


class _OneLevel:
    """Steps on one level of the pyramid.

    images, known: `[2, *space]`, moving and fixed; what is known in part counts as unknown.
    points: `[*space, n + 1]`, mm from the centre, and 1; corners: those at the ends of the lattice.
    length: of a pixel along the finest axis, mm.
    """

    def __init__(self, images, known, blocks, spacing, settings, basis):
        self.images = separable.block_means(images, blocks)
        self.known = (separable.block_means(known, blocks) > _KNOWN).astype(jnp.float32)
        self.space, self.settings, self.basis = self.images.shape[1:], settings, basis
        self.level = Level.of(blocks, spacing)
        self.spacing = spacing * jnp.array(blocks, jnp.float32)
        self.length = max(blocks) * jnp.min(spacing)
        self.grid = identity_grid(*self.space)
        self.middle = (jnp.array(self.space, jnp.float32) - 1) / 2
        mm = (self.grid - self.middle) * self.spacing
        self.points = jnp.concatenate([mm, jnp.ones((*self.space, 1))], axis=-1)
        self.corners = self.points[tuple(slice(None, None, n - 1) for n in self.space)]

    def halfway(self, x):
        """Images `[2 S, *space]` at `x` `[S, n, n + 1]`, moving first; weights `[S, *space]`."""
        maps = _exponential(jnp.concatenate([x, -x]) / 2)
        at = jnp.einsum("...b,sab->s...a", self.points, maps) / self.spacing + self.middle
        channels = jnp.repeat(jnp.stack([self.images, self.known], axis=-1), len(x), axis=0)
        warped = warp(channels, at - self.grid)
        last = jnp.array(self.space, jnp.float32) - 1
        inside = jnp.all((at >= -0.5) & (at <= last + 0.5), axis=-1)
        known = ((warped[..., 1] > _KNOWN) & inside).reshape(2, len(x), *self.space)
        return warped[..., 0], (known[0] & known[1]).astype(jnp.float32)

    def step(self, x):
        """After a step of Gauss and Newton's; before it, mean local correlation and overlap."""
        rank, settings = len(self.space), self.settings
        halfway, weight = self.halfway(x)
        contrast = jnp.stack(jnp.gradient(halfway, axis=tuple(range(1, rank + 1))), axis=-1)
        contrast /= self.spacing

        def by_window(total, length):
            likeness = correlation_gradient(
                halfway, self.level.window(weight, length), settings.floor
            )
            forces, contrasts = (
                (contrast * factor[..., None]).reshape(2, len(x), -1, rank)
                for factor in (likeness.gradient, jnp.sqrt(likeness.precision))
            )
            # by the elements of the algebra's matrices; the basis comes last
            by_element = self._by_element((contrasts[0] + contrasts[1]) / 2)
            new = (
                jnp.sum(self._by_element((forces[0] - forces[1]) / 2), axis=1),
                jnp.matmul(by_element.mT, by_element, precision="highest"),
                _mean(likeness.value, weight) / len(settings.windows),
            )
            return jax.tree.map(jnp.add, total, new), None

        elements = rank * (rank + 1)
        nothing = (len(x), elements), (len(x), elements, elements), (len(x),)
        total, _ = lax.scan(by_window, tuple(map(jnp.zeros, nothing)), jnp.array(settings.windows))
        force, squared, alike = total
        basis = self.basis.reshape(len(self.basis), -1)
        force = jnp.matmul(force, basis.T, precision="highest")
        squared = jnp.matmul(jnp.matmul(basis, squared, precision="highest"), basis.T)
        overlap = jnp.sum(weight, axis=tuple(range(1, rank + 1)))
        squared += jnp.eye(len(basis)) * (
            _DAMPING * squared + _STIFFNESS * overlap[:, None, None] / self.length**2 + 1e-12
        )
        solved = jnp.linalg.solve(squared, force[..., None])[..., 0]
        move = jnp.einsum("sk,kab->sab", solved, self.basis)
        longest = jnp.linalg.norm(jnp.einsum("...b,sab->s...a", self.corners, move), axis=-1)
        longest = jnp.max(longest, axis=tuple(range(1, rank + 1)))
        x = x + move / jnp.maximum(1, longest / (_LONGEST_STEP * self.length))[:, None, None]
        return x, alike, overlap

    def likeness(self, x):
        """Mean local correlation over the overlap, `[S]`."""
        halfway, weight = self.halfway(x)
        pair, total = halfway.reshape(2, len(x), *self.space), 0.0
        for length in self.settings.windows:
            window = self.level.window(weight, length)
            total += _mean(local_correlation(*pair, window, self.settings.floor), weight)
        return total / len(self.settings.windows)

    def _by_element(self, field):
        """`[S, pixels, n]` times the points, `[S, pixels, n (n + 1)]`."""
        points = self.points.reshape(-1, 1, self.points.shape[-1])
        return (field[..., None] * points).reshape(*field.shape[:2], -1)


def _mean(values, weight):
    """`[S, *space]` over space, each pixel with its weight; 0 where nothing weighs."""
    space = tuple(range(1, weight.ndim))
    return jnp.sum(values * weight, axis=space) / jnp.maximum(jnp.sum(weight, axis=space), 1e-6)
