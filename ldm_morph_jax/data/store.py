"""Stores prepared pairs: array_record files that TFDS reads, a manifest and a JSON summary.

Every stored example has these keys. Images are square, so that every orientation fits; `*space` is
(S, S), or (D, S, S) in a dataset of volumes, and rank 2 or 3:

    id, patient     text; the id is unique in its split
    view            text: "sax", "echo", "2ch", ...
    phase           text: "ED-ES" (moving is end-diastole), or "ES-ED" if reversed
    slice           int32: number in the patient's stack of slices, 0 if there is only one
    moving, fixed   [*space, 1] float32 in [0, 1]
    moving_mask, fixed_mask   [*space, 1] uint8 labels, 0 = background
    spacing         [rank] float32: mm per pixel, in axis order
    displacement    [*space, rank] float32 pixels; only if the true motion is known (phantom)

A split `<name>_unpaired` contains single images without a partner (for the autoencoder and the
diffusion model). Each is stored as a pair of the image with itself, phase "still".

The folder also contains `manifest.csv`, with one row per pair (MANIFEST_COLUMNS), and
`preparation.json`: dataset, options, labels, pairs per split (found and in the paper), and what was
left out. The folder gets its final name when everything is written. Functions that need TFDS import
it themselves; nothing imports TensorFlow.
"""

import csv
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.data.base import DatasetBuilder, Entry
from ldm_morph_jax.files.errors import FileError
from ldm_morph_jax.files.writing import atomic, json_text
from ldm_morph_jax.ops.metrics import dice

UNPAIRED = "_unpaired"
STILL = "still"  # the phase of an image without a partner
TEXT_KEYS = ("id", "patient", "view", "phase")
MANIFEST, PREPARATION = "manifest.csv", "preparation.json"
COMPLETE = "dataset_info.json"  # TFDS' own description, in every prepared folder
# files: relative to the source, separated by ";"; sha256: of each file, in the same order, so that
# `sha256sum` can check them; dsc_initial: mean over the scored structures without registration
MANIFEST_COLUMNS = ("id", "split", "files", "sha256", "dsc_initial")
SHARD, CHUNK = 4096, 64  # examples in a file, and encoded at a time


