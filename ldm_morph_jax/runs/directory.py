"""A run's directory: its resolved configuration, environment, lock, and trained parts.

config.json, environment.json, dataset.json
autoencoder/ diffusion/ registration/    checkpoints/ metrics.jsonl pictures/ complete.json
evaluation/<split>/                      pairs.csv summary.json report.html figures/
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from ldm_morph_jax.config import config_from_json, grid_shape
from ldm_morph_jax.devices import processes
from ldm_morph_jax.files.locking import held
from ldm_morph_jax.files.writing import atomic
from ldm_morph_jax.methods.ldm import build_autoencoder, build_unet

COMPLETE = "complete.json"  # written last by a stage that was trained to its end

# keys that may change when a run is continued: locations of files, how often the run reports, and
# settings that trade memory for time without changing the result
FREE_KEYS = (
    "data.source",
    "data.directory",
    "log_every",
    "sample_every",
    "compute.remat",
    "compute.devices_per_image",
    "micro_batches",
)
PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint grain tensorflow-datasets numpy scipy ml_collections"
).split()


@contextlib.contextmanager
def locked(workdir: Path):
    """Lock the run directory, or report who holds it. Process 0 locks it for the whole run."""
    workdir = Path(workdir)

    def refuse(holder):
        raise ValueError(f"workdir {workdir} is in use by another run ({holder})")

    with contextlib.ExitStack() as stack:
        with processes.together():
            if processes.is_main():
                try:
                    workdir.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(held(workdir, refuse))
                except OSError as error:
                    reason = error.strerror
                    raise ValueError(f"workdir {workdir} cannot be written: {reason}") from error
        with processes.together():
            if not (workdir / ".lock").exists():
                raise ValueError(
                    f"workdir {workdir} is not on a disk that all processes of the run share"
                )
        yield


def write_json(path: Path, value) -> None:
    """Write a JSON file, completely or not at all, creating its parent folders if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def completed(stage: Path) -> dict[str, float] | None:
    """The metrics of a stage's best checkpoint if the stage is complete, otherwise None."""
    done = Path(stage) / COMPLETE
    return json.loads(done.read_text())["metrics"] if done.exists() else None


def save_config(config, workdir: Path) -> None:
    """Write config.json and environment.json; refuse a workdir that has another configuration."""
    write_json(Path(workdir) / "config.json", checked_config(config, workdir))
    write_json(Path(workdir) / "environment.json", environment())


def checked_config(config, workdir: Path) -> dict:
    """A configuration as stored in config.json; ValueError if the workdir has a different one."""
    resolved = json.loads(json.dumps(config.to_dict()))
    path = Path(workdir) / "config.json"
    if path.exists():
        # fill in defaults, so that a key added since the run was made does not count as different
        check_same(path, load_config(workdir).to_dict(), resolved)
    return resolved


def check_same(path: Path, before: dict, now: dict) -> None:
    """Raise ValueError if the configuration stored in `path` differs from the current one."""
    before, now = (
        flatten_dict(json.loads(json.dumps(config)), sep=".") for config in (before, now)
    )
    different = [
        f"{key}: found {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.endswith(FREE_KEYS)
    ]
    if different:
        raise ValueError(
            f"{path} belongs to a run with another configuration; choose a new workdir or use the "
            f"same settings. Different: {'; '.join(different)}"
        )


def load_config(workdir: Path) -> ConfigDict:
    """The configuration with which a run was trained, typed and locked."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"{workdir} is not a run directory: it has no config.json")
    try:
        stored = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    return config_from_json(stored)


def environment() -> dict:
    """How a run was made: revision, versions, devices, command."""
    root = Path(__file__).parents[2]
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = None  # an installed package has no repository around it
    return {
        "git_revision": revision,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def best_step(workdir: Path, stage: str) -> int:
    """The step of a finished stage's best checkpoint."""
    done = Path(workdir) / stage / COMPLETE
    if not done.exists():
        raise ValueError(f"{workdir}: the stage {stage!r} is not complete ({done} is missing)")
    return json.loads(done.read_text())["best_step"]


def trained_part(workdir: Path, stage: str, abstract, *, what: str):
    """Parts of a finished stage's best checkpoint, shaped as `abstract`, e.g. {"params": ...}."""
    # Orbax takes seconds to import, and registering with shipped weights does not need it
    from ldm_morph_jax.runs.checkpoints import restore_part

    step = best_step(workdir, stage)
    return restore_part(Path(workdir) / stage / "checkpoints", step, abstract, what=what)


def abstract_autoencoder(config):
    """Shapes of the autoencoder's parameters."""
    return _shapes(build_autoencoder(config), (*grid_shape(config), 1))


def abstract_unet(config):
    """Shapes of the diffusion U-Net's parameters."""
    times = jax.ShapeDtypeStruct((1,), jnp.int32)
    return _shapes(build_unet(config), latent_shape(config), times)


def latent_shape(config) -> tuple[int, ...]:
    """(*space, channels) of the latent of an image or volume."""
    model = build_autoencoder(config)
    return (*(n // model.downsampling for n in grid_shape(config)), model.latent_channels)


@functools.cache  # a run asks for them several times, and each time takes seconds
def _shapes(network, shape: tuple[int, ...], *more):
    """Shapes of the parameters of a network that reads arrays `[1, *shape]`, and `more`."""
    inputs = jax.ShapeDtypeStruct((1, *shape), jnp.float32), *more
    return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]


def abstract_ldm(config) -> dict:
    """Shapes of the frozen latent diffusion model returned by `load_ldm`."""
    autoencoder = abstract_autoencoder(config)
    return {
        "autoencoder": {name: autoencoder[name] for name in ("encoder", "codebook")},
        "unet": abstract_unet(config),
        "latent_scale": jax.ShapeDtypeStruct((), np.float32),
    }


def load_autoencoder(workdir: Path, config) -> dict:
    """All parameters of a run's autoencoder."""
    abstract = {"params": abstract_autoencoder(config)}
    return trained_part(workdir, "autoencoder", abstract, what="autoencoder")["params"]


def latent_scale(workdir: Path) -> np.float32:
    """The factor by which the run's diffusion model multiplies latents."""
    path = Path(workdir) / "diffusion" / "latent_scale.json"
    return np.float32(json.loads(path.read_text())["latent_scale"])


def load_ldm(workdir: Path, config) -> dict:
    """The frozen latent diffusion model: {"autoencoder" (encoder half), "unet", "latent_scale"}."""
    autoencoder = load_autoencoder(workdir, config)
    which = {"ema": "ema", "raw": "params"}.get(config.features.weights)
    if which is None:
        raise ValueError(f"features.weights is {config.features.weights!r}, expected ema or raw")
    abstract = {which: abstract_unet(config)}
    part = trained_part(workdir, "diffusion", abstract, what="diffusion model")
    return {
        "autoencoder": {name: autoencoder[name] for name in ("encoder", "codebook")},
        "unet": part[which],
        "latent_scale": latent_scale(workdir),
    }
