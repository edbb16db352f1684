"""TransMatch (Z. Chen et al., IEEE TMI 2024)."""

from ldm_morph_jax.methods.displacement_network import DisplacementNetwork


class TransMatch(DisplacementNetwork):
    """The network of `models.transmatch`; one update per pair, moving to fixed.

    The official trainer updates a second time with the images swapped. Here the task has a
    direction, and every method one update per pair.
    """

    name = "transmatch"
