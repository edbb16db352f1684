"""Training images for the anatomy network: windows of annotated images, varied.

A window is a square of pixels of one size in millimetres, or the whole image where the size of its
pixels is not known. `Variation` shows the same heart as another scanner, another operator and
another user would: turned, mirrored, larger, off the centre, in other greys, blurred, noisy, cut.
Some windows hold no heart at all, so that the network learns to say so.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ldm_morph_jax.data.preprocessing import percentile
from ldm_morph_jax.files.geometry import inside


@dataclasses.dataclass(frozen=True)
class Window:
    """A grid of `size` x `size` pixels about a point of an image.

    Attributes:
      size: pixels.
      spacing_mm: of a pixel; 0: the whole image fills the window, whatever its size and shape.
    """

    size: int
    spacing_mm: float

    def step(self, shape, spacing) -> np.ndarray:
        """`[2]`: pixels of an image of `shape` and `spacing` (mm) between two of the window."""
        if self.spacing_mm:
            return self.spacing_mm / np.asarray(spacing, np.float64)
        return np.asarray(shape[:2]) / self.size

    def coordinates(self, shape, spacing, centre=None, matrix=None) -> np.ndarray:
        """Where the window's pixels lie in an image, `[2, size, size]` (row, column).

        centre: the position of the window's centre in the image, default the image's. matrix:
        applied to offsets from the centre, in pixels of the window; None: they stay.
        """
        if centre is None:
            centre = (np.asarray(shape[:2]) - 1) / 2
        offset = np.mgrid[: self.size, : self.size] - (self.size - 1) / 2
        if matrix is not None:
            offset = np.tensordot(matrix, offset, 1)
        return np.reshape(centre, (2, 1, 1)) + self.step(shape, spacing).reshape(2, 1, 1) * offset


def sample(image: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """A window of an image `[H, W]`, float32 in [0, 1]; what lies outside of the image is 0.

    Linear, after a Gaussian where the window's pixels are larger than the image's; scaled from the
    1st to the 99th percentile of what lies inside.
    """
    image = np.asarray(image, np.float32)
    # the side of a pixel of the window, in pixels of the image
    step = np.linalg.norm([np.diff(coordinates, axis=a).mean((1, 2)) for a in (1, 2)], axis=1)
    sigma = 0.4 * np.sqrt(np.maximum(step**2 - 1, 0))
    if sigma.max() > 0.3:
        image = ndimage.gaussian_filter(image, sigma.mean(), mode="nearest")
    values = ndimage.map_coordinates(image, coordinates, order=1, mode="nearest")
    within = inside(np.moveaxis(coordinates, 0, -1), image.shape)
    seen = values[within]
    if seen.size == 0 or seen.min() == seen.max():
        return np.zeros(values.shape, np.float32)
    values[within] = percentile(seen)
    values[~within] = 0
    return values


def sample_labels(mask: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """A window of labels `[H, W]`, nearest; 0 outside."""
    labels = ndimage.map_coordinates(mask, coordinates, order=0, mode="nearest")
    labels[~inside(np.moveaxis(coordinates, 0, -1), mask.shape)] = 0
    return labels


@dataclasses.dataclass(frozen=True)
class Variation:
    """Random windows; each number is the largest change or a probability, 0 = none.

    Attributes:
      rotation_degrees: uniform in +-.
      mirror: probability of a mirror image along each of the two axes.
      scale: enlargement by exp(s), s uniform in +-.
      aspect: one axis more than the other by exp(s), s uniform in +-.
      shift: of the window, standard deviation as a share of its side.
      bend: standard deviation of a smooth displacement, in pixels.
      squeeze: what is labelled shrinks to 1 / (1 + s) in its middle, or grows, s uniform in +-, as
        a cavity does between end-diastole and end-systole; the tissue about it thickens, or thins.
      gamma: image ** exp(g), g normal.
      field: logarithm of a smooth gain, standard deviation.
      contrast: the range of greys is stretched or cut by so much at either end, uniform in +-.
      blur: largest sigma of a Gaussian, pixels, in half of the images.
      noise: largest standard deviation, in two thirds of the images.
      speckle: the same, multiplied with the image.
      coarse: largest factor of a lower resolution, in a quarter of the images.
      cut: probability of black beyond a random line.
      nothing: probability of a window that shows no heart.
    """

    rotation_degrees: float = 0.0
    mirror: tuple[float, float] = (0.0, 0.0)
    scale: float = 0.0
    aspect: float = 0.0
    shift: float = 0.0
    bend: float = 0.0
    squeeze: float = 0.0
    gamma: float = 0.0
    field: float = 0.0
    contrast: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    speckle: float = 0.0
    coarse: float = 0.0
    cut: float = 0.0
    nothing: float = 0.0

    def window(self, element: dict, window: Window, rng: np.random.Generator) -> dict:
        """{"image": `[S, S, 1]` float32, "mask": `[S, S, 1]` uint8} of an annotated image.

        element: "image" `[H, W, 1]`, "mask" `[H, W, 1]`, "spacing" `[2]` in mm.
        """
        image, mask = element["image"][..., 0], element["mask"][..., 0]
        at = window.coordinates(
            image.shape,
            element["spacing"],
            self._centre(image.shape, element["spacing"], window, rng),
            self._matrix(rng),
        )
        if self.bend:
            bent = np.stack([smooth_noise(at.shape[1:], 5, rng) for _ in range(2)])
            step = window.step(image.shape, element["spacing"]).reshape(2, 1, 1)
            at = at + step * self.bend * bent
        if self.squeeze and mask.any():
            at = squeezed(at, mask, rng.uniform(-1, 1) * self.squeeze)
        seen = sample(image, at)
        label = sample_labels(mask, at)
        if rng.random() < self.nothing:
            seen, label = nothing(seen, rng), np.zeros_like(label)
        if rng.random() < self.cut:
            beyond = self._beyond_a_line(window.size, rng)
            seen, label = np.where(beyond, 0, seen), np.where(beyond, 0, label)
        seen = self.appearance(seen, rng)
        return {"image": seen[..., None].astype(np.float32), "mask": label[..., None]}

    def appearance(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Another scanner's picture of the same `[S, S]` in [0, 1]."""
        image = image ** np.exp(rng.normal(0, self.gamma))
        if self.field:
            image = image * np.exp(smooth_noise(image.shape, 3, rng) * self.field)
        if self.blur and rng.random() < 1 / 2:
            image = ndimage.gaussian_filter(image, rng.uniform(0, self.blur))
        if self.coarse > 1 and rng.random() < 1 / 4:
            size = len(image)
            few = int(size / rng.uniform(1, self.coarse))
            there_and_back = _resampling(few, size) @ _resampling(size, few)
            image = there_and_back @ image @ there_and_back.T
        if rng.random() < 2 / 3:
            image = image * (1 + rng.uniform(0, self.speckle) * rng.standard_normal(image.shape))
            image = image + rng.uniform(0, self.noise) * rng.standard_normal(image.shape)
        low, high = np.quantile(image, (0.005, 0.995)) + self.contrast * rng.uniform(-1, 1, 2)
        return np.clip((image - low) / max(high - low, 0.1), 0, 1)

    def _centre(self, shape, spacing, window, rng):
        middle = (np.asarray(shape) - 1) / 2
        offset = rng.normal(0, self.shift, 2) * window.size
        return middle + window.step(shape, spacing) * offset

    def _matrix(self, rng):
        """From offsets in the window to offsets in the image: the inverse of what is done to it."""
        angle = np.deg2rad(rng.uniform(-1, 1) * self.rotation_degrees)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        sides = np.where(rng.random(2) < self.mirror, -1, 1)
        scale, aspect = rng.uniform(-1, 1, 2) * (self.scale, self.aspect)
        return turn @ np.diag(sides * np.exp(-scale + np.array([-aspect, aspect]) / 2))

    @staticmethod
    def _beyond_a_line(size, rng):
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.5) * size
        rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
        return np.cos(angle) * rows + np.sin(angle) * columns > far


