"""A 2D cardiac phantom with known motion: short-axis MRI ("sax") and apical echo ("echo").

A heart is a set of implicit shapes and textures attached to the tissue at end-diastole (ED). A
composition of smooth maps sends every point x of the end-systolic (ES) image to the tissue point
phi(x) that has moved there. The ED image shows the tissue at x, the ES image the tissue at phi(x),
so u(x) = phi(x) - x is the exact displacement in the project's convention, with moving = ED and
fixed = ES: moving(x + u(x)) ~ fixed(x). Images and masks are evaluated at these points, never
resampled. Anatomy, texture and (mostly) speckle move with the tissue. Noise, coil or beam shading,
gain and the echo sector belong to the scanner and do not move.

All lengths are in "reference pixels": the field of view is 128 x 128 reference pixels (160 mm) at
any image size, so a seed gives the same heart at every size. Points are (row, column).
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from ldm_morph_jax.data.base import Pair

REFERENCE = 128
FIELD_OF_VIEW_MM = 160.0
LOOKS = ("sax", "echo")
LV, MYOCARDIUM, THIRD = 1, 2, 3  # THIRD: right ventricle (sax), left atrium (echo)
MIN_JACOBIAN = 0.1

Points = np.ndarray  # [..., H, W, 2] float64, (row, column) in reference pixels
Map = Callable[[Points], Points]  # of JAX arrays, too: a motion can be differentiated


class Moment(NamedTuple):
    """What changes from image to image besides the motion.

    contraction: 0 at ED, 1 at ES; gain, blood and the speckle that stays follow it.
    turn: radians by which blood and fresh speckle have changed besides, without repeating before
      a full turn.
    noise: which noise.
    """

    contraction: float
    turn: float
    noise: int


ED, ES = Moment(0.0, 0.0, 0), Moment(1.0, 0.0, 1)


def phantom_pair(
    seed: int | Sequence[int], *, look: str = "sax", image_size: int = 128, reverse: bool = False
) -> Pair:
    """Draws one heart and its contraction.

    Args:
      seed: integer or integers; the same seed gives the same heart at every image size.
      look: "sax" or "echo".
      image_size: height and width in pixels, at least 32.
      reverse: False: moving is ED, fixed is ES. True: the other way round, with the inverse
        displacement.

    Returns:
      The pair: images [H, W] float32 in [0, 1], masks [H, W] uint8, the displacement [H, W, 2]
      float32 in pixels, with a Jacobian determinant above MIN_JACOBIAN everywhere.

    Raises:
      ValueError: unknown look or image too small.
    """
    heart, grid = draw_heart(np.random.default_rng(seed), look, image_size), pixel_grid(image_size)
    to_tissue = heart.fold_free(1.0, 1.0, grid)
    tissue, pixel = to_tissue(grid), REFERENCE / image_size
    displacement = (tissue - grid) / pixel
    moving, moving_mask = heart.render(grid, grid, ED)
    fixed, fixed_mask = heart.render(tissue, grid, ES)
    if reverse:
        displacement = (inverse(to_tissue, grid) - grid) / pixel
        moving, moving_mask, fixed, fixed_mask = fixed, fixed_mask, moving, moving_mask
    return Pair(
        moving.astype(np.float32),
        fixed.astype(np.float32),
        moving_mask,
        fixed_mask,
        spacing=(FIELD_OF_VIEW_MM / image_size,) * 2,
        displacement=displacement.astype(np.float32),
    )


class Heart(NamedTuple):
    """One heart, drawn once; its motion and moment are given when it is seen.

    render: (tissue points, image points, moment) -> (image, mask) `[H, W]`.
    motion: (contraction, release), each 0 to 1, scalars or `[T, 1, 1]` -> map of image points
        to tissue points. `release` is of what lets go before the rest does: twist ("sax"),
        long-axis shortening ("echo").
    """

    render: Callable[[Points, Points, Moment], tuple[np.ndarray, np.ndarray]]
    motion: Callable[..., Map]

    def fold_free(self, contraction, release, grid: Points) -> Map:
        """The motion, weakened until its Jacobian on `grid` is above MIN_JACOBIAN."""
        for strength in 0.9 ** np.arange(20):
            to_tissue = self.motion(strength * contraction, strength * release)
            if _jacobian(to_tissue(grid), grid).min() > MIN_JACOBIAN:
                return to_tissue
        raise RuntimeError("phantom: no fold-free motion for this seed")


def draw_heart(rng: np.random.Generator, look: str, image_size: int) -> Heart:
    """The heart of `phantom_pair`. Raises ValueError: unknown look or image too small."""
    if look not in LOOKS:
        raise ValueError(f"phantom: look must be one of {LOOKS}, found {look!r}")
    if image_size < 32:
        raise ValueError(f"phantom: image_size must be at least 32, found {image_size}")
    draw = _sax_heart if look == "sax" else _echo_heart
    return Heart(*draw(rng, REFERENCE / image_size))


# ---------------------------------------------------------------------------- geometry


def pixel_grid(image_size: int) -> Points:
    """Centres of the pixels, `[image_size, image_size, 2]`."""
    centres = (np.arange(image_size) + 0.5) * REFERENCE / image_size - 0.5
    return np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1)


def _jacobian(y: Points, x: Points) -> np.ndarray:
    """Determinant of dy/dx by central differences on the grid x, [..., H, W]."""
    step = x[1, 0, 0] - x[0, 0, 0]
    d_row, d_col = np.gradient(y, step, axis=(-3, -2))
    return d_row[..., 0] * d_col[..., 1] - d_row[..., 1] * d_col[..., 0]


def inverse(to_tissue: Map, y: Points) -> Points:
    """Solves to_tissue(x) = y by Newton's method with a finite-difference derivative."""
    x, step = y.copy(), 1e-3
    for _ in range(30):
        residual = to_tissue(x) - y
        if np.abs(residual).max() < 1e-6:
            return x
        d_row = (to_tissue(x + [step, 0.0]) - y - residual) / step
        d_col = (to_tissue(x + [0.0, step]) - y - residual) / step
        change = np.linalg.solve(np.stack([d_row, d_col], axis=-1), residual[..., None])[..., 0]
        x = x - np.clip(change, -4.0, 4.0)
    raise RuntimeError("phantom: the inverse motion did not converge")


