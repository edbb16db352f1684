"""Pictures that show no heart, made in code: what an anatomy network must refuse.

Coarse drawings of other organs, discs and rings, which look most like a cavity, pages of text,
noise, and hearts of another modality (`phantom`).
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ldm_morph_jax.data.phantom import LOOKS, phantom_pair

SIZE = 128


def other_modality(look: str, rng: np.random.Generator) -> np.ndarray:
    """A heart `[128, 128]` as the other of `phantom.LOOKS` shows it, at end-diastole."""
    [other] = set(LOOKS) - {look}
    return phantom_pair(int(rng.integers(2**31)), look=other, image_size=SIZE).moving


def drawing(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A picture `[128, 128]`, float32, of one of `KINDS`."""
    return _unit(KINDS[kind](rng)).astype(np.float32)


def _head(rng):
    centre, radii, turn = _place(rng), rng.uniform(0.27, 0.45, 2), rng.uniform(0, np.pi)
    skull, inner = _ellipse(centre, radii, turn), radii * rng.uniform(0.8, 0.92)
    brain = rng.uniform(0.2, 0.7) + 0.08 * _texture(rng)
    brain = brain * (1 - 0.5 * _ellipse(centre, radii * rng.uniform(0.1, 0.25), turn))
    return np.where(_ellipse(centre, inner, turn) > 0, brain, rng.uniform(0.6, 1) * skull)


def _chest(rng):
    """Two lungs and a spine, without a heart between them."""
    centre, dark = _place(rng), rng.uniform(0.05, 0.15)
    out = rng.uniform(0.5, 0.9) * _ellipse(centre, (rng.uniform(0.3, 0.42), 0.45), 0)
    for side in (-1, 1):
        middle = centre + [0, side * rng.uniform(0.17, 0.22)]
        radii = rng.uniform(0.2, 0.3), rng.uniform(0.1, 0.16)
        out = np.where(_ellipse(middle, radii, side * rng.uniform(0, 0.3)) > 0, dark, out)
    spine = 0.9 * _ellipse(centre + [rng.uniform(0.2, 0.3), 0], (0.07, 0.07), 0)
    return np.maximum(out, spine) + 0.04 * _texture(rng)


def _abdomen(rng):
    """Liver and kidneys."""
    centre = _place(rng)
    out = 0.45 * _ellipse(centre, (rng.uniform(0.3, 0.4), rng.uniform(0.38, 0.47)), 0)
    parts = [((-0.05, -0.16), (0.18, 0.18), 0.0)]
    parts += [((0.12, side * 0.16), (0.09, 0.05), side * 0.4) for side in (-1, 1)]
    for offset, radii, turn in parts:
        out = np.maximum(out, rng.uniform(0.5, 1) * _ellipse(centre + offset, radii, turn))
    return out + 0.05 * _texture(rng)


def _bones(rng):
    out = 0.2 + 0.05 * _texture(rng)
    for _ in range(2):
        radii, middle = (rng.uniform(0.25, 0.4), rng.uniform(0.08, 0.2)), rng.uniform(0.1, 0.9, 2)
        bone = _ellipse(middle, radii, rng.uniform(-0.3, 0.3))
        out = np.maximum(out, rng.uniform(0.5, 1) * bone)
    return out


def _spine(rng):
    out, height = 0.15 + 0.05 * _texture(rng), rng.uniform(0.07, 0.1)
    for row in np.arange(0.1, 1, 0.16):
        middle = row, 0.5 + rng.uniform(-0.03, 0.03)
        vertebra = _ellipse(middle, (height, rng.uniform(0.09, 0.14)), 0)
        out = np.maximum(out, rng.uniform(0.5, 1) * vertebra)
    return out


def _disc(rng):
    radii = rng.uniform(0.05, 0.4) * np.array([1, rng.uniform(0.7, 1)])
    out = _ellipse(rng.uniform(0.2, 0.8, 2), radii, rng.uniform(0, np.pi))
    return out + rng.uniform(0, 0.03) * _texture(rng)


def _ring(rng):
    centre, turn = rng.uniform(0.3, 0.7, 2), rng.uniform(0, np.pi)
    radii = rng.uniform(0.1, 0.4) * np.array([1, rng.uniform(0.7, 1)])
    hole = _ellipse(centre, radii * rng.uniform(0.4, 0.9), turn)
    out = _ellipse(centre, radii, turn) - rng.uniform(0.3, 1) * hole
    return out + rng.uniform(0, 0.03) * _texture(rng)


def _text(rng):
    page = Image.new("L", (SIZE, SIZE), int(rng.integers(60)))
    pen = ImageDraw.Draw(page)
    for line in range(int(rng.integers(2, 12))):
        letters = "".join(chr(code) for code in rng.integers(33, 123, 20))
        pen.text((int(rng.integers(20)), 4 + 11 * line), letters, fill=int(rng.integers(120, 255)))
    return np.asarray(page, float)


def _noise(rng):
    return ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), rng.choice([0, 1, 2, 4, 8, 15]))


KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "head": _head,
    "chest": _chest,
    "abdomen": _abdomen,
    "bones": _bones,
    "spine": _spine,
    "disc": _disc,
    "ring": _ring,
    "text": _text,
    "noise": _noise,
}


def _place(rng):
    return rng.uniform(0.4, 0.6, 2)


def _ellipse(centre, radii, turn):
    """1 inside, 0 outside; lengths as shares of the side, `turn` in radians."""
    rows, columns = np.indices((SIZE, SIZE)) / SIZE - np.reshape(centre, (2, 1, 1))
    along = np.cos(turn) * rows + np.sin(turn) * columns
    across = np.cos(turn) * columns - np.sin(turn) * rows
    return ((along / radii[0]) ** 2 + (across / radii[1]) ** 2 < 1).astype(float)


def _texture(rng):
    smooth = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), rng.uniform(1, 4))
    return smooth / smooth.std()


def _unit(x):
    return (x - x.min()) / max(np.ptp(x), 1e-6)
