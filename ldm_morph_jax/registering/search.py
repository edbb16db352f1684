"""Find the stationary velocity of a pair, from coarse to fine, on the whole image.

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
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ldm_morph_jax.ops.checks import check_shape
from ldm_morph_jax.ops.geometry import integrate_velocity, warp
from ldm_morph_jax.ops.inverse import Inverse, invert
from ldm_morph_jax.ops.similarity import (
    correlation_gradient,
    gaussian_window,
    local_correlation,
    smooth,
)

SIZE_STEP = 32  # sides are padded to multiples of this: few programs serve all sizes
_HALF_SQUARINGS = 5  # of v / 2 while it is searched
_SQUARINGS = 7  # of the result
_SCALES = (1.0, 0.75, 0.5, 0.25, 0.0)  # tried from left to right


@dataclass(frozen=True)
class Refinement:
    """Settings of the search; lengths in pixels of the level at hand.

    Chosen on training and validation patients of Sunnybrook, ACDC and CAMUS (docs/refinement.md).

    Attributes:
      levels: how much coarser each level is than the images, a power of two; coarse to fine.
      steps: on each level.
      windows: sigmas of the Gaussian windows in which images are correlated; their gradients are
        added. A small one sees the edge of a wall, a large one a cavity that closes.
      floor: see `ops.similarity.local_correlation`.
      fluid: sigma of the neighbourhood of a step.
      elastic: sigma of what smooths, after every step, all that was added to the start.
      stiffness: added to the mean squared normalised contrast: the larger, the smaller are steps
        where images show little.
      longest_step: pixels.
      least_gain: a start that gains less is dropped, see `Refined.start_gain`. A network that was
        trained on other images does more harm than good as a start.
    """

    levels: tuple[int, ...] = (4, 2, 1)
    steps: tuple[int, ...] = (40, 30, 12)
    windows: tuple[float, ...] = (2.0, 8.0)
    floor: float = 1e-3
    fluid: float = 4.0
    elastic: float = 0.5
    stiffness: float = 0.3
    longest_step: float = 0.5
    least_gain: float = 0.1

    def __post_init__(self):
        if len(self.levels) != len(self.steps):
            raise ValueError(
                f"levels {self.levels} and steps {self.steps}: expected as many of each"
            )
        if any(s not in (1, 2, 4, 8, 16, 32) for s in self.levels):
            raise ValueError(f"levels: found {self.levels}, expected powers of two up to 32")
        if min(*self.windows, self.fluid, self.elastic) <= 0:  # a Gaussian of no width is NaN
            raise ValueError(
                f"windows {self.windows}, fluid {self.fluid} and elastic {self.elastic}: expected "
                "more than 0 pixels"
            )

    @classmethod
    def of(cls, steps: int) -> "Refinement":
        """The settings with `steps` steps in all, spread over the levels as usual; 0: none."""
        if steps < 0:
            raise ValueError(f"refine: found {steps}, expected 0 or more steps")
        if not steps:
            return cls(levels=(1,), steps=(0,), least_gain=float("-inf"))
        usual = cls().steps
        ends = [round(steps * sum(usual[:k]) / sum(usual)) for k in range(len(usual) + 1)]
        return cls(steps=tuple(b - a for a, b in zip(ends[:-1], ends[1:], strict=True)))


STEPS = sum(Refinement().steps)  # of refinement, unless asked for more or less


class Refined(NamedTuple):
    """What `refine` found for every pair; `[B, H, W]` images, pull-back, pixels.

    velocity: `[B, H, W, 2]`, scaled back.
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


