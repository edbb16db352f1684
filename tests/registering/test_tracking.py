"""Tracking: the plan over time with methods whose answer is known, and the phantom's beat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from ldm_morph_jax.data.phantom import LV, MYOCARDIUM
from ldm_morph_jax.data.phantom_cine import phantom_cine
from ldm_morph_jax.files.movies import cine_from_arrays
from ldm_morph_jax.ops.geometry import compose, integrate_velocity
from ldm_morph_jax.registering import tracking
from ldm_morph_jax.registering.search import Refinement, search
from ldm_morph_jax.registering.tracking import Tracking, track

pytestmark = pytest.mark.integration

SIZE = 16


def cine_of_levels(levels):
    """Frames of one grey level each, so that a pair tells the method which frames it has."""
    return np.broadcast_to(np.float32(levels)[:, None, None], (len(levels), SIZE, SIZE)).copy()


def by_level(moving, fixed, start):
    """A method whose velocity is the difference of grey levels, along the rows."""
    v = (moving - fixed)[..., None] * jnp.array([1.0, 0.0])
    return v + 0 * start


def nothing_more(moving, fixed, start):
    return start


@pytest.mark.parametrize("reference", [0, 4, 9])
def test_every_frame_is_registered_to_the_reference(reference):
    levels = 3 * np.sin(2 * np.pi * np.arange(10) / 10)
    v = track(
        cine_of_levels(levels),
        by_level,
        by_level,
        reference=reference,
        period=10,
        settings=Tracking(rounds=1, twicing=False, chunk=3),
    )[:]
    assert v.shape == (10, SIZE, SIZE, 2) and v.dtype == np.float32
    np.testing.assert_allclose(v[:, 3, 5, 0], levels - levels[reference], atol=1e-5)
    np.testing.assert_allclose(v[..., 1], 0, atol=1e-6)


def test_frames_between_key_frames_start_from_the_interpolated_velocity():
    times = np.array([0.0, 1, 2, 4, 5, 6, 8])
    v = track(
        cine_of_levels(times),
        by_level,
        nothing_more,
        times=times,
        settings=Tracking(key_frames=3, twicing=False),
    )[:]
    # keys 0, 3, 6 know their velocity; a motion linear in time leaves nothing to be improved
    np.testing.assert_allclose(v[:, 0, 0, 0], times, atol=1e-4)


def test_noise_in_time_is_smoothed_away_and_the_beat_closes():
    phase = np.linspace(0, 1, 31)
    true = 2 * (1 - np.cos(2 * np.pi * phase))
    noise = 0.3 * (-1.0) ** np.arange(31)
    noise[0] = 0
    settings = Tracking(harmonics=2, rounds=1, twicing=False, key_frames=31)
    v = track(
        cine_of_levels(true + noise), by_level, by_level, times=phase, period=1, settings=settings
    )[:][:, 0, 0, 0]
    assert v[0] == pytest.approx(0, abs=1e-6) and v[-1] == pytest.approx(0, abs=1e-6)
    assert np.abs(v - true).max() < 0.1


@pytest.mark.parametrize("period", [None, 1.0, 2.5])
def test_time_basis(period):
    times = np.sort(np.random.default_rng(1).uniform(0, 1, 40))
    basis = tracking.time_basis(times, 7, 4, period)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
    np.testing.assert_allclose(basis[7], 0, atol=1e-5)  # zero at the reference
    matrix = basis @ basis.T
    angle = 2 * np.pi * times / (period or 1)
    smooth = np.sin(angle) if period else times**3 - times
    np.testing.assert_allclose(matrix @ (smooth - smooth[7]), smooth - smooth[7], atol=1e-3)


def test_time_basis_of_few_frames():
    for period in (None, 1.0):
        basis = tracking.time_basis(np.array([0.0, 0.5]), 0, 7, period)
        assert len(basis) == 2 and np.isfinite(basis).all()
    # nothing is lost where there are no more curves than frames
    kept = tracking.time_basis(np.arange(4.0), 0, 7)
    np.testing.assert_allclose(kept @ kept.T @ [0, 1, -1, 2], [0, 1, -1, 2], atol=1e-4)


def test_twicing_undoes_a_shrinkage():
    """A method that finds half of what there is: 1/2, with twicing 1/2 + (1/2 - 1/4) = 3/4."""
    rng = np.random.default_rng(0)
    picture = jax.scipy.signal.convolve(rng.normal(size=(40, 40)), np.ones((9, 9)) / 9, mode="same")
    shift = np.array([0.0, 1, 2, 1])
    frames = tracking.propagate(
        np.float32(picture),
        np.float32(shift[:, None, None, None] * [1, 0]) * np.ones((4, 40, 40, 2), np.float32),
    )

    def half(moving, fixed, start):
        """Half of the shift along the rows that explains the difference best."""
        inner = np.s_[:, 8:-8, 8:-8]
        slope = jnp.gradient(fixed, axis=1)[inner]
        difference = (moving - fixed)[inner]
        # moving(x) = fixed(x - shift), so difference = -shift slope
        found = -(difference * slope).sum((1, 2)) / (slope**2).sum((1, 2))
        return jnp.zeros_like(start).at[..., 0].set(found[:, None, None] / 2)

    once, twice = (
        track(frames, half, half, settings=Tracking(rounds=1, twicing=t, key_frames=4))[:]
        for t in (False, True)
    )
    gain = twice[2, 20, 20, 0] / once[2, 20, 20, 0]
    assert 1.3 < gain < 1.6


@functools.cache
def beat():
    return phantom_cine((1, 2), look="sax", image_size=64, frames=10)


def tracked(progress=lambda done: None, **settings):
    def pairs(steps):
        levels = Refinement(levels=(2, 1), steps=steps)
        return lambda m, f, v: search(m, f, None, v, levels)

    cine = beat()
    return track(
        cine.frames,
        pairs((20, 10)),
        pairs((4, 4)),
        times=cine.times,
        period=cine.times[-1],
        settings=Tracking(key_frames=5, harmonics=4, chunk=4, **settings),
        progress=progress,
    )[:]


def test_a_beat_of_the_phantom():
    cine, shares = beat(), []
    v = tracked(shares.append)
    u = np.asarray(integrate_velocity(v))
    wall = cine.masks[0] == MYOCARDIUM
    error = np.linalg.norm(u - cine.displacement, axis=-1)[:, wall].mean()
    motion = np.linalg.norm(cine.displacement, axis=-1)[:, wall].mean()
    assert error < 0.25 * motion
    assert np.linalg.norm(u[-1], axis=-1)[wall].mean() < 0.01
    assert shares == sorted(shares) and shares[-1] == 1.0 and shares[0] < 0.5
    # masks carried along, and the way back
    carried = tracking.propagate(cine.masks[0], v)
    es = cine.end_systole

    def dice(a, b):
        return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))

    assert carried.dtype == np.uint8
    assert dice(carried[es] == LV, cine.masks[es] == LV) > 0.9
    assert dice(cine.masks[0] == LV, cine.masks[es] == LV) < 0.85
    back = np.asarray(integrate_velocity(-v))
    there_and_back = compose(u[es : es + 1], back[es : es + 1])[0]
    assert np.abs(there_and_back[8:-8, 8:-8]).max() < 0.1


def test_chunks_do_not_change_the_result():
    frames = cine_of_levels(np.sin(np.arange(7.0)))
    results = [
        track(frames, by_level, by_level, settings=Tracking(chunk=c))[:] for c in (1, 3, 7, 20)
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], atol=1e-6)


def test_errors():
    frames = cine_of_levels([0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="frames: found 1, expected at least 2"):
        track(frames[:1], by_level, by_level)
    with pytest.raises(ValueError, match="reference: found 3, expected 0 to 2"):
        track(frames, by_level, by_level, reference=3)
    with pytest.raises(ValueError, match="expected them to increase"):
        track(frames, by_level, by_level, times=np.array([0.0, 2.0, 1.0]))
    with pytest.raises(ValueError, match=r"times: found shape \(2,\)"):
        track(frames, by_level, by_level, times=np.array([0.0, 2.0]))
    with pytest.raises(ValueError, match="key_frames: found 1, expected at least 2"):
        Tracking(key_frames=1)


def test_blank_surroundings_do_not_count():
    rows, columns = np.indices((64, 80))
    sector = abs(columns - 40) <= 4 + rows / 2
    frames = np.random.default_rng(0).uniform(0.1, 1, (3, 64, 80)) * sector
    frames[:, 40:50, 36:44] = 0  # a black cavity is no border
    inside = tracking.away_from_blank(frames)
    distance = ndimage.distance_transform_cdt(sector, "taxicab")
    assert not inside[distance <= 6].any()
    assert inside[distance > 8].all()
    assert tracking.away_from_blank(np.stack([frames, frames], axis=1)).shape == (2, 64, 80)
    frames[1] += 0.1  # what is black in one frame only
    assert tracking.away_from_blank(frames).all()


def test_the_border_of_the_sector_does_not_hold_the_wall():
    """A beat whose wall leaves the sector at its apex."""
    beat = phantom_cine((63, 5), look="echo", frames=12)
    found = tracking.track_cine(cine_from_arrays(beat.frames[:5])).displacement[4]
    error = np.linalg.norm(found - beat.displacement[4], axis=-1)
    assert error[beat.masks[0] == MYOCARDIUM].mean() < 0.75  # 0.96 where the border counts
