"""The phantom's beat: a known, periodic motion that its own frames and masks follow."""

import functools

import numpy as np
import pytest
from exact_strain import deformation_gradient, engineering_strain
from scipy import ndimage

from ldm_morph_jax.data import phantom_cine as module
from ldm_morph_jax.data.phantom import LOOKS, LV, MYOCARDIUM, phantom_pair
from ldm_morph_jax.data.phantom_cine import phantom_cine
from ldm_morph_jax.ops import strain

T = 9


@functools.cache
def beat(look, size=96):
    return phantom_cine((1, 2), look=look, image_size=size, frames=T)


def follow(image, u, order=1):
    """What frame t shows of the tissue at every pixel of frame 0."""
    at = np.indices(image.shape) + np.moveaxis(u.astype(float), -1, 0)
    return ndimage.map_coordinates(image, at, order=order, mode="nearest")


@pytest.mark.parametrize("look", LOOKS)
def test_a_beat(look):
    cine = beat(look)
    assert cine.frames.shape == cine.masks.shape == (T, 96, 96)
    assert cine.displacement.shape == (T, 96, 96, 2)
    assert cine.deformation.shape == (T, 96, 96, 2, 2)
    assert cine.frames.dtype == cine.displacement.dtype == cine.deformation.dtype == np.float32
    assert cine.masks.dtype == np.uint8 and set(np.unique(cine.masks)) == {0, 1, 2, 3}
    assert 0 <= cine.frames.min() and cine.frames.max() <= 1
    assert cine.times[0] == 0 and 0.7 <= cine.times[-1] <= 1.1 and (np.diff(cine.times) > 0).all()
    areas = (cine.masks == LV).sum(axis=(1, 2))
    assert areas.argmin() == cine.end_systole and areas[cine.end_systole] < 0.8 * areas[0]


@pytest.mark.parametrize("look", LOOKS)
def test_the_last_frame_returns_to_the_first(look):
    cine = beat(look)
    for t in (0, -1):
        np.testing.assert_allclose(cine.displacement[t], 0, atol=1e-6)
        np.testing.assert_allclose(cine.deformation[t] - np.eye(2), 0, atol=1e-5)
    np.testing.assert_array_equal(cine.masks[0], cine.masks[-1])
    assert (cine.frames[0] != cine.frames[-1]).any()  # noise and gain are not periodic
    assert np.corrcoef(cine.frames[0].ravel(), cine.frames[-1].ravel())[0, 1] > 0.95


@pytest.mark.parametrize("look", LOOKS)
def test_displacement_carries_the_first_frame_to_every_other(look):
    cine = beat(look)
    for t in range(1, T):
        labels = follow(cine.masks[t], cine.displacement[t], order=0)
        wall = cine.masks[0] == MYOCARDIUM
        assert (labels == MYOCARDIUM)[wall].mean() > 0.88  # half a pixel of a wall of five
        seen = follow(cine.frames[t], cine.displacement[t])
        assert np.corrcoef(seen.ravel(), cine.frames[0].ravel())[0, 1] > (
            0.9 if look == "sax" else 0.7
        )
    still = np.corrcoef(cine.frames[cine.end_systole].ravel(), cine.frames[0].ravel())[0, 1]
    moved = follow(cine.frames[cine.end_systole], cine.displacement[cine.end_systole])
    assert np.corrcoef(moved.ravel(), cine.frames[0].ravel())[0, 1] > still + 0.02


@pytest.mark.parametrize("look", LOOKS)
def test_deformation_is_the_derivative_of_the_displacement(look):
    cine = beat(look, 128)
    differences = np.asarray(deformation_gradient(cine.displacement))
    wall = cine.masks[0] == MYOCARDIUM
    error = np.abs(differences - cine.deformation)[:, wall]
    assert error.mean() < 1e-3 and error.max() < 0.1  # that of the differences, at the apex
    # what the cavity's area becomes, from the deformation and by counting pixels
    cavity = cine.masks[0] == LV
    area = np.linalg.det(cine.deformation)[:, cavity].sum(axis=1)
    counted = (cine.masks == LV).sum(axis=(1, 2))
    np.testing.assert_allclose(area, counted, rtol=0.02)


def test_short_axis_thickens_and_shortens_around():
    cine = beat("sax", 128)
    centre = np.argwhere(cine.masks[0] == LV).mean(axis=0)
    directions = strain.polar_directions(np.stack(np.indices((128, 128)), axis=-1), centre)
    tensor = strain.green_lagrange(cine.deformation)
    wall = (cine.masks[0] == MYOCARDIUM).astype(int)
    radial, around = (
        strain.regional_mean(engineering_strain(tensor, d), wall, 1)[:, 0] for d in directions
    )
    for curve, low, high in ((radial, 0.08, 0.5), (around, -0.3, -0.08)):
        value, at = strain.peak(curve, cine.times)
        assert low < value < high and at == pytest.approx(cine.times[cine.end_systole])


