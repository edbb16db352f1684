"""A training stage as a program: functions of arrays, and the shapes they take, without data.

The loop supplies data and trains it; `plan` and `speed` measure it. All of them compile the step
with `lower_step`, so that the program measured is the one that trains.
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
      name: used for its directory and in the log.
      train: its `config.stage_config`.
      init: key -> state, a dict of trees of arrays.
      step: (state, frozen, batch, key, step number) -> (state, terms): one optimiser step; the
        terms are scalars for the log.
      evaluate: (state, frozen, validation data, pictures=bool) -> (scores, figures): scores contain
        `score`, higher is better; figures are matplotlib figures by name, made if `pictures`.
      frozen: shapes of the arrays that `step` reads but never changes.
      batch: shapes, by name, of the batch arrays that `step` reads: `[batch_size, ...]`, over all
        devices.
      images_per_step: for reporting the speed.
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

    State and frozen arrays are replicated, batches are sharded, and the state is donated. The key
    of a step is a function of the seed and the step's number, so that a resumed run makes the same
    random draws as an uninterrupted one.

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
    """A tree of shapes with their sharding."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)
