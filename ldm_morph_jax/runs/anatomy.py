"""Trained anatomy networks: the configuration's network, from a run or from shipped weights."""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.data.windows import Window
from ldm_morph_jax.devices.batches import in_chunks
from ldm_morph_jax.devices.programs import Program
from ldm_morph_jax.files.writing import atomic
from ldm_morph_jax.models.anatomy import AnatomyUNet
from ldm_morph_jax.ops import familiar
from ldm_morph_jax.runs.weights import (
    FILE_NAME,
    FOLDER,
    WeightsError,
    load_compact,
    portable,
    save_compact,
)

# of a run, written by its evaluation on validation patients: limits, and what is known
CALIBRATION, KNOWN = "calibration.json", "known.npz"

# name -> sha256 of weights/<name>/model.safetensors
SHA256: dict[str, str] = {
    "anatomy": "6cc38842679730fa01db4b20f318e7e27fadf55780494400a65bbfe618ff009f",
    # not under the package's licence, see LICENSE.md beside them
    "anatomy-mri": "3d5f5d57c7428f374ae20302c7bd5639819e1c20d2f25fc08b3459a47d936421",
    "anatomy-echo": "60ea913ea194312850e970663ebe0c5edd7981ee7f483f7b53209389a47822e3",
}


@dataclass(frozen=True)
class AnatomyModel:
    """A network that says where structures of the heart are.

    name: for messages and reports.
    structures: names of the labels 1, 2, ...
    window: the grid on which it sees images.
    temperature: logits are divided by it, so that probabilities are frequencies on validation
      patients.
    least_confidence: below it there is no heart (`registering.segmenting`).
    largest_distance: beyond it an image is unlike those it was trained on, and shows no heart that
      it knows.
    known: `numbers` of training images, each as `ops.familiar` describes it; empty: not known.
    params: of the network.
    config: the configuration it was trained with, as a dict.
    card: the model card.
    """

    name: str
    structures: tuple[str, ...]
    window: Window
    temperature: float
    least_confidence: float
    largest_distance: float
    known: Mapping[str, Mapping[str, np.ndarray]]
    params: dict
    config: dict
    card: dict

    @functools.cached_property
    def _program(self) -> Program:
        network = network_of(self.config)

        def probabilities(params, images, temperature):
            logits = network.apply({"params": params}, images[..., None])
            return jax.nn.softmax(logits / temperature)

        return Program(lambda: probabilities, f"anatomy {network}")

    @functools.cached_property
    def _encoder(self) -> Program:
        network = network_of(self.config)

        def deepest(params, images):
            _, seen = network.apply(
                {"params": params}, images[..., None], mutable=["intermediates"]
            )
            return seen["intermediates"]["deepest"][0]

        return Program(lambda: deepest, f"anatomy encoder {network}")

    def _run(self, program: Program, windows: np.ndarray, *more) -> np.ndarray:
        def run(images):
            return program(self.params, jnp.asarray(images), *more)

        return in_chunks(run, 1 if len(windows) == 1 else 4, np.asarray(windows, np.float32))

    def probabilities(self, windows: np.ndarray) -> np.ndarray:
        """`[N, S, S]` in [0, 1] -> `[N, S, S, 1 + structures]` float32, background first."""
        return self._run(self._program, windows, jnp.float32(self.temperature))

    def numbers(self, windows: np.ndarray) -> dict[str, np.ndarray]:
        """What tells `[N, S, S]` in [0, 1] from other kinds of images, `[N, K]` numbers each.

        Their greys and texture, and what the network's encoder ends with.
        """
        greys = familiar.greys(np.asarray(windows, np.float32))
        return {"greys": greys, "deepest": self._run(self._encoder, windows)}

    def distance(self, windows: np.ndarray) -> np.ndarray:
        """How far `[N, S, S]` are from training images, `[N]`: about 1 for images like them.

        The root mean square of the distances of its `numbers`; 0 where nothing is known.
        """
        if not self.known:
            return np.zeros(len(windows))
        numbers = self.numbers(windows)
        squares = [familiar.distance(numbers[name], of) ** 2 for name, of in self.known.items()]
        return np.sqrt(np.mean(squares, axis=0))

    @property
    def view(self) -> str:
        """The view that it knows: "apical" where it knows the atrium, else "sax"."""
        return "apical" if "left atrium" in self.structures else "sax"

    def label(self, structure: str) -> int | None:
        """The label of a structure; None if the network does not know it."""
        known = structure in self.structures
        return self.structures.index(structure) + 1 if known else None


