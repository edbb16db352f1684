"""Datasets of image pairs: `load_dataset(name, ...)` prepares one if needed and opens it.

The stored schema is stated in data/builder.py, the batches of arrays in data/pipeline.py.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from ldm_morph_jax.data.acdc import Acdc
from ldm_morph_jax.data.builder import PREPARATION, TEXT_KEYS, UNPAIRED, PairBuilder, PairConfig
from ldm_morph_jax.data.camus import Camus2CH, Camus4CH
from ldm_morph_jax.data.echonet import Echonet
from ldm_morph_jax.data.folder import Folder
from ldm_morph_jax.data.orientation import ORIENTATIONS, orient, orient_displacement
from ldm_morph_jax.data.phantom_dataset import Phantom
from ldm_morph_jax.data.preview import contact_sheet
from ldm_morph_jax.data.sunnybrook import Sunnybrook

__all__ = [
    "DATASETS",
    "ORIENTATIONS",
    "Dataset",
    "ImageSource",
    "PairSource",
    "contact_sheet",
    "load_dataset",
    "orient",
    "orient_displacement",
]

log = logging.getLogger(__name__)

DATASETS: dict[str, type[PairBuilder]] = {
    "phantom": Phantom,
    "sunnybrook": Sunnybrook,
    "camus_2ch": Camus2CH,
    "camus_4ch": Camus4CH,
    "echonet": Echonet,
    "acdc": Acdc,
    "folder": Folder,
}
IN_MEMORY_BYTES = 2**30  # a split smaller than this is decoded once and kept


class PairSource:
    """Examples of one split by position: dict of NumPy arrays, no text (grain's random access).

    Keys: those of the schema in data/builder.py that are arrays, `index` (position in the split)
    and `orientation` (0). Arrays kept in memory are read-only.
    """

    def __init__(self, store, in_memory: bool):
        self._store, self._keep, self._kept = store, in_memory, None

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = int(index)
        if self._keep and self._kept is None:
            self._kept = [self._decode(i) for i in range(len(self))]
        return dict(self._kept[index]) if self._keep else self._decode(index)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"PairSource(length={len(self)})"

    def _decode(self, index: int) -> dict[str, np.ndarray]:
        record = self._store[index]
        example = {"index": np.int32(index), "orientation": np.int32(0)}
        for key, value in record.items():
            if key not in TEXT_KEYS and key != "slice":
                value.flags.writeable = False
                example[key] = value
        return example


class ImageSource:
    """Single images of one split: both of every pair, then those without a partner.

    An element is {"index" (position here), "orientation" (0), "image" [H, W, 1] float32}.
    """

    def __init__(self, pairs: PairSource, unpaired: PairSource | None):
        self._pairs, self._unpaired = pairs, unpaired

    def __len__(self) -> int:
        return 2 * len(self._pairs) + (len(self._unpaired) if self._unpaired else 0)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = int(index)
        if index < 2 * len(self._pairs):
            image = self._pairs[index // 2]["fixed" if index % 2 else "moving"]
        else:
            image = self._unpaired[index - 2 * len(self._pairs)]["moving"]
        return {"index": np.int32(index), "orientation": np.int32(0), "image": image}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"ImageSource(length={len(self)})"


class Dataset:
    """An opened dataset.

    Attributes:
      name: as in DATASETS.
      labels: mask label -> structure, for the structures that are scored.
      spacing: where the pixel spacing (array `spacing` of each example, mm) comes from.
      image_size: height and width in pixels.
      path: folder of the prepared files.
      splits: split -> number of pairs.
      preparation: what data/builder.py notes down in preparation.json.
      has_displacement: whether examples carry the true displacement.
    """

    def __init__(self, name: str, config: PairConfig, path: Path, in_memory: bool | None = None):
        self.name, self.path = name, path
        self.preparation = json.loads((path / PREPARATION).read_text(encoding="utf-8"))
        self.labels = {int(label): text for label, text in self.preparation["labels"].items()}
        self.spacing, self.image_size = config.spacing_note, config.image_size
        self._builder = tfds.builder_from_directory(path)
        self._in_memory, self._sources = in_memory, {}
        self._metadata, self._fingerprints = {}, {}
        counts = {key: info.num_examples for key, info in self._builder.info.splits.items()}
        self.splits = {key: n for key, n in counts.items() if not key.endswith(UNPAIRED)}
        self._unpaired = {key: n for key, n in counts.items() if key.endswith(UNPAIRED)}
        self.has_displacement = "displacement" in self._builder.info.features

    def split(self, split: str) -> PairSource:
        """The pairs of a split ("train", "validation", "test", ...)."""
        self._check(split)
        return self._source(split)

    def images(self, split: str) -> ImageSource:
        """Every single image of a split, also those of slices annotated in one phase only."""
        self._check(split)
        unpaired = self._source(split + UNPAIRED) if split + UNPAIRED in self._unpaired else None
        return ImageSource(self._source(split), unpaired)

    def metadata(self, split: str) -> list[dict]:
        """id, patient, view, phase (text) and slice (int) of every pair of a split, in order."""
        self._check(split)
        if split not in self._metadata:
            store = self._builder.as_data_source(split=split)
            self._metadata[split] = [
                {key: record[key].decode() for key in TEXT_KEYS} | {"slice": int(record["slice"])}
                for record in (store[i] for i in range(len(store)))
            ]
        return [dict(row) for row in self._metadata[split]]

    def ids(self, split: str) -> list[str]:
        """The id of every pair of a split, in order."""
        return [row["id"] for row in self.metadata(split)]

    def fingerprint(self, split: str) -> str:
        """sha256 of all arrays of a split, for keys of what is computed from them."""
        if split not in self._fingerprints:
            digest = hashlib.sha256()
            for example in self.split(split):
                for key in sorted(example):
                    value = np.asarray(example[key])
                    digest.update(f"{key} {value.dtype} {value.shape};".encode())
                    digest.update(np.ascontiguousarray(value).tobytes())
            self._fingerprints[split] = digest.hexdigest()
        return self._fingerprints[split]

    def _check(self, split: str) -> None:
        if split not in self.splits:
            raise ValueError(
                f"dataset {self.name}: no split {split!r}, there are: {', '.join(self.splits)}"
            )

    def _source(self, key: str) -> PairSource:
        if key not in self._sources:
            keep = self._in_memory
            if keep is None:
                keep = self._builder.info.splits[key].num_bytes < IN_MEMORY_BYTES
            self._sources[key] = PairSource(self._builder.as_data_source(split=key), keep)
        return self._sources[key]


def load_dataset(
    name: str,
    *,
    source: str | Path | None = None,
    directory: str | Path = "data",
    intensity: str = "minmax",
    image_size: int = 128,
    reverse: bool = False,
    in_memory: bool | None = None,
    **options,
) -> Dataset:
    """Opens a dataset and prepares it first if that has not been done.

    The folder of the prepared files is keyed by the options and by the content of `source`, so a
    changed option or file never meets old data.

    Args:
      name: one of DATASETS.
      source: folder of the original files (dataset "folder": the CSV file that lists the pairs).
        None: generated (phantom), or already prepared.
      directory: where prepared datasets are kept.
      intensity: "minmax" (the paper) or "percentile" (clip to the 1st to 99th first).
      image_size: height and width in pixels.
      reverse: moving = ES and fixed = ED instead of the other way round.
      in_memory: decode once and keep; None: when the split is below 1 GiB.
      **options: options of this dataset, see its config class (phantom: look, n_train,
        n_validation, n_test, seed; the paper's datasets: allow_partial).

    Raises:
      ValueError: unknown name or option, bad value, missing or damaged source files.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}, there are: {', '.join(DATASETS)}")
    builder_class = DATASETS[name]
    options |= {"intensity": intensity, "image_size": image_size, "reverse": bool(reverse)}
    unknown = sorted(set(options) - set(builder_class.CONFIG.option_names()))
    if unknown:
        raise ValueError(
            f"dataset {name}: unknown options {', '.join(unknown)}; "
            f"there are: {', '.join(builder_class.CONFIG.option_names())}"
        )
    config = builder_class.CONFIG(**options)
    if source is not None:
        if not builder_class.NEEDS_SOURCE:
            raise ValueError(f"dataset {name} is generated, it takes no source (found {source})")
        is_file = builder_class.SOURCE_IS_FILE
        if not (Path(source).is_file() if is_file else Path(source).is_dir()):
            raise ValueError(
                f"dataset {name}: source {source} is not a {'file' if is_file else 'directory'}; "
                f"{builder_class.SOURCE_HELP}"
            )
        config.source = Path(source)
    path = _prepared_path(name, builder_class, config, Path(directory))
    dataset = Dataset(name, config, path, in_memory)
    counts = ", ".join(
        f"{key} {n} pairs, {len(dataset.images(key))} images" for key, n in dataset.splits.items()
    )
    log.info("dataset %s (%s): %s", name, path, counts)
    return dataset


def _prepared_path(
    name: str, builder_class: type[PairBuilder], config: PairConfig, directory: Path
) -> Path:
    """Folder of the prepared files; prepares them where they are missing."""
    key = config.options_key()
    version = str(builder_class.VERSION)
    if builder_class.NEEDS_SOURCE and config.source is None:
        found = sorted((directory / name).glob(f"{key}_*/{version}/dataset_info.json"))
        if len(found) == 1:
            return found[0].parent
        state = "none is" if not found else f"{len(found)} are"
        raise ValueError(
            f"dataset {name}: give `source`, the original files ({state} prepared "
            f"with these options in {directory / name}): {builder_class.SOURCE_HELP}"
        )
    config = dataclasses.replace(config, name=f"{key}_{config.source_digest()[:12]}")
    tfds.disable_progress_bar()
    with _quiet():
        builder = builder_class(data_dir=directory, config=config, file_format="array_record")
    path = Path(builder.data_path)
    if not path.exists():
        log.info("preparing dataset %s into %s", name, path)
        try:
            with _quiet():
                builder.download_and_prepare()
        except OSError:
            # TFDS writes to a temporary folder and renames it at the end; when another process
            # has been faster the rename fails and the other's result, the same, is used.
            if not (path / "dataset_info.json").exists():
                raise
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what TFDS prints and warns: it speaks of downloads and of custom configurations."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
