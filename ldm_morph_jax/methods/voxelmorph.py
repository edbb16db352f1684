"""VoxelMorph (Balakrishnan et al., IEEE TMI 2019; diffeomorphic: Dalca et al., MedIA 2019)."""

import dataclasses

import jax

from ldm_morph_jax.methods.displacement_network import DisplacementNetwork
from ldm_morph_jax.ops.geometry import integrate_velocity, resize_displacement
from ldm_morph_jax.ops.losses import smoothness


@dataclasses.dataclass(frozen=True)
class VoxelMorph(DisplacementNetwork):
    """The displacement model, the one that the LDM-Morph paper compares: it reports folds.

    Attributes beyond the network:
      integration_steps: 0: the network's output is the displacement. 7: it is a stationary velocity
        that is halved in size, integrated by 7 squarings and resized back; the smoothness is then
        the velocity's, at half size, as in the official code.
    """

    integration_steps: int = 0

    name = "voxelmorph"

    def _velocity(self, params, moving, fixed) -> jax.Array:
        """What is integrated, `[B, H/2, W/2, 2]`, in its own pixels."""
        height, width = moving.shape[1:3]
        return resize_displacement(self.predict(params, moving, fixed), (height // 2, width // 2))

    def _integrate(self, velocity, moving) -> jax.Array:
        u = integrate_velocity(velocity, self.integration_steps)
        return resize_displacement(u, moving.shape[1:3])

    def displacement(self, params, frozen, moving, fixed) -> jax.Array:
        """Register: `[B, H, W, 1]` twice -> displacement `[B, H, W, 2]` in pixels."""
        if not self.integration_steps:
            return self.predict(params, moving, fixed)
        return self._integrate(self._velocity(params, moving, fixed), moving)

    def loss(self, params, frozen, batch, key, step):
        """Training loss of a batch and its terms."""
        if not self.integration_steps:
            return super().loss(params, frozen, batch, key, step)
        moving, fixed = batch["moving"], batch["fixed"]
        velocity = self._velocity(params, moving, fixed)
        terms = self._terms(moving, fixed, self._integrate(velocity, moving), smoothness(velocity))
        return terms["loss"], terms
