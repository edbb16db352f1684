"""Features of the frozen networks, computed once per image and orientation and kept on disk.

With deterministic inversion the features of an image are constant, so training steps need not
recompute them (the published code does, at every step). They are stored in memory-mapped `.npy`
files. The name of their directory is a hash of everything they depend on: weights, settings, image
content, orientations. A stale cache is therefore never read.
"""

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

from ldm_morph_jax.data import Dataset, orient
from ldm_morph_jax.data.pipeline import PLANE, Augmentation
from ldm_morph_jax.devices.batches import fill_up
from ldm_morph_jax.devices.mesh import data_mesh, for_mesh, replicated, sharded
from ldm_morph_jax.files.locking import held
from ldm_morph_jax.methods import Method
from ldm_morph_jax.methods.ldm import build_autoencoder
from ldm_morph_jax.runs.directory import write_json
from ldm_morph_jax.training.program import at_once

log = logging.getLogger(__name__)


def are_cached(config, stage: str, method: Method) -> bool:
    """Whether a stage's batches contain the frozen networks' cached features of each image."""
    if not config.features.cache or stage in ("anatomy", "autoencoder"):
        return False
    if config.compute.devices_per_image > jax.local_device_count():
        log.info("features: computed at every step, because several processes share a volume")
        return False
    if stage == "registration" and not method.features_are_constant:
        if method.reads_ldm:
            log.info("features: computed at every step, because they are drawn at random")
        return False
    if not Augmentation(**config[stage].augmentation).orientation_only:
        log.info("features: computed at every step, because augmentation changes the images")
        return False
    return True


def encoder(config) -> Callable:
    """(the autoencoder's parameters, images `[B, *space, 1]`) -> latents."""
    autoencoder = build_autoencoder(config)
    return lambda params, x: autoencoder.apply({"params": params}, x, method="encode")


def latent_cache(config, encode: Callable, params, dataset: Dataset) -> "FeatureCache":
    """The latents of all training images, for the diffusion stage."""
    autoencoder = build_autoencoder(config).clone(remat=False)  # remat does not change them
    return FeatureCache(
        Path(config.data.directory) / "features",
        "latents",
        dataset.images("train"),
        config.diffusion.augmentation.orientations,
        encode,
        params,
        depends_on=[
            tree_digest(params["encoder"]),
            repr(autoencoder),
            dataset.fingerprint("train"),
        ],
        batch_size=at_once(config, 8),
        devices_per_image=config.compute.devices_per_image,
    )


def pair_cache(config, method: Method, frozen, dataset: Dataset) -> "FeatureCache":
    """The features that a method needs of all training pairs, for the registration stage."""
    return FeatureCache(
        Path(config.data.directory) / "features",
        method.name,
        dataset.pair_images("train"),
        config.registration.augmentation.orientations,
        method.image_features,
        frozen,
        depends_on=[tree_digest(frozen), method.feature_settings(), dataset.fingerprint("train")],
        batch_size=at_once(config, 8),
        devices_per_image=config.compute.devices_per_image,
    )


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
      name: what is cached; part of the directory's name, for human readers.
      images: elements {"image": `[*space, 1]`} by number (`data.dataset.ImageSource`).
      orientations: elements of the dihedral group (see `data.orient`).
      compute: (frozen, images `[B, *space, 1]`) -> tree of arrays `[B, ...]`.
      frozen: the weights.
      depends_on: strings that identify the weights, settings and images.
      batch_size: images per call of `compute`.
      devices_per_image: of this process, since other processes may be waiting, that share each.
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
        devices_per_image: int = 1,
    ):
        self._slot = {orientation: i for i, orientation in enumerate(orientations)}
        example = np.zeros((batch_size, *np.shape(images[0]["image"])), np.float32)
        mesh = data_mesh(devices_per_image, jax.local_devices()[:devices_per_image])
        frozen = jax.device_put(frozen, replicated(mesh))
        placed = functools.partial(jax.device_put, device=sharded(mesh, example.shape))
        jitted = jax.jit(for_mesh(compute, mesh))
        features = jax.eval_shape(jitted, frozen, example)
        leaves, self._structure = jax.tree.flatten(features)
        rows = len(images) * len(orientations)
        key = json.dumps([name, list(orientations), rows, str(features), *depends_on])
        digest = hashlib.sha256(key.encode()).hexdigest()
        self.directory = Path(directory) / f"{name}-{digest[:16]}"
        self.directory.mkdir(parents=True, exist_ok=True)

        def wait(holder):
            log.info("features: waiting for %s, which is computing them", holder)

        with held(self.directory, wait):
            self._build(
                images,
                orientations,
                lambda batch: jitted(frozen, placed(batch)),
                leaves,
                rows,
                batch_size,
            )
        self._arrays = [
            # .npy files cannot describe bfloat16 and store it as two raw bytes
            np.load(self._path(i), mmap_mode="r", allow_pickle=False).view(leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]

    def _path(self, leaf: int) -> Path:
        return self.directory / f"{leaf}.npy"

    def _build(self, images, orientations, compute, leaves, rows, batch_size):
        """Fill the files batch by batch; a build that was killed is resumed where it stopped."""
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

        def oriented(row):
            image, orientation = divmod(row, len(orientations))
            return orient(images[image]["image"], orientations[orientation], PLANE)

        began = time.perf_counter()
        for start in range(done, rows, batch_size):
            stop = min(start + batch_size, rows)
            batch, valid = fill_up(
                np.stack([oriented(row) for row in range(start, stop)]), batch_size
            )
            for array, values in zip(arrays, jax.tree.leaves(compute(batch)), strict=True):
                array[start:stop] = np.asarray(values)[valid].view(array.dtype)
                array.flush()
            write_json(progress, {"rows": stop, "of": rows})
            if stop == rows or (start // batch_size) % 25 == 24:
                seconds = time.perf_counter() - began
                left = seconds / (stop - done) * (rows - stop)
                log.info("features: %d/%d in %.0f s, ETA %.0f s", stop, rows, seconds, left)
        size = sum(array.nbytes for array in arrays) / 2**20
        log.info("features: %d rows, %.0f MiB in %s", rows, size, self.directory)

    def _allocate(self, arrays) -> None:
        """Allocate the disk space now: writing to a sparse file on a full disk raises SIGBUS."""
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

    def of_pairs(self, batch: dict) -> dict:
        """Features of both images of a batch of pairs, for a cache of `pair_images`."""
        numbers = {"moving": 2 * batch["index"], "fixed": 2 * batch["index"] + 1}  # `ImageSource`
        return {
            f"{name}_features": self(number, batch["orientation"])
            for name, number in numbers.items()
        }
