"""CycleMorph (Kim et al., Medical Image Analysis 2021): two generators that undo each other."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ldm_morph_jax.methods.base import Method
from ldm_morph_jax.models.cyclemorph import DeformationUNet
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.losses import ncc, smoothness


@dataclasses.dataclass(frozen=True)
class CycleMorph(Method):
    """The generator "forward" registers moving to fixed, "backward" fixed to moving.

    Parameters are {"forward", "backward"}; registration uses only "forward".

    Attributes:
      generator: module `(source, target)` -> displacement `[B, H, W, 2]` in pixels.
      smoothness_weight: on the scale of `ops.losses.smoothness`, relative to an NCC.
      cycle_weight: of |moving - moving warped by both generators in turn|, and the same for fixed.
      identity_weight: of the loss for registering an image to itself.
    """

    generator: DeformationUNet
    smoothness_weight: float = 1.0
    cycle_weight: float = 0.1
    identity_weight: float = 0.5

    name = "cyclemorph"
    title = "CycleMorph"
    defaults = {
        "model": {
            "encoder_channels": (16, 32, 32, 32, 32),
            "decoder_channels": (32, 32, 32, 8, 8),
            "convolutions": 1,
        },
        "smoothness_weight": 1.0,  # relative to an NCC, whose scale differs from that of an MSE
        "cycle_weight": 0.1,
        "identity_weight": 0.5,
        "optimiser": {"b1": 0.5},
        "train": {"learning_rate": 2e-4},
    }

    @classmethod
    def from_config(cls, config):
        return cls(DeformationUNet(**config.registration.model), **cls.settings_in(config))

    def init(self, key: jax.Array, space: Sequence[int]):
        """Initial parameters of both generators."""
        image = jnp.zeros((1, *space, 1))
        keys = jax.random.split(key)
        return {
            "forward": self.generator.init(keys[0], image, image)["params"],
            "backward": self.generator.init(keys[1], image, image)["params"],
        }

    def predict(self, generator_params, source, target) -> jax.Array:
        """The displacement of one generator, `[B, H, W, 2]`."""
        return self.generator.apply({"params": generator_params}, source, target)

    def field(self, params, frozen, moving, fixed) -> jax.Array:
        """Register: `[B, H, W, 1]` twice -> displacement `[B, H, W, 2]` in pixels."""
        return self.predict(params["forward"], moving, fixed)

    def objective(self, frozen, moving, fixed, displacement):
        """NCC and smoothness of one displacement, the part of the loss that needs no generators."""
        similarity, smooth = ncc(fixed, warp(moving, displacement)), smoothness(displacement)
        total = similarity + self.smoothness_weight * smooth
        return {"loss": total, "ncc": similarity, "smoothness": smooth}

    def loss(self, params, frozen, batch, key, step):
        """Training loss of a batch and its terms, each summed over both directions."""
        moving, fixed = batch["moving"], batch["fixed"]

        def register(name, source, target):
            u = self.predict(params[name], source, target)
            return warp(source, u), u

        fake_fixed, u_forward = register("forward", moving, fixed)
        fake_moving, u_backward = register("backward", fixed, moving)
        cycled_moving, _ = register("backward", fake_fixed, fake_moving)
        cycled_fixed, _ = register("forward", fake_moving, fake_fixed)
        same_fixed, _ = register("forward", fixed, fixed)
        same_moving, _ = register("backward", moving, moving)

        terms = {
            "ncc": ncc(fixed, fake_fixed) + ncc(moving, fake_moving),
            "smoothness": smoothness(u_forward) + smoothness(u_backward),
            "cycle": _l1(cycled_moving, moving) + _l1(cycled_fixed, fixed),
            "identity": ncc(fixed, same_fixed) + ncc(moving, same_moving),
        }
        total = (
            terms["ncc"]
            + self.smoothness_weight * terms["smoothness"]
            + self.cycle_weight * terms["cycle"]
            + self.identity_weight * terms["identity"]
        )
        return total, {"loss": total, **terms}


def _l1(a, b):
    return jnp.mean(jnp.abs(a - b))
