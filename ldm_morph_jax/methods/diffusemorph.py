"""DiffuseMorph (Kim et al., ECCV 2022): a conditional diffusion model steers the deformation."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ldm_morph_jax.methods.base import Method
from ldm_morph_jax.models.cyclemorph import DeformationUNet
from ldm_morph_jax.models.diffusemorph import DenoisingUNet
from ldm_morph_jax.ops.diffusion import Schedule, linear_beta_schedule, q_sample
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.losses import diffusion_loss, pixel_similarity, smoothness


@dataclasses.dataclass(frozen=True)
class DiffuseMorph(Method):
    """Noise predictor and deformation network, trained together: {"denoiser", "deformation"}.

    The networks' inputs are in [-1, 1]; images are warped and compared in [0, 1].

    Attributes:
      denoiser: eps(moving, fixed, x_t, t), the noise in a noisy fixed image x_t.
      deformation: (moving, eps) -> displacement `[B, H, W, 2]` in pixels.
      schedule: of the diffusion of the fixed image.
      registration_weight: of MSE + smoothness, relative to the diffusion loss.
      smoothness_weight: relative to the MSE, on the scale of LDM-Morph's lambda.
    """

    denoiser: DenoisingUNet
    deformation: DeformationUNet
    schedule: Schedule
    registration_weight: float = 2.0
    smoothness_weight: float = 0.01

    name = "diffusemorph"
    title = "DiffuseMorph"
    defaults = {
        "model": {
            "denoiser": {
                "base_channels": 64,
                "channel_multipliers": (1, 2, 4, 4),
                "residual_blocks": 1,
                "norm_groups": 32,
            },
            "deformation": {
                "encoder_channels": (64, 128, 256, 512, 1024),
                "decoder_channels": (1024, 512, 256, 128, 64),
                "convolutions": 2,
                "weights_std": 0.02,
            },
        },
        "timesteps": 2000,
        "beta_start": 1e-6,
        "beta_end": 1e-2,
        "registration_weight": 2.0,
        "smoothness_weight": 0.01,  # relative to the MSE
        "optimiser": {"b1": 0.5},
        "train": {"learning_rate": 2e-4},
    }
    small = {  # as in the official 3D configuration, with a denoiser twice as wide
        "model": {
            "denoiser": {
                "base_channels": 16,
                "channel_multipliers": (1, 2, 4, 4),
                "residual_blocks": 1,
                "norm_groups": 4,
            },
            "deformation": {
                "encoder_channels": (16, 32, 32, 32, 32),
                "decoder_channels": (32, 32, 32, 8, 8),
                "convolutions": 1,
                "weights_std": 0.02,
            },
        }
    }

    @classmethod
    def from_config(cls, config):
        c = config.registration
        return cls(
            DenoisingUNet(**c.model.denoiser),
            DeformationUNet(**c.model.deformation),
            linear_beta_schedule(c.timesteps, c.beta_start, c.beta_end),
            **cls.settings_in(config),
        )

    def init(self, key: jax.Array, space: Sequence[int]):
        """Initial parameters of both networks."""
        image, keys = jnp.zeros((1, *space, 1)), jax.random.split(key)
        time = jnp.zeros(1, jnp.int32)
        return {
            "denoiser": self.denoiser.init(keys[0], image, image, image, time)["params"],
            "deformation": self.deformation.init(keys[1], image, image)["params"],
        }

    def predict_noise(self, params, moving, fixed, noisy, t) -> jax.Array:
        """The noise in `noisy` `[B, H, W, 1]` at times t `[B]`; all images in [-1, 1]."""
        return self.denoiser.apply({"params": params["denoiser"]}, moving, fixed, noisy, t)

    def deform(self, params, moving, noise) -> jax.Array:
        """Displacement `[B, H, W, 2]` from the moving image in [-1, 1] and the predicted noise."""
        return self.deformation.apply({"params": params["deformation"]}, moving, noise)

    def field(self, params, frozen, moving, fixed, eta: float = 1.0) -> jax.Array:
        """Register: `[B, H, W, 1]` twice -> displacement `[B, H, W, 2]` in pixels.

        One pass: the fixed image itself, without noise, is used as x_t at t = 0. `eta` scales the
        predicted noise before it is turned into a displacement. From 0 to 1 it gives a continuous
        trajectory that ends at the registration.
        """
        moving, fixed = 2 * moving - 1, 2 * fixed - 1
        noise = self.predict_noise(params, moving, fixed, fixed, jnp.zeros(len(fixed), jnp.int32))
        return self.deform(params, moving, eta * noise)

    def objective(self, frozen, moving, fixed, displacement):
        """The registration terms of the loss, means over the batch: loss, pixel, smoothness."""
        pixel = pixel_similarity(fixed, warp(moving, displacement))
        smooth = smoothness(displacement)
        total = pixel + self.smoothness_weight * smooth
        return {"loss": total, "pixel": pixel, "smoothness": smooth}

    def loss(self, params, frozen, batch, key, step):
        """Training loss of a batch and its terms; its gradient reaches the denoiser twice."""
        moving, fixed = batch["moving"], batch["fixed"]
        time_key, noise_key = jax.random.split(key)
        t = jax.random.randint(time_key, fixed.shape[:1], 0, len(self.schedule.betas))
        noise = jax.random.normal(noise_key, fixed.shape)
        noisy = q_sample(self.schedule, 2 * fixed - 1, t, noise)
        predicted = self.predict_noise(params, 2 * moving - 1, 2 * fixed - 1, noisy, t)
        u = self.deform(params, 2 * moving - 1, predicted)

        diffusion = diffusion_loss(noise, predicted)
        terms = self.objective(frozen, moving, fixed, u)
        total = diffusion + self.registration_weight * terms["loss"]
        return total, {**terms, "loss": total, "diffusion": diffusion}
