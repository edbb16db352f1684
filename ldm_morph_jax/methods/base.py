"""What every learned method offers; the rest of the project knows nothing else of it."""

from typing import Any, Protocol

import jax


class LearnedMethod(Protocol):
    """A network with a training loss. Images are `[B, H, W, 1]`, displacements `[B, H, W, 2]` px.

    `frozen` holds arrays that the method reads and never trains ({} for most).
    A method that predicts a stationary velocity may say so with `predicts_velocity = True`; it then
    has `field(params, frozen, moving, fixed)`, the velocity, and `to_displacement(field)`.
    A method whose objective computes something of the fixed image alone may offer it as
    `objective_constants(frozen, fixed)`, keyword arguments of `objective`, for repeated calls.
    """

    name: str

    def init(self, key: jax.Array, image_size: int) -> Any:
        """Initial parameters."""

    def loss(self, params, frozen, batch, key, step) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Training loss of a batch of pairs, and its terms for the log."""

    def displacement(self, params, frozen, moving, fixed) -> jax.Array:
        """Register: a displacement in pixels."""

    def objective(self, frozen, moving, fixed, displacement) -> dict[str, jax.Array]:
        """The objective that a displacement of given images has; "loss" is the total."""
