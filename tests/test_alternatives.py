"""Every form of its own computes what the straightforward form does (tests/alternatives.py)."""

import alternatives
import jax
import numpy as np
import pytest

pytestmark = pytest.mark.integration


def test_both_forms_give_the_same():
    for name, case in alternatives.cases(batch=1, size=64).items():
        if not case.same:
            continue
        plain, ours = (jax.tree.leaves(f(*case.arguments)) for f in (case.plain, case.ours))
        assert plain and len(plain) == len(ours), name
        for expected, found in zip(plain, ours, strict=True):
            scale = float(np.abs(expected).max())
            assert scale > 0, name
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5 * scale, err_msg=name)