def write(builder: DatasetBuilder, path: Path, config_name: str) -> None:
    """Read, check and store all pairs that `builder` found, below `path`, completely or not at all.

    `config_name` is TFDS' name for the options and the source together. If another process has
    finished first, its result, which is the same, is kept.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="replace").decode()
        raise ValueError(
            f"{shown}: array_record files need a folder whose name is UTF-8; choose another one"
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic(path) as part:
            part.mkdir()
            pairs = _write_examples(builder, part, config_name)
            labels = builder.labels
            if labels is None:
                labels = {k: f"label {k}" for k in sorted({k for p in pairs for k in p["dsc"]})}
            _write_manifest(builder, part / MANIFEST, pairs, labels)
            _write_facts(builder, part / PREPARATION, pairs, labels)
    except FileError:
        if not (path / COMPLETE).exists():
            raise


def _write_examples(builder: DatasetBuilder, folder: Path, config_name: str) -> list[dict]:
    """Store all examples; returns id, split, files and DSC by label of every pair."""
    import tensorflow_datasets as tfds

    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=builder.name,
            version=tfds.core.Version(builder.version),
            data_dir=str(folder),
            module_name=type(builder).__module__,
            config_name=config_name,
        ),
        description=builder.description,
        features=_features(builder),
        homepage=builder.homepage,
        citation=builder.citation,
        disable_shuffling=True,
    )
    splits = {split: entries for split, entries in builder.found.pairs.items() if entries}
    splits |= {s + UNPAIRED: entries for s, entries in builder.found.unpaired.items() if entries}
    if not splits:
        raise ValueError(f"dataset {builder.name}: found no pair; {builder.source_help}")
    writer = tfds.core.SequentialWriter(info, SHARD, file_format="array_record")
    writer.initialize_splits(list(splits))
    pairs = []
    # the progress bar, with the time remaining, appears after one second
    count = sum(map(len, splits.values()))
    with tqdm(total=count, desc=builder.name, unit="pair", mininterval=1, delay=1) as bar:
        for split, entries in splits.items():
            still = split.endswith(UNPAIRED)
            _check_unique(builder.name, split, entries)
            for start in range(0, len(entries), CHUNK):
                examples = []
                for entry in entries[start : start + CHUNK]:
                    examples.append(_example(builder, entry, still))
                    if not still:
                        pairs.append(_scored(examples[-1], split, entry.files))
                    bar.update()
                writer.add_examples({split: examples})
    writer.close_all()
    return pairs


def _features(builder: DatasetBuilder):
    import tensorflow_datasets as tfds

    shape = builder.options.shape
    rank = len(shape)
    image = tfds.features.Tensor(shape=(*shape, 1), dtype=np.float32, encoding="bytes")
    mask = tfds.features.Tensor(shape=(*shape, 1), dtype=np.uint8, encoding="zlib")
    features = {key: tfds.features.Text() for key in TEXT_KEYS} | {
        "slice": tfds.features.Scalar(dtype=np.int32),
        "moving": image,
        "fixed": image,
        "moving_mask": mask,
        "fixed_mask": mask,
        "spacing": tfds.features.Tensor(shape=(rank,), dtype=np.float32),
    }
    if builder.has_displacement:
        features["displacement"] = tfds.features.Tensor(
            shape=(*shape, rank), dtype=np.float32, encoding="bytes"
        )
    return tfds.features.FeaturesDict(features)


def _check_unique(name: str, split: str, entries: Sequence[Entry]) -> None:
    id, times = Counter(entry.id for entry in entries).most_common(1)[0]
    if times > 1:
        raise ValueError(f"dataset {name}: {id} is {times} times in split {split}, expected once")


def _example(builder: DatasetBuilder, entry: Entry, still: bool) -> dict:
    """One pair in the stored schema: read, checked, with intensities scaled to [0, 1]."""
    pair, options = builder.pair(entry), builder.options
    example = {
        "id": entry.id,
        "patient": entry.patient or entry.id,
        "view": entry.view,
        "phase": STILL if still else builder.phase(entry),
        "slice": pair.slice,
        "spacing": np.asarray(pair.spacing, np.float32),
    }
    for role in ("moving", "fixed"):
        name = f"{entry.id} ({role})"
        image, mask = getattr(pair, role), getattr(pair, f"{role}_mask")
        if image.shape != options.shape:
            raise ValueError(f"{name}: is {image.shape}, expected {options.shape}")
        preprocessing.check_mask(mask, image, name, values=range(256))
        example[role] = preprocessing.normalise(image, options.intensity, name)[..., None]
        example[f"{role}_mask"] = mask.astype(np.uint8)[..., None]
    if builder.has_displacement:
        example["displacement"] = pair.displacement.astype(np.float32)
    return example


def _scored(example: dict, split: str, files: tuple[Path, ...]) -> dict:
    """The manifest's data of a pair: id, split, files, DSC of every label that occurs."""
    labels = np.union1d(example["moving_mask"], example["fixed_mask"])
    scores = dice(example["moving_mask"], example["fixed_mask"], labels[labels > 0])
    return {"id": example["id"], "split": split, "files": files, "dsc": scores}


def _write_manifest(
    builder: DatasetBuilder, path: Path, pairs: Iterable[dict], labels: Mapping[int, str]
) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(MANIFEST_COLUMNS)
        for pair in pairs:
            scores = [pair["dsc"][label] for label in labels if label in pair["dsc"]]
            table.writerow(
                [
                    pair["id"],
                    pair["split"],
                    ";".join(preprocessing.name_below(builder.root, f) for f in pair["files"]),
                    ";".join(preprocessing.file_sha256(f) for f in pair["files"]),
                    f"{np.mean(scores):.4f}" if scores else "",
                ]
            )


def _write_facts(
    builder: DatasetBuilder, path: Path, pairs: Iterable[dict], labels: Mapping[int, str]
) -> None:
    facts = {
        "dataset": builder.name,
        "version": builder.version,
        "options": dataclasses.asdict(builder.options),
        "labels": dict(labels),
        "pairs": Counter(pair["split"] for pair in pairs),
        "paper_pairs": dict(builder.paper_pairs),
        "left_out": dict(builder.found.left_out),
    }
    path.write_text(json_text(facts), encoding="utf-8")
