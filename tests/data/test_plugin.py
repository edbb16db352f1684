"""A dataset added as one file outside the package, found through LDM_MORPH_PLUGINS."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ldm_morph_jax.data import dataset_class, store
from ldm_morph_jax.data.base import DatasetBuilder, Entry, Found, Options, Pair

ROOT = Path(__file__).parents[2]
TOY = """
import dataclasses
import numpy as np
from ldm_morph_jax.data.base import DatasetBuilder, Entry, Found, Options, Pair


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyOptions(Options):
    radius: int = 10


class Toy(DatasetBuilder):
    name = "toy"
    Options = ToyOptions
    labels = {1: "disc"}
    spacing_note = "2 mm by definition"
    source_help = "a folder with one text file per pair, the shift of the disc"

    def find(self):
        files = sorted(self.source.glob("*.txt"))
        split = {"a": "train", "b": "validation", "c": "test"}
        pairs = {name: [] for name in split.values()}
        for file in files:
            pairs[split[file.stem[0]]].append(Entry(file.stem, files=(file,)))
        return Found(pairs)

    def read(self, entry):
        shift, size = int(entry.files[0].read_text()), self.options.image_size
        rows, columns = np.indices((size, size)) - size // 2
        discs = [np.hypot(rows, columns - s) < self.options.radius for s in (0, shift)]
        return Pair(*(100.0 * d for d in discs), *discs, spacing=(2, 2))
"""


@pytest.mark.integration
def test_one_file_is_a_dataset(tmp_path):
    """Prepared by the command, opened by name; nothing else knows of it."""
    (tmp_path / "toy_dataset.py").write_text(TOY)
    (tmp_path / "hearts").mkdir()
    for name, shift in dict(a0=1, a1=2, a2=3, b0=4, c0=5).items():
        (tmp_path / "hearts" / f"{name}.txt").write_text(str(shift))
    program = """
        from ldm_morph_jax import prepare
        from ldm_morph_jax.data import load_dataset
        prepare.main("--dataset toy --source hearts --image-size 32 --radius 6".split())
        dataset = load_dataset("toy", image_size=32, radius=6)
        assert dataset.splits == {"train": 3, "validation": 1, "test": 1}
        assert dataset.ids("train") == ["a0", "a1", "a2"] and dataset.labels == {1: "disc"}
        for shift, pair in enumerate(dataset.split("train"), 1):
            moved = pair["moving_mask"][:, : 32 - shift]
            assert moved.sum() > 100 and (moved == pair["fixed_mask"][:, shift:]).all()
            assert (pair["moving"] == pair["moving_mask"]).all() and pair["spacing"][0] == 2
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        env=os.environ
        | {"LDM_MORPH_PLUGINS": str(tmp_path / "toy_dataset.py"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "train             3      -   0.798 (0.082)" in done.stdout
    [manifest] = (tmp_path / "data" / "toy").rglob("manifest.csv")
    assert "\nc0,test,c0.txt," in manifest.read_text()


class Small(DatasetBuilder):
    """Two pairs of noise; what `change` makes of a pair is stored."""

    labels = {1: "square"}
    ids = ("one", "two")

    def find(self):
        return Found({"train": [Entry(id) for id in self.ids]})

    def read(self, entry):
        images = np.random.default_rng(0).random((2, 32, 32))
        mask = np.zeros((32, 32), int)
        mask[:9, :9] = 1
        return self.change(Pair(*images, mask, mask))

    def change(self, pair):
        return pair


Small.name = "small"  # after the class statement: not registered


def not_a_number(pair):
    pair.fixed[3, 4] = np.nan
    return pair


def negative_label(pair):
    pair.moving_mask[0, 0] = -1
    return pair


@pytest.mark.parametrize(
    "attribute, value, message",
    [
        ("change", not_a_number, r"one \(fixed\): expected finite values, found 1 NaN"),
        ("change", negative_label, r"one \(moving\): mask values must be among .*found \[-1\]"),
        (
            "change",
            lambda pair: pair._replace(moving=pair.moving[:31]),
            r"one \(moving\): is \(31, 32\), expected \(32, 32\)",
        ),
        (
            "change",
            lambda pair: pair._replace(fixed_mask=pair.fixed_mask[:31]),
            r"one \(fixed\): mask is \(31, 32\), its image \(32, 32\)",
        ),
        ("ids", ("one", "one"), "dataset small: one is 2 times in split train, expected once"),
        ("ids", (), "dataset small: found no pair"),
    ],
)
def test_what_is_stored_is_checked(tmp_path, monkeypatch, attribute, value, message):
    value = staticmethod(value) if callable(value) else value
    monkeypatch.setattr(Small, attribute, value)
    with pytest.raises(ValueError, match=message):
        store.write(Small(Options(image_size=32)), tmp_path / "out" / "1.0.0", "key")
    assert not list((tmp_path / "out").iterdir())  # nothing half-written


def test_labels_of_a_dataset_that_names_none_are_those_that_occur(tmp_path, monkeypatch):
    monkeypatch.setattr(Small, "labels", None)
    store.write(Small(Options(image_size=32)), tmp_path / "out", "key")
    assert '"1": "label 1"' in (tmp_path / "out" / store.PREPARATION).read_text()


def test_one_name_is_one_dataset():
    with pytest.raises(ValueError, match="two datasets are called 'acdc': .*Acdc.* and .*Other"):
        dataset_class("acdc")
        type("Other", (DatasetBuilder,), {"name": "acdc"})
