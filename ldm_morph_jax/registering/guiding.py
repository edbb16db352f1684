"""Anatomy in the search: what a network says of both images, mixed into what is compared.

Intensities do not say where a cavity ends. A drawing of the structures, each in a grey of its own
times its probability, does. What is found is judged on the images themselves, as without.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ldm_morph_jax.registering.grid import OnGrid
from ldm_morph_jax.registering.segmenting import segment
from ldm_morph_jax.runs.anatomy import AnatomyModel


class Drawing(NamedTuple):
    """How structures are drawn: greys by name, and the share of the drawing in the mixture."""

    greys: dict[str, float]
    share: float


# chosen on validation patients (docs/results/anatomy); a cavity alone made Sunnybrook's worse
DRAWINGS = {
    frozenset({"left ventricle", "myocardium", "left atrium"}): Drawing(
        {"left ventricle": -1.0}, 0.4
    ),
    frozenset({"right ventricle", "myocardium", "left ventricle"}): Drawing(
        {"right ventricle": 0.6, "left ventricle": 1.0}, 0.2
    ),
}


class Guided(NamedTuple):
    """What is compared in place of a pair's images.

    moving, fixed: `[rows, columns]` float32.
    confidence: of the heart in both images; where the network is unsure of one of them, the images
        themselves are compared.
    used: whether they are not.
    """

    moving: np.ndarray
    fixed: np.ndarray
    confidence: tuple[float, float]
    used: bool


def guide(
    model: AnatomyModel, pairs: Sequence[OnGrid], spacing: tuple[float, float] | None
) -> list[Guided]:
    """Mix the anatomy into pairs of images; exchanging the images exchanges the results.

    Args:
        model: the network. Raises ValueError if it is not known how to draw its structures.
        pairs: on the grid of the search.
        spacing: of that grid in mm, None where unknown.
    """
    drawing = DRAWINGS.get(frozenset(model.structures))
    if drawing is None:
        raise ValueError(
            f"anatomy network {model.name!r} knows {', '.join(model.structures)}; a search is "
            f"guided by one of {[sorted(names) for names in DRAWINGS]}"
        )
    greys = np.zeros(1 + len(model.structures), np.float32)
    for name, grey in drawing.greys.items():
        greys[model.label(name)] = grey
    guided = []
    for pair in pairs:
        seen = [segment(model, [image], spacing)[0] for image in (pair.moving, pair.fixed)]
        used = all(one.found for one in seen)
        share = drawing.share if used else 0.0
        moving, fixed = (
            ((1 - share) * image + share * one.probabilities @ greys).astype(np.float32)
            for image, one in zip((pair.moving, pair.fixed), seen, strict=True)
        )
        confidence = (seen[0].confidence, seen[1].confidence)
        guided.append(Guided(moving, fixed, confidence, used))
    return guided
