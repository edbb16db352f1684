"""Run a method on pairs that lie on the model grid, and refine what it predicts."""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.ops.geometry import integrate_velocity
from ldm_morph_jax.registering.method import Method
from ldm_morph_jax.registering.refinement import refine as refine_fields


@dataclass(frozen=True)
class Prediction:
    """What was found on the model grid.

    displacement: `[B, N, N, 2]` model pixels.
    network: the same before refinement.
    dissimilarity: `[B, 2]`, before and after refinement; None without.
    seconds: wall time, compilation included.
    """

    displacement: np.ndarray
    network: np.ndarray
    dissimilarity: np.ndarray | None
    seconds: float

    def __getitem__(self, pairs: slice) -> "Prediction":
        """Some of the pairs."""
        return Prediction(
            self.displacement[pairs],
            self.network[pairs],
            None if self.dissimilarity is None else self.dissimilarity[pairs],
            self.seconds,
        )


def join(parts: list[Prediction]) -> Prediction:
    """Predictions of several batches as one."""
    refined = parts[0].dissimilarity is not None
    return Prediction(
        np.concatenate([p.displacement for p in parts]),
        np.concatenate([p.network for p in parts]),
        np.concatenate([p.dissimilarity for p in parts]) if refined else None,
        sum(p.seconds for p in parts),
    )


def predict(
    method: Method,
    moving: np.ndarray,
    fixed: np.ndarray,
    *,
    refine: int = 0,
    diffeomorphic: bool = False,
) -> Prediction:
    """Register pairs `[B, N, N]` on the model grid.

    Args:
        method: the method.
        moving, fixed: float32 in [0, 1].
        refine: steps of instance optimisation, see `refinement`.
        diffeomorphic: take a predicted displacement (and what is refined) for a stationary velocity
            and integrate it by scaling and squaring. A predicted velocity always is, once.

    Raises:
        ValueError: the method predicts NaN, or an option needs a network and the method has none.
    """
    if method.image_size is None and (refine or diffeomorphic):
        option = "refine" if refine else "diffeomorphic"
        raise ValueError(f"{option}: works on what a network predicts; {method.name} has none")
    start = time.perf_counter()
    moving, fixed = (jnp.asarray(a[..., None], jnp.float32) for a in (moving, fixed))
    field, to_displacement = method.field(moving, fixed), method.to_displacement
    if diffeomorphic and not method.predicts_velocity:
        to_displacement = _integrate
    if not np.isfinite(field).all():
        raise ValueError(f"{method.name}: predicted NaN or infinity; the weights are not usable")
    displacement = network = to_displacement(field)
    dissimilarity = None
    if refine:
        field, dissimilarity = refine_fields(method, moving, fixed, field, refine, to_displacement)
        displacement = to_displacement(field)
    return Prediction(
        np.asarray(displacement, np.float64),
        np.asarray(network, np.float64),
        None if dissimilarity is None else np.asarray(dissimilarity),
        time.perf_counter() - start,
    )


def refined_displacement(method: Method, moving, fixed, *, steps: int) -> np.ndarray:
    """`[B, N, N, 1]` twice -> displacement `[B, N, N, 2]` after `steps` of refinement."""
    prediction = predict(method, moving[..., 0], fixed[..., 0], refine=steps)
    return prediction.displacement.astype(np.float32)


_integrate = jax.jit(integrate_velocity)
