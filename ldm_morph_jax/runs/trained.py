"""A learned method with its weights: what evaluation, benchmark and `register` work with."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from ldm_morph_jax.methods.build import build_method, needs_ldm
from ldm_morph_jax.runs.directory import load_config, load_ldm, trained_part


class TrainedMethod:
    """(moving, fixed) -> displacement, with everything that the weights were trained for.

    Attributes:
      name: the method's name.
      config: the run's configuration.
      image_size: side of the square grid that the network works on, in pixels.
      spacing_mm: pixel spacing of the training data, None where unknown.
      intensity: how training images were brought to [0, 1] ("minmax" or "percentile").
      predicts_velocity: whether the network predicts a stationary velocity: `field`, which
        `to_displacement` integrates.
      params, frozen: the weights.
    """

    def __init__(self, config, params, frozen, *, spacing_mm: float | None = None):
        self.config = config
        self.method = build_method(config)
        self.name = self.method.name
        self.image_size = config.data.image_size
        self.intensity = config.data.intensity
        self.spacing_mm = spacing_mm
        self.params, self.frozen = params, frozen
        self.predicts_velocity = getattr(self.method, "predicts_velocity", False)
        if self.predicts_velocity:
            self._field = jax.jit(self.method.field)
            self.to_displacement = jax.jit(self.method.to_displacement)
        self._displacement = jax.jit(self.method.displacement)
        self._constants = jax.jit(getattr(self.method, "objective_constants", _no_constants))
        self._dissimilarity = jax.jit(self._objective_per_pair)

    def displacement(self, moving, fixed) -> jax.Array:
        """`[B, H, W, 1]` twice, H = W = image_size -> displacement `[B, H, W, 2]` in pixels."""
        return self._displacement(self.params, self.frozen, moving, fixed)

    def field(self, moving, fixed) -> jax.Array:
        """As `displacement`, but the velocity, where the network predicts one."""
        return self._field(self.params, self.frozen, moving, fixed)

    def dissimilarity(self, moving, fixed) -> Callable[[jax.Array], jax.Array]:
        """Function from a displacement to the training objective of every pair, `[B]`.

        Differentiable; what depends on the images alone is computed once, here.
        """
        constants = self._constants(self.frozen, fixed)
        return functools.partial(self._dissimilarity, self.frozen, constants, moving, fixed)

    def _objective_per_pair(self, frozen, constants, moving, fixed, displacement):
        def one(constants, *pair):
            constants, pair = jax.tree.map(lambda array: array[None], (constants, pair))
            return self.method.objective(frozen, *pair, **constants)["loss"]

        return jax.vmap(one)(constants, moving, fixed, displacement)


def _no_constants(frozen, fixed) -> dict:
    return {}


def load_run(workdir: str | Path) -> TrainedMethod:
    """The best registration weights of a finished run directory."""
    workdir = Path(workdir)
    config = load_config(workdir)
    method = build_method(config)
    abstract = jax.eval_shape(lambda: method.init(jax.random.key(0), config.data.image_size))
    params = trained_part(workdir, "registration", {"params": abstract}, what=method.name)["params"]
    frozen = {}
    if needs_ldm(method):
        frozen = load_ldm(Path(config.ldm_from or workdir), config)
    dataset = json.loads((workdir / "dataset.json").read_text())
    to_device = jax.tree.map(jnp.asarray, (params, frozen))
    row, column = dataset["spacing_mm"]
    spacing_mm = row if row == column else None  # the model grid has square pixels
    return TrainedMethod(config, *to_device, spacing_mm=spacing_mm)
