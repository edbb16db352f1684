"""Opens prepared pairs: `load_dataset` and the dataset that it returns."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ldm_morph_jax.data import store
from ldm_morph_jax.data.base import DatasetBuilder, dataset_class

log = logging.getLogger(__name__)

IN_MEMORY_BYTES = 2**30  # a split smaller than this is decoded once and kept


class PairSource:
    """Examples of one split by position, as dicts of NumPy arrays (a grain random-access source).

    Keys: the arrays of the schema in data/store.py (no text), `index` (position in the split) and
    `orientation` (0). Arrays kept in memory are read-only.
    """

    def __init__(self, records, in_memory: bool):
        self._records, self._keep, self._kept = records, in_memory, None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        index = int(index)
        if self._keep and self._kept is None:
            self._kept = [self._decode(i) for i in range(len(self))]
        return dict(self._kept[index]) if self._keep else self._decode(index)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[i] for i in range(len(self)))

    def _decode(self, index: int) -> dict[str, np.ndarray]:
        record = self._records[index]
        example = {"index": np.int32(index), "orientation": np.int32(0)}
        for key, value in record.items():
            if key not in store.TEXT_KEYS and key != "slice":
                value.flags.writeable = False
                example[key] = value
        return example


class ImageSource:
    """Single images of one split: both images of every pair, then those without a partner.

    Image 2 i is the moving and 2 i + 1 the fixed image of pair i. An element is {"index" (position
    here), "orientation" (0), "image" [*space, 1] float32}.
    """

    def __init__(self, pairs: PairSource, unpaired: PairSource | None = None):
        self._pairs, self._unpaired = pairs, unpaired

    def __len__(self) -> int:
        return 2 * len(self._pairs) + (len(self._unpaired) if self._unpaired else 0)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        pair, role = self._held(int(index))
        return {"index": np.int32(index), "orientation": np.int32(0), "image": pair[role]}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[i] for i in range(len(self)))

    def _held(self, index: int) -> tuple[dict[str, np.ndarray], str]:
        """The pair that an image is of, and its role there: "moving" or "fixed"."""
        if index < 2 * len(self._pairs):
            return self._pairs[index // 2], "fixed" if index % 2 else "moving"
        return self._unpaired[index - 2 * len(self._pairs)], "moving"


class AnnotatedSource(ImageSource):
    """As `ImageSource`, with the masks: an element has "image", "mask" and "spacing"."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        pair, role = self._held(int(index))
        found = {"image": pair[role], "mask": pair[f"{role}_mask"], "spacing": pair["spacing"]}
        return {"index": np.int32(index)} | found


class Dataset:
    """An opened dataset.

    Attributes:
      name: its key in the registry.
      labels: mask label -> structure, for the structures that are scored.
      spacing: where the pixel spacing (array `spacing` of each example, mm) comes from.
      shape: of the images, (rows, columns); of volumes (planes, rows, columns).
      path: folder of the prepared files.
      write_files: the builder's; `prepare` calls it with `path`.
      splits: split -> number of pairs.
      preparation: the contents of preparation.json (`store.py`).
      has_displacement: whether examples carry the true displacement.
    """

    def __init__(self, builder: DatasetBuilder, path: Path):
        import tensorflow_datasets as tfds

        self.name, self.path, self.write_files = builder.name, path, builder.write_files
        self.preparation = json.loads((path / store.PREPARATION).read_text(encoding="utf-8"))
        self.labels = {int(label): text for label, text in self.preparation["labels"].items()}
        self.spacing, self.shape = builder.spacing_note, builder.options.shape
        self._records = tfds.builder_from_directory(path)
        self._sources, self._metadata, self._fingerprints = {}, {}, {}
        counts = {key: info.num_examples for key, info in self._records.info.splits.items()}
        self.splits = {key: n for key, n in counts.items() if not key.endswith(store.UNPAIRED)}
        self._unpaired = counts.keys() - self.splits.keys()
        self.has_displacement = "displacement" in self._records.info.features

    def split(self, split: str) -> PairSource:
        """The pairs of a split ("train", "validation", "test", ...)."""
        self._check(split)
        return self._source(split)

    def images(self, split: str) -> ImageSource:
        """Every image of a split, including slices that are annotated in only one phase."""
        return ImageSource(self.split(split), self._alone(split))

    def annotated(self, split: str) -> AnnotatedSource:
        """The images of `images(split)` with their masks, in the same order."""
        return AnnotatedSource(self.split(split), self._alone(split))

    def pair_images(self, split: str) -> ImageSource:
        """The images of a split's pairs: 2 i is the moving, 2 i + 1 the fixed image of pair i."""
        return ImageSource(self.split(split))

    def metadata(self, split: str) -> list[dict]:
        """id, patient, view, phase (text) and slice (int) of every pair of a split, in order."""
        self._check(split)
        if split not in self._metadata:
            records = self._records.as_data_source(split=split)
            self._metadata[split] = [
                {key: record[key].decode() for key in store.TEXT_KEYS}
                | {"slice": int(record["slice"])}
                for record in (records[i] for i in range(len(records)))
            ]
        return [dict(row) for row in self._metadata[split]]

    def ids(self, split: str) -> list[str]:
        """The id of every pair of a split, in order."""
        return [row["id"] for row in self.metadata(split)]

    def fingerprint(self, split: str) -> str:
        """sha256 of all arrays of a split, for cache keys of results computed from them."""
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
                f"dataset {self.name}: no split {split!r}, expected one of {', '.join(self.splits)}"
            )

    def _alone(self, split: str) -> PairSource | None:
        """The images of a split that have no partner."""
        key = split + store.UNPAIRED
        return self._source(key) if key in self._unpaired else None

    def _source(self, key: str) -> PairSource:
        if key not in self._sources:
            keep = self._records.info.splits[key].num_bytes < IN_MEMORY_BYTES
            self._sources[key] = PairSource(self._records.as_data_source(split=key), keep)
        return self._sources[key]