class VariedWindows:
    """An augmentation of `data.pipeline`: annotated images in, varied windows of them out."""

    def __init__(self, variation: Variation, window: Window):
        self.variation, self.grid = variation, window

    def __call__(self, element: dict, rng: np.random.Generator) -> dict:
        return {"index": element["index"]} | self.variation.window(element, self.grid, rng)


def plain_window(element: dict, window: Window) -> dict:
    """{"image", "mask"} `[S, S, 1]`: the middle window of an annotated image, unvaried."""
    image, mask = element["image"][..., 0], element["mask"][..., 0]
    at = window.coordinates(image.shape, element["spacing"])
    return {"image": sample(image, at)[..., None], "mask": sample_labels(mask, at)[..., None]}


def validation_windows(source, window: Window) -> dict[str, np.ndarray]:
    """{"image", "mask"} `[N, S, S, 1]`: the middle window of all annotated images, unvaried."""
    windows = [plain_window(source[k], window) for k in range(len(source))]
    return {name: np.stack([element[name] for element in windows]) for name in ("image", "mask")}


def squeezed(at: np.ndarray, mask: np.ndarray, share: float) -> np.ndarray:
    """Coordinates `[2, H, W]` that show the middle of a mask smaller by 1 / (1 + share).

    Offsets d from the mask's middle become d (1 + share exp(-|d|^2 / (2 R^2))), R the radius of a
    disc as large as the mask: steepest where d is 0, less than 1 beyond R, monotonic for shares in
    (-1, 2.2), so that nothing folds.
    """
    middle = np.reshape(ndimage.center_of_mass(mask > 0), (2, 1, 1))
    offset = at - middle
    squared_radius = np.count_nonzero(mask) / np.pi
    return middle + offset * (1 + share * np.exp(-(offset**2).sum(0) / (2 * squared_radius)))


