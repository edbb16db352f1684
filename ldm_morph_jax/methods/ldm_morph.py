"""LDM-Morph: frozen latent diffusion features, registration network, hierarchical loss (Sec. 3).

images -> E -> DDIM inversion -> U-Net encoder taps  (frozen: constant for each image)
pair, taps -> registration network -> [velocity -> exp] -> displacement -> warp -> loss
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.methods.base import Method
from ldm_morph_jax.methods.ldm import ImageFeatures, LDMFeatures, build_features, compute_options
from ldm_morph_jax.methods.velocity import HEAD_DEFAULTS, VelocityHead
from ldm_morph_jax.models.registration import RegistrationNetwork
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.losses import (
    hierarchical_similarity,
    latent_similarity,
    named_similarity,
    smoothness,
)


@dataclasses.dataclass(frozen=True)
class LDMMorph(Method):
    """The registration method; given parameters, a function of (moving, fixed).

    Attributes besides the networks:
      head: whether the network predicts the displacement, as in the paper, or a velocity.
      similarity: in image space, by its name in `ops.losses`; the paper's is the squared error.
      pixel_weight: beta of Eq. 13.
      smoothness_weight: lambda of Eq. 12.
      smoothness_scale: "pixels", or "half_size". In the published code the warp takes
        (size - 1) / 2 pixels per unit of the network's output, as here, but the smoothness (and
        the fold count) takes size / 2, so that displacements seem larger by size / (size - 1).
      latent_gradient: whether the gradient of the latent similarity reaches the displacement. It
        does in the paper; the published code computes the term without gradient.
      stochastic_depth_steps: paths are dropped in training until this step; -1 = always. The
        published code drops none after its first validation, since it stays in evaluation mode.
    """

    network: RegistrationNetwork
    features: LDMFeatures
    head: VelocityHead = VelocityHead()
    similarity: str = "mse"
    pixel_weight: float = 0.6
    smoothness_weight: float = 0.01
    smoothness_scale: str = "pixels"
    latent_gradient: bool = True
    stochastic_depth_steps: int = -1

    name = "ldm_morph"
    title = "LDM-Morph"
    takes_volumes = True
    takes_compute_options = True
    defaults = HEAD_DEFAULTS | {
        "model": {
            "embed_dim": 64,
            "depths": (2, 2, 4, 2),
            "num_heads": (4, 4, 8, 8),
            "window_size": 7,
            "mlp_ratio": 4,
            "drop_path_rate": 0.3,
            "lgca_heads": 4,
            "lgca_depth": 2,
            "fusion": "lgca",  # "concat": without LGCA; "none": without LDM features
        },
        "similarity": "mse",  # in image space; "ncc": local correlation
        "pixel_weight": 0.6,  # beta of Eq. 13; the latent term has weight 1 - beta
        "smoothness_weight": 0.01,  # lambda of Eq. 12
        "smoothness_scale": "pixels",  # "half_size": as in the published code
        "latent_gradient": True,  # False: as in the published code
        "stochastic_depth_steps": -1,  # drop paths until this step; -1 = always
        "train": {"learning_rate": 1e-4},
    }
    small = {
        "model": {
            "embed_dim": 16,
            "depths": (2, 2, 2, 2),
            "num_heads": (2, 2, 4, 4),
            "drop_path_rate": 0.1,
        }
    }

    def __post_init__(self):
        named_similarity(self.similarity)
        if self.smoothness_scale not in ("pixels", "half_size"):
            raise ValueError(
                f"registration.smoothness_scale is {self.smoothness_scale!r}, "
                "expected 'pixels' or 'half_size'"
            )

    @classmethod
    def from_config(cls, config):
        return cls(
            RegistrationNetwork(**config.registration.model, **compute_options(config)),
            build_features(config),
            VelocityHead.from_config(config),
            **cls.settings_in(config),
        )

    # -- the frozen latent diffusion model

    @property
    def uses_taps(self) -> bool:
        return self.network.fusion != "none"

    @property
    def uses_latent_loss(self) -> bool:
        return self.pixel_weight < 1

    @property
    def reads_ldm(self) -> bool:
        return self.uses_taps or self.uses_latent_loss

    @property
    def features_are_constant(self) -> bool:
        return self.reads_ldm and self.features.deterministic

    def image_features(self, frozen, images, key=None) -> ImageFeatures | None:
        """Taps (if the network uses them) and latent of images `[B, H, W, 1]`."""
        if not self.reads_ldm:
            return None
        return self.features(frozen, images, key, with_taps=self.uses_taps)

    def feature_settings(self) -> str:
        return self.features.settings()

    def _pair_features(self, frozen, moving, fixed, key):
        """Features of both images of `[B, H, W, 1]` pairs, in one batched call.

        None if the network uses no taps: then only the loss needs latents, and not of every image.
        """
        if not self.uses_taps:
            return None, None
        both = self.features(frozen, jnp.concatenate([moving, fixed]), key)
        n = moving.shape[0]
        return jax.tree.map(lambda a: a[:n], both), jax.tree.map(lambda a: a[n:], both)

    # -- the network

    def init(self, key: jax.Array, space: Sequence[int]):
        pair = jnp.zeros((1, *space, 2))
        return self.network.init(key, pair, self._tap_groups_like(space), train=False)["params"]

    def _tap_groups_like(self, space: Sequence[int]):
        if not self.uses_taps:
            return None
        latent = [n // self.features.autoencoder.downsampling for n in space]
        taps = jax.eval_shape(
            lambda: self.features.unet.init_with_output(
                jax.random.key(0),
                jnp.zeros((1, *latent, 1)),
                jnp.zeros(1, jnp.int32),
                method="taps",
            )[0]
        )
        return tuple(jnp.zeros(t.shape[:-1] + (2 * t.shape[-1],)) for t in taps)

    def predict(self, params, moving, fixed, features, *, train=False, key=None) -> jax.Array:
        """The field `[B, *space, rank]` in pixels, from images and their features."""

        def network(moving, fixed):
            (moving, moving_taps), (fixed, fixed_taps) = moving, fixed
            groups = None
            if self.uses_taps:
                groups = tuple(
                    jnp.concatenate([m, f], -1)
                    for m, f in zip(moving_taps, fixed_taps, strict=True)
                )
            rngs = {} if key is None else {"dropout": key}
            pair = jnp.concatenate([moving, fixed], -1)
            return self.network.apply({"params": params}, pair, groups, train=train, rngs=rngs)

        taps = [f.taps if self.uses_taps else () for f in features]
        return self.head.field(network, (moving, taps[0]), (fixed, taps[1]))

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

    def field(self, params, frozen, moving, fixed) -> jax.Array:
        """The network's prediction for a pair.

        With random noising the draw is fixed, so that a pair always gives the same result.
        """
        features = self._pair_features(frozen, moving, fixed, jax.random.key(0))
        return self.predict(params, moving, fixed, features)

    def field_from_features(self, params, frozen, moving, fixed, features) -> jax.Array:
        return self.predict(params, moving, fixed, features)

    # -- the loss

    def _smoothness_factor(self, size: Sequence[int]) -> np.ndarray:
        """Factors applied to the displacement's components in the smoothness, in axis order."""
        size = np.array(size, np.float32)
        return size / (size - 1) if self.smoothness_scale == "half_size" else np.ones_like(size)

    def objective(self, frozen, moving, fixed, displacement, fixed_latent=None):
        """The terms of Eq. 12 to 16, means over the batch: loss, pixel, latent, smoothness."""
        warped = warp(moving, displacement)
        pixel = named_similarity(self.similarity)(fixed, warped)
        factor = self._smoothness_factor(displacement.shape[1:-1])
        smooth = smoothness(displacement * factor.reshape((1,) * (displacement.ndim - 1) + (-1,)))
        latent = jnp.zeros(())
        if self.uses_latent_loss:
            if fixed_latent is None:
                fixed_latent = jax.lax.stop_gradient(self.features.encode(frozen, fixed))
            # the published code computes this term under no_grad: it is reported but not minimised
            seen = warped if self.latent_gradient else jax.lax.stop_gradient(warped)
            latent = latent_similarity(fixed_latent, self.features.encode(frozen, seen))
        similarity = hierarchical_similarity(pixel, latent, self.pixel_weight)
        total = similarity + self.smoothness_weight * smooth
        return {"loss": total, "pixel": pixel, "latent": latent, "smoothness": smooth}

    def loss(self, params, frozen, batch, key, step):
        """Training loss of a (global) batch and its terms; of both directions if symmetric."""
        noise_key, drop_key = jax.random.split(key)
        moving, fixed = batch["moving"], batch["fixed"]
        if "fixed_features" in batch:
            features = batch["moving_features"], batch["fixed_features"]
        else:
            features = self._pair_features(frozen, moving, fixed, noise_key)
        field = self._predict_in_training(params, moving, fixed, features, drop_key, step)
        moving_latent, fixed_latent = (None if f is None else f.latent for f in features)

        def directed(source, target, field):
            (source, _), (target, latent) = source, target
            return self.objective(frozen, source, target, self.to_displacement(field), latent)

        pair = (moving, moving_latent), (fixed, fixed_latent)
        terms = self.head.terms(directed, *pair, field)
        return terms["loss"], terms
