"""The frozen latent diffusion model: its networks, built from a configuration, and its features."""

import dataclasses
import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ldm_morph_jax.models.autoencoder import Autoencoder
from ldm_morph_jax.models.unet import UNet
from ldm_morph_jax.ops.diffusion import Schedule, ddim_invert, linear_schedule, q_sample


class ImageFeatures(NamedTuple):
    """Features of an image from the frozen model.

    taps: the U-Net encoder's first and last feature map of each level, concatenated,
      `[B, h_l, w_l, c_l]`; empty if the registration network does not use them
    latent: E(image) `[B, h, w, C]`, before quantisation
    """

    taps: tuple[jax.Array, ...]
    latent: jax.Array


@dataclasses.dataclass(frozen=True)
class LDMFeatures:
    """The frozen feature extractor (LDM-FE, Sec. 3.2).

    Its parameters `frozen` are {"autoencoder", "unet", "latent_scale"}. Moving and fixed images
    share one batched call. The U-Net's decoder runs only for the noise predictions of the
    inversion, never for the call that reads the taps.
    """

    autoencoder: Autoencoder
    unet: UNet
    schedule: Schedule
    noising: str = "ddim"
    tap_time: int = 1
    inversion_steps: int = 1

    def __post_init__(self):
        if self.noising not in ("ddim", "q_sample"):
            raise ValueError(f"features.noising is {self.noising!r}, expected 'ddim' or 'q_sample'")

    @property
    def deterministic(self) -> bool:
        """Whether the features are a function of the image alone."""
        return self.noising == "ddim"

    def settings(self) -> str:
        """Everything that features depend on besides weights and images: a cache key."""
        # remat does not change features
        networks = [m.clone(remat=False) for m in (self.autoencoder, self.unet)]
        schedule = hashlib.sha256(self.schedule.betas.tobytes()).hexdigest()
        return repr((networks, schedule, self.noising, self.tap_time, self.inversion_steps))

    def encode(self, frozen, images: jax.Array) -> jax.Array:
        """E(images): `[B, H, W, 1] -> [B, h, w, C]`, before quantisation."""
        return self.autoencoder.apply({"params": frozen["autoencoder"]}, images, method="encode")

    def taps(self, frozen, latent: jax.Array, key=None) -> tuple[jax.Array, ...]:
        """Noise the latents to t = `tap_time` and read the U-Net encoder there.

        The paper computes z_t by DDIM inversion. The published code draws it at random instead
        (`noising="q_sample"`), which needs a `key` and makes the features random.
        """
        variables = {"params": frozen["unet"]}
        z = latent * frozen["latent_scale"]
        if self.deterministic:
            z = ddim_invert(
                self.schedule,
                lambda z, t: self.unet.apply(variables, z, t),
                z,
                tap_time=self.tap_time,
                steps=self.inversion_steps,
            )
        else:
            noise = jax.random.normal(key, z.shape)
            z = q_sample(self.schedule, z, jnp.full(z.shape[:1], self.tap_time), noise)
        return self.unet.apply(variables, z, jnp.full(z.shape[:1], self.tap_time), method="taps")

    def __call__(self, frozen, images: jax.Array, key=None, *, with_taps=True) -> ImageFeatures:
        latent = self.encode(frozen, images)
        taps = self.taps(frozen, latent, key) if with_taps else ()
        return jax.lax.stop_gradient(ImageFeatures(taps, latent))


def compute_options(config) -> dict:
    """Arguments common to all networks: `dtype` and `remat`."""
    c = config.compute
    if c.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"compute.dtype is {c.dtype!r}, expected 'float32' or 'bfloat16'")
    return {"dtype": jnp.dtype(c.dtype), "remat": c.remat}


def build_autoencoder(config) -> Autoencoder:
    return Autoencoder(**config.autoencoder.model, **compute_options(config))


def build_unet(config) -> UNet:
    return UNet(**config.diffusion.model, **compute_options(config))


def build_schedule(config) -> Schedule:
    c = config.diffusion
    return linear_schedule(c.timesteps, c.beta_start, c.beta_end)


def build_features(config) -> LDMFeatures:
    c = config.features
    return LDMFeatures(
        build_autoencoder(config),
        build_unet(config),
        build_schedule(config),
        noising=c.noising,
        tap_time=c.tap_time,
        inversion_steps=c.inversion_steps,
    )
