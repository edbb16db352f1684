"""Exports a finished run as one compact weights file with a model card."""

import json
import logging
from pathlib import Path

from ldm_morph_jax.ops.appearance import describe
from ldm_morph_jax.runs.anatomy import is_anatomy, load_anatomy, save_anatomy
from ldm_morph_jax.runs.dataset import dataset_of
from ldm_morph_jax.runs.directory import completed
from ldm_morph_jax.runs.trained import load_run
from ldm_morph_jax.runs.weights import save_weights


def export_weights(
    workdir: str | Path, path: str | Path, additions: str | Path | None = None
) -> str:
    """Write a finished run as one compact file that `load` reads; its sha256.

    The model card contains the run's dataset ("data"), environment (revision, versions, devices),
    what its training images look like ("training_images", `ops.appearance.describe`; left out where
    the dataset is not at hand), best validation scores, the summaries of its evaluations
    ("metrics"), and the entries of the JSON file `additions`. Commands and paths of the machine are
    left out.

    Raises:
        ValueError: not a finished run, or `additions` is not a JSON object.
    """
    workdir = Path(workdir)
    if is_anatomy(workdir):
        model = load_anatomy(workdir)
        card = {"method": "anatomy", **_card(workdir, "anatomy")}
        return save_anatomy(model, path, card | _additions(additions))
    method = load_run(workdir)
    card = {"method": method.name, **_card(workdir, "registration")}
    if (described := _training_images(method)) is not None:
        card["training_images"] = described
    return save_weights(method, path, card | _additions(additions))


def _card(workdir: Path, stage: str) -> dict:
    return {
        "data": json.loads((workdir / "dataset.json").read_text()),
        "environment": {
            key: value
            for key, value in json.loads((workdir / "environment.json").read_text()).items()
            if key != "command"
        },
        "validation": completed(workdir / stage),
        "metrics": {
            file.parent.name: {
                key: value
                for key, value in json.loads(file.read_text()).items()
                if isinstance(value, dict) and ("mean" in value or key == "structures")
            }
            for file in sorted(workdir.glob("evaluation/*/summary.json"))
        },
    }


def _additions(file: str | Path | None) -> dict:
    if file is None:
        return {}
    try:
        more = json.loads(Path(file).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(more, dict):
        raise ValueError(f"{file} holds a {type(more).__name__}, expected an object")
    return more


def _training_images(method) -> dict | None:
    """What the training images look like; None of volumes and where they are not at hand."""
    if method.depth:
        return None
    try:
        pairs = dataset_of(method.config).split("train")
    except (ValueError, OSError) as error:
        logging.warning(
            "the model card does not tell what the training images look like: %s", error
        )
        return None
    images = [pairs[k][name][..., 0] for k in range(len(pairs)) for name in ("moving", "fixed")]
    return describe(images)
