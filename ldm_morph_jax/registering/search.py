"""Find the stationary velocity of a pair, from coarse to fine, on the whole image or volume.

The velocity v stands for two maps, exp(v) from the fixed to the moving image and exp(-v) back. At
every step both images are brought half the way to each other, moving(exp(v/2)) and
fixed(exp(-v/2)), and compared there: exchanging the images changes v to -v, and for the same image
twice nothing moves, up to rounding.

They are compared by local correlation, which neither gain nor offset nor a slow bias field changes.
One step is one of Gauss and Newton's for a Gaussian neighbourhood (Lucas and Kanade 1981, here for
correlation): the mean force divided by the mean squared contrast is a motion in pixels, so that
there is no step size to choose. Steps are smooth (fluid regularisation), and what they add up to is
smoothed a little every time (elastic regularisation), as SyN and log-demons do (Avants et al. 2008,
Vercauteren et al. 2008).

Channels that mean the same in both images, such as probabilities of a structure, are compared by
squared differences beside them: the same step, with the difference for the correlation.

All lengths are multiples of the finest spacing, in every direction: where slices are further apart
than pixels, a Gaussian is as wide in millimetres through the slices as within them, a motion of one
millimetre costs the same, and a level does not merge slices that are as thick as its pixels.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ldm_morph_jax.ops import separable
from ldm_morph_jax.ops.checks import check_shape
from ldm_morph_jax.ops.geometry import integrate_velocity, warp
from ldm_morph_jax.ops.inverse import Inverse, invert
from ldm_morph_jax.ops.jacobian import jacobian_determinant
from ldm_morph_jax.ops.similarity import (
    Window,
    correlation_gradient,
    gaussian_window,
    local_correlation,
)

SIZE_STEP = 32  # sides are padded to multiples of this: few programs serve all sizes
_HALF_SQUARINGS = 5  # of v / 2 while it is searched
_SQUARINGS = 7  # of the result
_SCALES = (1.0, 0.75, 0.5, 0.25, 0.0)  # tried from left to right
_MOST_SMOOTHINGS = 100  # of a velocity whose map folds, before it is scaled back


@dataclass(frozen=True)
class Refinement:
    """Settings of the search; lengths in pixels of the level at hand, along its finest axis.

    Chosen on training and validation patients of Sunnybrook, ACDC, CAMUS (docs/results/refinement).

    Attributes:
      levels: how much coarser each level is than the images, coarse to fine: a power of two for all
        axes, or one for each (see `on`).
      steps: on each level.
      windows: sigmas of the Gaussian windows in which images are correlated; their gradients are
        added. A small one sees the edge of a wall, a large one a cavity that closes.
      floor: see `ops.similarity.local_correlation`.
      fluid: sigma of the neighbourhood of a step.
      elastic: sigma of what smooths, after every step, all that was added to the start.
      stiffness: added to the mean squared normalised contrast: the larger, the smaller are steps
        where images show little.
      relaxation: steps are so many times as long as Gauss and Newton's (over-relaxation). In
        volumes these come too slowly to their end (docs/results/volumes).
      longest_step: pixels.
      least_gain: a start that gains less is dropped, see `Refined.start_gain`. A network that was
        trained on other images does more harm than good as a start.
    """

    levels: tuple[int | tuple[int, ...], ...] = (4, 2, 1)
    steps: tuple[int, ...] = (40, 30, 12)
    windows: tuple[float, ...] = (2.0, 8.0)
    floor: float = 1e-3
    fluid: float = 4.0
    elastic: float = 0.5
    stiffness: float = 0.3
    relaxation: float = 1.0
    longest_step: float = 0.5
    least_gain: float = 0.1

    def __post_init__(self):
        if len(self.levels) != len(self.steps):
            raise ValueError(
                f"levels {self.levels} and steps {self.steps}: expected as many of each"
            )
        blocks = [n for level in self.levels for n in np.atleast_1d(level)]
        if any(n not in (1, 2, 4, 8, 16, 32) for n in blocks):
            raise ValueError(f"levels: found {self.levels}, expected powers of two up to 32")
        if min(*self.windows, self.fluid, self.elastic) <= 0:  # a Gaussian of no width is NaN
            raise ValueError(
                f"windows {self.windows}, fluid {self.fluid} and elastic {self.elastic}: expected "
                "more than 0 pixels"
            )

    @classmethod
    def of(cls, steps: int) -> "Refinement":
        """The settings with `steps` steps in all, spread over the levels as usual; 0: none."""
        if not steps:
            return cls(levels=(1,), steps=(0,), least_gain=float("-inf"))
        usual = cls().steps
        ends = [round(steps * sum(usual[:k]) / sum(usual)) for k in range(len(usual) + 1)]
        return cls(steps=tuple(b - a for a, b in zip(ends[:-1], ends[1:], strict=True)))

    def on(self, spacing: Sequence[float]) -> "Refinement":
        """The settings for images of that spacing.

        An axis stays as it is on levels finer than its pixels, and gets coarser with the others
        from there on.
        """

        def blocks(level):
            pixels = [level * min(spacing) / s for s in spacing]
            return tuple(2 ** max(0, round(math.log2(n))) for n in pixels)

        return replace(self, levels=tuple(map(blocks, self.levels)))


STEPS = sum(Refinement().steps)  # of refinement, unless asked for more or less


class Refined(NamedTuple):
    """What `refine` found for every pair; `[B, *space]` images, pull-back, pixels.

    velocity: `[B, *space, rank]`, scaled back.
    displacement: exp(velocity) - id: warped(x) = moving(x + displacement(x)).
    inverse: of the displacement, with its residual and where it converged.
    scale: `[B]`, s in [0, 1]: what was found was exp(v / s); 0: no motion is better than any.
    correlation: `[B, 2]`, mean local correlation of fixed and moving image, before and after.
    rms: `[B, 2]`, root of the mean squared difference, before and after.
    start_gain: `[B]`, which share of what local correlation lacks to 1 the start makes up for, each
      pixel weighted by how far the start moves it; NaN without a start.
    """

    velocity: jax.Array
    displacement: jax.Array
    inverse: Inverse
    scale: jax.Array
    correlation: jax.Array
    rms: jax.Array
    start_gain: jax.Array


class Level(NamedTuple):
    """blocks: pixels of the images in one of the level; unit: pixels of the level in one length.

    Both along each axis. The length is that of a pixel of the level along the finest axis.
    """

    blocks: tuple[int, ...]
    unit: jax.Array

    @classmethod
    def of(cls, level: int | tuple[int, ...], spacing: jax.Array) -> "Level":
        blocks = (level,) * len(spacing) if isinstance(level, int) else level
        pixels = spacing * jnp.array(blocks, jnp.float32)
        return cls(blocks, max(blocks) * jnp.min(spacing) / pixels)

    def gaussians(self, space: Sequence[int], length: float) -> list[jax.Array]:
        """Matrices that smooth by so many lengths."""
        sigmas = length * self.unit
        return [separable.gaussian_matrix(n, s) for n, s in zip(space, sigmas, strict=True)]

    def window(self, weight: jax.Array, length: float) -> Window:
        return gaussian_window(weight, list(length * self.unit))


@functools.partial(jax.jit, static_argnames="settings")
def refine(
    moving: jax.Array,
    fixed: jax.Array,
    valid: jax.Array | None = None,
    start: jax.Array | None = None,
    settings: Refinement = Refinement(),
    spacing: jax.Array | None = None,
    channels: tuple[jax.Array, jax.Array] | None = None,
) -> Refined:
    """Register `[B, *space]` images in about [0, 1]; pairs do not see each other.

    Args:
        moving, fixed: float32.
        valid: `[B, *space]` bool, where both images are known; None: everywhere.
        start: `[B, *space, rank]`, a velocity to begin with; None: zero.
        settings: see `Refinement`, and `Refinement.on` for volumes of thick slices.
        spacing: `[rank]`, of the pixels along each axis; only ratios count. None: equal.
        channels: `[B, *space, K]` of the moving and the fixed image, for example of anatomy. What
            the search finds is judged on the images alone.
    """
    spacing = _known(spacing, moving.ndim - 1)
    weight = jnp.ones(moving.shape) if valid is None else valid.astype(jnp.float32)
    gain = jnp.full(len(moving), jnp.nan)
    if start is not None:
        gain = _start_gain(start, moving, fixed, weight, settings, spacing)
        start = jnp.where(_per_pair(gain >= settings.least_gain, start), start, 0)
    v = search(moving, fixed, weight, start, settings, spacing, channels)
    return _checked(v, moving, fixed, weight, settings, spacing)._replace(start_gain=gain)


@functools.partial(jax.jit, static_argnames="settings")
def search(
    moving: jax.Array,
    fixed: jax.Array,
    weight: jax.Array | None = None,
    start: jax.Array | None = None,
    settings: Refinement = Refinement(),
    spacing: jax.Array | None = None,
    channels: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """The velocity `[B, *space, rank]` of `refine` before its map is checked.

    Any start is taken. `weight` `[B, *space]` >= 0 is what each pixel counts; None: all alike.
    """
    sizes = check_shape("moving", moving, "B *space")
    check_shape("fixed", fixed, "B *space", sizes)
    space, rank = sizes["space"], sizes["rank"]
    spacing = _known(spacing, rank)
    weight = jnp.ones(moving.shape) if weight is None else weight
    check_shape("weight", weight, "B *space", sizes)
    v = jnp.zeros((*moving.shape, rank)) if start is None else start
    check_shape("start", v, "B *space rank", sizes)

    levels = [Level.of(level, spacing) for level in settings.levels]
    coarsest = [max(blocks) for blocks in zip(*(level.blocks for level in levels), strict=True)]
    multiples = [SIZE_STEP if n == max(coarsest) else n for n in coarsest]
    pad = [(0, 0), *((0, -n % m) for n, m in zip(space, multiples, strict=True))]
    layers = [jnp.concatenate([moving, fixed])]  # the images, then every channel
    if channels is not None:
        for name, channel in zip(("moving", "fixed"), channels, strict=True):
            check_shape(f"channels of the {name} image", channel, "B *space K", sizes)
        layers += list(jnp.moveaxis(jnp.concatenate(channels), -1, 0))
    layers = jnp.stack([jnp.pad(layer, pad, mode="edge") for layer in layers])
    weight = jnp.pad(weight, pad)
    first = jnp.moveaxis(jnp.pad(v, [*pad, (0, 0)], mode="edge"), -1, 1)  # [B, rank, *space]
    added, blocks = jnp.zeros_like(first), (1,) * rank
    for level, steps in zip(levels, settings.steps, strict=True):
        added = _search(
            _rescale(first, (1,) * rank, level.blocks),
            _rescale(added, blocks, level.blocks),
            separable.block_means(layers, level.blocks),
            separable.block_means(weight, level.blocks),
            level,
            steps,
            settings,
        )
        blocks = level.blocks
    inside = (slice(None), *map(slice, space))
    return v + jnp.moveaxis(_rescale(added, blocks, (1,) * rank), 1, -1)[inside]


def _search(start, added, layers, weight, level, steps, settings):
    """What is `added` to the start, `[B, rank, *space]` both, after `steps` on one level.

    layers: `[1 + K, 2 B, *space]`, images and channels, of the moving before the fixed images.
    """
    rank = start.shape[1]
    windows = [level.window(weight, length) for length in settings.windows]
    fluid, elastic = (
        level.gaussians(weight.shape[1:], length) for length in (settings.fluid, settings.elastic)
    )
    unit = level.unit.reshape(rank, *[1] * rank)

    def step(_, added):
        v = start + added
        both = jnp.moveaxis(jnp.concatenate([v, -v]), 1, -1) / 2
        grid = integrate_velocity(both, _HALF_SQUARINGS)
        halfway, *others = jnp.moveaxis(warp(jnp.moveaxis(layers, 0, -1), grid), -1, 0)
        contrast = _contrast(halfway) * unit
        force, squared = jnp.zeros_like(v), jnp.zeros_like(v[:, :1])
        for window in windows:
            likeness = correlation_gradient(halfway, window, settings.floor)
            forces, contrasts = (
                (contrast * factor[:, None]).reshape(2, *v.shape)
                for factor in (likeness.gradient, jnp.sqrt(likeness.precision))
            )
            force += (forces[0] - forces[1]) / 2
            squared += jnp.sum(jnp.square((contrasts[0] + contrasts[1]) / 2), axis=1, keepdims=True)
        for channel in others:
            of_moving, of_fixed = channel.reshape(2, *weight.shape)
            contrast = jnp.mean(_contrast(channel).reshape(2, *v.shape), axis=0) * unit
            force += ((of_fixed - of_moving) * weight)[:, None] * contrast
            squared += jnp.sum(jnp.square(contrast), axis=1, keepdims=True) * weight[:, None]
        around = separable.apply(fluid, jnp.concatenate([force, squared], axis=1))
        move = settings.relaxation * around[:, :rank] / (around[:, rank:] + settings.stiffness)
        length = jnp.sqrt(jnp.sum(jnp.square(move), axis=1, keepdims=True))
        move = move / jnp.maximum(1, length / settings.longest_step) * unit
        return separable.apply(elastic, added + move)

    return lax.fori_loop(0, steps, step, added)


def _contrast(image):
    """Derivatives along each axis of space, `[B, *space]` -> `[B, rank, *space]`."""
    return jnp.stack(jnp.gradient(image, axis=tuple(range(1, image.ndim))), axis=1)


def _checked(v, moving, fixed, weight, settings, spacing):
    """What is kept of v: smoothed until neither exp(v) nor exp(-v) folds, then scaled back.

    A velocity on pixels can fold. The scale is the largest of `_SCALES` at which no image is less
    like the other than without motion, and nothing folds.
    """
    correlate = _correlation(weight, settings, spacing)
    smoothing = Level.of(1, spacing).gaussians(moving.shape[1:], settings.elastic)
    space = tuple(range(1, moving.ndim))
    scales, last = jnp.array(_SCALES), len(_SCALES) - 1

    def likeness(warped, others):
        """rms and correlation, `[2, B]` each."""
        squared, correlation = jnp.square(warped - others), correlate(warped, others)
        rms, correlation = (
            jnp.sum(x * weight, axis=[axis + 1 for axis in space]) / jnp.sum(weight, axis=space)
            for x in (squared, correlation)
        )
        return jnp.sqrt(rms), correlation

    still = likeness(jnp.stack([moving, fixed]), jnp.stack([fixed, moving]))

    def unfinished(state):
        return ~jnp.all(state[3])

    def attempt(state):
        """v smoothed, or else the next smaller scale, for every pair that is not fine yet."""
        v, chosen, smoothings = state[:3]
        displacements, warped, others = _both_ways(v * _per_pair(scales[chosen], v), moving, fixed)
        folded = (jacobian_determinant(displacements) <= 0) & (weight > 0)
        folds = jnp.any(folded, axis=(0, *range(2, folded.ndim)))
        rms, correlation = likeness(warped, others)
        alike = jnp.all((rms <= still[0]) & (correlation >= still[1]), axis=0)
        fine = ~folds & (alike | (chosen == last))
        smooth = jnp.moveaxis(separable.apply(smoothing, jnp.moveaxis(v, -1, 1)), 1, -1)
        repaired = folds & (smoothings < _MOST_SMOOTHINGS)
        v = jnp.where(_per_pair(repaired, v), smooth, v)
        chosen = jnp.where(fine | repaired, chosen, chosen + 1)
        return v, chosen, smoothings + repaired, fine, displacements, rms, correlation

    nothing = jnp.zeros((2, *v.shape))
    count = jnp.zeros(len(v), int)
    state = (v, count, count, jnp.zeros(len(v), bool), nothing, *still)
    v, chosen, _, _, (there, back), *now = lax.while_loop(unfinished, attempt, state)
    rms, correlation = (
        jnp.stack([before[0], after[0]], axis=-1) for before, after in zip(still, now, strict=True)
    )
    return Refined(
        v * _per_pair(scales[chosen], v),
        there,
        invert(there, back),
        scales[chosen],
        correlation,
        rms,
        jnp.full(len(v), jnp.nan),
    )


def _start_gain(v, moving, fixed, weight, settings, spacing):
    """See `Refined.start_gain`; `[B]`, the mean of both ways."""
    correlate = _correlation(weight, settings, spacing)
    weight = weight * jnp.linalg.norm(v / Level.of(1, spacing).unit, axis=-1)

    def lacking(v):
        _, warped, others = _both_ways(v, moving, fixed)
        lacks = (1 - correlate(warped, others)) * weight
        return jnp.sum(lacks, (0, *range(2, lacks.ndim)))

    before = lacking(jnp.zeros_like(v))
    return 1 - lacking(v) / jnp.where(before > 0, before, 1)


def _both_ways(v, moving, fixed):
    """exp(v) and exp(-v) `[2, B, *space, rank]`, what they warp `[2, B, *space]`, onto what."""
    displacements = integrate_velocity(jnp.concatenate([v, -v]), _SQUARINGS)
    warped = warp(jnp.concatenate([moving, fixed])[..., None], displacements)[..., 0]
    return (
        displacements.reshape(2, *v.shape),
        warped.reshape(2, *moving.shape),
        jnp.stack([fixed, moving]),
    )


def _correlation(weight, settings, spacing):
    """Function of images `[2, B, *space]`: their local correlation, the mean over all windows."""
    level = Level.of(1, spacing)
    windows = [level.window(weight, length) for length in settings.windows]

    def of_pair(a, b):
        return sum(local_correlation(a, b, w, settings.floor) for w in windows) / len(windows)

    return jax.vmap(of_pair)


def _rescale(v, old, new):
    """A velocity `[B, rank, *space]` of a level with blocks `old`, for one with blocks `new`."""
    if old == new:
        return v
    factors = [a / b for a, b in zip(old, new, strict=True)]
    size = [round(n * factor) for n, factor in zip(v.shape[2:], factors, strict=True)]
    factors = jnp.array(factors).reshape(-1, *[1] * len(size))
    return separable.resize(v, size, align="cells") * factors


def _known(spacing, rank):
    if spacing is None:
        return jnp.ones(rank)
    spacing = jnp.asarray(spacing, jnp.float32)
    if spacing.shape != (rank,):
        raise ValueError(
            f"spacing: found shape {spacing.shape}, expected {rank} positive numbers (axis order)"
        )
    return spacing


def _per_pair(values, array):
    """`[B]`, to be multiplied with an array `[B, ...]`."""
    return values.reshape(-1, *[1] * (array.ndim - 1))
