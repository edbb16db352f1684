"""LDM-Morph: frozen latent diffusion features, registration network, hierarchical loss (paper
Sec. 3).

images -> E -> DDIM inversion -> U-Net encoder taps  (frozen: a constant of each image)
pair, taps -> registration network -> [velocity -> exp] -> displacement -> warp -> loss
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.models.autoencoder import Autoencoder
from ldm_morph_jax.models.registration import RegistrationNetwork
from ldm_morph_jax.models.unet import UNet
from ldm_morph_jax.ops.diffusion import Schedule, ddim_invert, q_sample
from ldm_morph_jax.ops.geometry import (
    integrate_velocity,
    resize_displacement,
    smooth_gaussian,
    warp,
)
from ldm_morph_jax.ops.losses import (
    hierarchical_similarity,
    latent_similarity,
    pixel_similarity,
    smoothness,
)


class ImageFeatures(NamedTuple):
    """What the frozen model knows of an image.

    taps: the U-Net encoder's first and last feature map of each level, concatenated,
      `[B, h_l, w_l, c_l]`; empty where the registration network does not read them
    latent: E(image) `[B, h, w, C]`, before quantisation
    """

    taps: tuple[jax.Array, ...]
    latent: jax.Array


@dataclasses.dataclass(frozen=True)
class LDMFeatures:
    """The frozen feature extractor (LDM-FE, Sec. 3.2).

    Its parameters `frozen` are {"autoencoder", "unet", "latent_scale"}; moving and fixed images
    share one batched call. The U-Net's decoder half runs only for the noise predictions of the
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
        return self.noising == "ddim"

    def encode(self, frozen, images: jax.Array) -> jax.Array:
        """E(images): `[B, H, W, 1] -> [B, h, w, C]`, before quantisation."""
        return self.autoencoder.apply({"params": frozen["autoencoder"]}, images, method="encode")

    def taps(self, frozen, latent: jax.Array, key=None) -> tuple[jax.Array, ...]:
        """Noise the latents to t = `tap_time` and read the U-Net encoder there.

        The paper reaches z_t by DDIM inversion. The published code draws it instead
        (`noising="q_sample"`), which needs a `key` and makes features a random variable.
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


@dataclasses.dataclass(frozen=True)
class LDMMorph:
    """The registration method; a function of (moving, fixed) once it has parameters.

    Attributes beyond the networks:
      pixel_weight: beta of Eq. 13.
      smoothness_weight: lambda of Eq. 12.
      smoothness_scale: "pixels", or "half_size": the published code's warp has (size - 1) / 2
      pixels
        per unit of the network's output, as ours, but its smoothness (and its report of folds)
        takes size / 2, so that displacements seem larger by size / (size - 1).
      latent_gradient: whether the latent similarity moves the displacement. The paper's point;
        the published code computes the term without gradient.
      stochastic_depth_steps: paths are dropped in training until this step; -1 = always. The
        published code drops none after its first validation (it never leaves evaluation mode).
      integration_steps: 0 as in the paper: the network predicts the displacement. Otherwise it
        predicts a stationary velocity, which that many squarings integrate at half the size
        (Dalca et al., Medical Image Analysis 57, 2019): the displacement is invertible, so that a
        weak smoothness can follow large contractions without folds. An option of this project.
      velocity_sigma: pixels (of the image) of the Gaussian that smooths the velocity first (the
        regularisation of LDDMM and SyN, a kernel instead of a penalty): the network cannot fit
        noise.
    """

    network: RegistrationNetwork
    features: LDMFeatures
    pixel_weight: float = 0.6
    smoothness_weight: float = 0.01
    smoothness_scale: str = "pixels"
    latent_gradient: bool = True
    stochastic_depth_steps: int = -1
    integration_steps: int = 0
    velocity_sigma: float = 0.0

    name = "ldm_morph"

    def __post_init__(self):
        if self.smoothness_scale not in ("pixels", "half_size"):
            raise ValueError(
                f"registration.smoothness_scale is {self.smoothness_scale!r}, "
                "expected 'pixels' or 'half_size'"
            )
        if self.velocity_sigma and not self.integration_steps:
            raise ValueError(
                f"registration.velocity_sigma is {self.velocity_sigma}, but no velocity is "
                "predicted: expected registration.integration_steps above 0"
            )

    @property
    def predicts_velocity(self) -> bool:
        return self.integration_steps > 0

    @property
    def uses_taps(self) -> bool:
        return self.network.fusion != "none"

    @property
    def uses_latent_loss(self) -> bool:
        return self.pixel_weight < 1

    def init(self, key: jax.Array, image_size: int):
        """Initial parameters of the registration network."""
        pair = jnp.zeros((1, image_size, image_size, 2))
        return self.network.init(key, pair, self._tap_groups_like(image_size), train=False)[
            "params"
        ]

    def _tap_groups_like(self, image_size: int):
        if not self.uses_taps:
            return None
        size = image_size // self.features.autoencoder.downsampling
        taps = jax.eval_shape(
            lambda: self.features.unet.init_with_output(
                jax.random.key(0),
                jnp.zeros((1, size, size, 1)),
                jnp.zeros(1, jnp.int32),
                method="taps",
            )[0]
        )
        return tuple(jnp.zeros(t.shape[:-1] + (2 * t.shape[-1],)) for t in taps)

    def pair_features(
        self, frozen, moving, fixed, key=None
    ) -> tuple[ImageFeatures | None, ImageFeatures | None]:
        """Features of both images of `[B, H, W, 1]` pairs, in one batched call.

        None where the network does not read them: the loss alone needs only the fixed latent.
        """
        if not self.uses_taps:
            return None, None
        both = self.features(frozen, jnp.concatenate([moving, fixed]), key)
        n = moving.shape[0]
        return jax.tree.map(lambda a: a[:n], both), jax.tree.map(lambda a: a[n:], both)

    def predict(self, params, moving, fixed, features, *, train=False, key=None) -> jax.Array:
        """The network's field `[B, H, W, 2]` in pixels, from images and their features."""
        groups = None
        if self.uses_taps:
            groups = tuple(
                jnp.concatenate([m, f], -1)
                for m, f in zip(features[0].taps, features[1].taps, strict=True)
            )
        rngs = {} if key is None else {"dropout": key}
        pair = jnp.concatenate([moving, fixed], -1)
        return self.network.apply({"params": params}, pair, groups, train=train, rngs=rngs)

    def _predict_in_training(self, params, moving, fixed, features, key, step):
        def dropping():
            return self.predict(params, moving, fixed, features, train=True, key=key)

        if self.stochastic_depth_steps < 0:
            return dropping()
        return jax.lax.cond(
            step < self.stochastic_depth_steps,
            dropping,
            lambda: self.predict(params, moving, fixed, features),
        )

    def to_displacement(self, field: jax.Array) -> jax.Array:
        """What the network predicts -> displacement; both `[B, H, W, 2]` in pixels."""
        if not self.predicts_velocity:
            return field
        height, width = field.shape[1:3]
        velocity = resize_displacement(field, (height // 2, width // 2))
        velocity = smooth_gaussian(velocity, self.velocity_sigma / 2)
        u = integrate_velocity(velocity, self.integration_steps)
        return resize_displacement(u, (height, width))

    def displacement(self, params, frozen, moving, fixed) -> jax.Array:
        """Register: `[B, H, W, 1]` twice -> displacement `[B, H, W, 2]` in pixels."""
        return self.to_displacement(self.field(params, frozen, moving, fixed))

    def field(self, params, frozen, moving, fixed) -> jax.Array:
        """The network's field of a pair, before `to_displacement`.

        With random noising the draw is fixed, so that the same pair always gives the same result.
        """
        features = self.pair_features(frozen, moving, fixed, jax.random.key(0))
        return self.predict(params, moving, fixed, features)

    def _smoothness_factor(self, size: tuple[int, int]) -> np.ndarray:
        """What the displacement's (row, column) components are multiplied by for the smoothness."""
        size = np.array(size, np.float32)
        return size / (size - 1) if self.smoothness_scale == "half_size" else np.ones_like(size)

    def objective_constants(self, frozen, fixed) -> dict[str, jax.Array]:
        """What `objective` can be given, so that it does not encode the fixed image again."""
        if not self.uses_latent_loss:
            return {}
        return {"fixed_latent": jax.lax.stop_gradient(self.features.encode(frozen, fixed))}

    def objective(self, frozen, moving, fixed, displacement, fixed_latent=None):
        """The terms of Eq. 12 to 16, means over the batch: loss, pixel, latent, smoothness."""
        warped = warp(moving, displacement)
        pixel = pixel_similarity(fixed, warped)
        factor = self._smoothness_factor(displacement.shape[1:3])
        smooth = smoothness(displacement * factor[None, None, None])
        latent = jnp.zeros(())
        if self.uses_latent_loss:
            if fixed_latent is None:
                fixed_latent = self.objective_constants(frozen, fixed)["fixed_latent"]
            # the published code computes this term under no_grad: it is reported, never minimised
            seen = warped if self.latent_gradient else jax.lax.stop_gradient(warped)
            latent = latent_similarity(fixed_latent, self.features.encode(frozen, seen))
        similarity = hierarchical_similarity(pixel, latent, self.pixel_weight)
        total = similarity + self.smoothness_weight * smooth
        return {"loss": total, "pixel": pixel, "latent": latent, "smoothness": smooth}

    def loss(self, params, frozen, batch, key, step):
        """Training loss of a (global) batch and its terms.

        The batch may bring the frozen features ("moving_features", "fixed_features"); otherwise
        they are computed here.
        """
        noise_key, drop_key = jax.random.split(key)
        moving, fixed = batch["moving"], batch["fixed"]
        if "fixed_features" in batch:
            features = batch["moving_features"], batch["fixed_features"]
        else:
            features = self.pair_features(frozen, moving, fixed, noise_key)
        field = self._predict_in_training(params, moving, fixed, features, drop_key, step)
        u = self.to_displacement(field)
        fixed_latent = None if features[1] is None else features[1].latent
        terms = self.objective(frozen, moving, fixed, u, fixed_latent)
        return terms["loss"], terms
