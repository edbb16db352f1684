"""Base class of VoxelMorph, TransMorph and TransMatch: one network, similarity, smoothness."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_morph_jax.methods.base import Method
from ldm_morph_jax.methods.velocity import HEAD_DEFAULTS, VelocityHead
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.losses import named_similarity, smoothness

# keys below config.registration
SETTINGS = HEAD_DEFAULTS | {"similarity": "mse", "smoothness_of": "displacement"}


@dataclasses.dataclass(frozen=True)
class DisplacementNetwork(Method):
    """A network (moving, fixed) -> field, trained with similarity + weight * smoothness.

    A subclass names its network's class, whose settings are `config.registration.model`.

    Attributes:
      network: module `(moving, fixed, train=...)` -> `[B, *space, rank]` in pixels.
      smoothness_weight: on the scale of LDM-Morph's lambda, `ops.losses.smoothness`.
      head: whether the output is the displacement or a velocity.
      smoothness_of: "displacement", or "velocity": the predicted velocity at half size, as in the
        official code of diffeomorphic VoxelMorph.
      similarity: of the warped and the fixed image, by its name in `ops.losses`.
    """

    network: nn.Module
    smoothness_weight: float
    head: VelocityHead = VelocityHead()
    smoothness_of: str = "displacement"
    similarity: str = "mse"

    network_class: ClassVar[type[nn.Module]]

    def __post_init__(self):
        named_similarity(self.similarity)
        if self.smoothness_of not in ("displacement", "velocity"):
            raise ValueError(
                f"registration.smoothness_of is {self.smoothness_of!r}, "
                "expected 'displacement' or 'velocity'"
            )

    @classmethod
    def from_config(cls, config):
        network = cls.network_class(**config.registration.model)
        return cls(network, head=VelocityHead.from_config(config), **cls.settings_in(config))

    def init(self, key: jax.Array, space: Sequence[int]):
        image = jnp.zeros((1, *space, 1))
        return self.network.init(key, image, image, train=False)["params"]

    def predict(self, params, moving, fixed, *, train=False, key=None) -> jax.Array:
        """The network's output `[B, *space, rank]`."""
        rngs = {} if key is None else {"dropout": key}
        return self.network.apply({"params": params}, moving, fixed, train=train, rngs=rngs)

    def field(self, params, frozen, moving, fixed) -> jax.Array:
        return self.head.field(lambda m, f: self.predict(params, m, f), moving, fixed)

    def objective(self, frozen, moving, fixed, displacement, penalised=None):
        """The terms of the loss, means over the batch: loss, pixel, smoothness.

        penalised: the field whose smoothness counts, if it is not the displacement.
        """
        smooth = smoothness(displacement if penalised is None else penalised)
        pixel = named_similarity(self.similarity)(fixed, warp(moving, displacement))
        total = pixel + self.smoothness_weight * smooth
        return {"loss": total, "pixel": pixel, "smoothness": smooth}

    def loss(self, params, frozen, batch, key, step):
        moving, fixed = batch["moving"], batch["fixed"]

        def predict(moving, fixed):
            return self.predict(params, moving, fixed, train=True, key=key)

        def directed(moving, fixed, field):
            u = self.to_displacement(field)
            of_velocity = self.predicts_velocity and self.smoothness_of == "velocity"
            penalised = self.head.halved(field) if of_velocity else u
            return self.objective(frozen, moving, fixed, u, penalised)

        field = self.head.field(predict, moving, fixed)
        terms = self.head.terms(directed, moving, fixed, field)
        return terms["loss"], terms
