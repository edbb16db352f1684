"""The inverse of a displacement by Newton's method, on a grid (JAX) or at points (NumPy).

Both solve x + u(x) = q, with u interpolated linearly between pixels and continued with its border
value, as other tools interpret an exported field. Each point takes Newton steps with the derivative
of that interpolant. A step is at most a few pixels long and is halved whenever the residual would
not decrease. A fixed-point iteration would need |grad u| < 1, which maps without folds can exceed;
this method has no such condition. Where a map folds, a point may have no solution; the residual,
the distance of x + u(x) from q, is then large.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.spatial import cKDTree

from ldm_morph_jax.ops.checks import check_shape
from ldm_morph_jax.ops.geometry import identity_grid
from ldm_morph_jax.ops.jacobian import determinant

_LONGEST_STEP = 3.0  # pixels
_MOST_STEPS = 60  # it ends before where all points have converged or are abandoned
_TOLERANCE, _TOLERANCE_ON_HOST = 1e-3, 1e-6  # pixels; float32 coordinates allow about 1e-4
_STUCK, _NEXT_TO = 1e-3, 2.0  # pixels: a point with a larger residual, points that are neighbours
_SHORTEST_SHARE = 1e-3  # of Newton's step; a point that would need less is abandoned


class Inverse(NamedTuple):
    """displacement `[B, *space, rank]`, residual `[B, *space]`, both pixels; converged, bool."""

    displacement: jax.Array
    residual: jax.Array
    converged: jax.Array


def invert(u: jax.Array, start: jax.Array | None = None) -> Inverse:
    """The displacement w with (x + w(x)) + u(x + w(x)) = x at every pixel x.

    Args:
        u: `[B, *space, rank]`, pixels.
        start: initial guess of w, same shape, such as exp(-v) for u = exp(v); default: -u.
    """
    sizes = check_shape("u", u, "B *space rank")
    start = -u if start is None else start
    check_shape("start", start, "B *space rank", sizes)
    target = jnp.broadcast_to(identity_grid(*sizes["space"])[None], u.shape)

    def error_at(x):
        value, derivative = _interpolate(u, x)
        error = x + value - target
        return error, derivative, jnp.linalg.norm(error, axis=-1)

    def unfinished(state):
        step, _, _, _, residual, share = state
        return (step < _MOST_STEPS) & jnp.any((residual > _TOLERANCE) & (share > _SHORTEST_SHARE))

    def advance(state):
        step, x, error, derivative, residual, share = state
        trial = x + share[..., None] * _newton_step(error, derivative)
        new_error, new_derivative, new_residual = error_at(trial)
        better = new_residual < residual

        def choose(new, old):
            return jnp.where(
                better.reshape(better.shape + (1,) * (new.ndim - better.ndim)), new, old
            )

        share = jnp.where(better, jnp.minimum(2 * share, 1), share / 2)
        # a solved point cannot improve any more; it would only keep shortening its step
        share = jnp.where(residual > _TOLERANCE, share, 1)
        return (
            step + 1,
            choose(trial, x),
            choose(new_error, error),
            choose(new_derivative, derivative),
            choose(new_residual, residual),
            share,
        )

    x = target + start
    state = (0, x, *error_at(x), jnp.ones(u.shape[:-1], u.dtype))
    _, x, _, _, residual, _ = lax.while_loop(unfinished, advance, state)
    return Inverse(x - target, residual, residual <= _TOLERANCE)


def _newton_step(error, derivative):
    """-(1 + derivative)^-1 error `[..., n]` by Cramer's rule, at most `_LONGEST_STEP` long."""
    axes = range(error.shape[-1])
    rows = [[derivative[..., i, j] + (i == j) for j in axes] for i in axes]
    total = determinant(rows)
    total = jnp.where(jnp.abs(total) < 1e-6, 1e-6, total)

    def solution(k):
        return determinant([[error[..., i] if j == k else rows[i][j] for j in axes] for i in axes])

    step = -jnp.stack([solution(k) for k in axes], axis=-1) / total[..., None]
    length = jnp.linalg.norm(step, axis=-1, keepdims=True)
    return step * jnp.minimum(1, _LONGEST_STEP / jnp.maximum(length, 1e-6))


