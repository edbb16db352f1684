"""Results come whole, and two runs into one folder never mix."""

import threading

import numpy as np
import pytest

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.geometry import plain_geometry
from ldm_morph_jax.files.locking import locked
from ldm_morph_jax.files.writing import staged, write_image

NAMES = ("curves.csv", "frames", "summary.json")


def write(folder, text, names=NAMES):
    for name in names:
        (folder / name).write_text(text)


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_run_that_comes_second_is_refused_and_changes_nothing(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ImageError, match=r"curves\.csv: exists; add `overwrite` to replace it"):
        with staged(out, NAMES, False, last="summary.json") as slow:
            write(slow, "slow")
            with staged(out, NAMES, False, last="summary.json") as fast:
                write(fast, "fast")
    assert content(out) == dict.fromkeys(NAMES, "fast")
    with pytest.raises(ImageError, match="exists"), staged(out, NAMES, False):
        raise AssertionError("refused before anything is done")


def test_names_that_nobody_announced_are_not_replaced_either(tmp_path):
    with staged(tmp_path / "out", (), False) as folder:
        write(folder, "first", ["extra.txt"])
    with pytest.raises(ImageError, match="extra.txt: exists"):
        with staged(tmp_path / "out", (), False) as folder:
            write(folder, "second", ["extra.txt"])
    assert content(tmp_path / "out") == {"extra.txt": "first"}


def test_whoever_overwrites_last_is_there_in_whole(tmp_path):
    out = tmp_path / "out"
    with staged(out, NAMES, True, last="summary.json") as slow:
        write(slow, "slow", NAMES[:2])
        with staged(out, NAMES, True, last="summary.json") as fast:
            write(fast, "fast")
    assert content(out) == dict.fromkeys(NAMES[:2], "slow")


def test_moving_waits_for_the_folders_lock(tmp_path):
    done = threading.Event()

    def run():
        with staged(tmp_path / "out", NAMES, False) as folder:
            write(folder, "text")
        done.set()

    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        other = threading.Thread(target=run)
        other.start()
        assert not done.wait(0.2)
    other.join(10)
    assert content(tmp_path / "out") == dict.fromkeys(NAMES, "text")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.npz", "a.png"])
def test_an_array_of_another_shape_than_its_geometry_is_refused(tmp_path, name):
    message = r"the array has shape \(3, 8, 9\), its geometry \(8, 9\)"
    with pytest.raises(ImageError, match=message):
        write_image(tmp_path / name, np.zeros((3, 8, 9), np.uint8), plain_geometry((8, 9)))
    assert not list(tmp_path.iterdir())
