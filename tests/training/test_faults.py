"""Stops at random moments, disks that are full or closed: what is left is always usable."""

import errno
import json
import os

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from soak import soak
from tiny import tiny_config

from ldm_morph_jax.runs.checkpoints import Checkpoints
from ldm_morph_jax.training import run
from ldm_morph_jax.training.features import FeatureCache


@pytest.mark.slow
@pytest.mark.parametrize(("signal_name", "stops"), [("KILL", 25), ("TERM", 5)])
def test_stopped_runs_end_bit_equal(tmp_path, signal_name, stops):
    """kill -9 and SIGTERM at random moments of all stages."""
    assert soak(tmp_path, stops=stops, signal_name=signal_name)["stops"] == stops


class Iterator:
    """As much of a grain iterator as a checkpoint sees."""

    def __init__(self):
        self.state = {"next_index": 0}

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def test_full_disk_keeps_the_checkpoints_before(tmp_path, monkeypatch):
    checkpoints, state = Checkpoints(tmp_path), {"params": jnp.arange(3.0)}
    iterator = Iterator()
    iterator.state = {"next_index": 4}
    checkpoints.save(4, state, iterator, {"score": 0.5})
    checkpoints.wait()

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device\nmore")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(OSError, match=r"Earlier ones are kept.* No space left on device$"):
        checkpoints.save(8, state, iterator, {"score": 0.6})
    checkpoints.close()
    again, other = Checkpoints(tmp_path), Iterator()
    step, restored = again.restore(state, other)
    assert (step, other.state) == (4, {"next_index": 4})
    np.testing.assert_array_equal(restored["params"], [0, 1, 2])
    assert (again.best(), again.metrics(4)["score"]) == (4, 0.5)


def test_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"workdir .*/file/run cannot be written: Not a directory"):
        run.train(tiny_config(tmp_path / "data"), tmp_path / "file/run")


IMAGES = [{"image": np.full((4, 4, 1), i, np.float32)} for i in range(5)]


def double(frozen, images):
    return {"f": (frozen * images).astype(jnp.bfloat16), "mean": images.mean((1, 2, 3))}


def cache(directory, *, depends_on=("weights",), images=IMAGES, compute=double):
    return FeatureCache(
        directory, "test", images, (0, 1), compute, np.float32(2), depends_on=depends_on,
        batch_size=4,
    )  # fmt: skip


def test_feature_cache_is_read_from_disk(tmp_path):
    """By memory map, in the type computed, also bfloat16, which .npy files do not know."""
    features = cache(tmp_path)
    rows = features(np.array([4, 0]), np.array([1, 0]))
    assert rows["f"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(rows["f"][:, 0, 0, 0].astype(np.float32), [8, 0])
    np.testing.assert_array_equal(rows["mean"], [4, 0])
    assert all(isinstance(array, np.memmap) for array in features._arrays)


def test_killed_feature_cache_goes_on(tmp_path):
    """Behind the last complete batch; what was computed is not computed again."""

    class Killed(BaseException):
        pass

    class Images(list):
        def __getitem__(self, i):
            read.append(i)
            if killing and i >= 3:
                raise Killed
            return super().__getitem__(i)

    read, killing = [], True
    with pytest.raises(Killed):
        cache(tmp_path, images=Images(IMAGES))
    (directory,) = tmp_path.iterdir()
    assert json.loads((directory / "progress.json").read_text()) == {"rows": 4, "of": 10}
    read, killing = [], False
    features = cache(tmp_path, images=Images(IMAGES))
    assert set(read[1:]) == {2, 3, 4}  # the first is asked for its shape
    everything = np.arange(5).repeat(2), np.tile([0, 1], 5)
    np.testing.assert_array_equal(features(*everything)["mean"], everything[0])


def test_feature_cache_of_other_weights_is_another(tmp_path):
    names = {
        cache(tmp_path, depends_on=key).directory.name
        for key in (("weights",), ("other weights",), ("weights", "settings"), ("weights",))
    }
    assert len(names) == len(list(tmp_path.iterdir())) == 3


def test_feature_cache_without_space_says_how_much_it_needs(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"needs 0\.00 GiB: No space left on device\. Free"):
        cache(tmp_path)
    monkeypatch.undo()
    assert cache(tmp_path)(np.array([1]), np.array([0]))["mean"] == 1