def load_dataset(
    name: str,
    *,
    source: str | Path | None = None,
    directory: str | Path = "data",
    **options,
) -> Dataset:
    """Opens a dataset, preparing it first if necessary.

    The folder of the prepared files is keyed by the options and by the content of `source`, so old
    data are never used after an option or a file has changed.

    Args:
      name: one of `dataset_names()`.
      source: the original files, a folder (dataset "folder": the CSV file that lists the pairs).
        None: generated (phantom), or already prepared.
      directory: the folder of prepared datasets.
      **options: fields of the dataset's `Options`. All have image_size (128, the paper's),
        intensity ("minmax", the paper's, or "percentile") and reverse (moving = ES, fixed = ED).

    Raises:
      ValueError: unknown name or option, bad value, missing or damaged source files.
    """
    cls = dataset_class(name)
    known = [field.name for field in dataclasses.fields(cls.Options)]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"dataset {name}: unknown options {', '.join(unknown)}; known: {', '.join(known)}"
        )
    builder = cls(cls.Options(**options), _checked_source(cls, source))
    path = _prepared_path(builder, Path(directory))
    dataset = Dataset(builder, path)
    counts = ", ".join(
        f"{key} {n} pairs, {len(dataset.images(key))} images" for key, n in dataset.splits.items()
    )
    log.info("dataset %s (%s): %s", name, path, counts)
    return dataset


def _checked_source(cls: type[DatasetBuilder], source: str | Path | None) -> Path | None:
    if source is None:
        return None
    if not cls.source_help:
        raise ValueError(f"dataset {cls.name} is generated and takes no source (found {source})")
    kind = "file" if cls.source_is_file else "directory"
    if not (Path(source).is_file() if cls.source_is_file else Path(source).is_dir()):
        raise ValueError(f"dataset {cls.name}: source {source} is not a {kind}; {cls.source_help}")
    return Path(source)


def _prepared_path(builder: DatasetBuilder, directory: Path) -> Path:
    """Folder of the prepared files, directory/name/options_source/version; filled if missing."""
    parent, key = directory / builder.name, builder.options.key()
    if builder.source is None and builder.source_help:
        found = sorted(parent.glob(f"{key}_*/{builder.version}/{store.COMPLETE}"))
        if len(found) == 1:
            return found[0].parent
        state = "none is" if not found else f"{len(found)} are"
        raise ValueError(
            f"dataset {builder.name}: give `source`, the original files ({state} prepared "
            f"with these options in {parent}): {builder.source_help}"
        )
    key = f"{key}_{builder.source_digest()[:12]}"
    path = parent / key / builder.version
    if not (path / store.COMPLETE).exists():
        log.info("preparing dataset %s into %s", builder.name, path)
        store.write(builder, path, key)
    return path
