"""Instance optimisation: improve what a network predicts, for this one pair.

Adam on a smooth correction of the predicted field, down the method's training objective.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ldm_morph_jax.ops.geometry import smooth_gaussian
from ldm_morph_jax.registering.method import Method

_LEARNING_RATE = 0.1  # pixels of the model grid per step, about
_SIGMA = 2.0  # of the Gaussian that smooths corrections, pixels of the model grid


def refine(
    method: Method,
    moving: jax.Array,
    fixed: jax.Array,
    start: jax.Array,
    steps: int,
    to_displacement: Callable[[jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Refine the fields of a batch; pairs do not see each other.

    Args:
        method: whose training objective is minimised.
        moving, fixed: `[B, N, N, 1]` in [0, 1].
        start: `[B, N, N, 2]` model pixels, displacement or velocity.
        steps: of Adam.
        to_displacement: field -> displacement.

    Returns:
        (the best field of every pair on the way, `[B, 2]` objective of the first and of the best).
    """
    dissimilarity = method.dissimilarity(moving, fixed)

    def total(correction):
        # The sum's gradient holds every pair's own: Adam works element by element, so no pair
        # changes another.
        displacement = to_displacement(_corrected(start, correction))
        each = dissimilarity(displacement)
        return each.sum(), each

    # Not jitted as a whole: the method's own compiled function takes its weights as arguments, here
    # they would become constants of the program.
    gradient = jax.value_and_grad(total, has_aux=True)
    optimiser = optax.adam(_LEARNING_RATE)

    @jax.jit
    def update(correction, state, gradients):
        updates, state = optimiser.update(gradients, state)
        return optax.apply_updates(correction, updates), state

    @jax.jit
    def keep_better(best, lowest, correction, each):
        better = (each < lowest)[:, None, None, None]
        return jnp.where(better, correction, best), jnp.minimum(each, lowest)

    correction = best = jnp.zeros_like(start)
    state, first = optimiser.init(correction), None
    lowest = jnp.full(len(start), jnp.inf)
    for _ in range(steps):
        (_, each), gradients = gradient(correction)
        first = each if first is None else first
        best, lowest = keep_better(best, lowest, correction, each)
        correction, state = update(correction, state, gradients)
    best, lowest = keep_better(best, lowest, correction, total(correction)[1])
    return _corrected(start, best), jnp.stack([first, lowest], axis=-1)


@jax.jit
def _corrected(start, correction):
    """start + smoothed correction, `[B, N, N, 2]`.

    Adam moves every pixel by about the same step, however small its gradient is, which roughens the
    field where images are flat. Optimising what a Gaussian smooths prevents it; on the validation
    patients of Sunnybrook, from no displacement at all, that gave both higher DSC and fewer folds.
    """
    return start + smooth_gaussian(correction, _SIGMA)
