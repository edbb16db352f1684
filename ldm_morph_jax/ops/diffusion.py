"""The diffusion process of the latents: noising, DDIM inversion, sampling.

A noise predictor is any pure function `eps_fn(z [B, ...], t [B] int32) -> eps [B, ...]`. Times are
0-based indices (see `ldm_morph_jax.ops`); "clean" is the state before index 0, with abar = 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

NoisePredictor = Callable[[jax.Array, jax.Array], jax.Array]


class Schedule(NamedTuple):
    """Noise schedule, float32 arrays `[steps]`, each rounded once from float64."""

    betas: np.ndarray
    alphas_cumprod: np.ndarray  # abar_t = prod_{s<=t} (1 - beta_s)
    signal: np.ndarray  # sqrt(abar_t)
    noise: np.ndarray  # sqrt(1 - abar_t); 1 - abar_0 in float32 would lose three digits


def linear_schedule(steps: int = 1000, start: float = 0.0015, end: float = 0.0195) -> Schedule:
    """Betas from `start` to `end`, linear in their square root (the published LDM's schedule)."""
    return _schedule(steps, start, end, power=2)


def linear_beta_schedule(steps: int, start: float, end: float) -> Schedule:
    """Betas linear from `start` to `end` (Ho et al. 2020; DiffuseMorph)."""
    return _schedule(steps, start, end, power=1)


def _schedule(steps, start, end, power):
    if steps < 1 or not 0 < start <= end < 1:
        raise ValueError(
            f"schedule: found steps={steps}, start={start}, end={end}, "
            "expected steps >= 1 and 0 < start <= end < 1"
        )
    roots = np.linspace(start ** (1 / power), end ** (1 / power), steps, dtype=np.float64)
    betas = roots**power
    abar = np.cumprod(1 - betas)
    return Schedule(
        *(a.astype(np.float32) for a in (betas, abar, np.sqrt(abar), np.sqrt(1 - abar)))
    )


def q_sample(schedule: Schedule, z: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """z_t = sqrt(abar_t) z + sqrt(1 - abar_t) noise (paper eq. 3).

    Args:
        z: clean latents `[B, ...]`.
        t: `[B]` integers in [0, steps). A time beyond the schedule gives NaN.
        noise: standard normal, the shape of `z`.
    """
    if jnp.shape(t) != z.shape[:1] or noise.shape != z.shape:
        raise ValueError(
            f"q_sample: found z {z.shape}, t {jnp.shape(t)}, noise {noise.shape}, "
            "expected t [B] and noise like z"
        )

    def at_t(values):
        # "fill" turns a wrong time into NaN; indexing would silently clamp it
        values = jnp.asarray(values).at[t].get(mode="fill", fill_value=jnp.nan)
        return values.reshape(values.shape + (1,) * (z.ndim - 1))

    return at_t(schedule.signal) * z + at_t(schedule.noise) * noise


def inversion_times(steps: int, last: int) -> np.ndarray:
    """`steps` increasing, evenly spaced time indices that end in `last`.

    Counted from the clean latent: t_k = k (last + 1) / steps - 1, rounded down, for k = 1 .. steps.
    One step gives [last], last + 1 steps give 0 .. last. More steps raise ValueError.
    """
    if last < 0 or steps < 1:
        raise ValueError(
            f"DDIM: found {steps} steps to time {last}, expected steps >= 1 and time >= 0"
        )
    if steps > last + 1:
        raise ValueError(
            f"DDIM: found {steps} steps to time {last}, expected at most {last + 1} "
            f"(only {last + 1} time indices lie between a clean latent and time {last})"
        )
    return np.arange(1, steps + 1) * (last + 1) // steps - 1


def ddim_invert(
    schedule: Schedule, eps_fn: NoisePredictor, z: jax.Array, *, tap_time: int = 1, steps: int = 1
) -> jax.Array:
    """Deterministic DDIM inversion of clean latents `z` `[B, ...]` to `z_tau` at `tap_time`.

    Step k evaluates the noise predictor at its *destination* index t_k and moves there:
    z0 = (z - sqrt(1-abar) eps) / sqrt(abar), z' = sqrt(abar') z0 + sqrt(1-abar') eps, starting at
    abar = 1 and following `inversion_times`. One step, the default, is
    sqrt(abar_tau) z + sqrt(1-abar_tau) eps_fn(z, tau).

    Raises:
        ValueError: when `steps` > `tap_time` + 1 or `tap_time` is not in the schedule.
    """
    times = _times_in_schedule(schedule, steps, tap_time)
    return _ddim(eps_fn, z, times, *_path(schedule, times))


def ddim_sample(
    schedule: Schedule,
    eps_fn: NoisePredictor,
    z: jax.Array,
    *,
    steps: int,
    from_time: int | None = None,
) -> jax.Array:
    """Deterministic DDIM sampling (eta = 0) of clean latents from `z` at `from_time`.

    Visits the indices of `ddim_invert(tap_time=from_time, steps=steps)` in reverse: from t_k, with
    the noise predicted at t_k, to t_{k-1}, and from t_1 to clean. It undoes the inversion up to
    the change of the predicted noise within a step, which vanishes as the steps become small.

    Args:
        z: `[B, ...]`; standard normal noise to sample from scratch.
        steps: number of steps.
        from_time: the time index of `z`; default: the last of the schedule, that is, pure noise.
    """
    if from_time is None:
        from_time = len(schedule.betas) - 1
    times = _times_in_schedule(schedule, steps, from_time)
    signal, noise = (a[::-1] for a in _path(schedule, times))
    return _ddim(eps_fn, z, times[::-1], signal, noise)


def ddpm_sample(
    schedule: Schedule, eps_fn: NoisePredictor, key: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Ancestral sampling of clean latents of `shape` `[B, ...]` through every time index.

    Paper eqs. 4-5 with sigma_t^2 = beta_t (1 - abar_{t-1}) / (1 - abar_t), the variance of
    q(z_{t-1} | z_t, z_0) (Ho et al. 2020, eq. 7), which is zero in the last step.
    """
    betas, noise_variance = jnp.asarray(schedule.betas), jnp.square(schedule.noise)
    previous_variance = jnp.concatenate([jnp.zeros(1), noise_variance[:-1]])
    scales = 1 / jnp.sqrt(1 - betas)
    eps_weights = betas / schedule.noise
    sigmas = jnp.sqrt(betas * previous_variance / noise_variance)
    start_key, noise_key = jax.random.split(key)

    def step(z, inputs):
        t, scale, eps_weight, sigma = inputs
        eps = _predict(eps_fn, z, t)
        draw = jax.random.normal(jax.random.fold_in(noise_key, t), shape)
        return scale * (z - eps_weight * eps) + sigma * draw, None

    times = jnp.arange(len(betas), dtype=jnp.int32)
    z = jax.random.normal(start_key, shape)
    return lax.scan(step, z, (times, scales, eps_weights, sigmas), reverse=True)[0]


def _times_in_schedule(schedule, steps, last):
    if last >= len(schedule.betas):
        raise ValueError(
            f"DDIM: found time {last}, expected an index below {len(schedule.betas)}, "
            "the length of the schedule"
        )
    return inversion_times(steps, last).astype(np.int32)


def _path(schedule, times):
    """sqrt(abar) and sqrt(1 - abar) along clean, t_1, ..., t_T."""
    one, zero = jnp.ones(1), jnp.zeros(1)
    return (
        jnp.concatenate([one, jnp.asarray(schedule.signal)[times]]),
        jnp.concatenate([zero, jnp.asarray(schedule.noise)[times]]),
    )


def _ddim(eps_fn, z, times, signal, noise):
    """Successive DDIM updates along a path; the noise is predicted at `times`."""

    def step(z, inputs):
        t, signal, noise, next_signal, next_noise = inputs
        eps = _predict(eps_fn, z, t)
        clean = (z - noise * eps) / signal
        return next_signal * clean + next_noise * eps, None

    return lax.scan(step, z, (times, signal[:-1], noise[:-1], signal[1:], noise[1:]))[0]


def _predict(eps_fn, z, t):
    return eps_fn(z, jnp.full(z.shape[:1], t, jnp.int32)).astype(z.dtype)
