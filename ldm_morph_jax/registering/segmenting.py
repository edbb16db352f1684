"""Where the heart is in images of any size: probabilities of structures on their own grid.

Where pixels have a known size, windows all over the image are looked at first. The window with
the cavity most certainly in it is moved until the cavity is in its middle, and is then looked at in
several ways: turned and mirrored. The slices of a cine of volumes have that place in common, found
in the middle ones: near the base and the apex a right ventricle may look like the cavity. What all
ways agree on is known; what they do not agree on is not known, and an image on which they do not
agree shows no heart. Neither does one that is unlike the images that the network was trained on,
however sure it is. Where the size of pixels does not matter (echo), the picture as a whole is the
window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ldm_morph_jax.data.windows import sample
from ldm_morph_jax.files.geometry import inside
from ldm_morph_jax.runs.anatomy import AnatomyModel

CAVITY, WALL = "left ventricle", "myocardium"
_LOOKED_AT = 3  # images of a series in which the heart is looked for
_MARGIN = 8 / 7  # pictures that networks for echo were trained on have a black border
_LEAST_PIXELS = 8  # of a window: fewer are no cavity
_QUARTER = np.array([[0.0, 1.0], [-1.0, 0.0]])
_TURNED = (np.eye(2), _QUARTER @ np.diag([1.0, -1.0]), -np.eye(2), np.diag([1.0, -1.0]))
_ROTATED = (np.eye(2), *(np.array([[1, a], [-a, 1]]) * s for a, s in ((0.14, 1.08), (-0.14, 1.0))))


@dataclass(frozen=True)
class Segmentation:
    """What a network says about one image.

    probabilities: `[H, W, 1 + structures]` float32 on the image's grid, background first.
    labels: `[H, W]` uint8, the most probable; 0 everywhere without a heart.
    confidence: in [0, 1], how far the ways of looking agree on the cavity and how probable it is.
    distance: from the images that the network was trained on, see `AnatomyModel.distance`.
    found: whether there is a heart: confidence and distance are within the network's limits.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    confidence: float
    distance: float
    found: bool


def segment(
    model: AnatomyModel,
    images: Sequence[np.ndarray],
    spacing: tuple[float, float] | None = None,
    centre: tuple[float, float] | None = None,
) -> list[Segmentation]:
    """Look for the heart in the images of one series: frames of a cine, or one image.

    Args:
        model: the network.
        images: `[H, W]` grey values of any range, all of one shape.
        spacing: mm of (row, column); None where unknown: the longer side is then taken for 300 mm.
        centre: (row, column) of the cavity, see `locate`; None: it is looked for in some of the
            images. Networks that see the picture as a whole do not need it.

    Raises ValueError: no image, or images of different shapes.
    """
    images = [np.asarray(image, np.float32) for image in images]
    shapes = {image.shape for image in images}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"images: found shapes {sorted(shapes)}, expected one shape [H, W]")
    [shape] = shapes
    step, middle, ways = _scale(model, images, spacing)
    if model.window.spacing_mm:
        if centre is None:
            centre = locate(model, [images[k] for k in evenly(len(images), _LOOKED_AT)], spacing)
        middle = np.asarray(centre)
    cavity = model.label(CAVITY)
    found = []
    for image in images:
        seen = [_window(model, image, middle, step, way) for way in ways]
        views = _back(model.probabilities(np.stack(seen)), ways)
        confidence = _agreement(views[..., cavity])
        on_image = _on_image(views.mean(axis=0), shape, middle, step)
        [distance] = model.distance(seen[0][None])
        sure = confidence >= model.least_confidence and distance <= model.largest_distance
        labels = on_image.argmax(axis=-1).astype(np.uint8) if sure else np.zeros(shape, np.uint8)
        found.append(Segmentation(on_image, labels, confidence, float(distance), bool(sure)))
    return found


def locate(
    model: AnatomyModel, images: Sequence[np.ndarray], spacing: tuple[float, float] | None = None
) -> tuple[float, float]:
    """(row, column) of the cavity's middle, in all images `[H, W]` together; see `segment`."""
    step, middle, _ = _scale(model, images, spacing)
    if model.window.spacing_mm:
        middle = _find(model, images, step, middle)
    return float(middle[0]), float(middle[1])


def locate_in_stack(
    model: AnatomyModel, frames: np.ndarray, spacing: tuple[float, float] | None = None
) -> tuple[float, float]:
    """`locate` in the middle slices of some frames of a cine of volumes `[T, S, H, W]`."""
    slices = np.linspace(0, frames.shape[1] - 1, _LOOKED_AT + 2)[1:-1].round().astype(int)
    some = frames[np.ix_(evenly(len(frames), _LOOKED_AT), np.unique(slices))]
    return locate(model, list(some.reshape(-1, *frames.shape[2:])), spacing)


def evenly(count: int, most: int) -> np.ndarray:
    """Numbers of at most so many of `count` things, evenly spread."""
    return np.linspace(0, count - 1, min(most, count)).astype(int)


