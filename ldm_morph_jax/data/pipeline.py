"""Batches of NumPy arrays from a split, with grain.

A batch of pairs is a dict: `index` [B] int32 (position in the split), `orientation` [B] int32
(0..7, see data/orientation.py), `moving`, `fixed` [B, *space, 1] float32, `moving_mask`,
`fixed_mask` [B, *space, 1] uint8, `spacing` [B, rank] float32 (mm per pixel, in axis order) and, if
known, `displacement` [B, *space, rank] float32 (pixels). A batch of images has `index`,
`orientation` and `image` [B, *space, 1].

Training batches are an endless stream, reshuffled in every pass and augmented. Everything in it is
a function of the seed and the position: it does not depend on threads and processes, and the state
of an iterator (`get_state`, `set_state`) is a single number.
"""

import dataclasses
import os

import grain
import numpy as np
from scipy import ndimage

from ldm_morph_jax.data.orientation import ORIENTATIONS, orient, orient_displacement

IMAGES = ("moving", "fixed", "image")
MASKS = ("moving_mask", "fixed_mask")
PLANE = (-3, -2)  # rows and columns of [*space, C]
THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of an element; each value is the maximum change, 0 = none.

    Attributes:
      orientations: the orientations (0..7) to draw from.
      rotation_degrees: rotation about the image centre, uniform in +- rotation_degrees.
      scale: enlargement about the image centre by exp(s), s uniform in +- scale.
      gamma: image ** exp(g), g uniform in +- gamma.
      brightness: added, uniform in +- brightness.
      contrast: image scaled about its mean by 1 + c, c uniform in +- contrast.

    Both images of a pair get the same geometric and the same intensity change, so that the pair's
    displacement and the relation between its intensities remain valid. Volumes are changed within
    their planes, all planes alike.
    """

    orientations: tuple[int, ...] = (0,)
    rotation_degrees: float = 0.0
    scale: float = 0.0
    gamma: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0

    def __post_init__(self):
        if not self.orientations or not set(self.orientations) <= set(ORIENTATIONS):
            raise ValueError(f"orientations must be some of 0 to 7, found {self.orientations}")
        for name in ("rotation_degrees", "scale", "gamma", "brightness", "contrast"):
            if not 0 <= getattr(self, name) < (180 if name == "rotation_degrees" else 1):
                raise ValueError(f"augmentation: {name} out of range: {getattr(self, name)}")

    @property
    def orientation_only(self) -> bool:
        """Whether (index, orientation) determines the element, as a feature cache needs."""
        return not (
            self.rotation_degrees or self.scale or self.gamma or self.brightness or self.contrast
        )

    def __call__(self, element: dict, rng: np.random.Generator) -> dict:
        """Returns a changed copy of one element (not a batch)."""
        k = int(self.orientations[rng.integers(len(self.orientations))])
        angle = np.deg2rad(rng.uniform(-1, 1) * self.rotation_degrees)
        gamma = np.exp(rng.uniform(-1, 1) * self.gamma)
        brightness = rng.uniform(-1, 1) * self.brightness
        contrast = 1 + rng.uniform(-1, 1) * self.contrast
        scale = float(np.exp(rng.uniform(-1, 1) * self.scale))
        changed = dict(element)
        for key in element:
            if key in IMAGES:
                image = turn(orient(element[key], k, PLANE), angle, scale)
                if not self.orientation_only:
                    image = image**gamma
                    image = (image - image.mean()) * contrast + image.mean() + brightness
                    image = np.clip(image, 0, 1).astype(np.float32)
                changed[key] = image
            elif key in MASKS:
                changed[key] = turn(orient(element[key], k, PLANE), angle, scale, nearest=True)
            elif key == "displacement":
                u = orient_displacement(element[key], k, PLANE)
                changed[key] = turn_displacement(u, angle, scale)
            elif key == "spacing":
                spacing = element[key].copy()
                spacing[-2:] = (spacing[:-3:-1] if k % 2 else spacing[-2:]) / scale
                changed[key] = spacing
        changed["orientation"] = np.int32(k)
        return changed


def turn(array: np.ndarray, angle: float, scale: float = 1.0, *, nearest=False) -> np.ndarray:
    """Rotates the planes of [*space, C] about their centre by `angle`, enlarged by `scale`.

    angle: radians, from the row axis towards the column axis. Bilinear, or nearest for labels;
    border values continue outside. The dtype is kept.
    """
    if (angle, scale) == (0, 1):
        return array
    # from a position in the result to its position in `array`
    back = _rotation(angle, array.ndim - 1)
    back[-2:] /= scale
    centre = (np.array(array.shape[:-1]) - 1) / 2
    offset = centre - back @ centre
    order = 0 if nearest else 1
    channels = [
        ndimage.affine_transform(array[..., i], back, offset, order=order, mode="nearest")
        for i in range(array.shape[-1])
    ]
    return np.stack(channels, axis=-1)


def turn_displacement(u: np.ndarray, angle: float, scale: float = 1.0) -> np.ndarray:
    """Turns a displacement [*space, rank] (pixels): its positions, as `turn`, and components."""
    if (angle, scale) == (0, 1):
        return u
    ahead = _rotation(angle, u.shape[-1])
    ahead[-2:] *= scale
    return (turn(u, angle, scale) @ ahead).astype(u.dtype)


def _rotation(angle: float, rank: int) -> np.ndarray:
    """[rank, rank], in the plane of the last two axes."""
    matrix = np.eye(rank)
    c, s = np.cos(angle), np.sin(angle)
    matrix[-2:, -2:] = [[c, s], [-s, c]]
    return matrix


def pair_batches(
    source,
    *,
    seed: int,
    batch_size: int,
    augment: Augmentation | None = None,
    epochs: int | None = None,
    shard: grain.sharding.ShardOptions | None = None,
    num_threads: int = THREADS,
) -> grain.IterDataset:
    """Shuffled training batches of pairs, as described at the top of this file.

    Args:
      source: `Dataset.split(...)`.
      seed: of the order and the augmentation.
      batch_size: number of examples in all processes together.
      augment: None = off.
      epochs: passes over the split; None = endless. Every pass has a different order. A batch can
        span two passes; only the very last incomplete batch is dropped.
      shard: this process's share, e.g. grain.sharding.ShardByJaxProcess(); each process gets
        batch_size / shard_count rows. The rows of all processes, in order, are exactly the batch
        that a single process would get.
      num_threads: threads that read and augment ahead; 0 = in the caller's thread.

    Raises:
      ValueError: the source is empty, the processes cannot share the batch equally, or there is not
        one full batch.
    """
    shard = shard or grain.sharding.ShardOptions(shard_index=0, shard_count=1)
    if batch_size < 1 or batch_size % shard.shard_count:
        raise ValueError(
            f"batch_size {batch_size} must be a positive multiple of the number of processes, "
            f"{shard.shard_count}"
        )
    if len(source) == 0:
        raise ValueError("no training batches: the split is empty")
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat(epochs)
    if augment is not None:
        dataset = dataset.random_map(augment)
    dataset = dataset.batch(batch_size // shard.shard_count, drop_remainder=True)
    batches = len(dataset) // shard.shard_count
    if batches == 0:
        raise ValueError(
            f"no training batches: {len(source)} elements x {epochs} epochs do not fill one batch "
            f"of {batch_size}"
        )
    if shard.shard_count > 1:
        whole = batches * shard.shard_count
        dataset = dataset[:whole][shard.shard_index :: shard.shard_count]
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return dataset.to_iter_dataset(options)


def image_batches(source, **arguments) -> grain.IterDataset:
    """Shuffled training batches of single images; `source` is `Dataset.images(...)`.

    Arguments and guarantees are those of `pair_batches`.
    """
    return pair_batches(source, **arguments)
