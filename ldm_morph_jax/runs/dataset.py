"""The dataset of a run: opened from its configuration, and described for dataset.json."""

import json
from pathlib import Path

import numpy as np

from ldm_morph_jax.config import grid_shape
from ldm_morph_jax.data import Dataset, load_dataset


def dataset_of(config) -> Dataset:
    """The dataset that a configuration names, prepared if necessary."""
    c = config.data
    if c.name is None:
        raise ValueError("config.data.name is not set, expected the name of a dataset")
    options = c.options.to_dict() | ({"depth": c.depth} if c.depth else {})
    dataset = load_dataset(
        c.name,
        source=c.source,
        directory=c.directory,
        intensity=c.intensity,
        image_size=c.image_size,
        reverse=c.reverse,
        **options,
    )
    if dataset.shape != grid_shape(config):
        raise ValueError(
            f"data.depth is {c.depth}, expected {dataset.shape[0]}: dataset {c.name} has volumes "
            f"of {' x '.join(map(str, dataset.shape))} voxels"
        )
    return dataset


def dataset_record(dataset: Dataset) -> dict:
    """The contents of a run's dataset.json."""
    return {
        "name": dataset.name,
        "labels": dataset.labels,
        "spacing_mm": np.round(dataset.split("train")[0]["spacing"], 6).tolist(),
        "spacing_note": dataset.spacing,
        "pairs": dataset.splits,
        "fingerprints": {split: dataset.fingerprint(split) for split in dataset.splits},
    }


def check_same_dataset(workdir: Path, record: dict) -> None:
    """Raise ValueError if a run that has begun to train did so with other images.

    record: of `dataset_record`, for what is there now.
    """
    if not any(Path(workdir).glob("*/checkpoints")):
        return
    before, now = _recorded(workdir).get("fingerprints", {}), record["fingerprints"]
    different = [split for split in ("train", "validation") if before.get(split) != now[split]]
    if before and different:
        raise ValueError(
            f"{Path(workdir) / 'dataset.json'} belongs to a run with other data: the images or "
            f"masks of {record['name']}, {' and '.join(different)}, have changed since. "
            "Bring them back, or choose a new workdir"
        )


def notes_on_changes(workdir: Path, dataset: Dataset, split: str) -> list[str]:
    """A sentence if a split is not what it was when a run on the same dataset began, or none."""
    record = _recorded(workdir)
    before = record.get("fingerprints", {}).get(split)
    if record.get("name") != dataset.name or before in (None, dataset.fingerprint(split)):
        return []
    return [
        f"the images or masks of {dataset.name}, {split}, have changed since the run began to "
        "train: its scores are not comparable with earlier ones"
    ]


def _recorded(workdir: Path) -> dict:
    """What a run has in its dataset.json, or nothing."""
    path = Path(workdir) / "dataset.json"
    return json.loads(path.read_text()) if path.exists() else {}
