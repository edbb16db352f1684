"""Noise schedule, DDIM inversion and sampling against closed forms and the published networks."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax.ops import diffusion

GOLDEN = Path(__file__).parent.parent / "golden" / "ldm_morph_128.npz"


def bimodal_eps(schedule, mean=1.5, std=0.5):
    """The exact noise predictor of latents from 0.5 N(-mean, std^2) + 0.5 N(mean, std^2)."""
    signal, noise = jnp.asarray(schedule.signal), jnp.asarray(schedule.noise)

    def eps_fn(z, t):
        assert t.dtype == jnp.int32 and t.shape == z.shape[:1]
        shape = (-1,) + (1,) * (z.ndim - 1)
        a, b = signal[t].reshape(shape), noise[t].reshape(shape)
        variance = (a * std) ** 2 + b**2
        mode = a * mean * jnp.tanh(a * mean * z / variance)
        return b * (z - mode) / variance

    return eps_fn


def test_schedule():
    schedule = diffusion.linear_schedule()
    golden = np.load(GOLDEN)["alphas_cumprod"]
    np.testing.assert_allclose(
        schedule.alphas_cumprod[[0, 1, 2, 10, 100, 500, 999]], golden, rtol=2e-7
    )
    betas = schedule.betas.astype(np.float64)
    np.testing.assert_allclose(betas[[0, -1]], [0.0015, 0.0195], rtol=1e-7)
    np.testing.assert_allclose(np.diff(np.sqrt(betas), 2), 0, atol=2e-8)
    np.testing.assert_allclose(schedule.noise[0], np.sqrt(0.0015), rtol=1e-7)
    assert all(a.shape == (1000,) and a.dtype == np.float32 for a in schedule)
    with pytest.raises(ValueError, match="schedule: found steps=0"):
        diffusion.linear_schedule(0)


def test_q_sample_equals_the_published_networks():
    golden = np.load(GOLDEN)
    noisy = diffusion.q_sample(
        diffusion.linear_schedule(),
        golden["latent_moving"].transpose(1, 2, 0)[None],
        jnp.array([1]),
        golden["noise_moving"].transpose(1, 2, 0)[None],
    )
    np.testing.assert_allclose(noisy[0, ..., 0], golden["noisy_moving"][0], atol=1e-6)


def test_q_sample_takes_one_time_per_sample():
    schedule = diffusion.linear_schedule()
    z, noise = jnp.ones((3, 2, 2, 1)), jnp.full((3, 2, 2, 1), 2.0)
    noisy = diffusion.q_sample(schedule, z, jnp.array([0, 999, 1000]), noise)
    expected = schedule.signal[[0, 999]] + 2 * schedule.noise[[0, 999]]
    np.testing.assert_allclose(noisy[:2, 0, 1, 0], expected, rtol=1e-6)
    assert np.isnan(noisy[2]).all()  # not in the schedule
    with pytest.raises(ValueError, match="q_sample: found z"):
        diffusion.q_sample(schedule, z, jnp.array([0, 1]), noise)
    with pytest.raises(ValueError, match="q_sample: found z"):
        diffusion.q_sample(schedule, z, jnp.array([0, 1, 2]), noise[..., 0])


@pytest.mark.parametrize(
    "steps, last, expected",
    [
        (1, 1, [1]),
        (2, 1, [0, 1]),
        (1, 0, [0]),
        (5, 999, [199, 399, 599, 799, 999]),
        (3, 9, [2, 5, 9]),
        (10, 9, list(range(10))),
    ],
)
def test_inversion_times(steps, last, expected):
    np.testing.assert_array_equal(diffusion.inversion_times(steps, last), expected)


def test_inversion_times_are_distinct_and_end_at_the_tap():
    for last in range(12):
        for steps in range(1, last + 2):
            times = diffusion.inversion_times(steps, last)
            assert len(times) == steps and times[0] >= 0 and times[-1] == last
            gaps = np.diff(times, prepend=-1)  # clean is one before index 0
            assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_one_step_inversion_equals_the_published_networks():
    golden = np.load(GOLDEN)
    times = []

    def eps_fn(z, t):
        times.append(t)
        return jnp.asarray(golden["inversion_eps_moving"].transpose(1, 2, 0)[None])

    with jax.disable_jit():
        z_1 = diffusion.ddim_invert(
            diffusion.linear_schedule(), eps_fn, golden["latent_moving"].transpose(1, 2, 0)[None]
        )
    np.testing.assert_allclose(z_1[0, ..., 0], golden["inversion_z1_moving"][0], atol=1e-6)
    np.testing.assert_array_equal(times, [[1]])


def test_inversion_evaluates_the_destination():
    """Three steps by hand, with a predictor that depends on latent and time."""
    schedule = diffusion.linear_schedule()
    abar = schedule.alphas_cumprod.astype(np.float64)

    def eps_fn(z, t):
        return 0.3 * z + 0.01 * t[:, None]

    z = np.array([[0.2, -1.0], [0.7, 2.0]])
    expected, current = z, 1.0
    for t in (2, 5, 9):
        eps = 0.3 * expected + 0.01 * t
        clean = (expected - np.sqrt(1 - current) * eps) / np.sqrt(current)
        expected = np.sqrt(abar[t]) * clean + np.sqrt(1 - abar[t]) * eps
        current = abar[t]
    inverted = jax.jit(lambda z: diffusion.ddim_invert(schedule, eps_fn, z, tap_time=9, steps=3))(
        jnp.asarray(z, jnp.float32)
    )
    np.testing.assert_allclose(inverted, expected, rtol=1e-5)


def test_sampling_undoes_the_inversion_as_steps_grow():
    schedule = diffusion.linear_schedule()
    eps_fn = bimodal_eps(schedule)
    z = jnp.linspace(-2.5, 2.5, 64).reshape(2, 4, 8, 1)

    def round_trip(steps, time):
        noisy = diffusion.ddim_invert(schedule, eps_fn, z, tap_time=time, steps=steps)
        back = diffusion.ddim_sample(schedule, eps_fn, noisy, steps=steps, from_time=time)
        return float(jnp.abs(back - z).mean())

    errors = [round_trip(steps, 999) for steps in (5, 20, 80, 320)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert fine < coarse / 2, errors
    assert errors[-1] < 0.02, errors
    assert round_trip(1, 1) < 0.02 and round_trip(2, 1) < round_trip(1, 1)


def test_sampling_undoes_the_inversion_exactly_for_a_constant_noise():
    schedule = diffusion.linear_schedule()
    z = jnp.linspace(-1, 1, 16).reshape(1, 4, 4, 1)
    eps = jax.random.normal(jax.random.key(0), z.shape)
    noisy = diffusion.ddim_invert(schedule, lambda z, t: eps, z, tap_time=99, steps=7)
    expected = schedule.signal[99] * z + schedule.noise[99] * eps
    np.testing.assert_allclose(noisy, expected, atol=1e-5)
    back = diffusion.ddim_sample(schedule, lambda z, t: eps, noisy, steps=7, from_time=99)
    np.testing.assert_allclose(back, z, atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_samples_have_the_distribution_of_the_latents(sampler):
    schedule, shape = diffusion.linear_schedule(), (4, 32, 32, 1)
    eps_fn, key = bimodal_eps(schedule), jax.random.key(1)
    if sampler == "ddim":
        noise = jax.random.normal(key, shape)
        samples = diffusion.ddim_sample(schedule, eps_fn, noise, steps=200)
    else:
        samples = jax.jit(lambda key: diffusion.ddpm_sample(schedule, eps_fn, key, shape))(key)
    assert samples.shape == shape
    samples = np.asarray(samples).ravel()
    assert abs((samples > 0).mean() - 0.5) < 0.03
    for side in (samples[samples > 0], -samples[samples < 0]):
        assert abs(side.mean() - 1.5) < 0.04
        assert abs(side.std() - 0.5) < 0.03


def test_ddpm_sample_is_a_function_of_the_key():
    schedule = diffusion.linear_schedule(10)
    sample = lambda seed: diffusion.ddpm_sample(  # noqa: E731
        schedule, lambda z, t: 0.1 * z, jax.random.key(seed), (1, 2, 2, 1)
    )
    np.testing.assert_array_equal(sample(0), sample(0))
    assert not np.allclose(sample(0), sample(1))


def test_inversion_is_differentiable():
    schedule = diffusion.linear_schedule()
    eps_fn = bimodal_eps(schedule)
    gradient = jax.grad(
        lambda z: diffusion.ddim_invert(schedule, eps_fn, z, tap_time=9, steps=3).sum()
    )(jnp.ones((1, 2, 2, 1)))
    assert np.isfinite(gradient).all() and np.any(gradient)


def test_impossible_steps_are_refused():
    schedule, z = diffusion.linear_schedule(), jnp.zeros((1, 2, 2, 1))
    eps_fn = lambda z, t: z  # noqa: E731
    with pytest.raises(ValueError, match="3 steps to time 1, expected at most 2"):
        diffusion.ddim_invert(schedule, eps_fn, z, tap_time=1, steps=3)
    with pytest.raises(ValueError, match="expected at most 10"):
        diffusion.ddim_sample(schedule, eps_fn, z, steps=11, from_time=9)
    with pytest.raises(ValueError, match="found time 1000, expected an index below 1000"):
        diffusion.ddim_invert(schedule, eps_fn, z, tap_time=1000)
    with pytest.raises(ValueError, match="steps >= 1"):
        diffusion.ddim_invert(schedule, eps_fn, z, steps=0)