@functools.partial(jax.jit, static_argnames="settings")
def refine(
    moving: jax.Array,
    fixed: jax.Array,
    valid: jax.Array | None = None,
    start: jax.Array | None = None,
    settings: Refinement = Refinement(),
) -> Refined:
    """Register `[B, H, W]` images in about [0, 1]; pairs do not see each other.

    Args:
        moving, fixed: float32.
        valid: `[B, H, W]` bool, where both images are known; None: everywhere.
        start: `[B, H, W, 2]`, a velocity to begin with; None: zero.
        settings: see `Refinement`.
    """
    weight = jnp.ones(moving.shape) if valid is None else valid.astype(jnp.float32)
    gain = jnp.full(len(moving), jnp.nan)
    if start is not None:
        gain = _start_gain(start, moving, fixed, weight, settings)
        start = jnp.where((gain >= settings.least_gain)[:, None, None, None], start, 0)
    v = search(moving, fixed, weight, start, settings)
    return _scaled_back(v, moving, fixed, weight, settings)._replace(start_gain=gain)


@functools.partial(jax.jit, static_argnames="settings")
def search(
    moving: jax.Array,
    fixed: jax.Array,
    weight: jax.Array | None = None,
    start: jax.Array | None = None,
    settings: Refinement = Refinement(),
) -> jax.Array:
    """The velocity `[B, H, W, 2]` of `refine` before it is compared with no motion.

    Any start is taken. `weight` `[B, H, W]` >= 0 is what each pixel counts; None: all alike.
    """
    sizes = check_shape("moving", moving, "B H W")
    check_shape("fixed", fixed, "B H W", sizes)
    height, width = sizes["H"], sizes["W"]
    weight = jnp.ones(moving.shape) if weight is None else weight
    check_shape("weight", weight, "B H W", sizes)
    v = jnp.zeros((*moving.shape, 2)) if start is None else start
    check_shape("start", v, "B H W 2", sizes)

    pad = [(0, 0), (0, -height % SIZE_STEP), (0, -width % SIZE_STEP)]
    images = jnp.concatenate([jnp.pad(image, pad, mode="edge") for image in (moving, fixed)])
    weight = jnp.pad(weight, pad)
    first = jnp.moveaxis(jnp.pad(v, [*pad, (0, 0)], mode="edge"), -1, 1)  # [B, 2, H, W]
    added, coarseness = jnp.zeros_like(first), 1
    for level, steps in zip(settings.levels, settings.steps, strict=True):
        added = _search(
            _rescale(first, 1, level),
            _rescale(added, coarseness, level),
            _shrink(images, level),
            _shrink(weight, level),
            steps,
            settings,
        )
        coarseness = level
    return v + jnp.moveaxis(_rescale(added, coarseness, 1), 1, -1)[:, :height, :width]


def _search(start, added, images, weight, steps, settings):
    """What is `added` to the start, `[B, 2, H, W]` both, after `steps` on one level."""
    windows = [gaussian_window(weight, sigma) for sigma in settings.windows]

    def step(_, added):
        v = start + added
        both = jnp.moveaxis(jnp.concatenate([v, -v]), 1, -1) / 2
        halfway = warp(images[..., None], integrate_velocity(both, _HALF_SQUARINGS))[..., 0]
        contrast = jnp.stack(jnp.gradient(halfway, axis=(1, 2)), axis=1)
        force, squared = jnp.zeros_like(v), jnp.zeros_like(v[:, :1])
        for window in windows:
            likeness = correlation_gradient(halfway, window, settings.floor)
            forces, contrasts = (
                (contrast * factor[:, None]).reshape(2, *v.shape)
                for factor in (likeness.gradient, jnp.sqrt(likeness.precision))
            )
            force += (forces[0] - forces[1]) / 2
            squared += jnp.sum(jnp.square((contrasts[0] + contrasts[1]) / 2), axis=1, keepdims=True)
        around = smooth(jnp.concatenate([force, squared], axis=1), settings.fluid)
        move = around[:, :2] / (around[:, 2:] + settings.stiffness)
        length = jnp.sqrt(jnp.sum(jnp.square(move), axis=1, keepdims=True))
        move = move / jnp.maximum(1, length / settings.longest_step)
        return smooth(added + move, settings.elastic)

    return lax.fori_loop(0, steps, step, added)


