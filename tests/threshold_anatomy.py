"""An "anatomy network" that is known: a threshold; and images of a heart for it."""

import dataclasses

import numpy as np

from ldm_morph_jax.data.windows import Window


@dataclasses.dataclass(frozen=True)
class Threshold:
    """An "anatomy network": bright is cavity, grey is wall, whatever its shape."""

    name: str = "threshold"
    structures: tuple = ("left ventricle", "myocardium")
    window: Window = Window(48, 2.0)
    least_confidence: float = 0.5
    largest_distance: float = 2.0
    view: str = "sax"

    def distance(self, windows):
        return np.ones(len(windows))

    def probabilities(self, windows):
        cavity = np.clip((windows - 0.7) / 0.1, 0, 1)
        wall = np.clip((windows - 0.3) / 0.1, 0, 1) * (1 - cavity)
        return np.stack([1 - cavity - wall, cavity, wall], axis=-1).astype("f4")

    def label(self, structure):
        known = structure in self.structures
        return self.structures.index(structure) + 1 if known else None


def heart(radius=12.0, centre=(40, 110), shape=(100, 160), spacing=(1.5, 1.0), wall=7.0):
    """A bright disc of `radius` mm in a grey ring, and its labels; background not quite black."""
    at = [(np.arange(n) - c) * s for n, c, s in zip(shape, centre, spacing, strict=True)]
    distance = np.hypot(at[0][:, None], at[1][None])
    labels = np.where(distance < radius, 1, np.where(distance < radius + wall, 2, 0))
    return np.choose(labels, [0.05, 1.0, 0.5]) * 900 + 40, labels