def connected(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask `[*space]`; nothing of an empty one."""
    parts, count = ndimage.label(mask)
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1 if count else mask


def window_about(
    model: AnatomyModel,
    image: np.ndarray,
    spacing: tuple[float, float] | None,
    centre: tuple[float, float],
) -> np.ndarray:
    """What `segment` sees first `[S, S]` of an image `[H, W]` whose cavity is at `centre`."""
    step, middle, _ = _scale(model, [image], spacing)
    return _window(model, image, centre if model.window.spacing_mm else middle, step)


def _scale(model, images, spacing):
    """Image pixels per window pixel `[2]`, where to begin, the ways of looking."""
    shape = np.array(images[0].shape)
    if model.window.spacing_mm:
        if spacing is None:
            spacing = (300 / shape.max(),) * 2
        step = model.window.spacing_mm / np.asarray(spacing, float)
        return step, (shape - 1) / 2, _TURNED
    rows, columns = _content(np.mean(images, axis=0))
    sides = np.array([rows[1] - rows[0], columns[1] - columns[0]])
    middle = np.array([sum(rows) - 1, sum(columns) - 1]) / 2
    return sides * _MARGIN / model.window.size, middle, _ROTATED


def _content(image):
    """(first, end) row and column of what is not black."""
    shown = image > image.min() + 0.02 * np.ptp(image)
    ends = []
    for axis in (1, 0):
        share = shown.mean(axis=axis)
        at = np.flatnonzero(share > 0.01)
        enough = len(at) and at[-1] - at[0] >= len(share) // 4
        ends.append((at[0], at[-1] + 1) if enough else (0, len(share)))
    return ends


def _window(model, image, middle, step, way=_TURNED[0]):
    """`[S, S]`: a window about the point `middle` of an image."""
    size = model.window.size
    offset = np.tensordot(way, np.mgrid[:size, :size] - (size - 1) / 2, 1)
    return sample(image, np.reshape(middle, (2, 1, 1)) + np.reshape(step, (2, 1, 1)) * offset)


def _find(model, images, step, middle):
    """The cavity's middle: seen in windows all over the images, then in one about it."""
    size, shape = model.window.size, np.array(images[0].shape)
    counts = np.maximum(np.ceil(shape / step / (size / 2)).astype(int) - 1, 1)
    spread = [
        middle[a] + (np.arange(n) - (n - 1) / 2) * size / 2 * step[a] for a, n in enumerate(counts)
    ]
    centres = [np.array([r, c]) for r in spread[0] for c in spread[1]]
    for _ in range(2):
        seen = [_window(model, image, at, step) for at in centres for image in images]
        cavity = model.probabilities(np.stack(seen))[..., model.label(CAVITY)]
        cavity = cavity.reshape(len(centres), len(images), size, size).mean(axis=1)
        places = [(*_largest(one), at) for one, at in zip(cavity, centres, strict=True)]
        mass, offset, at = max(places, key=lambda place: place[0])
        if mass < _LEAST_PIXELS:
            return middle
        centres = [at + step * offset]
    return centres[0]


def _largest(cavity):
    """(sum of squared probability, offset from the window's middle `[2]`) of the largest part."""
    parts, count = ndimage.label(cavity > 0.3)
    if not count:
        return 0.0, np.zeros(2)
    # squared, so that much of little certainty does not outweigh a cavity
    masses = ndimage.sum_labels(cavity**2, parts, np.arange(1, count + 1))
    best = int(np.argmax(masses)) + 1
    at = ndimage.center_of_mass(cavity, parts, best)
    return float(masses[best - 1]), np.array(at) - (len(cavity) - 1) / 2


def _back(probabilities, ways):
    """Windows `[ways, S, S, K]` seen in several ways, as the first way sees them."""
    size = probabilities.shape[1]
    offset = np.mgrid[:size, :size] - (size - 1) / 2
    turned = [probabilities[0]]
    for one, way in zip(probabilities[1:], ways[1:], strict=True):
        at = np.tensordot(np.linalg.inv(way), offset, 1) + (size - 1) / 2
        turned.append(_interpolate(one, at))
    return np.stack(turned)


def _interpolate(probabilities, at):
    """`[..., K]` at positions `[2, ...]` of a window `[S, S, K]`; background outside."""
    classes = [
        ndimage.map_coordinates(probabilities[..., k], at, order=1, mode="constant", cval=k == 0)
        for k in range(probabilities.shape[-1])
    ]
    return np.stack(classes, axis=-1)


def _on_image(probabilities, shape, middle, step):
    """A window `[S, S, K]` about `middle` on the grid of an image of `shape`."""
    size = len(probabilities)
    at = (np.indices(shape) - np.reshape(middle, (2, 1, 1))) / np.reshape(step, (2, 1, 1))
    at += (size - 1) / 2
    out = np.zeros((*shape, probabilities.shape[-1]), np.float32)
    out[..., 0] = 1
    # of a large image the window shows a part
    within = inside(np.moveaxis(at, 0, -1), (size, size))
    out[within] = _interpolate(probabilities, at[:, within])
    return out


def _agreement(cavity):
    """Views `[ways, S, S]` of the cavity: mean soft Dice with their mean, times its certainty."""
    mean = cavity.mean(axis=0)
    core = mean > 0.5
    if connected(core).sum() < _LEAST_PIXELS:
        return 0.0
    both, sizes = (2 * (cavity * mean).sum((1, 2))), (cavity**2 + mean**2).sum((1, 2))
    return float((both / sizes).mean() * mean[core].mean())
