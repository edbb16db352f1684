"""The networks that ship say no heart for what is none, and find the heart of a phantom."""

import numpy as np
import pytest

from ldm_morph_jax.data import no_heart
from ldm_morph_jax.data.phantom import phantom_pair
from ldm_morph_jax.registering.segmenting import segment
from ldm_morph_jax.runs.anatomy import SHA256, anatomy_network

pytestmark = pytest.mark.integration

SPACING = (1.4, 1.4)


@pytest.mark.parametrize("name", sorted(SHA256))
def test_what_shows_no_heart_that_it_knows_is_refused(name):
    model, rng = anatomy_network(name), np.random.default_rng(2026)  # calibration draws others
    look = {"sax": "sax", "apical": "echo"}[model.view]
    pictures = {kind: no_heart.drawing(kind, rng) for kind in no_heart.KINDS}
    pictures |= {f"phantom {k}": no_heart.other_modality(look, rng) for k in range(3)}
    pictures |= {"black": np.zeros((96, 96)), "white": np.ones((96, 96))}
    seen = {kind: segment(model, [picture], SPACING)[0] for kind, picture in pictures.items()}
    taken = {k: (one.confidence, one.distance) for k, one in seen.items() if one.found}
    assert not taken
    assert not any(one.labels.any() for one in seen.values())
    for seed in (1, 2):
        [found] = segment(model, [phantom_pair(seed, look=look).moving], (1.25, 1.25))
        assert found.found, (found.confidence, found.distance)
