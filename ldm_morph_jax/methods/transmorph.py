"""TransMorph (J. Chen et al., Medical Image Analysis 2022)."""

from ldm_morph_jax.methods.displacement_network import DisplacementNetwork


class TransMorph(DisplacementNetwork):
    """The displacement model, `models.transmorph`; one update per pair, moving to fixed.

    Some of the official trainers update a second time with the images swapped. Here the task has a
    direction, and every method one update per pair.
    """

    name = "transmorph"
