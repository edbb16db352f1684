"""VoxelMorph (Balakrishnan et al., IEEE TMI 2019; diffeomorphic: Dalca et al., MedIA 2019)."""

from ldm_morph_jax.methods.displacement_network import SETTINGS, DisplacementNetwork
from ldm_morph_jax.models.voxelmorph import VoxelMorphUNet


class VoxelMorph(DisplacementNetwork):
    """The displacement model, the one in the LDM-Morph paper's comparison, which reports folds.

    `integration_steps` 7 makes it diffeomorphic. The smoothness is then that of the velocity, at
    half size, as in the official code.
    """

    name = "voxelmorph"
    title = "VoxelMorph"
    takes_volumes = True
    network_class = VoxelMorphUNet
    defaults = SETTINGS | {
        "model": {
            "encoder_channels": (16, 32, 32, 32),
            "decoder_channels": (32, 32, 32, 32),
            "head_channels": (32, 16, 16),
        },
        "smoothness_weight": 0.01,
        "smoothness_of": "velocity",
        "train": {"learning_rate": 1e-4},
    }
