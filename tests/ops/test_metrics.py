"""Scores against hand values, brute force, SimpleITK and the published networks."""

from pathlib import Path

import numpy as np
import pytest

from ldm_morph_jax.ops import metrics

GOLDEN = Path(__file__).parent.parent / "golden" / "ldm_morph_128.npz"


def square(top, left, side, size=20, label=1):
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = label
    return mask


def test_dice_by_hand():
    a = np.array([[1, 1, 2, 0], [1, 0, 2, 0]], np.uint8)
    b = np.array([[1, 0, 2, 2], [0, 0, 2, 3]], np.uint8)
    scores = metrics.dice(a, b, [1, 2, 3, 4])
    assert scores[1] == 2 * 1 / (3 + 1)
    assert scores[2] == 2 * 2 / (2 + 3)
    assert scores[3] == 0  # in one mask only
    assert np.isnan(scores[4])  # in neither
    assert metrics.dice(a[..., None], a, {1: "endocardium"}) == {1: 1.0}


def test_dice_equals_simpleitk():
    sitk = pytest.importorskip("SimpleITK")
    a, b = np.random.default_rng(0).integers(0, 3, (2, 30, 30)).astype(np.uint8)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(sitk.GetImageFromArray(a), sitk.GetImageFromArray(b))
    for label, score in metrics.dice(a, b, (1, 2)).items():
        np.testing.assert_allclose(score, overlap.GetDiceCoefficient(label))


def brute_force_hd95(a, b, spacing):
    def surface(mask):
        padded = np.pad(mask, 1)
        return [
            (i, j)
            for i, j in np.argwhere(mask)
            if not (
                padded[i, j + 1]
                and padded[i + 2, j + 1]
                and padded[i + 1, j]
                and padded[i + 1, j + 2]
            )
        ]

    points_a, points_b = (np.array(surface(m)) * spacing for m in (a, b))
    distances = np.linalg.norm(points_a[:, None] - points_b[None], axis=-1)
    return max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))


def test_hd95_by_hand():
    assert metrics.hd95(square(5, 5, 6), square(5, 5, 6), [1]) == {1: 0.0}
    # single pixels: plain distances, in the unit of the spacing
    assert metrics.hd95(square(2, 3, 1), square(5, 7, 1), [1]) == {1: 5.0}
    assert metrics.hd95(square(2, 3, 1), square(5, 3, 1), [1], spacing=(2.0, 9.0)) == {1: 6.0}
    # a structure that touches the edge of the image has surface there
    assert metrics.hd95(square(0, 0, 40, 40), square(1, 1, 38, 40), [1])[1] == 1.0
    empty = square(0, 0, 0)
    assert np.isnan(metrics.hd95(empty, square(5, 5, 6), [1])[1])
    assert np.isnan(metrics.hd95(square(5, 5, 6), empty, [1])[1])


def test_surfaces_of_volumes_by_hand():
    """Two boxes of one voxel through the slices, two slices of 5 mm apart."""
    a, b = np.zeros((2, 6, 8, 8), np.uint8)
    a[1, 2:5, 2:5], b[3, 2:5, 2:5] = 1, 1
    spacing = (5.0, 1.0, 1.0)
    assert metrics.surface_distance(a, b, [1], spacing) == {1: (10.0, 10.0)}
    assert metrics.dice(a, b, [1]) == {1: 0.0}
    b[1] = a[1]  # all of a lies in b now; half of b's surface is 10 mm away
    assert metrics.dice(a, b, [1]) == {1: 2 / 3}
    distance = metrics.surface_distance(a, b, [1], spacing)[1]
    assert distance == (10.0, 10.0 * 9 / 27)
    assert np.isnan(metrics.surface_distance(a, b, [2], spacing)[2]).all()


def test_surfaces_of_volumes_equal_simpleitk():
    sitk = pytest.importorskip("SimpleITK")
    a, b = np.zeros((2, 9, 20, 22), np.uint8)
    a[2:6, 4:14, 5:17], b[3:8, 6:15, 5:15] = 1, 1
    spacing = (3.0, 0.8, 1.2)

    def surface(mask):
        image = sitk.GetImageFromArray(mask)
        image.SetSpacing(spacing[::-1])
        return sitk.BinaryContour(image, fullyConnected=False)

    distances = []
    for one, other in ((a, b), (b, a)):
        far = sitk.SignedMaurerDistanceMap(surface(other), False, False, True)
        on = sitk.GetArrayFromImage(surface(one)) > 0
        distances.append(np.abs(sitk.GetArrayFromImage(far))[on])
    found = metrics.surface_distance(a, b, [1], spacing)[1]
    np.testing.assert_allclose(found.mean, np.concatenate(distances).mean(), rtol=1e-4)
    np.testing.assert_allclose(found.hd95, max(np.percentile(d, 95) for d in distances), rtol=1e-4)


def test_hd95_ignores_the_far_five_percent():
    a = square(10, 10, 40, size=100)
    b = a.copy()
    b[90, 90] = 1  # one stray pixel among 157 of the surface
    assert metrics.hd95(a, b, [1])[1] == 0