def _interpolate(u, x):
    """u at x, both `[B, *space, n]`, and its derivative `[B, *space, n (of u), n (of x)]`."""
    space, n = u.shape[1:-1], u.shape[-1]
    last = jnp.array(space, x.dtype) - 1
    inside = jnp.clip(x, 0, last)
    corner = jnp.minimum(jnp.floor(inside), last - 1)
    share = inside - corner
    index = corner.astype(jnp.int32)
    flat = u.reshape(len(u), -1, n)

    def value(upper):
        at = index[..., 0] + upper[0]
        for k in range(1, n):
            at = at * space[k] + index[..., k] + upper[k]
        return jnp.take_along_axis(flat, at.reshape(len(u), -1, 1), axis=1).reshape(u.shape)

    def along(values, axis):
        """Linear interpolation and slope, from two values."""
        low, high = values
        return low + share[..., axis : axis + 1] * (high - low), high - low

    def reduced(upper, axis):
        """Value and slopes along `axis` and the axes behind it, at corners fixed before it."""
        if axis == n:
            return value(upper), []
        (low, low_slopes), (high, high_slopes) = (reduced((*upper, k), axis + 1) for k in (0, 1))
        here, slope = along((low, high), axis)
        behind = [along(pair, axis)[0] for pair in zip(low_slopes, high_slopes, strict=True)]
        return here, [slope, *behind]

    here, slopes = reduced((), 0)
    # beyond the border the field is constant across it
    moves = ((x >= 0) & (x <= last)).astype(u.dtype)
    return here, jnp.stack(slopes, axis=-1) * moves[..., None, :]


def invert_at(u: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points x with x + u(x) = target, in float64 on the host, for grids of any dimension n.

    Args:
        u: `[*shape, n]`, array indices per array index.
        targets: `[P, n]`, array indices, possibly outside the grid.

    Returns:
        (x `[P, n]`, residual `[P]`): the residual is |x + u(x) - target|.
    """
    u, targets = np.asarray(u, np.float64), np.asarray(targets, np.float64)
    x, residual = _newton_at(u, targets, targets - _interpolate_at(u, targets)[0])
    # where the interpolant bends, a point may be stuck; the solutions next to it lead around
    stuck, solved = (np.flatnonzero(found) for found in (residual > _STUCK, residual <= _STUCK))
    if not (stuck.size and solved.size):
        return x, residual
    nearest = cKDTree(targets[solved]).query(
        targets[stuck], k=[1, 2, 3, 4], distance_upper_bound=_NEXT_TO
    )[1]
    for neighbour in nearest.T:
        found = (neighbour < solved.size) & (residual[stuck] > _STUCK)  # not solved meanwhile
        point, other = stuck[found], solved[neighbour[found]]
        start = x[other] + targets[point] - targets[other]
        new, new_residual = _newton_at(u, targets[point], start)
        better = new_residual < residual[point]
        x[point[better]], residual[point[better]] = new[better], new_residual[better]
    return x, residual


def _newton_at(u, targets, x):
    """`invert_at`, each point from its own start x `[P, n]`."""
    value, derivative = _interpolate_at(u, x)
    error = x + value - targets
    residual = np.linalg.norm(error, axis=-1)
    share = np.ones(len(x))
    for _ in range(_MOST_STEPS):
        left = np.flatnonzero((residual > _TOLERANCE_ON_HOST) & (share > _SHORTEST_SHARE))
        if not left.size:
            break
        slope = np.eye(u.shape[-1]) + derivative[left]
        # a singular derivative has no Newton direction; the least-squares one is used instead
        step = -np.einsum("pij,pj->pi", np.linalg.pinv(slope, rcond=1e-9), error[left])
        length = np.linalg.norm(step, axis=-1)
        step *= (share[left] * np.minimum(1, _LONGEST_STEP / np.maximum(length, 1e-9)))[:, None]
        trial = x[left] + step
        value, new_derivative = _interpolate_at(u, trial)
        new_error = trial + value - targets[left]
        new_residual = np.linalg.norm(new_error, axis=-1)
        better = new_residual < residual[left]
        moved = left[better]
        x[moved], error[moved] = trial[better], new_error[better]
        derivative[moved], residual[moved] = new_derivative[better], new_residual[better]
        share[left] = np.where(better, np.minimum(2 * share[left], 1), share[left] / 2)
    return x, residual


def _interpolate_at(u, x):
    """u `[*shape, n]` at array indices x `[P, n]`: values `[P, n]`, derivative `[P, n, n]`."""
    shape = np.array(u.shape[:-1])
    n = len(shape)
    inside = np.clip(x, 0, shape - 1)
    corner = np.clip(np.floor(inside), 0, np.maximum(shape - 2, 0)).astype(int)
    share = inside - corner
    moves = (x >= 0) & (x <= shape - 1)
    value, derivative = np.zeros(x.shape), np.zeros((*x.shape, n))
    for upper in np.ndindex(*(2,) * n):
        weights = np.where(upper, share, 1 - share)
        # a single slice has no upper neighbour and serves as its own
        picked = u[tuple(np.minimum(corner + upper, shape - 1).T)]
        value += weights.prod(axis=-1)[:, None] * picked
        for axis in range(n):
            slope = (1 if upper[axis] else -1) * np.delete(weights, axis, axis=1).prod(axis=-1)
            derivative[:, :, axis] += (slope * moves[:, axis])[:, None] * picked
    return value, derivative
