"""Features of the frozen networks, computed once per image and orientation, kept on disk.

Under deterministic inversion the features of an image are a constant, so a training step need not
compute them again (the published code does, at every step). They lie in `.npy` files that are read
by memory map, in a directory named by a hash of everything that they depend on: weights, settings,
image content, orientations. A changed input therefore never meets a stale cache.
"""

import fcntl
import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from ldm_morph_jax.data import orient

log = logging.getLogger(__name__)


def tree_digest(tree) -> str:
    """sha256 over names, shapes, types and bytes of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class FeatureCache:
    """Rows of a tree of arrays by (image number, orientation).

    Args:
      directory: parent of all caches.
      name: what is cached, for people who look into the directory.
      images: elements {"image": `[H, W, 1]`} by number (`data.ImageSource`).
      orientations: elements of the dihedral group (see `data.pipeline.orient`).
      compute: (frozen, images `[B, H, W, 1]`) -> tree of arrays `[B, ...]`.
      frozen: the weights.
      depends_on: strings that identify the weights, settings and images.
      batch_size: images per call of `compute`.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        images: Sequence[dict],
        orientations: Sequence[int],
        compute: Callable,
        frozen,
        *,
        depends_on: Sequence[str],
        batch_size: int = 8,
    ):
        self._slot = {orientation: i for i, orientation in enumerate(orientations)}
        key = hashlib.sha256(json.dumps([name, list(orientations), *depends_on]).encode())
        self.directory = Path(directory) / f"{name}-{key.hexdigest()[:16]}"
        example = np.zeros((batch_size, *np.shape(images[0]["image"])), np.float32)
        compute = functools.partial(jax.jit(compute), frozen)
        leaves, self._structure = jax.tree.flatten(jax.eval_shape(compute, example))
        rows = len(images) * len(orientations)
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second run waits for the first one's result
            self._build(images, orientations, compute, leaves, rows, batch_size)
        self._arrays = [
            # .npy files know no bfloat16 and call it two bytes
            np.load(self._path(i), mmap_mode="r", allow_pickle=False).view(leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]

    def _path(self, leaf: int) -> Path:
        return self.directory / f"{leaf}.npy"

    def _build(self, images, orientations, compute, leaves, rows, batch_size):
        """Fill the files row by row; a killed build goes on behind its last complete batch."""
        progress = self.directory / "progress.json"
        done = json.loads(progress.read_text())["rows"] if progress.exists() else 0
        if done == rows:
            return
        arrays = [
            np.lib.format.open_memmap(
                self._path(i),
                mode="r+" if done else "w+",
                dtype=leaf.dtype,
                shape=None if done else (rows, *leaf.shape[1:]),
            )
            for i, leaf in enumerate(leaves)
        ]
        if not done:
            self._allocate(arrays)
        began = time.perf_counter()
        for start in range(done, rows, batch_size):
            stop = min(start + batch_size, rows)
            batch = np.stack(
                [
                    orient(
                        images[row // len(orientations)]["image"],
                        orientations[row % len(orientations)],
                    )
                    for row in range(start, stop)
                ]
            )
            missing = batch_size - len(batch)  # the last batch is filled up: one compilation
            batch = np.concatenate([batch, batch[:1].repeat(missing, 0)])
            for array, values in zip(arrays, jax.tree.leaves(compute(batch)), strict=True):
                array[start:stop] = np.asarray(values)[: stop - start].view(array.dtype)
                array.flush()
            temporary = progress.with_suffix(".tmp")
            temporary.write_text(json.dumps({"rows": stop, "of": rows}))
            os.replace(temporary, progress)
            if stop == rows or (start // batch_size) % 25 == 24:
                seconds = time.perf_counter() - began
                left = seconds / (stop - done) * (rows - stop)
                log.info("features: %d/%d in %.0f s, ETA %.0f s", stop, rows, seconds, left)
        size = sum(array.nbytes for array in arrays) / 2**20
        log.info("features: %d rows, %.0f MiB in %s", rows, size, self.directory)

    def _allocate(self, arrays) -> None:
        """Take the disk space now: writing into a hole of a file on a full disk is a SIGBUS."""
        size = sum(array.nbytes for array in arrays)
        try:
            for i in range(len(arrays)):
                with self._path(i).open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            for i in range(len(arrays)):
                self._path(i).unlink()
            raise OSError(
                f"{self.directory}: the cache of frozen features needs {size / 2**30:.2f} GiB: "
                f"{error.strerror}. Free the space, or train with --config.features.cache=False"
            ) from error

    def __call__(self, images: np.ndarray, orientations: np.ndarray):
        """Rows for image numbers `[B]` in orientations `[B]`: a tree of arrays `[B, ...]`."""
        slots = np.array([self._slot[int(o)] for o in np.asarray(orientations)])
        rows = np.asarray(images) * len(self._slot) + slots
        return jax.tree.unflatten(self._structure, [array[rows] for array in self._arrays])


class PairImages(Sequence):
    """The images of a pair dataset in one row: 2 i is moving, 2 i + 1 fixed of pair i."""

    def __init__(self, pairs):
        self._pairs = pairs

    def __len__(self):
        return 2 * len(self._pairs)

    def __getitem__(self, i):
        return {"image": self._pairs[i // 2]["fixed" if i % 2 else "moving"]}
