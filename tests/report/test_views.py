"""What is drawn of a pair: the deformed grid must follow the pull-back convention."""

import numpy as np
import pytest

from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.report.views import deformed_grid_lines, pair_view, warp_labels


def constant(height, width, row, column):
    return np.broadcast_to(np.float32([row, column]), (height, width, 2))


def test_grid_of_no_motion_is_regular():
    lines = deformed_grid_lines(constant(9, 13, 0, 0), 4)
    horizontal = [line for line in lines if np.ptp(line[:, 0]) == 0]
    vertical = [line for line in lines if np.ptp(line[:, 1]) == 0]
    assert len(lines) == len(horizontal) + len(vertical)
    assert sorted(line[0, 0] for line in horizontal) == [2, 6]
    assert sorted(line[0, 1] for line in vertical) == [2, 6, 10]


def test_grid_moves_as_the_warped_image_does():
    # warped(x) = moving(x + 3): what is at column 12 of the moving image is seen at column 9
    lines = deformed_grid_lines(constant(9, 17, 0, 3), 8)
    columns = sorted(line[0, 1] for line in lines if np.ptp(line[:, 1]) < 1e-9)
    assert columns == pytest.approx([1, 9])


def test_grid_shrinks_where_tissue_contracts():
    # x + u = 2 (x - 16) + 16: the image shrinks to half its size about the centre
    rows, columns = np.mgrid[:33, :33].astype(np.float32)
    displacement = np.stack([rows - 16, columns - 16], axis=-1)
    lines = deformed_grid_lines(displacement, 8)
    levels = sorted(line[0, 0] for line in lines if np.ptp(line[:, 0]) < 1e-6)
    np.testing.assert_allclose(np.diff(levels), 4)
    moving = np.zeros((33, 33), np.float32)
    assert pair_view(moving, moving, displacement).jacobian == pytest.approx(4)


def test_pair_view_warps_image_and_outline():
    moving = np.zeros((16, 16, 1), np.float32)
    moving[6:10, 8:12] = 1
    mask = moving.astype(np.uint8)
    view = pair_view(
        moving, moving, constant(16, 16, 0, 3), moving_mask=mask, fixed_mask=mask, spacing=[2, 1]
    )
    np.testing.assert_array_equal(np.argwhere(view.warped)[[0, -1]], [[6, 5], [9, 8]])
    (before,), (after,) = view.moving_lines, view.warped_lines
    np.testing.assert_allclose(after.mean(axis=0) - before.mean(axis=0), [0, -3], atol=1e-6)
    assert view.aspect == 2
    assert view.difference_before.max() == 0 and view.difference_after.max() == 1


def test_labels_are_warped_as_by_ops():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (12, 15)).astype(np.uint8)
    # halves of a pixel, and far beyond the border, too
    displacement = (rng.integers(-40, 41, (12, 15, 2)) / 4).astype(np.float32)
    expected = warp(labels[None, ..., None], displacement[None], interpolation="nearest")
    np.testing.assert_array_equal(warp_labels(labels, displacement), expected[0, ..., 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fixed": np.zeros((8, 9))}, "fixed: found shape"),
        ({"displacement": np.zeros((8, 8, 3))}, "displacement: found shape"),
        ({"displacement": np.full((8, 8, 2), np.nan)}, "displacement: found NaN"),
        ({"moving_mask": np.zeros((7, 8), np.uint8)}, "moving_mask: found shape"),
        ({"spacing": (1.0, 0.0)}, "spacing: found"),
    ],
)
def test_pair_view_names_what_does_not_fit(change, message):
    arguments = {"moving": np.zeros((8, 8)), "fixed": np.zeros((8, 8))}
    arguments |= {"displacement": np.zeros((8, 8, 2))} | change
    with pytest.raises(ValueError, match=message):
        pair_view(**arguments)
