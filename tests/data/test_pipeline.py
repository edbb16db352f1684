"""Batches: deterministic, resumable, shared exactly among processes; augmentation is right."""

import json

import grain
import numpy as np
import pytest
from scipy import ndimage

from ldm_morph_jax.data import orient, orient_displacement
from ldm_morph_jax.data.phantom import phantom_pair
from ldm_morph_jax.data.pipeline import (
    Augmentation,
    image_batches,
    pair_batches,
    turn,
    turn_displacement,
)

ALL = tuple(range(8))
STRONG = Augmentation(ALL, rotation_degrees=10, scale=0.2, gamma=0.2, brightness=0.05, contrast=0.1)


class Source:
    """Small random pairs."""

    def __init__(self, n=11, size=8):
        self.n, self.size = n, size

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        rng = np.random.default_rng(int(i))
        shape = (self.size, self.size)
        return {
            "index": np.int32(i),
            "orientation": np.int32(0),
            "moving": rng.random((*shape, 1), dtype=np.float32),
            "fixed": rng.random((*shape, 1), dtype=np.float32),
            "moving_mask": rng.integers(0, 4, (*shape, 1)).astype(np.uint8),
            "fixed_mask": rng.integers(0, 4, (*shape, 1)).astype(np.uint8),
            "spacing": np.array([1.0, 2.0], np.float32),
            "displacement": rng.normal(size=(*shape, 2)).astype(np.float32),
        }


class Images(Source):
    def __getitem__(self, i):
        pair = super().__getitem__(i)
        return {"index": pair["index"], "orientation": np.int32(0), "image": pair["moving"]}


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def assert_same(a, b):
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_batch_contents():
    batch = next(iter(pair_batches(Source(), seed=0, batch_size=3, augment=STRONG)))
    expected = {
        "index": ((3,), np.int32),
        "orientation": ((3,), np.int32),
        "moving": ((3, 8, 8, 1), np.float32),
        "fixed": ((3, 8, 8, 1), np.float32),
        "moving_mask": ((3, 8, 8, 1), np.uint8),
        "fixed_mask": ((3, 8, 8, 1), np.uint8),
        "spacing": ((3, 2), np.float32),
        "displacement": ((3, 8, 8, 2), np.float32),
    }
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == expected
    image = next(iter(image_batches(Images(), seed=0, batch_size=3, augment=STRONG)))
    assert image["image"].shape == (3, 8, 8, 1) and image["image"].dtype == np.float32


def test_every_pass_is_a_new_order_of_all_elements():
    batches = take(iter(pair_batches(Source(12), seed=0, batch_size=4)), 6)
    order = np.concatenate([batch["index"] for batch in batches])
    assert sorted(order[:12]) == sorted(order[12:]) == list(range(12))
    assert (order[:12] != order[12:]).any()
    assert len(list(pair_batches(Source(11), seed=0, batch_size=4, epochs=2))) == 5  # 22 // 4


@pytest.mark.parametrize("threads", [0, 2])
def test_deterministic_and_resumable(threads):
    def stream(seed=3, num_threads=threads):
        return iter(
            pair_batches(Source(), seed=seed, batch_size=4, augment=STRONG, num_threads=num_threads)
        )

    reference = take(stream(num_threads=0), 8)
    iterator = stream()
    head, state = take(iterator, 5), json.loads(json.dumps(iterator.get_state()))
    assert_same(head + take(iterator, 3), reference)
    resumed = stream()
    resumed.set_state(state)
    assert_same(take(resumed, 3), reference[5:])
    other = take(stream(seed=4), 8)
    assert any((a["index"] != b["index"]).any() for a, b in zip(other, reference, strict=True))


def test_grain_checkpoint_check():
    dataset = pair_batches(Source(), seed=0, batch_size=4, augment=STRONG, epochs=2)
    grain.experimental.assert_equal_output_after_checkpoint(dataset)


@pytest.mark.parametrize("epochs", [None, 3])
def test_processes_together_get_the_batch_of_one(epochs):
    def stream(shard=None):
        return iter(
            pair_batches(Source(), seed=1, batch_size=4, augment=STRONG, epochs=epochs, shard=shard)
        )

    one = take(stream(), 6)
    parts = [
        take(stream(grain.sharding.ShardOptions(shard_index=p, shard_count=2)), 6) for p in (0, 1)
    ]
    joined = [
        {key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)
    ]
    assert_same(joined, one)


def test_finite_stream_has_the_same_length_in_every_process():
    def count(p, n):
        shard = grain.sharding.ShardOptions(shard_index=p, shard_count=n)
        return len(list(pair_batches(Source(11), seed=0, batch_size=4, epochs=1, shard=shard)))

    assert count(0, 1) == count(0, 2) == count(1, 2) == count(3, 4) == 2


