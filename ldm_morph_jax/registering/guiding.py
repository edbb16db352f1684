"""Anatomy in the search: what a network says of the images, compared beside them.

Intensities do not say where a cavity ends; the probability of being inside it does. Where the
network is unsure of one image, the search compares the images alone. What is found is judged on
the images themselves, as without.

In a volume that shows a heart every slice counts, also one in which the network sees none: at
end-systole the base has left the slice in which end-diastole shows it.
"""

from typing import NamedTuple

import numpy as np

from ldm_morph_jax.registering.grid import OnGrid
from ldm_morph_jax.registering.result import Guidance
from ldm_morph_jax.registering.segmenting import CAVITY, WALL, locate_in_stack, segment
from ldm_morph_jax.runs.anatomy import AnatomyModel

# Of the squared difference, by whether a network knows the wall or the cavity alone; chosen on
# validation patients (docs/results/anatomy).
WEIGHT_WITH_WALL, WEIGHT_OF_CAVITY = 10.0, 3.0
_LEAST_SHARE = 1 / 3  # of a volume's slices, which show a heart


class Guided(NamedTuple):
    """Channels of a pair for `search.refine`.

    moving, fixed: `[*space, K]` float32, times the root of their weight; zero where not used.
    guidance: which network, and how sure it is.
    """

    moving: np.ndarray
    fixed: np.ndarray
    guidance: Guidance


def guide(model: AnatomyModel, pair: OnGrid, spacing: tuple[float, float] | None) -> Guided:
    """Channels for a pair of images or volumes; exchanging the images exchanges the results.

    Args:
        model: the network. It sees every slice of a volume, all at one place.
        pair: on the grid of the search.
        spacing: of that grid within a slice in mm, None where unknown.
    """
    both, in_space = np.stack([pair.moving, pair.fixed]), pair.moving.ndim == 3
    if in_space:
        centre, least = locate_in_stack(model, both, spacing), _LEAST_SHARE
        seen = [segment(model, list(volume), spacing, centre) for volume in both]
    else:
        seen, least = [segment(model, [image], spacing) for image in both], 1.0
    used = all(np.mean([one.found for one in slices]) >= least for slices in seen)
    drawn = [
        channels(model, np.stack([one.probabilities for one in slices])) * np.float32(used)
        for slices in seen
    ]
    moving, fixed = drawn if in_space else (one[0] for one in drawn)
    of_moving, of_fixed = (float(np.mean([one.confidence for one in slices])) for slices in seen)
    return Guided(moving, fixed, Guidance(model.name, used, (of_moving, of_fixed)))


def channels(model: AnatomyModel, probabilities: np.ndarray) -> np.ndarray:
    """`[*space, 1 + structures]` -> `[*space, K]`, times the root of their weight.

    A channel is what a border surrounds: the wall counts together with the cavity within.
    """
    weight = WEIGHT_WITH_WALL if WALL in model.structures else WEIGHT_OF_CAVITY
    drawn = []
    for name in model.structures:
        inside = probabilities[..., model.label(name)]
        if name == WALL:
            inside = inside + probabilities[..., model.label(CAVITY)]
        drawn.append(np.sqrt(weight) * inside)
    return np.stack(drawn, axis=-1).astype(np.float32)
