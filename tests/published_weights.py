"""The published networks' numbers (tests/golden) and the weights that they were computed with.

The weights are a function of the parameters' published names, so that anyone regenerates them:
normal numbers seeded by the CRC of the name, scaled by 1/sqrt(fan-in) (matrices and kernels),
around one (norm scales) or small (everything else). See the README of the golden numbers.
"""

import functools
import json
import math
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "golden"


@functools.cache
def description() -> dict:
    return json.loads((FOLDER / "ldm_morph_128.json").read_text())


@functools.cache
def arrays() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "ldm_morph_128.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@functools.cache
def weight(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """The float32 weight (PyTorch layout) that belongs to a published parameter name."""
    x = np.random.RandomState(zlib.crc32((salt + name).encode())).standard_normal(shape)
    if len(shape) >= 2:
        x = x / math.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        x = 1 + 0.1 * x
    else:
        x = 0.05 * x
    return x.astype(np.float32)


def state_dict(prefix: str) -> dict[str, np.ndarray]:
    """Regenerated weights of all published parameters under `prefix`, keyed without it."""
    return {
        name.removeprefix(prefix): weight(name, tuple(shape), description()["salt"])
        for name, shape in description()["parameters"].items()
        if name.startswith(prefix) and not isinstance(shape, dict)
    }


def relative_error(actual, expected) -> float:
    """Root-mean-square error relative to the root-mean-square of what is expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))