def test_orientations_are_the_dihedral_group():
    rng = np.random.default_rng(0)
    image = rng.random((6, 6))
    seen = {orient(image, k).tobytes() for k in ALL}
    assert len(seen) == 8
    for j in ALL:  # closed under composition
        assert {orient(orient(image, j), k).tobytes() for k in ALL} == seen
    np.testing.assert_array_equal(orient(image, 0), image)
    batch = rng.random((2, 6, 6, 3))
    for k in ALL:
        stacked = np.stack([orient(one, k) for one in batch])
        np.testing.assert_array_equal(orient(batch, k, axes=(1, 2)), stacked)
    with pytest.raises(ValueError, match="0 to 7"):
        orient(image, 8)


def warp(image, u):
    rows, cols = np.indices(image.shape[:2]).astype(float)
    at = [rows + u[..., 0], cols + u[..., 1]]
    return ndimage.map_coordinates(image[..., 0], at, order=1, mode="nearest")[..., None]


@pytest.mark.parametrize("k", ALL)
def test_displacement_is_oriented_with_its_image(k):
    rng = np.random.default_rng(k)
    image = rng.random((9, 9, 1))
    u = rng.normal(scale=2, size=(9, 9, 2))
    expected = orient(warp(image, u), k)
    np.testing.assert_allclose(
        warp(orient(image, k), orient_displacement(u, k)), expected, atol=1e-12
    )


@pytest.mark.parametrize(("degrees", "scale"), [(40, 1.0), (0, 1.6), (-30, 0.7)])
def test_displacement_is_turned_with_its_image(degrees, scale):
    pair = phantom_pair(2, image_size=96)
    moving = ndimage.gaussian_filter(pair.moving, 1.5)[..., None]
    how = np.deg2rad(degrees), scale
    expected = turn(warp(moving, pair.displacement), *how)
    turned = turn_displacement(pair.displacement, *how)
    inner = (slice(20, -20), slice(20, -20))
    error = np.abs(warp(turn(moving, *how), turned) - expected)[inner].max()
    unturned = np.abs(warp(turn(moving, *how), turn(pair.displacement, *how)) - expected)
    assert error < 0.03 < 0.15 < unturned[inner].max()  # 0.03: one more interpolation


def test_pair_shares_geometry_and_intensity():
    element = Source(size=16)[0]
    element["fixed"], element["fixed_mask"] = element["moving"], element["moving_mask"]
    changed = STRONG(element, np.random.default_rng(0))
    np.testing.assert_array_equal(changed["moving"], changed["fixed"])
    np.testing.assert_array_equal(changed["moving_mask"], changed["fixed_mask"])
    assert set(np.unique(changed["moving_mask"])) <= {0, 1, 2, 3}
    assert changed["moving"].min() >= 0 and changed["moving"].max() <= 1


def test_enlarged_pixels_are_smaller():
    """A structure covers more pixels, each of which is fewer millimetres wide."""
    square = np.zeros((64, 64, 1), np.uint8)
    square[24:40, 24:40] = 1
    element = {"moving_mask": square, "spacing": np.array([1.0, 2.0], np.float32)}
    changed = Augmentation(scale=0.4)(element, np.random.default_rng(1))
    area = [e["moving_mask"].sum() * e["spacing"].prod() for e in (element, changed)]
    assert abs(changed["spacing"][0] - 1) > 0.1 and abs(area[1] / area[0] - 1) < 0.1


def test_orientation_field_tells_what_was_done():
    source, augment = Source(), Augmentation((1, 5, 6))
    assert augment.orientation_only and not STRONG.orientation_only
    seen = set()
    for batch in take(iter(pair_batches(source, seed=0, batch_size=5, augment=augment)), 6):
        for row, (index, k) in enumerate(zip(batch["index"], batch["orientation"], strict=True)):
            seen.add(int(k))
            element = source[index]
            for key in ("moving", "fixed", "moving_mask", "fixed_mask"):
                np.testing.assert_array_equal(batch[key][row], orient(element[key], int(k)))
            swapped = [2.0, 1.0] if k % 2 else [1.0, 2.0]
            np.testing.assert_array_equal(batch["spacing"][row], swapped)
    assert seen == {1, 5, 6}


def test_errors():
    with pytest.raises(ValueError, match="the split is empty"):
        pair_batches(Source(0), seed=0, batch_size=1)
    with pytest.raises(ValueError, match="do not fill one batch of 12"):
        pair_batches(Source(11), seed=0, batch_size=12, epochs=1)
    with pytest.raises(ValueError, match="multiple of the number of processes, 2"):
        shard = grain.sharding.ShardOptions(0, 2)
        pair_batches(Source(11), seed=0, batch_size=3, shard=shard)
    with pytest.raises(ValueError, match="0 to 7"):
        Augmentation((0, 8))
    with pytest.raises(ValueError, match="gamma out of range"):
        Augmentation(gamma=-0.1)
