"""The head that turns a network's output into a displacement, the same for every network.

By default, as in the papers, the output is the displacement. With the head on, the output is a
stationary velocity that is made antisymmetric (optional), smoothed and integrated.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ldm_morph_jax.ops.geometry import integrate_velocity, resize_displacement, smooth_gaussian


@dataclasses.dataclass(frozen=True)
class VelocityHead:
    """Settings of the head.

    Attributes:
      integration_steps: 0: the network predicts the displacement. Otherwise it predicts a
        stationary velocity, integrated at half the size by this number of squarings (Dalca et al.,
        Medical Image Analysis 57, 2019). The displacement is then invertible, so that a weak
        smoothness term allows large contractions without folds.
      velocity_sigma: standard deviation, in image pixels, of the Gaussian that smooths the velocity
        first, so that the network cannot fit noise. LDDMM and SyN regularise in the same way, by a
        kernel instead of a penalty.
      symmetric: the velocity is half the difference between the network's predictions for (moving,
        fixed) and (fixed, moving). Swapping the images then gives the inverse displacement, and two
        equal images give none, whatever the weights. This takes two passes of the network.

    Raises ValueError if a setting needs a velocity and none is predicted.
    """

    integration_steps: int = 0
    velocity_sigma: float = 0.0
    symmetric: bool = False

    def __post_init__(self):
        if self.integration_steps < 0:
            raise ValueError(
                f"registration.integration_steps is {self.integration_steps}, expected 0 or more"
            )
        for name in ("velocity_sigma", "symmetric"):
            if getattr(self, name) and not self.integration_steps:
                raise ValueError(
                    f"registration.{name} is {getattr(self, name)}, but no velocity is "
                    "predicted: expected registration.integration_steps above 0"
                )

    @classmethod
    def from_config(cls, config) -> "VelocityHead":
        return cls(**{name: config.registration[name] for name in HEAD_DEFAULTS})

    @property
    def predicts_velocity(self) -> bool:
        return self.integration_steps > 0

    def field(self, predict: Callable, moving, fixed) -> jax.Array:
        """`[B, *space, rank]`: the result of `predict(moving, fixed)`, or its antisymmetric part.

        `moving` and `fixed` are trees of arrays `[B, ...]`: images and, if there are any, features.
        Both directions share one call of the network.
        """
        if not self.symmetric:
            return predict(moving, fixed)

        def both(first, second):
            return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)

        forward, backward = jnp.split(predict(both(moving, fixed), both(fixed, moving)), 2)
        return (forward - backward) / 2

    def terms(self, directed: Callable, moving, fixed, field: jax.Array) -> dict[str, jax.Array]:
        """Terms of a loss, `directed(moving, fixed, field)`; of both directions where symmetric."""
        forward = directed(moving, fixed, field)
        if not self.symmetric:
            return forward
        return jax.tree.map(lambda a, b: (a + b) / 2, forward, directed(fixed, moving, -field))

    def to_displacement(self, field: jax.Array) -> jax.Array:
        """Field -> displacement, both `[B, *space, rank]` in pixels."""
        if not self.predicts_velocity:
            return field
        u = integrate_velocity(self._smoothed(field), self.integration_steps)
        return resize_displacement(u, field.shape[1:-1])

    def to_velocity(self, field: jax.Array) -> jax.Array:
        """What `to_displacement` integrates, at full size; a predicted displacement as it is."""
        if not self.predicts_velocity:
            return field
        return resize_displacement(self._smoothed(field), field.shape[1:-1])

    def _smoothed(self, field: jax.Array) -> jax.Array:
        """The velocity that is integrated, where it is integrated: at half the size."""
        return smooth_gaussian(self.halved(field), self.velocity_sigma / 2)

    def halved(self, field: jax.Array) -> jax.Array:
        """The velocity on the grid where it is integrated, in that grid's pixels."""
        return resize_displacement(field, [n // 2 for n in field.shape[1:-1]])


# the keys of config.registration that make up the head
HEAD_DEFAULTS = dataclasses.asdict(VelocityHead())