def _scaled_back(v, moving, fixed, weight, settings):
    """The largest of `_SCALES` at which no image is less like the other than without motion."""
    correlate = _correlation(weight, settings)

    def average(x):
        return jnp.sum(x * weight, axis=(2, 3)) / jnp.sum(weight, axis=(1, 2))

    def attempt(scale):
        displacements, warped, others = _both_ways(scale * v, moving, fixed)
        rms = jnp.sqrt(average(jnp.square(warped - others)))
        return displacements, rms, average(correlate(warped, others))

    displacements, rms, correlation = lax.map(attempt, jnp.array(_SCALES))
    fine = jnp.all((rms <= rms[-1:]) & (correlation >= correlation[-1:]), axis=1)  # [S, B]
    chosen = jnp.argmax(fine, axis=0)
    pair = jnp.arange(len(moving))
    there, back = (displacements[chosen, way, pair] for way in (0, 1))
    scale = jnp.array(_SCALES)[chosen]
    return Refined(
        v * scale[:, None, None, None],
        there,
        invert(there, back),
        scale,
        jnp.stack([correlation[-1, 0], correlation[chosen, 0, pair]], axis=-1),
        jnp.stack([rms[-1, 0], rms[chosen, 0, pair]], axis=-1),
        jnp.full(len(moving), jnp.nan),
    )


def _start_gain(v, moving, fixed, weight, settings):
    """See `Refined.start_gain`; `[B]`, the mean of both ways."""
    correlate = _correlation(weight, settings)
    weight = weight * jnp.linalg.norm(v, axis=-1)

    def lacking(v):
        _, warped, others = _both_ways(v, moving, fixed)
        return jnp.sum((1 - correlate(warped, others)) * weight, (0, 2, 3))

    before = lacking(jnp.zeros_like(v))
    return 1 - lacking(v) / jnp.where(before > 0, before, 1)


def _both_ways(v, moving, fixed):
    """exp(v) and exp(-v) `[2, B, H, W, 2]`, what they warp `[2, B, H, W]`, and onto what."""
    displacements = integrate_velocity(jnp.concatenate([v, -v]), _SQUARINGS)
    warped = warp(jnp.concatenate([moving, fixed])[..., None], displacements)[..., 0]
    return (
        displacements.reshape(2, *v.shape),
        warped.reshape(2, *moving.shape),
        jnp.stack([fixed, moving]),
    )


def _correlation(weight, settings):
    """Function of images `[2, B, H, W]`: their local correlation, the mean over all windows."""
    windows = [gaussian_window(weight, sigma) for sigma in settings.windows]

    def of_pair(a, b):
        return sum(local_correlation(a, b, w, settings.floor) for w in windows) / len(windows)

    return jax.vmap(of_pair)


def _shrink(x, factor):
    """`[B, H, W]` -> means of `factor` x `factor` pixels."""
    n, height, width = x.shape
    return x.reshape(n, height // factor, factor, width // factor, factor).mean(axis=(2, 4))


def _rescale(v, old, new):
    """A velocity `[B, 2, H, W]` of a level `old` times coarser than the images, for level `new`."""
    if old == new:
        return v
    if new > old:
        factor = new // old
        return (
            _shrink(v.reshape(-1, *v.shape[2:]), factor).reshape(
                *v.shape[:2], v.shape[2] // factor, v.shape[3] // factor
            )
            / factor
        )
    factor = old // new
    rows, columns = (_enlarging_matrix(size, factor) for size in v.shape[2:])
    return factor * (rows @ v @ columns.T)


def _enlarging_matrix(size, factor):
    """`[factor * size, size]`: linear interpolation between the centres of blocks of `factor`."""
    position = (jnp.arange(factor * size, dtype=jnp.float32) + 0.5) / factor - 0.5
    position = jnp.clip(position, 0, size - 1)
    distance = jnp.abs(position[:, None] - jnp.arange(size, dtype=jnp.float32)[None, :])
    return jnp.maximum(0, 1 - distance)