def test_hd95_equals_brute_force_and_is_symmetric():
    rng = np.random.default_rng(1)
    a, b = (rng.random((2, 18, 22)) > 0.6).astype(np.uint8)
    for spacing in ((1.0, 1.0), (1.25, 0.7)):
        score = metrics.hd95(a, b, [1], spacing)[1]
        np.testing.assert_allclose(score, brute_force_hd95(a, b, spacing))
        np.testing.assert_allclose(score, metrics.hd95(b, a, [1], spacing)[1])


def test_folding_equals_the_published_networks():
    golden = np.load(GOLDEN)
    displacement = np.moveaxis(golden["flow"], 0, -1) * 127 / 2
    percent = metrics.nonpositive_jacobian_percent(displacement)
    np.testing.assert_allclose(percent, golden["jacobian_nonpositive_percent"], atol=0.02)


def test_folding_by_hand():
    rows = np.arange(10.0)[:, None, None] * np.ones((10, 8, 1))
    flat = np.zeros((10, 8, 2))
    assert metrics.nonpositive_jacobian_percent(flat) == 0
    collapsed = np.concatenate([-rows, 0 * rows], -1)  # every row maps to row 0: J = 0 counts
    assert metrics.nonpositive_jacobian_percent(collapsed) == 100
    fold = flat.copy()
    fold[4:, :, 0] = -3  # J at rows 3 and 4: 1 - 3/2
    assert metrics.nonpositive_jacobian_percent(fold) == 20
    with pytest.raises(ValueError, match="NaN or infinity"):
        metrics.nonpositive_jacobian_percent(np.full((4, 4, 2), np.nan))
    volume = np.zeros((3, 4, 5, 3))
    volume[1:, ..., 0] = -3  # slices 0 and 1 fold: 1 - 3, 1 - 3/2
    np.testing.assert_allclose(metrics.nonpositive_jacobian_percent(volume), 200 / 3)
    with pytest.raises(ValueError, match=r"found shape \(1, 4, 4, 2\)"):
        metrics.nonpositive_jacobian_percent(np.zeros((1, 4, 4, 2)))


def test_sd_log_jacobian():
    rows = np.arange(10.0)[:, None, None] * np.ones((10, 8, 1))
    stretch = np.concatenate([0.5 * rows, 0 * rows], -1)
    result = metrics.sd_log_jacobian(stretch)
    np.testing.assert_allclose(result.value, 0, atol=1e-12)
    assert result.n_excluded == 0
    fold = np.zeros((10, 8, 2))
    fold[4:, :, 0], fold[7:, :, 0] = -3, -2
    # J: rows 3 and 4 -1/2 (left out), rows 6 and 7 3/2, the six others 1
    result = metrics.sd_log_jacobian(fold)
    assert result.n_excluded == 16
    logs = np.log([1, 1, 1, 1, 1, 1, 1.5, 1.5])
    np.testing.assert_allclose(result.value, logs.std())
    nothing = metrics.sd_log_jacobian(np.concatenate([-rows, 0 * rows], -1))
    assert np.isnan(nothing.value) and nothing.n_excluded == 80


def test_endpoint_error():
    reference = np.zeros((6, 5, 2), np.float32)
    reference[..., 0], reference[..., 1] = 3, 4
    found = reference.copy()
    found[:3, :, 1] += 2
    assert metrics.endpoint_error(found, reference) == (1.0, 5.0)
    mask = np.zeros((6, 5, 1), np.uint8)
    mask[:2] = 3
    assert metrics.endpoint_error(found, reference, mask) == (2.0, 5.0)
    assert metrics.endpoint_error(reference, reference).mean == 0
    assert np.isnan(metrics.endpoint_error(found, reference, 0 * mask)).all()
    with pytest.raises(ValueError, match="mask: found shape"):
        metrics.endpoint_error(found, reference, mask[1:])
    with pytest.raises(ValueError, match="displacement: found shape"):
        metrics.endpoint_error(found[1:], reference)


def test_summarise_counts_what_it_leaves_out():
    summary = metrics.summarise([1.0, float("nan"), 2.0, 6.0])
    assert summary == {
        "mean": 3.0,
        "std": float(np.std([1, 2, 6])),
        "median": 2.0,
        "n": 3,
        "n_excluded": 1,
    }
    nothing = metrics.summarise(iter([float("nan")]))
    assert nothing["n"] == 0 and nothing["n_excluded"] == 1 and np.isnan(nothing["mean"])


def test_wrong_masks_are_refused():
    a = square(5, 5, 6)
    with pytest.raises(ValueError, match="b: found shape"):
        metrics.dice(a, a[1:], [1])
    with pytest.raises(ValueError, match="b: found shape"):
        metrics.dice(a[None], a, [1])
    with pytest.raises(ValueError, match="a: found shape"):
        metrics.dice(a[0], a[0], [1])
    with pytest.raises(ValueError, match="expected integer labels"):
        metrics.dice(a.astype(np.float32), a, [1])
    with pytest.raises(ValueError, match="spacing: found"):
        metrics.hd95(a, a, [1], spacing=(1.0, 0.0))
    with pytest.raises(ValueError, match="expected 3 positive numbers"):
        metrics.surface_distance(np.stack([a, a]), np.stack([a, a]), [1], spacing=(1.0, 1.0))
