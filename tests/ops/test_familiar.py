"""Distances from numbers that were seen before."""

import numpy as np
import pytest

from ldm_morph_jax.ops.familiar import describe, distance


def test_like_those_described_is_about_one_and_unlike_is_far():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))
    known, new = rng.normal(size=(500, 6)) @ mix + 3, rng.normal(size=(200, 6)) @ mix + 3
    described = describe(known)
    assert np.mean(distance(new, described) ** 2) == pytest.approx(1, abs=0.3)
    # far in a direction in which those described hardly vary, near in their main one
    values, vectors = np.linalg.eigh(np.cov(known.T))
    along, across = (known.mean(0) + 3 * np.sqrt(values[-1]) * vectors[:, k] for k in (-1, 0))
    near, far = distance(np.stack([along, across]), described)
    assert near < 2 and far > 2 * near


def test_more_numbers_than_rows_are_no_trouble():
    rng = np.random.default_rng(0)
    described = describe(rng.normal(size=(10, 40)))
    assert np.isfinite(distance(rng.normal(size=(5, 40)), described)).all()
    constant = describe(np.ones((5, 3)))
    assert distance(np.ones((1, 3)), constant) == 0 and distance(np.zeros((1, 3)), constant) > 10
