"""What can register here: a function of two square images, and what it was trained for."""

from collections.abc import Callable
from typing import Protocol

import jax


class Method(Protocol):
    """What `runs.trained.TrainedMethod` offers and this room needs.

    name: for reports.
    image_size: side of its square grid in pixels; None: any.
    spacing_mm: pixel spacing of the training data; None where unknown.
    intensity: how training images were brought to [0, 1]: "minmax" or "percentile".
    predicts_velocity: whether `field` is a stationary velocity, which `to_displacement` integrates;
        otherwise it is the displacement itself.
    """

    name: str
    image_size: int | None
    spacing_mm: float | None
    intensity: str
    predicts_velocity: bool

    def field(self, moving: jax.Array, fixed: jax.Array) -> jax.Array:
        """`[B, H, W, 1]` twice -> `[B, H, W, 2]` in model pixels, velocity or displacement."""

    def to_displacement(self, field: jax.Array) -> jax.Array:
        """What `field` returned -> displacement `[B, H, W, 2]` in model pixels."""

    def dissimilarity(
        self, moving: jax.Array, fixed: jax.Array
    ) -> Callable[[jax.Array], jax.Array]:
        """Displacement -> training objective of every pair, `[B]`; differentiable."""