def _frame(p: Points, origin: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of p along (cos, sin)(angle) in (row, column), and across it."""
    d, (c, s) = p - origin, (np.cos(angle), np.sin(angle))
    return d[..., 0] * c + d[..., 1] * s, -d[..., 0] * s + d[..., 1] * c


def _from_frame(a: np.ndarray, b: np.ndarray, origin: np.ndarray, angle: float) -> Points:
    c, s, xp = np.cos(angle), np.sin(angle), a.__array_namespace__()
    return xp.stack([a * c - b * s, a * s + b * c], axis=-1) + origin


def _ellipse(a: np.ndarray, b: np.ndarray, semi_a, semi_b: float) -> np.ndarray:
    """Signed distance to an ellipse (first order; negative inside)."""
    f = np.sqrt((a / semi_a) ** 2 + (b / semi_b) ** 2) + 1e-9
    slope = np.sqrt((a / semi_a**2) ** 2 + (b / semi_b**2) ** 2) / f + 1e-9
    return (f - 1) / slope


def _radial_map(origin, angle: float, aspect: float, radius: float, ratio: float, reach: float):
    """Contraction towards `origin`: the contour `ratio * radius` at ES was `radius` at ED.

    In the frame stretched by `aspect` the squared radius grows by A w(r): the cavity scales
    (w ~ r^2), the wall roughly keeps its area (w ~ 1), and beyond `reach` nothing moves.
    """

    def weight(r, xp):
        t = r / (ratio * radius)
        return t**2 / xp.cbrt(1 + t**6) / (1 + (r / reach) ** 4)

    growth = radius**2 * (1 - ratio**2) / weight(ratio * radius, np)

    def apply(p: Points) -> Points:
        a, b = _frame(p, origin, angle)
        a, b, xp = a * aspect, b / aspect, p.__array_namespace__()
        r = xp.sqrt(a**2 + b**2) + 1e-9
        scale = xp.sqrt(r**2 + growth * weight(r, xp)) / r
        return _from_frame(a * scale / aspect, b * scale * aspect, origin, angle)

    return apply


def _twist_map(origin, radians: float, reach: float) -> Map:
    def apply(p: Points) -> Points:
        d, xp = p - origin, p.__array_namespace__()
        angle = radians * xp.exp(-xp.sum(d**2, axis=-1) / reach**2)
        c, s = xp.cos(angle), xp.sin(angle)
        rotated = [c * d[..., 0] - s * d[..., 1], s * d[..., 0] + c * d[..., 1]]
        return origin + xp.stack(rotated, axis=-1)

    return apply


def _squeeze_map(origin, angle: float, centre: float, width: float, amount: float, window) -> Map:
    """Moves points across the axis, away from the line b = centre, by at most `amount`."""

    def apply(p: Points) -> Points:
        a, b = _frame(p, origin, angle)
        t, xp = (b - centre) / width, p.__array_namespace__()
        return _from_frame(a, b + amount * window(a) * t * xp.exp(0.5 * (1 - t**2)), origin, angle)

    return apply


def _shorten_map(origin, angle: float, base: float, amount: float, width: float) -> Map:
    """Moves points along the axis, most of all at a = base; far to the side nothing moves."""

    def apply(p: Points) -> Points:
        (a, b), xp = _frame(p, origin, angle), p.__array_namespace__()
        along = xp.exp(-(((a - base) / (0.55 * base)) ** 2))
        return _from_frame(a + amount * along * xp.exp(-((b / width) ** 2)), b, origin, angle)

    return apply


def _smooth_map(rng: np.random.Generator) -> Callable[[float], Map]:
    """Amplitude -> a small random field of long waves (wavelength 50 to 130 reference pixels)."""
    waves = [
        (rng.uniform(0, 2 * np.pi), 2 * np.pi / rng.uniform(50, 130), rng.uniform(0, 2 * np.pi))
        for _ in range(6)
    ]
    directions = rng.normal(size=(6, 2))

    def with_amplitude(amplitude: float) -> Map:
        def apply(p: Points) -> Points:
            xp = p.__array_namespace__()
            u = xp.zeros_like(p)
            for (heading, frequency, phase), direction in zip(waves, directions, strict=True):
                along = p[..., 0] * np.cos(heading) + p[..., 1] * np.sin(heading)
                u = u + xp.sin(frequency * along + phase)[..., None] * direction
            return p + np.asarray(amplitude)[..., None] / np.sqrt(6) * u

        return apply

    return with_amplitude


def _chain(*maps: Map) -> Map:
    def apply(p: Points) -> Points:
        for transform in maps:
            p = transform(p)
        return p

    return apply


# ---------------------------------------------------------------------------- textures


class _Texture:
    """Smooth random texture with zero mean and unit standard deviation, defined everywhere."""

    MARGIN = 32

    def __init__(self, rng: np.random.Generator, scale: float):
        size = REFERENCE + 2 * self.MARGIN
        field = ndimage.gaussian_filter(rng.normal(size=(size, size)), scale, mode="wrap")
        self.field = (field - field.mean()) / field.std()

    def __call__(self, p: Points) -> np.ndarray:
        coordinates = np.moveaxis(p, -1, 0) + self.MARGIN
        return ndimage.map_coordinates(self.field, coordinates, order=1, mode="mirror")


class _Speckle:
    """Complex speckle of unit power on a polar grid: narrow along the beam, wide across it."""

    DEPTH_STEP, ANGLE_STEP, ANGLE_MAX = 0.75, 0.0075, 1.2

    def __init__(self, rng: np.random.Generator, probe: np.ndarray):
        self.probe = probe
        shape = (2, int(200 / self.DEPTH_STEP), int(2 * self.ANGLE_MAX / self.ANGLE_STEP))
        field = ndimage.gaussian_filter(rng.normal(size=shape), (0, 1.1, 2.6), mode="wrap")
        self.field = field / np.sqrt(2 * np.mean(field**2))

    def __call__(self, p: Points) -> np.ndarray:
        depth, angle = _polar(p, self.probe)
        coordinates = [depth / self.DEPTH_STEP, (angle + self.ANGLE_MAX) / self.ANGLE_STEP]
        real, imaginary = (
            ndimage.map_coordinates(part, coordinates, order=1, mode="mirror")
            for part in self.field
        )
        return real + 1j * imaginary

    def shifted(self) -> "_Speckle":
        """Half the field further on: independent of this one at every place."""
        other = copy.copy(self)
        other.field = np.roll(self.field, self.field.shape[-1] // 2, axis=-1)
        return other


def _polar(p: Points, probe: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    d = p - probe
    return np.hypot(d[..., 0], d[..., 1]), np.arctan2(d[..., 1], d[..., 0])


def _inside(distance: np.ndarray, edge: float) -> np.ndarray:
    """Coverage in [0, 1] of a shape with a soft edge; `distance` is negative inside."""
    return 1 / (1 + np.exp(np.clip(distance / (0.4 * edge), -30, 30)))


def _line(distance: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-((distance / width) ** 2))


def _paint(canvas: np.ndarray, coverage: np.ndarray, value) -> np.ndarray:
    return canvas + coverage * (value - canvas)


# ---------------------------------------------------------------------------- short axis


def _sax_heart(rng: np.random.Generator, pixel: float):
    """Short-axis cine MRI (balanced SSFP): bright blood, dark-grey muscle, black lung."""
    centre = np.array([rng.uniform(56, 68), rng.uniform(64, 76)])
    radius, wall = rng.uniform(18, 26), rng.uniform(5.5, 8.5)
    tilt, aspect = rng.uniform(0, np.pi), rng.uniform(0.92, 1.08)
    ripple = [(n, rng.uniform(0, 2 * np.pi), rng.normal() * 0.035 / n**0.5) for n in (2, 3, 5)]
    wall_phase = rng.uniform(0, 2 * np.pi)

    # Right ventricle: to the left of the image, often a little up.
    to_rv = np.pi + np.pi / 2 + rng.uniform(-0.2, 0.6)  # angle from the row axis: -column
    rv_depth, rv_length = rng.uniform(15, 22), rng.uniform(1.0, 1.25) * (radius + wall)
    rv_offset = radius + wall + rng.uniform(-0.15, 0.15) * rv_depth
    rv_centre = centre + rv_offset * np.array([np.cos(to_rv), np.sin(to_rv)])

    es_ratio = rng.uniform(0.63, 0.85)
    es_rv_inward = rng.uniform(0.12, 0.26) * rv_depth  # of the free wall
    drift = rng.normal(scale=0.8, size=2)
    smooth = _smooth_map(rng)
    es_twist = np.deg2rad(rng.uniform(-9, 9))

    def motion(contraction: float, twist: float) -> Map:
        ratio = 1 - (1 - es_ratio) * contraction
        rv_inward = es_rv_inward * contraction
        return _chain(
            smooth(0.9 * contraction),
            _shorten_map(rv_centre, to_rv, rv_depth - rv_inward, rv_inward, rv_length),
            _twist_map(centre, es_twist * twist, 1.1 * radius),
            _radial_map(centre + drift, tilt, aspect, radius, ratio, radius * ratio + wall + 8),
        )

    papillary = [
        (base + rng.normal(scale=0.2), rng.uniform(0.66, 0.84), rng.uniform(0.11, 0.2) * radius)
        for base in (to_rv + 2.2, to_rv - 2.1)
    ]
    chest_angle, chest_distance = to_rv - rng.uniform(0.5, 0.9), rng.uniform(46, 62)
    liver_row, liver_slope = rng.uniform(98, 116), rng.uniform(-0.25, 0.25)
    vessels = [
        (rng.uniform(8, 112), rng.uniform(100, 127), rng.uniform(0, np.pi), rng.uniform(0.8, 1.6))
        for _ in range(rng.integers(8, 22))
    ]
    vessel_light = rng.uniform(0.08, 0.45, size=len(vessels))
    has_vessel = rng.uniform() < 0.6  # great vessel or atrium above the right ventricle
    great_at = rv_centre + np.array([-rng.uniform(24, 34), rng.uniform(4, 20)])
    great_radius = rng.uniform(8, 12)
    fat_reach = rng.uniform(2.5, 5.0)
    coarse, medium, fine = _Texture(rng, 9.0), _Texture(rng, 3.5), _Texture(rng, 1.1)
    flow = (_Texture(rng, 4.0), _Texture(rng, 4.0))  # of blood at ED and at ES
    light = {
        name: level * rng.uniform(0.9, 1.1)
        for name, level in dict(blood=0.62, rv=0.56, muscle=0.19, fat=0.5, liver=0.22).items()
    }
    shading = rng.uniform(0.25, 0.5)
    gain = rng.uniform(0.88, 1.12)  # at ES
    gamma = rng.uniform(0.93, 1.07)
    sigma = rng.uniform(0.012, 0.025)
    noise_seed = rng.integers(2**31)
    edge = max(1.0, pixel)

    def render(p: Points, x: Points, moment: Moment) -> tuple[np.ndarray, np.ndarray]:
        a, b = _frame(p, centre, tilt)
        a, b = a * aspect, b / aspect
        r, theta = np.hypot(a, b), np.arctan2(b, a)
        outline = radius * (1 + sum(h * np.cos(n * theta + f) for n, f, h in ripple))
        endo = r - outline
        epi = endo - wall * (1 + 0.15 * np.cos(theta + wall_phase))
        rv = _ellipse(*_frame(p, rv_centre, to_rv), rv_depth, rv_length) + 0.8 * medium(p)
        heart = np.minimum(epi, rv - 2.2)

        texture, grain = coarse(p), fine(p)
        mixture = np.pi / 2 * moment.contraction + moment.turn
        swirl = np.cos(mixture) * flow[0](p) + np.sin(mixture) * flow[1](p)
        image = np.full(r.shape, 0.035) + 0.012 * np.abs(medium(p))
        for (row, col, heading, width), level in zip(vessels, vessel_light, strict=True):
            along, across = _frame(p, np.array([row, col]), heading)
            image += level * np.exp(-((along / (2.2 * width)) ** 2) - (across / width) ** 2)

        # Liver and diaphragm below; chest wall (muscle under fat) towards the upper left.
        below = liver_row + liver_slope * (p[..., 1] - 64) + 3 * texture - p[..., 0]
        image = _paint(image, _inside(below, edge), light["liver"] + 0.035 * grain)
        image += 0.3 * _line(below - 1.5, 1.6) * (texture > -0.6)
        along, _ = _frame(p, centre, chest_angle)
        chest = chest_distance + 2.5 * texture - along
        image = _paint(image, _inside(chest, edge), light["muscle"] + 0.05 * grain)
        layers = 0.5 + 0.5 * np.tanh(2.5 * np.sin(-chest / 4.0 + medium(p)))
        image = _paint(image, _inside(chest + 5, edge), 0.2 + light["fat"] * layers)

        # Mediastinum on the side of the right ventricle, pericardial fat around the heart.
        beside, _ = _frame(p, centre, to_rv)
        tissue = radius + wall + 12 + 5 * texture - beside
        image = _paint(image, _inside(tissue, 3 * edge), 0.17 + 0.06 * medium(p) + 0.02 * grain)
        if has_vessel:
            great = np.hypot(*np.moveaxis(p - great_at, -1, 0)) - great_radius - 0.8 * texture
            image = _paint(image, _inside(great - 1.6, edge), 0.07)
            image = _paint(image, _inside(great, edge), light["rv"] + 0.04 * swirl)
        fat = heart - fat_reach * (0.4 + 0.7 * np.clip(texture + 0.4 * medium(p), -0.5, 1.6))
        image = _paint(image, _inside(fat - 1.3, 2 * edge), 0.06)  # chemical-shift line
        image = _paint(image, _inside(fat, 2 * edge), 0.3 + 0.12 * medium(p) + 0.04 * grain)
        image = _paint(image, _inside(heart - 1.0, edge), 0.08)

        muscle = light["muscle"] + 0.02 * texture + 0.02 * grain
        image = _paint(image, _inside(rv - 2.0, edge), muscle)
        trabeculae = np.clip(1.5 * grain - 0.8, 0, 1) * _line(rv + 2.0, 2.5)
        blood = light["rv"] + 0.05 * swirl - 0.25 * trabeculae
        image = _paint(image, _inside(rv, edge), blood)
        image = _paint(image, _inside(epi, edge), muscle)
        trabeculae = np.clip(1.4 * grain - 0.9, 0, 1) * _line(endo + 1.0, 2.5)
        blood = light["blood"] + 0.045 * swirl + 0.02 * grain - 0.3 * trabeculae
        image = _paint(image, _inside(endo, edge), blood)
        for angle, at, size in papillary:
            tip = at * radius * np.array([np.cos(angle), np.sin(angle)])
            along, across = _frame(p, centre + tip, angle)
            blob = _ellipse(along, across, 1.25 * size, 0.85 * size) + 0.4 * medium(p)
            image = _paint(image, _inside(blob, edge) * _inside(endo, edge), 1.3 * muscle)

        # Scanner effects: coil shading towards the chest wall, point spread, Rician noise.
        nearness, _ = _frame(x, np.array([64.0, 64.0]), chest_angle)
        image = np.maximum(image, 0) * np.exp(shading * nearness / 64)
        image = (1 + (gain - 1) * moment.contraction) * image ** (
            1 + (gamma - 1) * moment.contraction
        )
        image = ndimage.gaussian_filter(image, 0.55 / pixel)
        noise = np.random.default_rng([noise_seed, moment.noise])
        noise = noise.normal(scale=sigma, size=(2, *r.shape))
        image = np.clip(np.hypot(image + noise[0], noise[1]), 0, 1)

        mask = np.zeros(r.shape, np.uint8)
        mask[rv < 0] = THIRD
        mask[epi < 0] = MYOCARDIUM
        mask[endo < 0] = LV
        return image, mask

    return render, motion


# ---------------------------------------------------------------------------- echo


def _echo_heart(rng: np.random.Generator, pixel: float):
    """Apical four-chamber echocardiogram: sector, bright muscle, dark chambers, speckle."""
    probe = np.array([rng.uniform(-9, -4), 64 + rng.uniform(-3, 3)])
    opening, reach = rng.uniform(0.6, 0.72), rng.uniform(122, 132)
    apex = np.array([rng.uniform(12, 19), 66 + rng.uniform(-4, 6)])
    axis = rng.uniform(-0.12, 0.16)  # tilt of the long axis from the vertical
    length, width, wall = rng.uniform(56, 66), rng.uniform(14, 19), rng.uniform(5, 7.5)
    belly = rng.uniform(0.52, 0.62) * length
    bend = rng.uniform(-0.02, 0.04) / length  # curvature of the long axis
    plane_tilt = rng.uniform(-0.12, 0.12)
    la_length, la_width = rng.uniform(13, 18), rng.uniform(12, 16)
    rv_width, rv_length = rng.uniform(8, 11), rng.uniform(0.4, 0.46) * length
    ra_length, ra_width = rng.uniform(12, 16), rng.uniform(10, 13)
    valve_open = rng.uniform(0.3, 0.6)

    es_ratio = rng.uniform(0.55, 0.78)
    es_shortening = rng.uniform(0.1, 0.19) * length

    def body(a):
        return a.__array_namespace__().exp(-(((a - 0.5 * length) / (0.58 * length)) ** 4))

    rv_side = -(width + wall + rv_width)
    smooth = _smooth_map(rng)
    es_rv_inward = rng.uniform(0.5, 1.8)

    def motion(contraction: float, shortening: float) -> Map:
        narrow = (1 - (1 - es_ratio) * contraction) * width
        shorter = es_shortening * shortening
        return _chain(
            smooth(0.7 * contraction),
            _squeeze_map(apex, axis, rv_side, rv_width, es_rv_inward * contraction, body),
            _squeeze_map(apex, axis, 0.0, narrow, width - narrow, body),
            _shorten_map(apex, axis, length - shorter, shorter, 45.0),
        )

    decibel = {
        name: level + rng.normal(scale=1.5)
        for name, level in dict(
            muscle=-17.0, blood=-52.0, outside=-36.0, fibrous=-9.0, valve=-16.0
        ).items()
    }
    coarse, medium = _Texture(rng, 8.0), _Texture(rng, 3.0)
    tissue_speckle = _Speckle(rng, probe)
    fresh_speckle = _Speckle(rng, probe)
    other_speckle = fresh_speckle.shifted()
    kept = rng.uniform(0.7, 0.85)  # share of the speckle power that follows the tissue to ES
    fall = rng.uniform(0.03, 0.08)  # attenuation with depth, dB per reference pixel
    shadow_waves = [(rng.uniform(4, 14), rng.uniform(0, 2 * np.pi)) for _ in range(4)]
    side_loss = rng.uniform(2, 8)  # lateral drop-out, dB
    gain = rng.uniform(-2.5, 2.5)  # at ES, dB
    dynamic_range = 52.0 * rng.uniform(0.94, 1.06)
    haze = rng.uniform(-27, -20)
    noise_seed = rng.integers(2**31)
    edge = max(1.2, pixel)

    def chambers(p: Points):
        a, b = _frame(p, apex, axis)
        b = b + bend * (a - 0.5 * length) ** 2
        half = np.where(a < belly, belly, 1.5 * belly)
        half_epi = np.where(a < belly, belly + wall, 1.5 * belly + wall)
        endo = _ellipse(a - belly, b, half, width)
        epi = _ellipse(a - belly, b, half_epi, width + wall)
        plane = a - length - plane_tilt * b
        la = np.maximum(_ellipse(a - length - 0.55 * la_length, b - 1, la_length, la_width), -plane)
        rv = _ellipse(a - 0.56 * length, b - rv_side - 0.08 * (a - length), rv_length, rv_width)
        ra_centre = -(la_width + ra_width + 2)
        ra = _ellipse(a - length - 0.6 * ra_length, b - ra_centre, ra_length, ra_width)
        return a, b, endo, epi, plane, la, rv, np.maximum(ra, 2 - plane)

    def render(p: Points, x: Points, moment: Moment) -> tuple[np.ndarray, np.ndarray]:
        a, b, endo, epi, plane, la, rv, ra = chambers(p)
        lv = np.maximum(endo, plane)
        muscle = np.maximum(epi, plane)
        texture, grain = coarse(p), medium(p)

        level = decibel["outside"] + 6.0 * texture + 2.5 * grain
        level += 7 * _line(epi - 2.0, 2.5) * (b > 0)  # pericardium, lateral side
        around = np.minimum(np.minimum(la, ra), rv)
        wall_level = decibel["muscle"] + 2.5 * texture + 1.5 * grain
        level = _paint(level, _inside(around - 3.0, edge), wall_level - 4)
        level = _paint(level, _inside(muscle, edge), wall_level)
        cavity = np.minimum(np.minimum(lv, la), np.minimum(rv, ra))
        blood = decibel["blood"] + 2 * grain + 8 * np.exp(np.clip(cavity, -20, 0) / 1.5)
        level = _paint(level, _inside(cavity, edge), blood)
        septum = _line(b + width + 0.5 * wall, 1.2) * _inside(np.abs(plane) - 4, 2)
        level = _paint(level, septum, decibel["fibrous"])  # fibrous crux of the heart
        lateral = _line(b - 0.93 * width, 2.0) * _line(plane, 2.2)
        level = _paint(level, lateral, decibel["fibrous"])
        # Mitral leaflets: from both hinges into the ventricle; being tissue, they move with it.
        for side in (-1, 1):
            hinge = 0.86 * width
            inward = hinge - side * b
            leaf = _line(-plane - valve_open * np.clip(inward, 0, None), 1.0)
            leaf = leaf * _inside(-inward, 1) * _inside(inward - 0.75 * hinge, 2)
            level = _paint(level, 0.9 * leaf, decibel["valve"])

        # Scanner effects: speckle, noise floor, haze near the probe, attenuation, sector.
        depth, angle = _polar(x, probe)
        speckle = tissue_speckle(p)
        lost = (1 - kept) * moment.contraction
        if lost:
            fresh = np.cos(moment.turn) * fresh_speckle(x)
            fresh = fresh + np.sin(moment.turn) * other_speckle(x)
            speckle = np.sqrt(1 - lost) * speckle + np.sqrt(lost) * fresh
        loss = fall * depth + side_loss * (angle / opening) ** 4
        loss = loss + 1.2 * sum(np.sin(f * angle + s) for f, s in shadow_waves)
        amplitude = 10 ** ((level - loss) / 20)
        near = 10 ** ((haze - 0.8 * np.clip(depth - 14, 0, None)) / 20)
        noise = np.random.default_rng([noise_seed, moment.noise])
        noise = noise.normal(size=(2, *depth.shape))
        noise = 10 ** (-54 / 20) * (noise[0] + 1j * noise[1])
        envelope = np.abs((amplitude + near) * speckle + noise)
        brightness = 20 * np.log10(envelope + 1e-6) + gain * moment.contraction + 8
        shown = 1 + brightness / (52.0 + (dynamic_range - 52.0) * moment.contraction)
        image = ndimage.gaussian_filter(np.clip(shown, 0, 1), 0.45 / pixel)
        sector = np.maximum((np.abs(angle) - opening) * depth, np.maximum(depth - reach, 9 - depth))
        image = image * _inside(sector, edge)

        mask = np.zeros(depth.shape, np.uint8)
        mask[la < 0] = THIRD
        mask[muscle < 0] = MYOCARDIUM
        mask[lv < 0] = LV
        return image, mask

    return render, motion
