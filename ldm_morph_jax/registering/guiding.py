"""Anatomy in the search: what a network says of both images, compared beside the images.

Intensities do not say where a cavity ends; the probability of being inside it does. Where the
network is unsure of one image, the search compares the images alone. What is found is judged on
the images themselves, as without.
"""

from typing import NamedTuple

import numpy as np

from ldm_morph_jax.registering.grid import OnGrid
from ldm_morph_jax.registering.segmenting import CAVITY, WALL, segment
from ldm_morph_jax.runs.anatomy import AnatomyModel

# of the squared difference, by what a network sees; chosen on validation patients
# (docs/results/anatomy)
WEIGHTS = {"sax": 3.0, "apical": 10.0}


class Guided(NamedTuple):
    """Channels of a pair for `search.refine`.

    moving, fixed: `[*space, K]` float32, times the root of their weight; zero where not used.
    confidence: of the heart in both images; of volumes the mean over their slices.
    used: whether the network is sure of both, in a volume in any slice.
    """

    moving: np.ndarray
    fixed: np.ndarray
    confidence: tuple[float, float]
    used: bool


def guide(model: AnatomyModel, pair: OnGrid, spacing: tuple[float, float] | None) -> Guided:
    """Channels for a pair of images or volumes; exchanging the images exchanges the results.

    Args:
        model: the network. It sees every slice of a volume by itself.
        pair: on the grid of the search.
        spacing: of that grid within a slice in mm, None where unknown.
    """
    if pair.moving.ndim == 2:
        return _of_images(model, pair.moving, pair.fixed, spacing)
    slices = zip(pair.moving, pair.fixed, strict=True)
    guides = [_of_images(model, moving, fixed, spacing) for moving, fixed in slices]
    moving, fixed, confidence, used = zip(*guides, strict=True)
    means = np.mean(confidence, axis=0).tolist()
    return Guided(np.stack(moving), np.stack(fixed), (means[0], means[1]), any(used))


def _of_images(model, moving, fixed, spacing):
    seen = [segment(model, [image], spacing)[0] for image in (moving, fixed)]
    used = all(one.found for one in seen)
    drawn = [channels(model, one.probabilities) * np.float32(used) for one in seen]
    return Guided(*drawn, (seen[0].confidence, seen[1].confidence), used)


def channels(model: AnatomyModel, probabilities: np.ndarray) -> np.ndarray:
    """`[*space, 1 + structures]` -> `[*space, K]`, times the root of their weight.

    A channel is what a border surrounds: the wall counts together with the cavity within.
    """
    drawn = []
    for name in model.structures:
        inside = probabilities[..., model.label(name)]
        if name == WALL:
            inside = inside + probabilities[..., model.label(CAVITY)]
        drawn.append(np.sqrt(WEIGHTS[model.view]) * inside)
    return np.stack(drawn, axis=-1).astype(np.float32)
