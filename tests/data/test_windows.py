"""Windows of annotated images: where they lie, and that masks stay on what they mark."""

import numpy as np
import pytest

from ldm_morph_jax.data.windows import (
    Variation,
    Window,
    nothing,
    plain_window,
    sample,
    sample_labels,
    smooth_noise,
    squeezed,
)
from ldm_morph_jax.files.geometry import inside


def disc(shape=(60, 80), centre=(30, 40), radii=(9, 18)):
    """An element whose mask is its bright ellipse; pixels of 2 x 1 mm, a disc in the world."""
    rows, columns = np.indices(shape)
    mask = np.hypot((rows - centre[0]) / radii[0], (columns - centre[1]) / radii[1]) < 1
    image = 0.2 + 0.6 * mask + 0.1 * np.sin(rows / 7)
    return {
        "image": image[..., None].astype("f4"),
        "mask": mask[..., None].astype(np.uint8),
        "spacing": np.array([2.0, 1.0]),
    }


def test_a_window_has_its_own_spacing():
    found = plain_window(disc(), Window(64, 1.5))
    rows, columns = np.nonzero(found["mask"][..., 0])
    # 18 mm of radius are 12 pixels of 1.5 mm, along both axes
    assert np.ptp(rows) + 1 == pytest.approx(24, abs=2)
    assert np.ptp(columns) + 1 == pytest.approx(24, abs=2)
    assert abs(rows.mean() - 31.5) < 1 and abs(columns.mean() - 31.5) < 1
    assert found["image"].min() == 0 and found["image"].max() == 1


def test_without_a_spacing_the_window_shows_the_whole_image():
    at = Window(32, 0.0).coordinates((60, 80), (1, 1))
    assert inside(np.moveaxis(at, 0, -1), (60, 80)).all()
    assert np.ptp(at[0]) == pytest.approx(60 * 31 / 32)
    assert np.ptp(at[1]) == pytest.approx(80 * 31 / 32)


def test_outside_of_the_image_it_is_black():
    at = Window(64, 4.0).coordinates((60, 80), (2, 1))
    image = sample(disc()["image"][..., 0] + 5, at)
    assert (image[~inside(np.moveaxis(at, 0, -1), (60, 80))] == 0).all()
    assert image[31, 31] > 0.9


def test_images_and_masks_are_varied_alike():
    variation = Variation(
        rotation_degrees=180, mirror=(0.5, 0.5), scale=0.3, aspect=0.1, shift=0.1, bend=1.0
    )
    rng = np.random.default_rng(3)
    places = []
    for _ in range(12):
        found = variation.window(disc(), Window(64, 1.5), rng)
        bright, mask = found["image"][..., 0] > 0.6, found["mask"][..., 0] > 0
        assert 2 * (bright & mask).sum() / (bright.sum() + mask.sum()) > 0.9
        places.append(np.argwhere(mask).mean(axis=0))
    assert np.std(places, axis=0).min() > 2  # it does move


def test_a_squeezed_cavity_is_smaller_and_its_surroundings_do_not_fold():
    element = disc(centre=(28, 42))
    mask, at = element["mask"][..., 0], np.indices((60, 80)).astype(float)
    for share in (-0.7, 0.7):
        moved = squeezed(at, mask, share)
        seen = sample_labels(mask, moved)
        assert (seen.sum() < 0.6 * mask.sum()) if share > 0 else (seen.sum() > 1.5 * mask.sum())
        np.testing.assert_allclose(np.argwhere(seen).mean(0), (28, 42), atol=0.5)
        assert np.abs(moved - at)[:, 0, 0].max() < 0.1  # far away nothing moves
        (dyy, dyx), (dxy, dxx) = (np.gradient(m) for m in moved)
        assert (dyy * dxx - dyx * dxy).min() > 0
    variation = Variation(squeeze=0.7)
    areas = [
        variation.window(element, Window(64, 1.5), np.random.default_rng(k))["mask"].sum()
        for k in range(12)
    ]
    assert max(areas) > 1.3 * min(areas)


def test_appearance_changes_no_mask_and_the_same_draws_give_the_same_window():
    looks = Variation(
        gamma=0.3, field=0.3, contrast=0.1, blur=1.0, noise=0.1, speckle=0.1, coarse=2.0
    )
    window = Window(64, 1.5)
    one, two = (looks.window(disc(), window, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one["image"], two["image"])
    plain = plain_window(disc(), window)
    np.testing.assert_array_equal(one["mask"], plain["mask"])
    assert np.abs(one["image"] - plain["image"]).mean() > 0.02
    assert one["image"].min() >= 0 and one["image"].max() <= 1


def test_what_shows_no_heart_has_no_mask():
    rng = np.random.default_rng(0)
    image = plain_window(disc(), Window(64, 1.5))["image"][..., 0]
    for _ in range(30):  # every kind
        drawn = nothing(image, rng)
        assert drawn.shape == image.shape
        assert 0 <= drawn.min() and drawn.max() <= 1
    always = Variation(nothing=1.0).window(disc(), Window(64, 1.5), rng)
    assert not always["mask"].any()


def test_how_large_and_smooth_noise_is():
    rng = np.random.default_rng(1)
    drawn = np.stack([smooth_noise((32, 32), 4, rng) for _ in range(200)])
    assert drawn.std() == pytest.approx(1.2, abs=0.1)
    assert np.abs(np.diff(drawn, axis=1)).mean() < 0.25