def smooth_noise(shape, waves: int, rng: np.random.Generator) -> np.ndarray:
    """Normal noise `[H, W]`: cosines of up to `waves` - 1 half waves a side; SD about 1.2."""
    rows, columns = (
        np.cos(np.pi * np.outer((np.arange(side) + 0.5) / side, np.arange(waves))) for side in shape
    )
    weights = rng.standard_normal((waves, waves)) * (2 / waves)
    return rows @ weights @ columns.T


def _resampling(old: int, new: int) -> np.ndarray:
    """`[new, old]`: linear interpolation of a line of `old` pixels at `new` of them."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(old)), 0)


def nothing(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An `[S, S]` in [0, 1] that shows no heart: made from one that does, or drawn."""
    size = image.shape[0]
    kind = rng.integers(6)
    if kind == 0:  # its pieces in another order: the same tissue, no heart
        pieces = image[: size // 16 * 16, : size // 16 * 16].reshape(16, size // 16, 16, -1)
        pieces = pieces.swapaxes(1, 2).reshape(256, size // 16, size // 16)
        pieces = rng.permutation(pieces).reshape(16, 16, size // 16, -1).swapaxes(1, 2)
        out = np.zeros_like(image)
        out[: size // 16 * 16, : size // 16 * 16] = pieces.reshape((size // 16 * 16,) * 2)
        return out
    if kind == 1:  # noise of every grain
        return _unit(smooth_noise(image.shape, int(rng.integers(3, size)), rng))
    if kind == 2:  # its spectrum with random phases
        phases = np.angle(np.fft.rfft2(rng.standard_normal(image.shape)))
        return _unit(np.fft.irfft2(np.abs(np.fft.rfft2(image)) * np.exp(1j * phases), image.shape))
    if kind == 3:  # a flat grey, or a ramp
        rows, columns = np.mgrid[:size, :size] / size - 0.5
        slope = rng.normal(0, 1, 2) * rng.integers(2)
        return np.clip(rng.random() + slope[0] * rows + slope[1] * columns, 0, 1)
    drawn = Image.new("L", (size, size), int(rng.integers(80)))
    pen = ImageDraw.Draw(drawn)
    for _ in range(int(rng.integers(1, 12))):
        corner, grey = rng.integers(-size // 4, size, 2), int(rng.integers(256))
        if kind == 4:  # text
            letters = "".join(chr(code) for code in rng.integers(33, 123, 12))
            pen.text(tuple(int(c) for c in corner), letters, fill=grey)
        else:  # bars and boxes
            far = corner + rng.integers(2, size // 2, 2)
            pen.rectangle([*(int(c) for c in corner), *(int(c) for c in far)], fill=grey)
    return np.asarray(drawn, np.float32) / 255


def _unit(x):
    return (x - x.min()) / max(np.ptp(x), 1e-6)
