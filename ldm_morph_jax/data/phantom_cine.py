"""A whole beat of the phantom heart, with the motion and the strain of its tissue known exactly.

The heart is that of `phantom.phantom_pair` with the same seed. Its contraction rises from zero at
end-diastole (frame 0) to one at end-systole, falls in early filling, rests, falls again in the
atrial kick and is zero in the last frame, where every tissue point is back where it began. Twist
(short-axis) and long-axis shortening (apical) let go earlier than the rest, so tissue comes back
on another way than it went. What makes tracking hard is there as well: blood and a share of the
speckle change from frame to frame, gain wavers, a sector of the wall drops out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import PchipInterpolator

from ldm_morph_jax.data import phantom
from ldm_morph_jax.data.phantom import LV, MYOCARDIUM, Moment


class PhantomCine(NamedTuple):
    """One beat of T frames.

    frames: `[T, H, W]` float32 in [0, 1]; frame 0 is end-diastole, the reference.
    masks: `[T, H, W]` uint8, labels of `phantom`.
    times: `[T]` seconds.
    displacement: `[T, H, W, 2]` float32 pixels, Lagrangian: the tissue at x of frame 0 is at
        x + displacement[t](x) in frame t.
    inverse: `[T, H, W, 2]` float32 pixels: the tissue at x of frame t was at x + inverse[t](x) in
        frame 0.
    deformation: `[T, H, W, 2, 2]` float32, d(x + displacement)/dx by automatic differentiation of
        the motion: exact, not from differences of pixels. Convention: `ops.strain`.
    end_systole: the frame of the strongest contraction.
    """

    frames: np.ndarray
    masks: np.ndarray
    times: np.ndarray
    displacement: np.ndarray
    inverse: np.ndarray
    deformation: np.ndarray
    end_systole: int


def phantom_cine(
    seed: int | Sequence[int], *, look: str = "sax", image_size: int = 128, frames: int = 30
) -> PhantomCine:
    """Draws one heart through a whole beat.

    Args:
      seed: integer or integers; the same seed gives the same heart as in `phantom_pair`, and the
        same beat at every image size and number of frames.
      look: "sax" (short-axis MRI) or "echo" (apical ultrasound).
      image_size: height and width in pixels, at least 32.
      frames: how many, at least 3; the last one is the next beat's first.

    Raises:
      ValueError: unknown look, image too small, too few frames.
    """
    if frames < 3:
        raise ValueError(f"phantom: a beat needs at least 3 frames, found {frames}")
    rng = np.random.default_rng(seed)
    beat = _Beat(rng.spawn(1)[0], look)
    heart = phantom.draw_heart(rng, look, image_size)
    grid = phantom.pixel_grid(image_size)
    phase = np.linspace(0, 1, frames)
    # the last value is zero to rounding, which may be below zero
    contraction, release = (
        np.clip(curve(phase), 0, 1) for curve in (beat.contraction, beat.release)
    )
    to_tissue = heart.fold_free(contraction[:, None, None], release[:, None, None], grid)

    tissue = np.broadcast_to(to_tissue(grid), (frames, *grid.shape))
    moments = [
        Moment(c, beat.turns * 2 * np.pi * p, number)
        for number, (c, p) in enumerate(zip(contraction, phase, strict=True))
    ]
    pictures = [heart.render(points, grid, m) for points, m in zip(tissue, moments, strict=True)]
    images, masks = (np.stack(part) for part in zip(*pictures, strict=True))
    images = beat.scan(images, phase, _dropout(masks[0], beat))

    here = np.broadcast_to(grid, tissue.shape)
    moved = phantom.inverse(to_tissue, here)
    displacement, inverse = (
        ((points - here) * image_size / phantom.REFERENCE).astype(np.float32)
        for points in (moved, tissue)
    )
    return PhantomCine(
        images.astype(np.float32),
        masks,
        beat.seconds * phase,
        displacement,
        inverse,
        np.linalg.inv(_derivative(to_tissue, moved)).astype(np.float32),
        int(contraction.argmax()),
    )


class _Beat:
    """Time course of one beat and the scanner's faults in it; phase 0 to 1."""

    def __init__(self, rng: np.random.Generator, look: str):
        self.look = look
        self.seconds = rng.uniform(0.7, 1.1)
        systole = rng.uniform(0.3, 0.4)
        # piecewise cubic without overshoot: flat at end-systole and at rest
        self.contraction = PchipInterpolator(
            [0, systole, systole + 0.25, 0.8, 1], [0, 1, 0.25, 0.2, 0]
        )
        self.release = PchipInterpolator(
            [0, systole, systole + 0.1, systole + 0.22, 0.85, 1], [0, 1, 0.5, 0.12, 0.1, 0]
        )
        self.turns = rng.uniform(3, 5)  # how often blood and fresh speckle change
        self.side = rng.uniform(0, 2 * np.pi)  # of the sector that drops out
        self.width = np.deg2rad(rng.uniform(20, 35))
        self.loss = rng.uniform(0.25, 0.45) if look == "sax" else rng.uniform(5, 10)  # echo: dB
        self.waver = rng.normal(size=1000)  # more than there are frames

    def scan(self, images: np.ndarray, phase: np.ndarray, dropout: np.ndarray) -> np.ndarray:
        """Images `[T, H, W]` with the gain of every frame and the loss of signal in a sector."""
        noise = self.waver[: len(phase), None, None]
        slow = np.sin(2 * np.pi * phase + self.side)[:, None, None]
        if self.look == "sax":
            images = images * (1 + 0.02 * noise + 0.03 * slow) * (1 - self.loss * dropout)
        else:
            decibel = 0.5 * noise + slow - self.loss * dropout
            images = images + np.where(images > 0.02, decibel / 52, 0)
        return np.clip(images, 0, 1)


def _dropout(mask: np.ndarray, beat: _Beat) -> np.ndarray:
    """How much of the signal is lost at every pixel, 0 to 1: most in one sector of the wall."""
    ventricle = np.argwhere(mask == LV)
    away = np.stack(np.indices(mask.shape), axis=-1) - ventricle.mean(axis=0)
    radius, angle = np.hypot(*np.moveaxis(away, -1, 0)), np.arctan2(away[..., 1], away[..., 0])
    aside = (angle - beat.side + np.pi) % (2 * np.pi) - np.pi
    sector = np.exp(-((aside / beat.width) ** 2))
    wall = mask == MYOCARDIUM
    there = wall & (np.abs(aside) < beat.width)
    depth = np.median(radius[there if there.any() else wall])  # an apical view is open at its base
    return sector * np.exp(-(((radius - depth) / (0.4 * depth)) ** 2))


def _derivative(to_tissue: phantom.Map, x: phantom.Points) -> np.ndarray:
    """d to_tissue / dx at every point, `[..., 2, 2]`."""
    x = jnp.asarray(x, jnp.float32)
    columns = [
        jax.jvp(to_tissue, (x,), (jnp.broadcast_to(jnp.eye(2)[k], x.shape),))[1] for k in (0, 1)
    ]
    return np.stack(columns, axis=-1)
