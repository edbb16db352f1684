"""Scores of an anatomy network: whose labels the masks of a dataset have."""

from types import SimpleNamespace

import numpy as np
import pytest
from threshold_anatomy import Threshold, heart

from ldm_morph_jax.anatomy_scores import score_anatomy


def dataset(labels, renamed):
    """Two patients; masks with the labels of `renamed` in place of 1 (cavity) and 2 (wall)."""
    pairs = []
    for radius in (16.0, 13.0):
        pair = {"spacing": np.array([1.5, 1.5])}
        for role, share in (("moving", 1.0), ("fixed", 0.75)):
            image, mask = heart(share * radius, (48, 48), (96, 96), (1.5, 1.5))
            mask = np.array([0, *renamed])[mask].astype(np.uint8)
            pair |= {role: image[..., None].astype("f4"), f"{role}_mask": mask[..., None]}
        pairs.append(pair)
    about = [{"patient": name, "slice": 0} for name in "ab"]
    return SimpleNamespace(
        name="made", labels=labels, split=lambda _: pairs, metadata=lambda _: about
    )


@pytest.mark.parametrize(
    ("labels", "renamed", "scored"),
    [
        ({1: "left ventricle"}, (1, 2), ["left ventricle", "myocardium"]),  # the network's own
        ({3: "left ventricle", 2: "myocardium"}, (3, 2), ["left ventricle", "myocardium"]),
        ({3: "left ventricle"}, (3, 2), ["left ventricle"]),
    ],
)
def test_labels_are_the_networks_or_those_that_the_dataset_names(labels, renamed, scored, tmp_path):
    network = Threshold()
    object.__setattr__(network, "temperature", 1.0)
    summary = score_anatomy(network, dataset(labels, renamed), "test", tmp_path)
    assert list(summary["structures"]) == scored
    for phases in summary["structures"].values():
        assert min(phase["mean"] for phase in phases.values()) > 0.8
    assert abs(summary["area_change"]["bias"]) < 5
