"""What VoxelMorph, TransMorph and TransMatch share: one network, squared error, smoothness."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.losses import pixel_similarity, smoothness


@dataclasses.dataclass(frozen=True)
class DisplacementNetwork:
    """A network (moving, fixed) -> displacement, trained with MSE + weight * smoothness.

    Attributes:
      network: module `(moving, fixed, train=...)` -> `[B, H, W, 2]` in pixels.
      smoothness_weight: on the scale of LDM-Morph's lambda, `ops.losses.smoothness`.
    """

    network: nn.Module
    smoothness_weight: float

    name: ClassVar[str]

    def init(self, key: jax.Array, image_size: int):
        """Initial parameters."""
        image = jnp.zeros((1, image_size, image_size, 1))
        return self.network.init(key, image, image, train=False)["params"]

    def predict(self, params, moving, fixed, *, train=False, key=None) -> jax.Array:
        """The network's output `[B, H, W, 2]`."""
        rngs = {} if key is None else {"dropout": key}
        return self.network.apply({"params": params}, moving, fixed, train=train, rngs=rngs)

    def displacement(self, params, frozen, moving, fixed) -> jax.Array:
        """Register: `[B, H, W, 1]` twice -> displacement `[B, H, W, 2]` in pixels."""
        return self.predict(params, moving, fixed)

    def objective(self, frozen, moving, fixed, displacement):
        """The terms of the loss, means over the batch: loss, pixel, smoothness."""
        return self._terms(moving, fixed, displacement, smoothness(displacement))

    def loss(self, params, frozen, batch, key, step):
        """Training loss of a batch and its terms."""
        moving, fixed = batch["moving"], batch["fixed"]
        u = self.predict(params, moving, fixed, train=True, key=key)
        terms = self.objective(frozen, moving, fixed, u)
        return terms["loss"], terms

    def _terms(self, moving, fixed, displacement, smooth):
        pixel = pixel_similarity(fixed, warp(moving, displacement))
        total = pixel + self.smoothness_weight * smooth
        return {"loss": total, "pixel": pixel, "smoothness": smooth}
