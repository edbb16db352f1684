"""TransMatch (Z. Chen et al., IEEE TMI 2024)."""

from ldm_morph_jax.methods.displacement_network import SETTINGS, DisplacementNetwork
from ldm_morph_jax.models.transmatch import TransMatchNetwork


class TransMatch(DisplacementNetwork):
    """The network of `models.transmatch`; one update per pair, moving to fixed.

    The official trainer makes a second update with the images swapped. Here the task has a
    direction, and every method makes one update per pair.
    """

    name = "transmatch"
    title = "TransMatch"
    network_class = TransMatchNetwork
    defaults = SETTINGS | {
        "model": {
            "embed_dim": 96,
            "depths": (2, 2, 4, 2),
            "num_heads": (4, 4, 8, 8),
            "window_size": 8,
            "mlp_ratio": 4,
            "drop_path_rate": 0.3,
            "cross_heads": 4,
            "cross_depth": 2,
        },
        "smoothness_weight": 0.01,
        "optimiser": {"amsgrad": True},
        "train": {"learning_rate": 4e-4},
    }
    small = {
        "model": {
            "embed_dim": 24,
            "depths": (2, 2, 2, 2),
            "num_heads": (2, 2, 4, 4),
            "drop_path_rate": 0.1,
        }
    }
