"""What holds for registered test pairs as a user gives them, whole: a table, and a row for each.

    PYTHONPATH=. python tests/whole_images.py --dataset acdc --source DIR --out rows.csv

Registers every pair of a split from its files, with the defaults of `register`: end-diastole to
end-systole, the other way round, and each image to itself. Of stacks the middle slice is taken.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import pandas as pd
from real_pairs import fell

from ldm_morph_jax import load
from ldm_morph_jax.data.base import dataset_class
from ldm_morph_jax.files.images import read_image, read_mask
from ldm_morph_jax.registering.measures import measure
from ldm_morph_jax.registering.verdict import judge

AT_ONCE = 16


def builder_of(name, source):
    cls = dataset_class(name)
    options = cls.Options()
    if hasattr(options, "allow_partial"):
        options = dataclasses.replace(options, allow_partial=True)
    return cls(options, Path(source))


def read(builder, entry):
    """(moving, fixed, moving mask, fixed mask) of an entry, the middle slice of each."""

    files = entry.files[:4]
    # of labels any slice may be empty, so they tell how many there are
    shape = read_image(files[1], slice="all", labels=True).array.shape
    middle = None if len(shape) == 2 else shape[0] // 2
    images = [read_image(file, slice=middle) for file in files[::2]]
    masks = [
        read_mask(file, image, slice=middle)
        for file, image in zip(files[1::2], images, strict=True)
    ]
    # which file is end-diastole, the dataset knows (Sunnybrook's are in the order of the cine)
    pair = builder.read(entry)
    shrinks = np.count_nonzero(pair.moving_mask) > np.count_nonzero(pair.fixed_mask)
    if shrinks != (np.count_nonzero(masks[0].array) > np.count_nonzero(masks[1].array)):
        images, masks = images[::-1], masks[::-1]
    return *images, *masks


def there_and_back(one, other):
    """Largest |T2(T1(p)) - p| in pixels, over the pixels that T1 keeps inside the image."""
    fixed, moving = one.fixed.geometry, one.moving.geometry
    points = fixed.to_physical(fixed.indices()).reshape(-1, fixed.dimension)
    there = one.transform.map_points(points)
    index = moving.to_index(there)
    inside = np.all((index >= 0) & (index <= np.array(moving.shape) - 1), axis=-1)
    back = other.transform.map_points(there)
    return float(
        np.linalg.norm(fixed.to_index(back) - fixed.to_index(points), axis=-1)[inside].max()
    )


def landmarks_there_and_back(one):
    """Largest error in pixels of every third pixel's position mapped there and back."""
    fixed = one.fixed.geometry
    points = fixed.to_physical(fixed.indices())[::3, ::3].reshape(-1, fixed.dimension)
    back, _ = one.transform.map_points_back(one.transform.map_points(points))
    return float(np.linalg.norm(fixed.to_index(back) - fixed.to_index(points), axis=-1).max())


def rms(a, b):
    return float(np.sqrt(np.mean(np.square(np.asarray(a, float) - np.asarray(b, float)))))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--source", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    registrar = load(given.model) if given.model else load()
    builder = builder_of(given.dataset, given.source)
    entries = builder.find().pairs[given.split]
    rows = []
    for first in range(0, len(entries), AT_ONCE):
        part = entries[first : first + AT_ONCE]
        pairs = [read(builder, entry) for entry in part]
        began = time.perf_counter()
        there = registrar.register_images([pair[:2] for pair in pairs])
        seconds = (time.perf_counter() - began) / len(pairs)
        back = registrar.register_images([pair[1::-1] for pair in pairs])
        alone = [image for pair in pairs for image in pair[:2]]
        still = registrar.register_images([(image, image) for image in alone])
        for k, (entry, pair) in enumerate(zip(part, pairs, strict=True)):
            found = row(there[k], back[k], still[2 * k : 2 * k + 2], pair[2:], builder, registrar)
            rows.append({"id": entry.id, **found, "seconds_per_pair": seconds})
    table = pd.DataFrame(rows)
    table.to_csv(given.out, index=False)
    print(table.drop(columns="id").describe().loc[["mean", "min", "50%", "max"]].T.to_string())
    print(f"RMS difference rises in {(table.rms > table.rms_initial).sum()} of {len(table)} pairs")
    less = fell(table)
    print(f"DSC falls in {len(less)}, of them with a warning {(less.verdict != 'plausible').sum()}")
    print("verdicts:", dict(table.verdict.value_counts()))


def row(one, other, still, masks, builder, registrar) -> dict:
    """The numbers of a pair: `one` registered, `other` exchanged, `still` each image to itself."""
    moving_mask, fixed_mask = (mask.array for mask in masks)
    metrics = measure(one, moving_mask=moving_mask, fixed_mask=fixed_mask, inverse=True)
    labels = [str(label) for label in builder.labels or ()]
    scores = {k: v for k, v in metrics["dice"].items() if k in labels} or metrics["dice"]
    pixel = min(one.fixed.spacing)
    return {
        "dsc_initial": np.mean([score["before"] for score in scores.values()]),
        "dsc": np.mean([score["after"] for score in scores.values()]),
        "rms_initial": rms(one.start.warp(one.moving.array), one.fixed.array),
        "rms": rms(one.warped, one.fixed.array),
        "folded_pixels": metrics["jacobian"]["nonpositive_pixels"],
        "scale": min(metrics["scale"]),
        "inverse_residual_px": metrics["inverse"]["residual_mm_largest"] / pixel,
        "inverse_missing_pixels": metrics["inverse"]["missing_pixels"],
        "landmarks_there_and_back_px": landmarks_there_and_back(one),
        "exchanged_there_and_back_px": there_and_back(one, other),
        "itself_px": max(float(np.abs(image.pixel_displacement).max()) for image in still),
        "verdict": judge(one, metrics, registrar.card.get("training_images"))["level"],
    }


if __name__ == "__main__":
    main()
