"""Outlines of masks."""

import numpy as np
import pytest

from ldm_morph_jax.ops import strain
from ldm_morph_jax.registering.contours import outline


def disc(size, centre, radius):
    away = np.stack(np.indices(size), axis=-1) - centre
    return np.linalg.norm(away, axis=-1) <= radius


def test_outline_of_a_disc():
    points = outline(disc((50, 60), (24, 30), 15))
    assert points.shape == (120, 2)
    np.testing.assert_allclose(np.linalg.norm(points - [24, 30], axis=1), 15, atol=0.6)
    assert strain.contour_area(points) == pytest.approx(np.pi * 15**2, rel=0.02)
    assert strain.contour_length(points, closed=True) == pytest.approx(30 * np.pi, rel=0.03)
    normal, _ = strain.contour_directions(points, points, closed=True)
    assert (((points - [24, 30]) / 15 * np.asarray(normal)).sum(axis=1) > 0.95).all()  # outwards


def test_the_largest_part_counts_and_the_border_of_the_image_closes_it():
    mask = disc((50, 60), (24, 30), 10) | disc((50, 60), (3, 3), 2)
    assert np.linalg.norm(outline(mask) - [24, 30], axis=1).max() < 11
    cut = outline(disc((50, 60), (0, 30), 10))
    assert strain.contour_area(cut) == pytest.approx(np.pi * 100 / 2, rel=0.1)


def test_open_at_the_atrium():
    ventricle, atrium = np.zeros((2, 60, 40), bool)
    ventricle[5:35, 12:28] = True
    atrium[35:50, 10:30] = True
    points = outline(ventricle, open_at=atrium)
    assert points[:, 0].max() < 35 - 1.5  # nothing along the valve
    assert abs(points[0, 0] - points[-1, 0]) < 1  # both ends at the base
    assert abs(points[0, 1] - points[-1, 1]) == pytest.approx(16, abs=0.5)
    assert strain.contour_length(points, closed=False) == pytest.approx(2 * 27 + 16, rel=0.06)


def test_errors():
    with pytest.raises(ValueError, match="found no pixel"):
        outline(np.zeros((8, 8)))
    with pytest.raises(ValueError, match="everywhere next to"):
        outline(disc((20, 20), (10, 10), 3), open_at=disc((20, 20), (10, 10), 6))
