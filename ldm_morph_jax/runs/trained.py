"""A method with its weights: what evaluation, benchmark and `register` work with."""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.devices.forking import claim
from ldm_morph_jax.devices.programs import Program, options_for
from ldm_morph_jax.runs.weights import SHA256, WeightsError, load_compact, named_weights

# Methods and configurations are imported when a program has to be traced: to register two files
# with one that is kept takes neither.
if TYPE_CHECKING:
    from ldm_morph_jax.methods import Method


class TrainedMethod:
    """(moving, fixed) -> displacement, compiled, with all that the weights were trained for.

    Args:
      method: the method; None: that of the configuration.
      params, frozen: the weights; none for an iterative method.
      config: the configuration that it was trained with, also as stored (`config_from_json`); None
        for an iterative method.
      spacing_mm: pixel spacing of the training data, None where unknown.
      slice_mm: distance of the slices of volumes that it was trained on.
      card: the model card of a weights file.
      calls: how often it will be called, see `devices.programs.options_for`.

    Attributes, besides these:
      name: the method's name.
      iterative: whether it has no weights, searches by itself and works on a grid of any size.
      image_size: side of the square grid that a network works on, in pixels; None: any.
      depth: planes of the volumes that it registers; 0: images.
      intensity: how training images were brought to [0, 1] ("minmax" or "percentile").
      predicts_velocity: whether the displacement is the integral of a predicted velocity.
    """

    def __init__(
        self,
        method: "Method | None" = None,
        *,
        params=None,
        frozen=None,
        config: Mapping | None = None,
        spacing_mm: float | None = None,
        slice_mm: float | None = None,
        card: dict | None = None,
        calls: str = "often",
    ):
        claim()
        self._method, self._config, self.calls = method, config, calls
        self.name = config["registration"]["method"] if method is None else method.name
        self.iterative = config is None
        self.image_size = None if config is None else config["data"]["image_size"]
        self.depth = 0 if config is None else config["data"].get("depth", 0)
        self.intensity = "minmax" if config is None else config["data"]["intensity"]
        self.spacing_mm, self.slice_mm, self.card = spacing_mm, slice_mm, card or {}
        self.params, self.frozen = params or {}, frozen or {}
        key = json.dumps(config, sort_keys=True) if method is None else None
        self._displacement = self._program("displacement", key)
        self._velocity = self._program("velocity", key)

    def _program(self, name: str, key: str | None):
        if self._method is not None and self._method.on_host:
            return getattr(self._method, name)
        return Program(
            lambda: getattr(self.method, name),
            None if key is None else f"{name} {key}",
            options_for(self.calls),
        )

    def __reduce__(self):
        # compiled functions cannot be pickled; they are made again
        names = ("params", "frozen", "spacing_mm", "slice_mm", "card", "calls")
        keywords = {name: getattr(self, name) for name in names} | {"config": self._config}
        return functools.partial(type(self), self._method, **keywords), ()

    @functools.cached_property
    def config(self):
        if not isinstance(self._config, dict):
            return self._config
        from ldm_morph_jax.config import config_from_json

        return config_from_json(self._config)

    @functools.cached_property
    def method(self) -> "Method":
        if self._method is not None:
            return self._method
        from ldm_morph_jax.methods import build_method

        return build_method(self.config)

    @property
    def predicts_velocity(self) -> bool:
        return self.method.predicts_velocity

    @functools.cached_property
    def weights_sha256(self) -> str | None:
        """Hex digest of all weights, whatever file they came from; None for an iterative method."""
        if self.iterative:
            return None
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves((self.params, self.frozen)):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()

    def displacement(self, moving, fixed) -> jax.Array:
        """`[B, *space, 1]` twice, of the model's grid -> displacement `[B, *space, rank]`, px."""
        return self._displacement(self.params, self.frozen, moving, fixed)

    def velocity(self, moving, fixed) -> jax.Array:
        """As `displacement`, but the velocity that exchanging the images negates."""
        return self._velocity(self.params, self.frozen, moving, fixed)


Kind = TypeVar("Kind", bound=TrainedMethod)


def load_method(
    name_or_path: str | Path, *, calls: str = "often", kind: type[Kind] = TrainedMethod
) -> Kind:
    """Load shipped weights or an iterative method by name, a run directory or weights file by path.

    A name comes first: a run directory of the same name is `./NAME`.

    Args:
        name_or_path: what to load.
        calls: how often it will be called, see `devices.programs.options_for`.
        kind: the class of what is returned.

    Raises:
        WeightsError: unknown name; weights missing, damaged or tampered with.
        ValueError: a directory that is not a finished run.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if name in SHA256:
        return kind(**_of_weights(*named_weights(name)), calls=calls)
    if path.suffix == ".safetensors":
        return kind(**_of_weights(path), calls=calls)
    if name in model_names():
        from ldm_morph_jax.methods import method_class

        return kind(method_class(name)(), calls=calls)
    if path.is_dir():
        return kind(**_of_run(path), calls=calls)
    raise WeightsError(
        f"unknown model {name!r}: not a directory, a .safetensors file, nor one of: "
        f"{', '.join(model_names())}"
    )


def load_run(workdir: str | Path) -> TrainedMethod:
    """The best registration weights of a finished run directory."""
    return TrainedMethod(**_of_run(Path(workdir)))


def model_names() -> list[str]:
    """What `load_method` knows by name: shipped weights, and methods that need none."""
    from ldm_morph_jax.methods import method_names

    return [*sorted(SHA256), *method_names(trained=False)]


def _of_run(workdir: Path) -> dict[str, Any]:
    """Arguments of `TrainedMethod`: those of a finished run directory."""
    from ldm_morph_jax.config import grid_shape
    from ldm_morph_jax.methods import build_method
    from ldm_morph_jax.runs.directory import load_config, load_ldm, trained_part

    config = load_config(workdir)
    method = build_method(config)
    abstract = jax.eval_shape(lambda: method.init(jax.random.key(0), grid_shape(config)))
    params = trained_part(workdir, "registration", {"params": abstract}, what=method.name)["params"]
    frozen = load_ldm(Path(config.ldm_from or workdir), config) if method.reads_ldm else {}
    dataset = json.loads((workdir / "dataset.json").read_text())
    *distance, row, column = dataset["spacing_mm"]
    return {
        "method": method,
        "params": jax.tree.map(jnp.asarray, params),
        "frozen": jax.tree.map(jnp.asarray, frozen),
        "config": config,
        "spacing_mm": row if row == column else None,  # the model grid has square pixels
        "slice_mm": distance[0] if distance else None,
    }


def _of_weights(path: str | Path, expected_sha256: str | None = None) -> dict[str, Any]:
    """Arguments of `TrainedMethod`: those of a weights file, its checksum checked."""
    params, stored, card = load_compact(path, expected_sha256)
    return {
        "params": jax.device_put(params["params"]),
        "frozen": jax.device_put(params.get("frozen", {})),
        "config": stored["config"],
        "spacing_mm": stored["spacing_mm"],
        "slice_mm": stored.get("slice_mm"),
        "card": card,
    }
