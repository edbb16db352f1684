"""A training stage as a program: functions of arrays and the shapes that they take, without data.

The loop gives it data and trains it; `plan` and `speed` measure it. All of them compile the step in
one place, `lower_step`, so that what is measured is what trains.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ldm_morph_jax.devices.mesh import check_batch_size, replicated, sharded


@dataclasses.dataclass(frozen=True)
class Program:
    """A training stage.

    Attributes:
      name: of its directory, and in the log.
      train: its `config.stage_config`.
      init: key -> state, a dict of trees of arrays.
      step: (state, frozen, batch, key, step number) -> (state, terms): one step of the optimiser;
        the terms are scalars for the log.
      evaluate: (state, frozen, validation data, pictures=bool) -> (scores, figures): scores hold
        `score`, higher is better; figures are matplotlib's by name, made where asked for.
      frozen: shapes of the arrays that `step` reads and never changes.
      batch: shapes of the arrays of a batch, by name, that `step` reads: `[batch_size, ...]`, over
        all devices.
      images_per_step: for the speed that is shown.
    """

    name: str
    train: Any
    init: Callable[[jax.Array], dict]
    step: Callable[..., tuple[dict, dict]]
    evaluate: Callable[..., tuple[dict[str, float], dict]]
    frozen: Any
    batch: dict[str, Any]
    images_per_step: int

    @property
    def state(self) -> dict:
        """Shapes of the state."""
        return jax.eval_shape(self.init, jax.random.key(0))


def lower_step(program: Program, mesh: Mesh, *, seed: int) -> jax.stages.Lowered:
    """The step (state, frozen, batch, step number) -> (state, terms) for the mesh's devices.

    State and frozen arrays are replicated, batches shared out; the state is donated. The key of a
    step is a function of the seed and the step's number, so that a resumed run draws what an
    undisturbed one would.

    Raises ValueError for a batch that the devices cannot share equally.
    """
    train = program.train
    check_batch_size(train.batch_size, mesh, train.micro_batches)
    step_key = jax.random.fold_in(jax.random.key(seed), 1)

    def step(state, frozen, batch, number):
        return program.step(state, frozen, batch, jax.random.fold_in(step_key, number), number)

    on_all = replicated(mesh)
    jitted = jax.jit(step, out_shardings=(on_all, on_all), donate_argnums=0)
    return jitted.lower(
        placed(program.state, on_all),
        placed(program.frozen, on_all),
        placed(program.batch, sharded(mesh)),
        np.int32(0),
    )


def placed(shapes, sharding):
    """A tree of shapes with their place on the devices."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)
