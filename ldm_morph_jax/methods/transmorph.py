"""TransMorph (J. Chen et al., Medical Image Analysis 2022)."""

from ldm_morph_jax.methods.displacement_network import SETTINGS, DisplacementNetwork
from ldm_morph_jax.models.transmorph import TransMorphNetwork


class TransMorph(DisplacementNetwork):
    """The displacement model, `models.transmorph`; one update per pair, moving to fixed.

    Some of the official trainers make a second update with the images swapped. Here the task has a
    direction, and every method makes one update per pair.
    """

    name = "transmorph"
    title = "TransMorph"
    takes_volumes = True
    network_class = TransMorphNetwork
    defaults = SETTINGS | {
        "model": {
            "embed_dim": 96,
            "depths": (2, 2, 4, 2),
            "num_heads": (4, 4, 8, 8),
            "window_size": 8,
            "mlp_ratio": 4,
            "drop_path_rate": 0.3,
            "head_channels": 16,
        },
        "smoothness_weight": 0.02,
        "optimiser": {"amsgrad": True},
        "train": {"learning_rate": 1e-4, "schedule": "polynomial"},
    }
    small = {
        "model": {
            "embed_dim": 32,
            "depths": (2, 2, 2, 2),
            "num_heads": (2, 2, 4, 4),
            "drop_path_rate": 0.1,
        }
    }
