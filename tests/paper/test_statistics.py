"""Comparisons of methods: against SciPy, against values by hand, and by patient and seed."""

import numpy as np
import pytest
from scipy import stats

from ldm_morph_jax.paper.statistics import compare, holm


def differences(values):
    """Two methods of one training each, with these differences."""
    return np.array([values], np.float64), np.zeros((1, len(values)))


def test_one_pair_per_patient_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.85, 0.05, 20), rng.normal(0.84, 0.05, 20)
    found = compare(a[None], b[None], [f"p{i}" for i in range(20)])
    assert (found.patients, found.pairs, found.seeds) == (20, 20, (1, 1))
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b), abs=1e-15)
    assert found.p_value == pytest.approx(stats.wilcoxon(a, b).pvalue, rel=1e-12)
    interval = stats.bootstrap(
        (a - b,), np.mean, n_resamples=50_000, method="percentile", rng=1
    ).confidence_interval
    width = interval.high - interval.low
    assert found.low == pytest.approx(interval.low, abs=0.02 * width)
    assert found.high == pytest.approx(interval.high, abs=0.02 * width)


def test_several_pairs_per_patient_are_scipys():
    """The cluster bootstrap is that of a ratio: patients' sums over patients' numbers of pairs."""
    rng = np.random.default_rng(3)
    patients = np.repeat(np.arange(12), rng.integers(1, 9, 12))
    values = rng.normal(0.01, 0.02, 12)[patients] + rng.normal(0, 0.01, len(patients))
    found = compare(*differences(values), patients)
    sums, counts = np.bincount(patients, values), np.bincount(patients)
    interval = stats.bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        n_resamples=50_000,
        method="percentile",
        rng=1,
    ).confidence_interval
    width = interval.high - interval.low
    assert (found.low, found.high) == pytest.approx(tuple(interval), abs=0.02 * width)
    assert found.difference == pytest.approx(values.mean(), abs=1e-15)
    assert found.p_value == pytest.approx(stats.wilcoxon(sums / counts).pvalue, rel=1e-12)


def test_by_hand():
    # six patients, all better: 2 of the 64 signs are as extreme
    found = compare(*differences([1, 2, 3, 4, 5, 6]), list("abcdef"))
    assert found.p_value == pytest.approx(2 / 64) and found.difference == 3.5
    # patients of 3 pairs at +1 and 1 pair at -1: drawn are aa (1), bb (-1) or ab (0.5)
    found = compare(*differences([1, 1, 1, -1]), list("aaab"))
    assert (found.difference, found.low, found.high) == (0.5, -1, 1)
    assert (found.patients, found.pairs) == (2, 4)
    # equal scores are no evidence
    assert compare(*differences([0, 0]), ["a", "b"])[:4] == (0, 0, 0, 1)


def test_slices_of_one_patient_are_one_witness():
    values = [0.3, 0.1, 0.2, -0.1]
    few = compare(*differences(values), list("abcd"))
    many = compare(*differences(np.repeat(values, 10)), np.repeat(list("abcd"), 10))
    assert many[:4] == pytest.approx(few[:4], abs=1e-12)
    assert (many.patients, many.pairs) == (4, 40)


def test_spread_over_seeds_widens_the_interval():
    # one patient, trainings at 1 and 3 against 0: their mean is 1, 2 (twice as often) or 3
    found = compare(np.array([[1.0], [3.0]]), np.zeros((1, 1)), ["a"])
    assert (found.difference, found.low, found.high) == (2, 1, 3)
    assert found.seeds == (2, 1)
    # the same scores averaged first know nothing of it
    assert compare(np.array([[2.0]]), np.zeros((1, 1)), ["a"])[:3] == (2, 2, 2)
    rng = np.random.default_rng(0)
    pairs = rng.normal(0.8, 0.05, (1, 30))
    trainings = pairs + np.array([[-0.02], [0.0], [0.02]])
    patients = np.arange(30)
    averaged = compare(trainings.mean(0, keepdims=True), pairs - 0.01, patients)
    seeded = compare(trainings, pairs - 0.01, patients)
    assert seeded.difference == pytest.approx(averaged.difference)
    # without differences between pairs the interval is that of three trainings alone
    assert seeded.low < averaged.low and seeded.high > averaged.high
    # a mean of three draws from -0.02, 0, 0.02 is at most -0.0133 in 4 of 27 cases, -0.02 in one
    assert seeded.low == pytest.approx(0.01 - 0.02, abs=1e-9)


def test_missing_scores_and_the_other_way_round():
    first = np.array([[0.5, np.nan, 0.7], [0.6, 0.1, 0.8]])
    second = np.array([[0.5, 0.6, 0.9]])
    found = compare(first, second, ["a", "b", "c"])
    assert (found.pairs, found.patients) == (2, 2)
    assert found.difference == pytest.approx(((0.55 - 0.5) + (0.75 - 0.9)) / 2)
    back = found.reversed
    assert (back.difference, back.low, back.high) == (-found.difference, -found.high, -found.low)
    assert back.seeds == (1, 2) and back.p_value == found.p_value
    nothing = compare(np.full((1, 1), np.nan), np.ones((1, 1)), ["a"])
    assert nothing.pairs == 0 and np.isnan(nothing.difference) and np.isnan(nothing.p_value)
    with pytest.raises(ValueError, match=r"second: found scores of shape \(1, 3\), expected"):
        compare(np.zeros((1, 2)), np.zeros((1, 3)), ["a", "b"])
    with pytest.raises(ValueError, match=r"first: found scores of shape \(2,\)"):
        compare(np.zeros(2), np.zeros((1, 2)), ["a", "b"])


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, np.nan, 0.02]), [0.5, np.nan, 0.04])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1, 1])
    assert holm([]).shape == (0,)
