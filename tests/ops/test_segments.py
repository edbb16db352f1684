"""Segments of the American Heart Association against the figure that defines them."""

import numpy as np
import pytest

from ldm_morph_jax.ops import segments as aha

CENTRE, SEPTUM = (50.0, 50.0), (50.0, 20.0)  # septum on the left, as usual


def at(degrees, radius=20.0):
    """A point that many degrees anticlockwise from the septum's middle."""
    angle = np.radians(180 + degrees)
    return (50 - radius * np.sin(angle), 50 + radius * np.cos(angle))


@pytest.mark.parametrize("turn", [0, 50, 200])
def test_septum_turns_the_segments(turn):
    centre, points = np.array(CENTRE), np.array([at(d + turn) for d in (30, 150, 330)])
    assert np.array_equal(aha.segments(points, centre, at(turn, 7), aha.BASAL), [3, 5, 2])
    mirrored = points * [1, -1] + [0, 100]
    septum = np.array(at(turn, 7)) * [1, -1] + [0, 100]
    assert np.array_equal(aha.segments(mirrored, centre, septum, aha.BASAL), [2, 6, 3])


def test_six_segments_of_base_and_middle():
    degrees = [30, 90, 150, 210, 270, 330]
    points = np.array([at(d) for d in degrees])
    expected = np.array([3, 4, 5, 6, 1, 2])
    for level, first in ((aha.BASAL, 0), (aha.MIDDLE, 6)):
        assert np.array_equal(aha.segments(points, CENTRE, SEPTUM, level), expected + first)
    # the inferior wall is below, the anterior one above
    assert aha.segments((80.0, 50.0), CENTRE, SEPTUM, aha.BASAL) == 4
    assert aha.segments((20.0, 50.0), CENTRE, SEPTUM, aha.BASAL) == 1


def test_four_segments_of_the_apex_and_the_cap():
    points = np.array([at(d) for d in (-44, 44, 46, 134, 136, 224, 226, 314)])
    expected = [14, 14, 15, 15, 16, 16, 13, 13]
    assert np.array_equal(aha.segments(points, CENTRE, SEPTUM, aha.APICAL), expected)
    assert np.array_equal(aha.segments(points, CENTRE, SEPTUM, aha.CAP), [17] * 8)
    assert not aha.segments(points, CENTRE, SEPTUM, 0).any()


def test_unequal_spacing():
    point = (50 + 10.0, 50 - 30.0)  # 26.6 degrees down from the septum in mm with rows of 1.5 mm
    assert aha.segments(point, CENTRE, SEPTUM, aha.APICAL, (1.5, 1.0)) == 14
    assert aha.segments(point, CENTRE, SEPTUM, aha.APICAL, (4.0, 1.0)) == 15


def test_levels_are_thirds_of_the_length():
    cavity = np.zeros(12, bool)
    cavity[2:11] = True
    wall = cavity.copy()
    wall[11] = True
    levels = aha.slice_levels(cavity, wall)
    assert levels.tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, aha.CAP]
    # seven slices: the middles at 1/14, 3/14, ... of the length
    assert aha.slice_levels(np.ones(7), np.ones(7)).tolist() == [1, 1, 2, 2, 2, 3, 3]
    assert aha.slice_levels(np.ones(3), np.ones(3)).tolist() == [1, 2, 3]
    assert aha.slice_levels(np.ones(1), np.ones(1)).tolist() == [2]
    assert not aha.slice_levels(np.zeros(12), wall).any()


def test_names():
    assert len(aha.NAMES) == 17
    for view in aha.VIEWS.values():
        names = [aha.NAMES[number - 1].split()[0] for number in view]
        assert names == ["basal", "mid", "apical", "apical", "mid", "basal"]
