"""What all datasets share: the example schema, the configuration, the TFDS builder to derive from.

The builders write array_record files and run without TensorFlow. A new dataset is one file with
a PairConfig and a PairBuilder, and one line in data/__init__.py.

Every stored example has these keys. Images are square, so that every orientation fits:

    id, patient     text; the id is unique in its split
    view            text: "sax", "echo", "2ch", ...
    phase           text: "ED-ES" (moving is end-diastole), "ES-ED" reversed
    slice           int32: number in the patient's stack of slices, 0 where there is one image
    moving, fixed   [S, S, 1] float32 in [0, 1]
    moving_mask, fixed_mask   [S, S, 1] uint8 labels, 0 = background
    spacing         [2] float32: mm per pixel, (row, column)
    displacement    [S, S, 2] float32 pixels; only where the true motion is known (phantom)

A split `<name>_unpaired` holds single images without a partner (for the autoencoder and the
diffusion model), stored as a pair of the image with itself, phase "still".

Beside the stored examples lie two files, written before the folder gets its final name, so that
they are there whenever it is:

    manifest.csv      a row per pair: id, split, files, sha256, initial DSC; see MANIFEST_COLUMNS
    preparation.json  dataset, options, labels, pairs per split (found, the paper's), what was
    left out
"""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.ops.metrics import dice

UNPAIRED = "_unpaired"
TEXT_KEYS = ("id", "patient", "view", "phase")
MANIFEST, PREPARATION = "manifest.csv", "preparation.json"
# files: relative to the source, separated by ";"; sha256: of each of them, in the same order, so
# that `sha256sum` can check them. dsc_initial: mean over the scored structures, no registration.
MANIFEST_COLUMNS = ("id", "split", "files", "sha256", "dsc_initial")


@dataclasses.dataclass(eq=False, kw_only=True)
class PairConfig(tfds.core.BuilderConfig):
    """Options of a dataset. Each field below, and those a subclass adds, keys the stored data."""

    name: str = "unnamed"  # set from the options and the source by `prepare` in data/__init__.py
    source: Path | None = None
    image_size: int = 128
    intensity: str = "minmax"
    reverse: bool = False

    def __post_init__(self):
        if self.intensity not in preprocessing.INTENSITIES:
            raise ValueError(
                f"intensity must be one of {preprocessing.INTENSITIES}, found {self.intensity!r}"
            )

    @classmethod
    def option_names(cls) -> list[str]:
        """Names of the options that a user may set."""
        inherited = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
        names = [field.name for field in dataclasses.fields(cls)]
        return [name for name in names if name not in inherited | {"source"}]

    @property
    def labels(self) -> dict[int, str]:
        """Mask label -> structure, for those that are scored."""
        raise NotImplementedError

    @property
    def spacing_note(self) -> str:
        """Where the pixel spacing comes from."""
        raise NotImplementedError

    def source_digest(self) -> str:
        """Digest of what is read from `source`; raises ValueError when it is not there."""
        raise NotImplementedError

    def options_key(self) -> str:
        """Readable and unique for the options (not for the source)."""
        options = {name: getattr(self, name) for name in self.option_names()}
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
        phase = "es-to-ed" if self.reverse else "ed-to-es"
        return f"{self.image_size}px_{self.intensity}_{phase}_{digest[:8]}"


class PairBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of the dataset builders; a subclass defines the class attributes and the splits."""

    CONFIG: type[PairConfig]
    DESCRIPTION = ""
    HOMEPAGE = ""
    CITATION = ""
    NEEDS_SOURCE = True  # False: generated, `source` must not be given
    SOURCE_IS_FILE = False  # True: `source` is a file, not a folder
    SOURCE_HELP = ""  # what to get from where, for the error when there is no source
    PAPER_PAIRS: dict[str, int] = {}  # pairs per split in the paper
    HAS_DISPLACEMENT = False

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.image_size
        image = tfds.features.Tensor(shape=(size, size, 1), dtype=np.float32)
        mask = tfds.features.Tensor(shape=(size, size, 1), dtype=np.uint8, encoding="zlib")
        features = {key: tfds.features.Text() for key in TEXT_KEYS} | {
            "slice": tfds.features.Scalar(dtype=np.int32),
            "moving": image,
            "fixed": image,
            "moving_mask": mask,
            "fixed_mask": mask,
            "spacing": tfds.features.Tensor(shape=(2,), dtype=np.float32),
        }
        if self.HAS_DISPLACEMENT:
            features["displacement"] = tfds.features.Tensor(shape=(size, size, 2), dtype=np.float32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
            disable_shuffling=True,
        )

    def _generate_examples(
        self, examples: Iterable[dict], split: str
    ) -> Iterator[tuple[int, dict]]:
        """Numbers the examples of a split and notes each pair for the manifest."""
        for number, example in enumerate(examples):
            if not split.endswith(UNPAIRED):
                self._pairs_seen.append(self._manifest_row(example, split))
            yield number, example

    def scored_labels(self) -> dict[int, str]:
        """Mask label -> structure; called when all examples have been generated."""
        return self.builder_config.labels

    def pair_files(self, id: str) -> tuple[Path, ...]:
        """The files of `source` that a pair was made of; none where it was generated."""
        return ()

    def left_out(self) -> dict[str, list[str]]:
        """Reason -> what of the source gives no pair."""
        return {}

    def _manifest_row(self, example: dict, split: str) -> dict:
        labels = np.union1d(example["moving_mask"], example["fixed_mask"])
        return {
            "id": example["id"],
            "split": split,
            "files": self.pair_files(example["id"]),
            "dsc": dice(example["moving_mask"], example["fixed_mask"], labels[labels > 0]),
        }

    def _download_and_prepare(self, dl_manager, download_config=None):
        # `data_path` is a temporary folder here; TFDS gives it its final name after this method.
        self._pairs_seen = []
        super()._download_and_prepare(dl_manager, download_config)
        labels, config = self.scored_labels(), self.builder_config
        root = None
        if config.source is not None:
            root = config.source.parent if self.SOURCE_IS_FILE else config.source
        pairs = {}
        path = Path(self.data_path)
        with (path / MANIFEST).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(MANIFEST_COLUMNS)
            for row in self._pairs_seen:
                pairs[row["split"]] = pairs.get(row["split"], 0) + 1
                scores = [row["dsc"][label] for label in labels if label in row["dsc"]]
                table.writerow(
                    [
                        row["id"],
                        row["split"],
                        ";".join(preprocessing.name_below(root, file) for file in row["files"]),
                        ";".join(preprocessing.file_sha256(file) for file in row["files"]),
                        f"{np.mean(scores):.4f}" if scores else "",
                    ]
                )
        facts = {
            "dataset": self.name,
            "version": str(self.VERSION),
            "options": {name: getattr(config, name) for name in config.option_names()},
            "labels": labels,
            "pairs": pairs,
            "paper_pairs": self.PAPER_PAIRS,
            "left_out": self.left_out(),
        }
        (path / PREPARATION).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def make_example(
    *,
    id: str,
    patient: str,
    view: str,
    phase: str,
    moving: np.ndarray,
    fixed: np.ndarray,
    moving_mask: np.ndarray,
    fixed_mask: np.ndarray,
    spacing: tuple[float, float],
    intensity: str,
    slice: int = 0,
    displacement: np.ndarray | None = None,
) -> dict:
    """Checks and normalises one pair of [S, S] arrays and returns it in the stored schema."""
    check = preprocessing.check_mask
    check(moving_mask, moving, f"{id} (moving)")
    check(fixed_mask, fixed, f"{id} (fixed)")
    if moving.shape != fixed.shape or moving.shape[0] != moving.shape[1]:
        raise ValueError(
            f"{id}: moving and fixed must be square and of one size, "
            f"found {moving.shape} and {fixed.shape}"
        )
    example = {
        "id": id,
        "patient": patient,
        "view": view,
        "phase": phase,
        "slice": slice,
        "moving": preprocessing.normalise(moving, intensity, f"{id} (moving)")[..., None],
        "fixed": preprocessing.normalise(fixed, intensity, f"{id} (fixed)")[..., None],
        "moving_mask": moving_mask.astype(np.uint8)[..., None],
        "fixed_mask": fixed_mask.astype(np.uint8)[..., None],
        "spacing": np.asarray(spacing, np.float32),
    }
    if displacement is not None:
        example["displacement"] = displacement.astype(np.float32)
    return example
