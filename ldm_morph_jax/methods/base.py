"""What a method is: (moving, fixed) -> displacement, with everything else optional.

A subclass in a file of its own is all that a new method takes: it registers itself by its `name`
(`methods.METHODS`), brings its settings (`defaults`) and is then trained, evaluated, benchmarked
and used by `register` like every other. Learned and iterative methods are told apart by `trained`
alone.

Images are `[B, H, W, 1]` in [0, 1], displacements `[B, H, W, 2]` in pixels, components (row,
column), pull-back (`ldm_morph_jax.ops`). `params` are the weights ({} without), `frozen` the
arrays that a method reads and never trains ({} for most).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ldm_morph_jax.ops.geometry import warp

METHODS: dict[str, type["Method"]] = {}  # filled by the subclasses, see Method.__init_subclass__


class Method:
    """Base class with the defaults of what a method need not say.

    A learned method defines `init`, `field`, `loss`, `objective` and `from_config`; an iterative
    one `field` alone.

    Class attributes:
      name: key of the registry, `config.registration.method`.
      title: how tables and reports write it.
      trained: whether it has weights that `train` finds.
      on_host: whether it computes outside JAX (NumPy in, NumPy out), so that it is never traced.
      takes_compute_options: whether its networks follow `config.compute` (bfloat16, remat).
      defaults: its settings below `config.registration`, the values of its paper or official code;
        "train" and "optimiser" hold what differs from `config.stage_config` and
        `config.optimiser_config`.
      small: the settings that make its networks small enough for a laptop, on top of `defaults`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    trained: ClassVar[bool] = True
    on_host: ClassVar[bool] = False
    takes_compute_options: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {}
    small: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        if "name" not in vars(cls):
            return  # shared by several methods, none itself
        known = METHODS.get(cls.name)
        # the same class again: dataclasses and reloaded modules define theirs twice
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"two methods are called {cls.name!r}: {known} and {cls}")
        METHODS[cls.name] = cls

    @classmethod
    def from_config(cls, config) -> "Method":
        """The method with the settings of an experiment's `config`; without any by default."""
        return cls()

    # -- what every method does

    def field(self, params, frozen, moving, fixed) -> jax.Array:
        """What is predicted: the displacement, or the velocity where `predicts_velocity`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it registers")

    def to_displacement(self, field: jax.Array) -> jax.Array:
        """The displacement of a predicted field: the field itself, or the velocity's integral."""
        return field

    def displacement(self, params, frozen, moving, fixed) -> jax.Array:
        """Register: `[B, H, W, 1]` twice -> displacement `[B, H, W, 2]`."""
        return self.to_displacement(self.field(params, frozen, moving, fixed))

    @property
    def predicts_velocity(self) -> bool:
        """Whether `field` is a stationary velocity."""
        return False

    def to_velocity(self, field: jax.Array) -> jax.Array:
        """The velocity of a predicted field, at full size; a displacement stands for itself."""
        return field

    @property
    def symmetric(self) -> bool:
        """Whether exchanging the images negates `field`."""
        return False

    def velocity(self, params, frozen, moving, fixed) -> jax.Array:
        """A stationary velocity `[B, H, W, 2]` that exchanging the images negates, in pixels.

        Half the difference of what is predicted in both directions: none for the same image twice.
        """
        if self.symmetric:
            return self.to_velocity(self.field(params, frozen, moving, fixed))
        key = jax.random.key(0)
        pair = [(image, self.image_features(frozen, image, key)) for image in (moving, fixed)]

        def both(a, b):
            return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), a, b)

        (there, there_features), (back, back_features) = both(*pair), both(*pair[::-1])
        features = there_features, back_features
        field = self.field_from_features(params, frozen, there, back, features)
        forward, backward = jnp.split(self.to_velocity(field), 2)
        return (forward - backward) / 2

    # -- what a learned method does

    def init(self, key: jax.Array, image_size: int) -> Any:
        """Initial parameters for square images of `image_size` pixels."""
        return {}

    def loss(self, params, frozen, batch, key, step) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Training loss of a batch of pairs (means over the batch), and its terms for the log.

        `batch` holds "moving" and "fixed" and, where they are cached, what `image_features` gives
        for each, "moving_features" and "fixed_features".
        """
        raise NotImplementedError(f"{type(self).__name__} is not trained")

    def objective(self, frozen, moving, fixed, displacement, **constants) -> dict[str, jax.Array]:
        """What a displacement of given images costs, means over the batch; "loss" is the total.

        By default the mean squared difference, Eq. 14 of the LDM-Morph paper.
        """
        pixel = jnp.mean((fixed - warp(moving, displacement)) ** 2)
        return {"loss": pixel, "pixel": pixel}

    def objective_constants(self, frozen, fixed) -> dict[str, jax.Array]:
        """Keyword arguments of `objective` that depend on the fixed image alone."""
        return {}

    # -- what a method reads of a frozen latent diffusion model

    @property
    def reads_ldm(self) -> bool:
        """Whether `frozen` has to be the latent diffusion model, which is then trained first."""
        return False

    @property
    def features_are_constant(self) -> bool:
        """Whether `image_features` are a function of the image, so that they can be cached."""
        return False

    def image_features(self, frozen, images: jax.Array, key=None):
        """What the frozen model knows of single images, a tree of `[B, ...]`; None: not read."""
        return None

    def field_from_features(self, params, frozen, moving, fixed, features) -> jax.Array:
        """`field`, given `image_features` of both images, (moving's, fixed's), so that they are
        computed once for an image that is registered often."""
        return self.field(params, frozen, moving, fixed)

    def feature_settings(self) -> str:
        """All that `image_features` depend on besides `frozen` and the images: a cache's key."""
        return ""
