"""What the anatomy networks take for a heart: inputs without one, and images of other sets.

python tests/other_images.py --sunnybrook DIR --camus_4ch DIR --acdc DIR, each optional

Writes a row per network and kind of image: how many, and how many are taken for a heart. Only the
validation patients of a network's own set had a part in choosing its limits.
"""

import argparse
import csv
import sys

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from ldm_morph_jax.data import load_dataset
from ldm_morph_jax.data.phantom import phantom_pair
from ldm_morph_jax.registering.segmenting import CAVITY, segment
from ldm_morph_jax.runs.anatomy import load_anatomy

SIZE, SPACING = 160, (1.4, 1.4)
ROWS, COLUMNS = np.indices((SIZE, SIZE))
SETS = {
    "sunnybrook": ("sunnybrook", 256, {}),
    "camus_4ch": ("camus_4ch", 128, {"allow_partial": True}),
    "acdc": ("acdc_slices", 160, {"allow_partial": True, "field_mm": 192.0}),
}


def ellipse(centre, radii, grey):
    away = ((ROWS - centre[0]) / radii[0]) ** 2 + ((COLUMNS - centre[1]) / radii[1]) ** 2
    return grey * (away < 1)


def text(lines):
    page = Image.new("L", (SIZE, SIZE), 0)
    for k in range(lines):
        ImageDraw.Draw(page).text((5, 5 + 14 * k), f"Patient report page {k}: no image data", 230)
    return np.asarray(page, float)


def inputs_without_a_heart() -> dict[str, np.ndarray]:
    """Twenty."""
    rng = np.random.default_rng(7)
    normal = rng.normal(size=(SIZE, SIZE))
    middle = (80, 80)
    lungs = ellipse(middle, (60, 75), 0.7)
    spine = sum(ellipse((20 + 30 * k, 80), (11, 16), 0.8) for k in range(5))
    brain = ellipse(middle, (60, 48), 0.6) + ellipse(middle, (52, 40), 0.3)
    ring = ellipse(middle, (50, 50), 1.0) - ellipse(middle, (30, 30), 1.0)
    return {
        "black": np.zeros((SIZE, SIZE)),
        "white": np.full((SIZE, SIZE), 9.0),
        "noise": rng.random((SIZE, SIZE)),
        "normal noise": normal,
        **{f"smooth noise {s}": gaussian_filter(normal, s) for s in (2, 6, 15)},
        "ramp": ROWS * 1.0,
        "checkerboard": ((ROWS // 10 + COLUMNS // 10) % 2) * 1.0,
        "stripes": np.sin(COLUMNS / 5),
        "text, 4 lines": text(4),
        "text, 11 lines": text(11),
        "head": brain + 0.5 * gaussian_filter(normal, 3) * ellipse(middle, (52, 40), 1),
        "knee": ellipse((60, 80), (45, 30), 0.8) + ellipse((120, 80), (50, 26), 0.7),
        "two lungs": lungs - ellipse((80, 50), (45, 25), 0.6) - ellipse((80, 110), (45, 25), 0.6),
        "lungs and spine": lungs
        - ellipse((75, 50), (40, 25), 0.6)
        - ellipse((75, 110), (40, 25), 0.6)
        + ellipse((120, 80), (10, 10), 0.4),
        "vertebrae": spine,
        "salt": (rng.random((SIZE, SIZE)) > 0.97) * 1.0,
        "logo": ring + text(3) / 300,
        "box": ((abs(ROWS - 80) < 40) & (abs(COLUMNS - 80) < 30)) * 1.0,
    }


def images_of(name, source, directory, most=60):
    """Images of a set's validation patients whose mask has a cavity, evenly spread."""
    dataset, size, options = SETS[name]
    opened = load_dataset(
        dataset,
        source=source,
        directory=directory,
        image_size=size,
        intensity="percentile",
        **options,
    )
    [cavity] = [label for label, structure in opened.labels.items() if structure == CAVITY]
    images = opened.annotated("validation")
    shown = [k for k in range(len(images)) if (images[k]["mask"] == cavity).mean() > 0.004]
    for k in np.unique(np.linspace(0, len(shown) - 1, min(most, len(shown))).astype(int)):
        image = images[shown[k]]
        yield image["image"][..., 0], tuple(map(float, image["spacing"]))


def main():
    parser = argparse.ArgumentParser()
    for name in SETS:
        parser.add_argument(f"--{name}")
    parser.add_argument("--data", default="data", help="folder of prepared sets")
    parser.add_argument("--networks", nargs="+", default=["anatomy", "anatomy-mri", "anatomy-echo"])
    options = vars(parser.parse_args())
    kinds = {"no heart": [(image, SPACING) for image in inputs_without_a_heart().values()]}
    for look in ("sax", "echo"):
        seeds = range(1000, 1020)
        images = [(phantom_pair(seed, look=look).moving, (1.25, 1.25)) for seed in seeds]
        kinds[f"phantom {look}"] = images
    kinds |= {
        name: list(images_of(name, options[name], options["data"]))
        for name in SETS
        if options[name]
    }
    table = csv.writer(sys.stdout)
    table.writerow(["network", "kind", "images", "taken", "which"])
    for network in options["networks"]:
        model = load_anatomy(network)
        for kind, images in kinds.items():
            seen = [segment(model, [image], spacing)[0] for image, spacing in images]
            which = ""
            if kind == "no heart":
                names = inputs_without_a_heart()
                which = " ".join(n for n, one in zip(names, seen, strict=True) if one.found)
            taken = sum(one.found for one in seen)
            table.writerow([network, kind, len(seen), taken, which])
            sys.stdout.flush()


if __name__ == "__main__":
    main()
