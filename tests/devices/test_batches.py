import numpy as np
import pytest

from ldm_morph_jax.devices.batches import fill_up


def test_fill_up():
    batch = {"a": np.arange(6).reshape(3, 2), "b": {"c": np.array([7, 8, 9], np.uint8)}}
    filled, valid = fill_up(batch, 5)
    np.testing.assert_array_equal(filled["a"], [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]])
    np.testing.assert_array_equal(filled["b"]["c"], [7, 8, 9, 9, 9])
    assert filled["b"]["c"].dtype == np.uint8 and valid.tolist() == [True] * 3 + [False] * 2
    full, valid = fill_up(batch, 3)
    np.testing.assert_array_equal(full["a"], batch["a"])
    assert valid.all()


@pytest.mark.parametrize(
    "batch, message",
    [
        (np.zeros((0, 2)), r"batch has \[0\] rows, expected one number from 1 to 4"),
        (np.zeros((5, 2)), r"batch has \[5\] rows"),
        ((np.zeros(2), np.zeros(3)), r"batch has \[2, 3\] rows"),
    ],
)
def test_fill_up_refuses(batch, message):
    with pytest.raises(ValueError, match=message):
        fill_up(batch, 4)