def test_tissue_returns_on_another_way():
    """Half contracted, it is twisted and shortened more on the way in than on the way back."""
    made = module._Beat(np.random.default_rng(5), "sax")
    phase = np.linspace(0, 1, 1001)
    contraction, release = made.contraction(phase), made.release(phase)
    np.testing.assert_allclose([contraction[[0, -1]], release[[0, -1]]], 0, atol=1e-12)
    assert contraction.max() == pytest.approx(1, abs=1e-4)
    there, back = np.flatnonzero(contraction > 0.5)[[0, -1]]
    assert release[there] > release[back] + 0.2


@pytest.mark.integration
@pytest.mark.parametrize("look", LOOKS)
def test_seed_size_and_number_of_frames(look):
    for a, b in zip(
        beat(look), phantom_cine((1, 2), look=look, image_size=96, frames=T), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    large, small = beat(look, 128), phantom_cine((1, 2), look=look, image_size=64, frames=T)
    blocks = large.displacement.reshape(T, 64, 2, 64, 2, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(small.displacement, blocks / 2, atol=0.05)
    np.testing.assert_array_equal(small.times, large.times)
    more = phantom_cine((1, 2), look=look, image_size=64, frames=2 * T - 1)
    np.testing.assert_allclose(more.displacement[::2], small.displacement, atol=1e-4)
    np.testing.assert_allclose(more.times[::2], small.times)
    other = phantom_cine((1, 3), look=look, image_size=64, frames=3)
    assert np.abs(other.frames[0] - small.frames[0]).max() > 0.1


@pytest.mark.parametrize("look", LOOKS)
def test_the_heart_is_that_of_the_pair(look):
    pair = phantom_pair((1, 2), look=look, image_size=96)
    np.testing.assert_array_equal(beat(look).masks[0], pair.moving_mask)


def test_speckle_decorrelates_between_frames():
    cine = beat("echo", 128)
    wall = ndimage.binary_erosion(cine.masks[0] == MYOCARDIUM)

    def detail(t):
        seen = follow(cine.frames[t], cine.displacement[t])
        return (seen - ndimage.gaussian_filter(seen, 3))[wall]

    alike = [np.corrcoef(detail(0), detail(t))[0, 1] for t in range(T)]
    assert 0.2 < alike[cine.end_systole] < 0.9 < alike[-1]


@pytest.mark.parametrize("look", LOOKS)
def test_gain_wavers_and_a_sector_of_the_wall_drops_out(look):
    rng = np.random.default_rng(5)
    made = module._Beat(rng, look)
    mask = beat(look, 128).masks[0]
    lost = module._dropout(mask, made)
    assert lost.min() >= 0 and 0.8 < lost.max() <= 1
    centre, wall = np.argwhere(mask == LV).mean(axis=0), np.argwhere(mask == MYOCARDIUM)
    aside = np.arctan2(*(wall - centre).T[::-1]) - made.side
    opposite = wall[np.cos(aside) < -0.5]
    assert lost[tuple(opposite.T)].max() < 0.01
    flat = np.full((T, 128, 128), 0.5)
    seen = made.scan(flat, np.linspace(0, 1, T), lost)
    away = tuple(opposite[0])
    assert 0.005 < seen[:, away[0], away[1]].std() < 0.1
    deepest = np.unravel_index(lost.argmax(), lost.shape)
    assert (seen[:, *deepest] < 0.92 * seen[:, away[0], away[1]]).all()


def test_a_sector_without_wall_drops_out_nowhere_else():
    """Seed (60, 41): the sector lies in the open base of the apical view; its frames were NaN."""
    cine = phantom_cine((60, 41), look="echo", image_size=48, frames=3)
    assert np.isfinite(cine.frames).all()


@pytest.mark.integration
@pytest.mark.parametrize("look", LOOKS)
def test_every_seed_gives_finite_frames_and_returns(look):
    for seed in range(12):
        cine = phantom_cine((50, seed), look=look, image_size=32, frames=4)
        assert all(np.isfinite(part).all() for part in cine)
        assert np.linalg.det(cine.deformation).min() > 0
        np.testing.assert_allclose(cine.displacement[-1], 0, atol=1e-9)


def test_errors():
    with pytest.raises(ValueError, match="at least 3 frames, found 2"):
        phantom_cine(0, frames=2)
    with pytest.raises(ValueError, match="look must be one of"):
        phantom_cine(0, look="ct")
    with pytest.raises(ValueError, match="at least 32"):
        phantom_cine(0, image_size=16)
