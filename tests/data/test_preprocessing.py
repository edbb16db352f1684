import numpy as np
import pytest

from ldm_morph_jax.data import preprocessing


def test_min_max_and_percentile():
    image = np.arange(10000, dtype=np.uint16).reshape(100, 100)
    image[0, 0] = 60000  # one bright pixel
    low = preprocessing.normalise(image, "minmax", "x")
    high = preprocessing.normalise(image, "percentile", "x")
    for scaled in (low, high):
        assert scaled.dtype == np.float32 and scaled.min() == 0 and scaled.max() == 1
    assert np.median(low) < 0.1 and abs(np.median(high) - 0.5) < 0.01
    assert np.mean(high == 1) == pytest.approx(0.01, abs=0.002)


def test_percentile_of_a_nearly_constant_image_keeps_its_contrast():
    image = np.zeros((64, 64))
    image[3, 4] = 5
    scaled = preprocessing.normalise(image, "percentile", "x")
    assert scaled[3, 4] == 1 and scaled.sum() == 1


def test_image_errors():
    image = np.random.default_rng(0).random((8, 8))
    with pytest.raises(ValueError, match="a.png: constant image"):
        preprocessing.check_image(np.full((8, 8), 7), "a.png")
    for bad in (np.nan, np.inf):
        broken = image.copy()
        broken[1, 1] = bad
        with pytest.raises(ValueError, match="a.png: expected finite values, found 1 NaN"):
            preprocessing.check_image(broken, "a.png")
    with pytest.raises(ValueError, match=r"one grey image .* \(8, 8, 3\)"):
        preprocessing.check_image(np.zeros((8, 8, 3)), "a.png")
    with pytest.raises(ValueError, match="intensity must be one of"):
        preprocessing.normalise(image, "zscore", "a.png")


def test_mask_errors():
    image, mask = np.zeros((8, 8)), np.zeros((8, 8), np.uint8)
    preprocessing.check_mask(mask, image, "m.png", values=(0, 255))
    with pytest.raises(ValueError, match=r"m.png: mask is \(4, 8\), its image \(8, 8\)"):
        preprocessing.check_mask(mask[:4], image, "m.png")
    mask[0, 0] = 128
    with pytest.raises(ValueError, match=r"among \[0, 255\], found \[128\]"):
        preprocessing.check_mask(mask, image, "m.png", values=(0, 255))
    with pytest.raises(ValueError, match=r"among 0 to 255, found \[500\]$"):
        preprocessing.check_mask(mask.astype(int) // 128 * 500, image, "m.png", values=range(256))
