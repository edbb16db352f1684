"""The base class of methods: (moving, fixed) -> displacement, with everything else optional.

A new method is a subclass in its own file. It registers itself by its `name` (`methods.METHODS`),
provides its settings (`defaults`) and is then trained, evaluated, benchmarked and used by
`register` like every other method. Only `trained` distinguishes learned from iterative methods.

Images are `[B, H, W, 1]` in [0, 1], displacements `[B, H, W, 2]` in pixels, components (row,
column), pull-back (`ldm_morph_jax.ops`); volumes, where a method takes them, `[B, D, H, W, 1]`,
with displacements `[B, D, H, W, 3]`. `params` are the weights ({} if there are none), `frozen`
the arrays that a method reads but never trains ({} for most methods).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ldm_morph_jax.methods.velocity import VelocityHead

METHODS: dict[str, type["Method"]] = {}  # filled by the subclasses, see Method.__init_subclass__


class Method:
    """Base class with defaults for everything that a method need not define.

    A learned method defines `init`, `field`, `loss` and `from_config`; an iterative
    method only `field`.

    Class attributes:
      name: key in the registry, `config.registration.method`.
      title: its name in tables and reports.
      trained: whether it has weights, which `train` determines.
      on_host: whether it computes outside JAX (NumPy in, NumPy out), so that it is never traced.
      takes_volumes: whether it registers volumes, too.
      head: makes the displacement of `field`; by default `field` is the displacement.
      takes_compute_options: whether its networks follow `config.compute` (bfloat16, remat).
      defaults: its settings below `config.registration`, with the values of its paper or official
        code; "train" and "optimiser" hold the differences from `config.stage_config` and
        `config.optimiser_config`.
      small: settings, applied on top of `defaults`, that make its networks fit a laptop.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    trained: ClassVar[bool] = True
    on_host: ClassVar[bool] = False
    takes_volumes: ClassVar[bool] = False
    takes_compute_options: ClassVar[bool] = False
    head: VelocityHead = VelocityHead()
    defaults: ClassVar[Mapping[str, Any]] = {}
    small: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        if "name" not in vars(cls):
            return  # a base class shared by several methods
        known = METHODS.get(cls.name)
        # dataclasses and reloaded modules define the same class twice
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"two methods are called {cls.name!r}: {known} and {cls}")
        METHODS[cls.name] = cls

    @classmethod
    def from_config(cls, config) -> "Method":
        """The method with the settings of an experiment's `config`; by default it has none."""
        return cls()

    @classmethod
    def settings_in(cls, config) -> dict[str, Any]:
        """The fields of a dataclass that `config.registration` has, with its values."""
        c = config.registration
        return {field.name: c[field.name] for field in dataclasses.fields(cls) if field.name in c}

    # -- every method

    def field(self, params, frozen, moving, fixed) -> jax.Array:
        """The prediction: the displacement, or the velocity if `predicts_velocity`."""
        raise NotImplementedError(f"{type(self).__name__} does not define field")

    def to_displacement(self, field: jax.Array) -> jax.Array:
        """The displacement of a predicted field: the field itself, or the velocity's integral."""
        return self.head.to_displacement(field)

    def displacement(self, params, frozen, moving, fixed) -> jax.Array:
        """Register: `[B, H, W, 1]` twice -> displacement `[B, H, W, 2]`."""
        return self.to_displacement(self.field(params, frozen, moving, fixed))

    @property
    def predicts_velocity(self) -> bool:
        """Whether `field` is a stationary velocity."""
        return self.head.predicts_velocity

    def to_velocity(self, field: jax.Array) -> jax.Array:
        """The velocity of a predicted field, at full size; a displacement stands for itself."""
        return self.head.to_velocity(field)

    @property
    def symmetric(self) -> bool:
        """Whether exchanging the images negates `field`."""
        return self.head.symmetric

    def velocity(self, params, frozen, moving, fixed) -> jax.Array:
        """A stationary velocity `[B, H, W, 2]` that exchanging the images negates, in pixels.

        Half the difference of what is predicted in both directions: none for the same image twice
        (but for the random noise of features that are not constant).
        """
        if self.symmetric:
            return self.to_velocity(self.field(params, frozen, moving, fixed))
        there, back = jnp.concatenate([moving, fixed]), jnp.concatenate([fixed, moving])
        features = self.image_features(frozen, there, jax.random.key(0))
        exchanged = jax.tree.map(lambda leaf: jnp.roll(leaf, len(moving), axis=0), features)
        field = self.field_from_features(params, frozen, there, back, (features, exchanged))
        forward, backward = jnp.split(self.to_velocity(field), 2)
        return (forward - backward) / 2

    # -- what a learned method does

    def init(self, key: jax.Array, space: Sequence[int]) -> Any:
        """Initial parameters for images of `space` pixels: (H, W), or (D, H, W)."""
        return {}

    def loss(self, params, frozen, batch, key, step) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Training loss of a batch of pairs (means over the batch), and its terms for the log.

        `batch` holds "moving" and "fixed" and, if they are cached, the `image_features` of both,
        "moving_features" and "fixed_features".
        """
        raise NotImplementedError(f"{type(self).__name__} is not trained")

    # -- methods that read a frozen latent diffusion model

    @property
    def reads_ldm(self) -> bool:
        """Whether `frozen` must be the latent diffusion model, which is then trained first."""
        return False

    @property
    def features_are_constant(self) -> bool:
        """Whether `image_features` are a function of the image, so that they can be cached."""
        return False

    def image_features(self, frozen, images: jax.Array, key=None):
        """Features of single images from the frozen model, a tree of `[B, ...]`; None: unused."""
        return None

    def field_from_features(self, params, frozen, moving, fixed, features) -> jax.Array:
        """`field` for given `image_features` of both images, (moving's, fixed's).

        The features of an image that is registered repeatedly are then computed only once.
        """
        return self.field(params, frozen, moving, fixed)

    def feature_settings(self) -> str:
        """All that `image_features` depend on besides `frozen` and the images: a cache key."""
        return ""
