"""A method with its weights, as used by evaluation, benchmark and `register`."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp

from ldm_morph_jax.config import config_from_json
from ldm_morph_jax.methods import Method, build_method, method_class, method_names
from ldm_morph_jax.runs.directory import load_config, load_ldm, trained_part
from ldm_morph_jax.runs.weights import SHA256, WeightsError, load_compact, named_weights


class TrainedMethod:
    """(moving, fixed) -> displacement, compiled, with the conditions the weights were trained for.

    An iterative method has no weights and works on grids of any size.

    Attributes:
      name: the method's name.
      method: the method itself.
      config: the configuration that it was trained with; None for an iterative method.
      image_size: side of the square grid that the network works on, in pixels; None: any.
      spacing_mm: pixel spacing of the training data, None where unknown.
      intensity: how training images were brought to [0, 1] ("minmax" or "percentile").
      predicts_velocity: whether the displacement is the integral of a predicted velocity.
      params, frozen: the weights.
      card: the model card of a weights file, {} otherwise.
    """

    def __init__(
        self,
        method: Method,
        *,
        params=None,
        frozen=None,
        config=None,
        spacing_mm: float | None = None,
        card: dict | None = None,
    ):
        self.method, self.name, self.config = method, method.name, config
        self.image_size = None if config is None else config.data.image_size
        self.intensity = "minmax" if config is None else config.data.intensity
        self.spacing_mm, self.card = spacing_mm, card or {}
        self.params, self.frozen = params or {}, frozen or {}
        self.predicts_velocity = method.predicts_velocity
        compiled = (lambda function: function) if method.on_host else jax.jit
        self._displacement = compiled(method.displacement)
        self._velocity = compiled(method.velocity)

    def __reduce__(self):
        # compiled functions cannot be pickled and are created again
        keywords = {
            n: getattr(self, n) for n in ("params", "frozen", "config", "spacing_mm", "card")
        }
        return functools.partial(TrainedMethod, self.method, **keywords), ()

    def displacement(self, moving, fixed) -> jax.Array:
        """`[B, H, W, 1]` twice, H = W = image_size -> displacement `[B, H, W, 2]` in pixels."""
        return self._displacement(self.params, self.frozen, moving, fixed)

    def velocity(self, moving, fixed) -> jax.Array:
        """As `displacement`, but the velocity that exchanging the images negates."""
        return self._velocity(self.params, self.frozen, moving, fixed)


def load_method(name_or_path: str | Path) -> TrainedMethod:
    """Load a run directory or weights file by path, shipped weights or iterative methods by name.

    Raises:
        WeightsError: unknown name; weights missing, damaged or tampered with.
        ValueError: a directory that is not a finished run.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if path.is_dir():
        return load_run(path)
    if path.suffix == ".safetensors":
        return load_weights(path)
    if name in SHA256:
        return load_weights(*named_weights(name))
    iterative = method_names(trained=False)
    if name in iterative:
        return TrainedMethod(method_class(name)())
    raise WeightsError(
        f"unknown model {name!r}: not a directory, a .safetensors file, nor one of: "
        f"{', '.join([*sorted(SHA256), *iterative])}"
    )


def load_run(workdir: str | Path) -> TrainedMethod:
    """The best registration weights of a finished run directory."""
    workdir = Path(workdir)
    config = load_config(workdir)
    method = build_method(config)
    abstract = jax.eval_shape(lambda: method.init(jax.random.key(0), config.data.image_size))
    params = trained_part(workdir, "registration", {"params": abstract}, what=method.name)["params"]
    frozen = load_ldm(Path(config.ldm_from or workdir), config) if method.reads_ldm else {}
    dataset = json.loads((workdir / "dataset.json").read_text())
    row, column = dataset["spacing_mm"]
    return TrainedMethod(
        method,
        params=jax.tree.map(jnp.asarray, params),
        frozen=jax.tree.map(jnp.asarray, frozen),
        config=config,
        spacing_mm=row if row == column else None,  # the model grid has square pixels
    )


def load_weights(path: str | Path, expected_sha256: str | None = None) -> TrainedMethod:
    """A weights file (`runs.weights`), after checking its checksum."""
    params, stored, card = load_compact(path, expected_sha256)
    config = config_from_json(stored["config"])
    return TrainedMethod(
        build_method(config),
        params=jax.tree.map(jnp.asarray, params["params"]),
        frozen=jax.tree.map(jnp.asarray, params.get("frozen", {})),
        config=config,
        spacing_mm=stored["spacing_mm"],
        card=card,
    )