def network_of(config) -> AnatomyUNet:
    """The network of a configuration (or its dict) with `anatomy`."""
    c = config["anatomy"]
    model = {key: tuple(v) if isinstance(v, list) else v for key, v in dict(c["model"]).items()}
    dtype = jnp.dtype(config["compute"]["dtype"])
    return AnatomyUNet(classes=len(c["structures"]) + 1, dtype=dtype, **model)


def window_of(config) -> Window:
    """The grid on which the network of a configuration sees images."""
    return Window(**config["anatomy"]["window"])


def load_anatomy(name_or_path: str | Path) -> AnatomyModel:
    """Shipped weights by name, a run directory or weights file by path.

    Raises WeightsError: unknown name, damaged file; ValueError: not a finished run.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if name in SHA256:
        return _of_file(FOLDER / name / FILE_NAME, SHA256[name], name)
    if path.suffix == ".safetensors":
        return _of_file(path, None, path.stem)
    if path.is_dir():
        return _of_run(path)
    raise WeightsError(
        f"unknown anatomy network {name!r}: not a directory, a .safetensors file, nor one of: "
        f"{', '.join(sorted(SHA256))}"
    )


@functools.lru_cache(maxsize=2)
def anatomy_network(name_or_path: str) -> AnatomyModel:
    """As `load_anatomy`, kept: compiled once for all slices and images of a process."""
    return load_anatomy(name_or_path)


def is_anatomy(name_or_path: str | Path) -> bool:
    """Whether `load_anatomy` is what loads it: a name, a run with that stage, or a file."""
    path = Path(name_or_path)
    if str(name_or_path) in SHA256:
        return True
    if path.suffix == ".safetensors" and path.is_file():
        return "calibration" in load_compact(path)[1]
    return (path / "anatomy").is_dir()


def save_anatomy(model: AnatomyModel, path: str | Path, card: dict) -> str:
    """Write a network as one compact file that `load_anatomy` reads; its sha256."""
    stored = {
        "config": portable(model.config),
        "calibration": {
            "temperature": model.temperature,
            "least_confidence": model.least_confidence,
            "largest_distance": model.largest_distance,
        },
    }
    return save_compact({"params": model.params, "known": model.known}, path, stored, card)


def _of_file(path: Path, expected: str | None, name: str) -> AnatomyModel:
    params, stored, card = load_compact(path, expected)
    if "calibration" not in stored:
        raise WeightsError(f"{path}: holds no anatomy network")
    return _model(name, params["params"], stored, params.get("known", {}), card)


def _of_run(workdir: Path) -> AnatomyModel:
    from ldm_morph_jax.runs.directory import load_config, trained_part

    config = load_config(workdir)
    if "anatomy" not in config:
        raise ValueError(f"{workdir}: its configuration trains no anatomy network")
    size = config.anatomy.window.size
    network = network_of(config)
    abstract = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, size, size, 1)))["params"]
    )
    params = trained_part(workdir, "anatomy", {"ema": abstract}, what="anatomy network")["ema"]
    stored = {"config": config.to_dict(), "calibration": {}}
    known: dict[str, dict] = {}
    if (workdir / CALIBRATION).exists():
        stored["calibration"] = json.loads((workdir / CALIBRATION).read_text())
    if (workdir / KNOWN).exists():
        with np.load(workdir / KNOWN) as file:
            for key, array in file.items():
                name, of = key.split("/")
                known.setdefault(name, {})[of] = array
    return _model(workdir.name, params, stored, known, {})


def save_calibration(model: AnatomyModel, workdir: Path, calibration: Mapping) -> None:
    """Write what `load_anatomy` reads in a run besides its parameters."""
    arrays = {f"{name}/{key}": a for name, of in model.known.items() for key, a in of.items()}
    with atomic(workdir / KNOWN) as part, open(part, "wb") as file:
        np.savez(file, **arrays)
    with atomic(workdir / CALIBRATION) as part:
        part.write_text(json.dumps(calibration, indent=2) + "\n")


def _model(name, params, stored, known, card) -> AnatomyModel:
    config, limits = stored["config"], stored["calibration"]
    return AnatomyModel(
        name,
        tuple(config["anatomy"]["structures"]),
        window_of(config),
        limits.get("temperature", 1.0),
        limits.get("least_confidence", 0.5),
        limits.get("largest_distance", math.inf),
        known,
        jax.tree.map(jnp.asarray, params),
        config,
        card,
    )
