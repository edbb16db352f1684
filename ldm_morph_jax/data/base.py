"""The base class of datasets: a new dataset is one subclass in one file, as CONTRIBUTING.md shows.

A subclass registers itself by its `name` when its file is imported. Files of this package and
plugins (`ldm_morph_jax.plugins`) are imported automatically. `load_dataset(name, source=...)` then
checks, scales, stores and opens the pairs, with a manifest and progress reports; `store.py`
documents the stored format.
"""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.names import unknown
from ldm_morph_jax.plugins import import_all, load_plugins

DATASETS: dict[str, type["DatasetBuilder"]] = {}  # filled by the subclasses
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """A user's choices. All fields, including those of subclasses, are part of the data's key.

    Fields hold plain values (int, float, str, bool) and have defaults. A string below a field is
    its text in `prepare --help`.
    """

    image_size: int = 128
    """height and width in pixels"""

    intensity: str = "minmax"
    """minmax, or percentile: first clip to the 1st to 99th"""

    reverse: bool = False
    """moving = ES and fixed = ED"""

    def __post_init__(self):
        if self.intensity not in preprocessing.INTENSITIES:
            raise ValueError(
                f"intensity must be one of {preprocessing.INTENSITIES}, found {self.intensity!r}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the images: (rows, columns), of volumes (planes, rows, columns)."""
        return (self.image_size,) * 2

    def key(self) -> str:
        """A readable text, unique for these options; part of the prepared folder's name."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        phase = "es-to-ed" if self.reverse else "ed-to-es"
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.image_size}px_{self.intensity}_{phase}_{digest}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VolumeOptions(Options):
    """Of datasets of volumes."""

    depth: int = 32
    """planes of a volume"""

    def __post_init__(self):
        super().__post_init__()
        if self.depth < 2:
            raise ValueError(f"depth must be at least 2 planes, found {self.depth}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.depth, *super().shape)


class Entry(NamedTuple):
    """A pair, or a single image, that was found but not yet read.

    id: unique in its split; patient: "" means the same as the id; view: "sax", "echo", "2ch", ...;
    files: its source files, in the manifest's order; detail: anything else that `read` needs.
    """

    id: str
    patient: str = ""
    view: str = "unknown"
    files: tuple[Path, ...] = ()
    detail: Any = None


class Found(NamedTuple):
    """The contents of a source.

    pairs: split -> pairs in order; a split may be empty.
    unpaired: split -> images without a partner, for the autoencoder and the diffusion model.
    left_out: reason -> names of items that yield no pair.
    tables: other files on which the pairs depend.
    """

    pairs: Mapping[str, list[Entry]]
    unpaired: Mapping[str, list[Entry]] = {}
    left_out: Mapping[str, list[str]] = {}
    tables: tuple[Path, ...] = ()


class Pair(NamedTuple):
    """A pair as read: brought to `Options.shape`, [*space], but with its original intensities.

    moving, fixed: ED and ES, real numbers; masks: integer labels, 0 = background; spacing: mm, in
    axis order; slice: number in the patient's stack; displacement: the true one, [*space, rank]
    pixels, if known. For an unpaired entry, both images are the same.
    """

    moving: np.ndarray
    fixed: np.ndarray
    moving_mask: np.ndarray
    fixed_mask: np.ndarray
    spacing: tuple[float, ...] = (1.0, 1.0)
    slice: int = 0
    displacement: np.ndarray | None = None

    def exchanged(self) -> "Pair":
        """Moving is fixed and fixed moving; the displacement is not that of these images."""
        return self._replace(
            moving=self.fixed,
            fixed=self.moving,
            moving_mask=self.fixed_mask,
            fixed_mask=self.moving_mask,
            displacement=None,
        )


class DatasetBuilder:
    """Base class: a subclass describes the dataset, finds its pairs and reads one pair.

    Class attributes:
      name: registry key, `config.data.name`.
      version: increase it when the same files and options give different pairs.
      Options: the dataset's options; a subclass of `Options` if it adds its own.
      labels: mask label -> structure, for the structures that are scored; None: all that occur.
      spacing_note: where the pixel spacing comes from.
      source_help: what to download and from where, for the error when no source is given; "": the
        dataset is generated.
      source_is_file: whether the source is a file rather than a folder.
      paper_pairs: split -> number of pairs in the paper, for the summary.
      phases: names of the pairs as read, and with `reverse`.
      has_displacement: whether the true displacement is known.
      description, homepage, citation: of the data.

    Args:
      options: of the class `Options`.
      source: the original files; None if the dataset is generated.
    """

    name: ClassVar[str]
    version: ClassVar[str] = "1.0.0"
    Options: ClassVar[type[Options]] = Options
    labels: Mapping[int, str] | None = None
    spacing_note: str = "unknown"
    source_help: ClassVar[str] = ""
    source_is_file: ClassVar[bool] = False
    paper_pairs: ClassVar[Mapping[str, int]] = {}
    phases: ClassVar[tuple[str, str]] = ("ED-ES", "ES-ED")
    has_displacement: ClassVar[bool] = False
    description: ClassVar[str] = ""
    homepage: ClassVar[str] = ""
    citation: ClassVar[str] = ""

    def __init_subclass__(cls, **keywords):
        super().__init_subclass__(**keywords)
        if "name" not in vars(cls):
            return  # a base class shared by several datasets
        known = DATASETS.get(cls.name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"two datasets are called {cls.name!r}: {known} and {cls}")
        DATASETS[cls.name] = cls  # a reloaded module redefines its class

    def __init__(self, options: Options, source: Path | None = None):
        self.options, self.source = options, source

    def find(self) -> Found:
        """All pairs. Only names and tables are read, so this is quick.

        Raises ValueError if something necessary is missing.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define find")

    def read(self, entry: Entry) -> Pair:
        """Read one pair, ED first. Raises ValueError, naming the file, if it cannot be used."""
        raise NotImplementedError(f"{type(self).__name__} does not define read")

    def pair(self, entry: Entry) -> Pair:
        """A pair in the order given by `options.reverse`.

        Override this instead of `read` if the true displacement is known.
        """
        pair = self.read(entry)
        return pair.exchanged() if self.options.reverse else pair

    def phase(self, entry: Entry) -> str:
        """The name of a pair's direction, one of `phases`."""
        return self.phases[self.options.reverse]

    def write_files(self, folder: Path) -> None:
        """Write what the dataset offers to other programs besides its pairs; here nothing.

        folder: of the prepared dataset. What is there already is left as it is.
        """

    @functools.cached_property
    def found(self) -> Found:
        """The result of `find`, computed once."""
        return self.find()

    @property
    def root(self) -> Path | None:
        """The folder to which the names of source files are relative."""
        return self.source.parent if self.source_is_file and self.source else self.source

    def source_digest(self) -> str:
        """sha256 over the names and contents of all files on which the pairs depend."""
        if self.source is None:
            return "generated"
        groups = (*self.found.pairs.values(), *self.found.unpaired.values())
        files = {file for entries in groups for entry in entries for file in entry.files}
        return preprocessing.content_digest(self.root, sorted({*files, *self.found.tables}))


@functools.cache
def _import_datasets() -> None:
    import_all(sys.modules[__package__])
    load_plugins()


def dataset_names() -> list[str]:
    """Names of all datasets, including those of plugins, in alphabetical order."""
    _import_datasets()
    return sorted(DATASETS)


def dataset_class(name: str) -> type[DatasetBuilder]:
    """The dataset of that name; ValueError lists the known names."""
    if name not in dataset_names():
        raise ValueError(unknown("the dataset", name, dataset_names()))
    return DATASETS[name]
