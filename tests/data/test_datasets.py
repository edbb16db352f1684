"""load_dataset with the phantom: prepared once, keyed by options, safe against interruption."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from ldm_morph_jax.data import contact_sheet, dataset_class, load_dataset
from ldm_morph_jax.data import dataset as dataset_module
from ldm_morph_jax.data.phantom import phantom_pair

SMALL = dict(image_size=32, n_train=3, n_validation=1, n_test=2)


def test_phantom_dataset(tmp_path, caplog):
    with caplog.at_level("INFO", logger="ldm_morph_jax.data"):
        dataset = load_dataset("phantom", directory=tmp_path, look="both", seed=4, **SMALL)
    assert "train 3 pairs, 6 images, validation 1 pairs, 2 images, test 2 pairs" in caplog.text
    assert dataset.splits == {"train": 3, "validation": 1, "test": 2}
    assert dataset.labels[1] == "left ventricle" and set(dataset.labels) == {1, 2, 3}
    assert dataset.has_displacement and "160 mm" in dataset.spacing
    assert dataset.ids("train") == [f"phantom-train-{i:04d}" for i in range(3)]
    assert [row["view"] for row in dataset.metadata("train")] == ["sax", "echo", "sax"]
    assert dataset.metadata("test")[0]["phase"] == "ED-ES"
    source = dataset.split("train")
    assert len(source) == 3 and len(list(source)) == 3
    example = source[1]
    assert example["index"] == 1 and example["orientation"] == 0
    assert {key: (v.shape, v.dtype.name) for key, v in example.items() if v.ndim} == {
        "moving": ((32, 32, 1), "float32"),
        "fixed": ((32, 32, 1), "float32"),
        "moving_mask": ((32, 32, 1), "uint8"),
        "fixed_mask": ((32, 32, 1), "uint8"),
        "spacing": ((2,), "float32"),
        "displacement": ((32, 32, 2), "float32"),
    }
    pair = phantom_pair((4, 0, 1), look="echo", image_size=32)
    np.testing.assert_array_equal(example["displacement"], pair.displacement)
    np.testing.assert_array_equal(example["moving_mask"][..., 0], pair.moving_mask)
    np.testing.assert_array_equal(example["spacing"], [5, 5])
    assert example["moving"].min() == 0 and example["moving"].max() == 1
    images = dataset.images("train")
    assert len(images) == 6
    np.testing.assert_array_equal(images[3]["image"], example["fixed"])
    contact_sheet(dataset, "train", tmp_path / "sheet.png", n=8)
    assert (tmp_path / "sheet.png").stat().st_size > 5000


def test_in_memory_or_not_is_the_same(tmp_path, monkeypatch):
    kept, read = (load_dataset("phantom", directory=tmp_path, **SMALL) for _ in range(2))
    assert kept.split("test") is kept.split("test")  # decided for good
    monkeypatch.setattr(dataset_module, "IN_MEMORY_BYTES", 0)
    for a, b in zip(kept.split("test"), read.split("test"), strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    assert kept.fingerprint("test") == read.fingerprint("test") != kept.fingerprint("train")
    first = kept.split("test")[0]
    assert first["moving"] is kept.split("test")[0]["moving"]
    with pytest.raises(ValueError, match="read-only"):
        first["moving"][0] = 1


@pytest.mark.parametrize(
    "change", [dict(seed=1), dict(intensity="percentile"), dict(reverse=True), dict(n_test=1)]
)
def test_changed_options_do_not_meet_old_data(tmp_path, change):
    old = load_dataset("phantom", directory=tmp_path, look="sax", **SMALL)
    new = load_dataset("phantom", directory=tmp_path, look="sax", **(SMALL | change))
    assert old.path != new.path and old.fingerprint("test") != new.fingerprint("test")
    if "reverse" in change:
        a, b = old.split("test")[0], new.split("test")[0]
        np.testing.assert_array_equal(a["moving"], b["fixed"])
        assert new.metadata("test")[0]["phase"] == "ES-ED"


def test_prepared_once(tmp_path, monkeypatch):
    first = load_dataset("phantom", directory=tmp_path, **SMALL)
    monkeypatch.setattr(dataset_class("phantom"), "pair", lambda *_: pytest.fail("prepared again"))
    again = load_dataset("phantom", directory=tmp_path, **SMALL)
    assert again.path == first.path and again.fingerprint("train") == first.fingerprint("train")


@pytest.mark.integration
def test_killed_preparation_is_not_taken_for_complete(tmp_path):
    killed = f"""
        import os
        from ldm_morph_jax.data import dataset_class, load_dataset
        pair = dataset_class("phantom").pair
        def dying(self, entry):
            if entry.id == "phantom-test-0001":
                os._exit(9)
            return pair(self, entry)
        dataset_class("phantom").pair = dying
        load_dataset("phantom", directory={str(tmp_path)!r}, **{SMALL!r})
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(killed)], check=False)
    assert result.returncode == 9
    assert list((tmp_path / "phantom").rglob("*.array_record*"))  # something half-written is there
    dataset = load_dataset("phantom", directory=tmp_path, **SMALL)
    assert dataset.splits == {"train": 3, "validation": 1, "test": 2}
    assert len(list(dataset.split("train"))) == 3


def test_two_processes_prepare_at_once(tmp_path, monkeypatch):
    builder = dataset_class("phantom")
    pair, others = builder.pair, []

    def slow_pair(self, entry):  # the other process finishes while this one writes
        if not others:
            others.append(None)
            others[0] = load_dataset("phantom", directory=tmp_path, **SMALL)
        return pair(self, entry)

    monkeypatch.setattr(builder, "pair", slow_pair)
    dataset = load_dataset("phantom", directory=tmp_path, **SMALL)
    assert others[0].path == dataset.path and len(list(dataset.split("train"))) == 3
    assert [path.name for path in dataset.path.parent.iterdir()] == ["1.0.1"]  # no leftovers


@pytest.mark.integration
def test_runs_without_tensorflow(tmp_path):
    code = f"""
        import sys
        from ldm_morph_jax.data import load_dataset
        dataset = load_dataset("phantom", directory={str(tmp_path)!r}, **{SMALL!r})
        dataset.split("test")[0], dataset.ids("test")
        assert "tensorflow" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_errors(tmp_path):
    with pytest.raises(
        ValueError, match="the dataset is 'mnist', expected one of acdc, .*phantom,"
    ):
        load_dataset("mnist", directory=tmp_path)
    with pytest.raises(ValueError, match="unknown options colour; known: .*look.*n_train"):
        load_dataset("phantom", directory=tmp_path, colour="red")
    with pytest.raises(ValueError, match="look must be sax, echo or both"):
        load_dataset("phantom", directory=tmp_path, look="ct")
    with pytest.raises(ValueError, match="intensity must be one of"):
        load_dataset("phantom", directory=tmp_path, intensity="zscore")
    with pytest.raises(ValueError, match="n_test must be at least 1"):
        load_dataset("phantom", directory=tmp_path, n_test=0)
    with pytest.raises(ValueError, match="at least 32"):
        load_dataset("phantom", directory=tmp_path, image_size=16)
    with pytest.raises(ValueError, match="seed must not be negative"):
        load_dataset("phantom", directory=tmp_path, seed=-1)
    with pytest.raises(ValueError, match="is generated and takes no source"):
        load_dataset("phantom", directory=tmp_path, source=tmp_path)
    dataset = load_dataset("phantom", directory=tmp_path, **SMALL)
    with pytest.raises(ValueError, match="no split 'val', expected one of train, validation, test"):
        dataset.split("val")
