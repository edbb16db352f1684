"""What can register here: a function of two square images, and what it was trained for."""

from typing import Protocol

import jax


class Method(Protocol):
    """What `runs.trained.TrainedMethod` offers and this room needs.

    name: for reports.
    image_size: side of its square grid in pixels; None: any.
    spacing_mm: pixel spacing of the training data; None where unknown.
    intensity: how training images were brought to [0, 1]: "minmax" or "percentile".
    predicts_velocity: whether `displacement` is the integral of a stationary velocity.
    """

    name: str
    image_size: int | None
    spacing_mm: float | None
    intensity: str
    predicts_velocity: bool

    def displacement(self, moving: jax.Array, fixed: jax.Array) -> jax.Array:
        """`[B, H, W, 1]` twice -> displacement `[B, H, W, 2]` in model pixels."""

    def velocity(self, moving: jax.Array, fixed: jax.Array) -> jax.Array:
        """The same, as a stationary velocity that exchanging the images negates."""
