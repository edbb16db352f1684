"""A cardiac phantom in three dimensions with known motion: `ventricle(seed)`, `ventricle_beat`.

A left ventricle with apex, wall and two papillary muscles, and a right ventricle around a part of
it, stand on their long axis in a thorax, as short-axis cine MRI shows them. From end-diastole to
end-systole they contract, shorten and twist by a closed form, chi = shortening o contraction o
twist, in millimetres about the long axis (z from the apex to the base, r the distance from it):

twist        turns every point by an angle that falls from apex to base and with r;
contraction  r -> r (1 - a(z) P(r)), P a sum of two steps 1 / (1 + (r / s)^10): the cavity shrinks
             more than the outside of the wall, which therefore thickens, and the right ventricle
             shrinks with the whole heart; increasing in r for a P(0) < 1;
shortening   z -> z - b exp(-r^2 / 2 w^2) S(z): the base comes down to the apex, which stays;
             S rises once from 0 to 1, so that this increases in z where b S' < 1.

At other times a share of this motion has happened: that share of twist, contraction and shortening.

Each is a smooth bijection of space that leaves all but one coordinate as they are, with a positive
derivative along it. Nothing folds, det F is the product of three derivatives, and the inverse needs
one root of an increasing function of one variable for each point.

Conventions as in `ldm_morph_jax.ops`: volumes `[D, H, W]` with the slice first, displacements in
voxels. The fixed volume shows end-diastole and the moving one end-systole, so that the displacement
is the Lagrangian motion of the tissue, chi(X) - X, and strain that of `ops.strain`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

BACKGROUND, RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE = range(4)  # as in ACDC

_SUBSLICES = 4  # what a thick slice averages
_BISECTIONS = 30  # to a ten-millionth of a millimetre


@dataclass(frozen=True)
class Ventricle:
    """One heart at end-diastole (fixed) and end-systole (moving).

    moving, fixed: `[D, H, W]` float32 in [0, 1].
    moving_mask, fixed_mask: `[D, H, W]` uint8: 1 right ventricle, 2 myocardium, 3 left ventricle
        with its papillary muscles.
    displacement: `[D, H, W, 3]` float32 voxels, from fixed to moving, true everywhere.
    inverse: the same from moving to fixed, at the voxels of the moving volume.
    deformation: `[D, H, W, 3, 3]` float32, F = d chi / dX in millimetres per millimetre.
    spacing: (slice, row, column), mm.
    centre: `[2]`, (row, column) of the long axis.
    """

    moving: np.ndarray
    fixed: np.ndarray
    moving_mask: np.ndarray
    fixed_mask: np.ndarray
    displacement: np.ndarray
    inverse: np.ndarray
    deformation: np.ndarray
    spacing: tuple[float, float, float]
    centre: np.ndarray


@dataclass(frozen=True)
class Beat:
    """One heart over time, at T shares of its motion from end-diastole (0) to end-systole (1).

    frames: `[T, D, H, W]` float32 in [0, 1].
    masks: `[T, D, H, W]` uint8, as of `Ventricle`.
    displacement: `[T, D, H, W, 3]` float32 voxels, from end-diastole to each frame.
    inverse: the same from each frame to end-diastole.
    deformation: `[T, D, H, W, 3, 3]` float32, F of the displacement.
    spacing, centre: as of `Ventricle`.
    """

    frames: np.ndarray
    masks: np.ndarray
    displacement: np.ndarray
    inverse: np.ndarray
    deformation: np.ndarray
    spacing: tuple[float, float, float]
    centre: np.ndarray


def ventricle(
    seed: int | Sequence[int],
    shape: tuple[int, int, int] = (12, 128, 128),
    spacing: tuple[float, float, float] = (8.0, 1.5, 1.5),
) -> Ventricle:
    """The heart of that seed on a grid of that shape; the apex lies in the first slices."""
    beat = ventricle_beat(seed, (1.0, 0.0), shape, spacing)
    return Ventricle(
        *beat.frames,
        *beat.masks,
        beat.displacement[0],
        beat.inverse[0],
        beat.deformation[0],
        beat.spacing,
        beat.centre,
    )


def ventricle_beat(
    seed: int | Sequence[int],
    shares: Sequence[float],
    shape: tuple[int, int, int] = (12, 128, 128),
    spacing: tuple[float, float, float] = (8.0, 1.5, 1.5),
) -> Beat:
    """The heart of that seed at those shares of its motion; every frame has noise of its own."""
    rng = np.random.default_rng([*np.ravel(seed).tolist(), 3])
    heart = Heart.draw(rng)
    motion = Motion.draw(rng, heart)
    centre = (np.array(shape[1:]) - 1) / 2 + rng.uniform(-3, 3, 2) / spacing[1:]
    turn = rng.uniform(-0.4, 0.4)  # of the right ventricle about the long axis
    # the heart stands in the middle of the stack
    apex = ((shape[0] - 1) * spacing[0] - heart.length) / 2

    def millimetres(index):
        """Index `[..., 3]` -> (z, y, x) mm about the long axis, from the apex."""
        away = (index - [0, *centre]) * spacing
        away[..., 0] -= apex
        return away

    index = np.moveaxis(np.indices(shape, np.float64), 0, -1)
    points = millimetres(index)
    texture = ndimage.gaussian_filter(rng.normal(size=(48, 96, 96)), (1.0, 1.5, 1.5), mode="wrap")
    texture /= texture.std()

    def picture(back):
        shown = 0.0
        for k in range(_SUBSLICES):
            part = index.copy()
            part[..., 0] += (k + 0.5) / _SUBSLICES - 0.5
            shown = shown + heart.intensity(back(millimetres(part)), turn, texture)
        shown = ndimage.gaussian_filter(shown / _SUBSLICES, (0, 0.6, 0.6))
        gain = 1 + 0.1 * (points[..., 1] * rng.normal() + points[..., 2] * rng.normal()) / 96
        noisy = gain * shown + rng.normal(scale=0.02, size=shape)
        return np.clip(noisy, 0, 1).astype(np.float32)

    def frame(share):
        """Picture, labels, displacement, inverse, deformation."""
        now = motion.at(share)
        moved, deformation = now.forward(points)
        before = now.backward(points) if share else points
        moves = (((to - points) / spacing).astype(np.float32) for to in (moved, before))
        shown = picture(now.backward if share else lambda x: x)
        return shown, heart.labels(before, turn), *moves, deformation.astype(np.float32)

    frames = (np.stack(of_all) for of_all in zip(*map(frame, shares), strict=True))
    return Beat(*frames, tuple(spacing), centre)


@dataclass(frozen=True)
class Heart:
    """Sizes at end-diastole in mm; z from 0 at the apex of the epicardium to `length` at the base.

    inner, outer: radii of endocardium and epicardium at the base.
    apex: thickness of the wall at the apex.
    right: how far the right ventricle reaches from the axis.
    """

    length: float
    inner: float
    outer: float
    apex: float
    right: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Heart":
        inner = rng.uniform(21, 27)
        outer = inner + rng.uniform(8, 12)
        return cls(
            rng.uniform(72, 84), inner, outer, rng.uniform(7, 9), outer + rng.uniform(22, 30)
        )

    def parts(self, x: np.ndarray, turn: float) -> dict[str, np.ndarray]:
        """Signed distances (about mm, positive inside) of the parts at points `[..., 3]`."""
        z, y, across = np.moveaxis(x, -1, 0)
        r = np.hypot(y, across)
        base = self.length - z

        def bowl(radius, low):
            """Half an ellipsoid that opens at the base."""
            height = self.length - low
            size = np.sqrt((r / radius) ** 2 + (np.maximum(base, 0) / height) ** 2)
            return np.minimum((1 - size) * min(radius, height), base)

        inner, outer = bowl(self.inner, self.apex), bowl(self.outer, 0.0)
        # a larger ellipsoid to one side, without the left ventricle
        height = 0.85 * self.length
        side, along = np.cos(turn), np.sin(turn)
        away = np.stack([y * side - across * along, across * side + y * along], axis=-1)
        middle = self.right - 0.95 * self.outer
        size = np.sqrt(
            (away[..., 0] / (0.95 * self.outer)) ** 2
            + ((away[..., 1] + middle) / (0.95 * self.outer)) ** 2
            + (np.maximum(base, 0) / height) ** 2
        )
        right = np.minimum((1 - size) * self.outer, base)
        muscles = np.full(z.shape, -np.inf)
        for angle in (0.7, 2.4):
            angle += turn
            place = 0.62 * self.inner * np.array([np.sin(angle), np.cos(angle)])
            radius = 3.5 - np.hypot(y - place[0], across - place[1])
            muscles = np.maximum(muscles, np.minimum(radius, 0.62 * self.length - z))
        return {
            "inner": inner,
            "outer": outer,
            "muscles": np.minimum(muscles, inner),
            "right": np.minimum(right - 3.0, -outer - 1.0),
            "right wall": np.minimum(right, -outer),
            "chest": 82 - np.sqrt((0.95 * y) ** 2 + across**2),
        }

    def labels(self, x: np.ndarray, turn: float) -> np.ndarray:
        """Labels uint8 at points `[..., 3]`."""
        part = self.parts(x, turn)
        labels = np.zeros(x.shape[:-1], np.uint8)
        labels[part["right"] > 0] = RIGHT_VENTRICLE
        labels[part["outer"] > 0] = MYOCARDIUM
        labels[part["inner"] > 0] = LEFT_VENTRICLE
        return labels

    def intensity(self, x: np.ndarray, turn: float, texture: np.ndarray) -> np.ndarray:
        """Brightness at points `[..., 3]`: blood bright, muscle dark, as in cine MRI."""
        at = np.moveaxis(x, -1, 0) / np.array([2.5, 2.0, 2.0]).reshape(-1, *[1] * (x.ndim - 1))
        speckle = ndimage.map_coordinates(texture, at, order=1, mode="grid-wrap")
        shown = 0.12 + 0.02 * speckle
        part = self.parts(x, turn)
        for name, value, contrast in (
            ("chest", 0.45, 0.09),
            ("right wall", 0.35, 0.03),
            ("right", 0.82, 0.03),
            ("outer", 0.28, 0.04),
            ("inner", 0.85, 0.03),
            ("muscles", 0.32, 0.03),
        ):
            share = np.clip(part[name] / 1.5 + 0.5, 0, 1)  # edges are as sharp as pixels
            shown = (1 - share) * shown + share * (value + contrast * speckle)
        return shown


@dataclass(frozen=True)
class Motion:
    """chi of the module; lengths in mm, `length` from apex to base.

    contraction: a at the base; it is 0.8 of that at the apex.
    reach, along: s of the contraction, in the middle of the wall, and w of the shortening.
    shortening: b.
    twist: angle at the apex and at the base, radians.
    """

    length: float
    contraction: float
    reach: float
    along: float
    shortening: float
    twist: tuple[float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator, heart: "Heart") -> "Motion":
        return cls(
            length=heart.length,
            contraction=rng.uniform(0.27, 0.36),
            reach=(heart.inner + heart.outer) / 2 * rng.uniform(0.95, 1.05),
            along=60.0,
            shortening=rng.uniform(8, 14),
            twist=(rng.uniform(0.1, 0.2), -rng.uniform(0.03, 0.1)),
        )

    def at(self, share: float) -> "Motion":
        """When that share of it has happened."""
        return replace(
            self,
            contraction=share * self.contraction,
            shortening=share * self.shortening,
            twist=tuple(share * angle for angle in self.twist),
        )

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """chi(X) and F = d chi / dX at X `[..., 3]` (z, y, x) mm: `[..., 3]`, `[..., 3, 3]`."""
        total = np.broadcast_to(np.eye(3), (*x.shape, 3))
        for step in (self._twist, self._contract, self._shorten):
            x, gradient = step(x)
            total = gradient @ total
        return x, total

    def backward(self, y: np.ndarray) -> np.ndarray:
        """chi^-1 at y `[..., 3]`."""
        z, rows, columns = np.moveaxis(y, -1, 0)
        share = self.shortening * np.exp(-(rows**2 + columns**2) / (2 * self.along**2))
        z = _root(lambda s: s - share * self._rise(s)[0], z, 0.0, self.shortening)
        r = np.hypot(rows, columns)
        a = self._strength(z)[0]
        before = _root(lambda s: s * (1 - a * self._fall(s**2)[0]), r, 0.0, 40.0)
        scale = np.divide(before, r, out=np.ones_like(r), where=r > 1e-9)
        rows, columns = rows * scale, columns * scale
        angle = -self._angle(z, before**2)[0]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([z, cos * rows - sin * columns, sin * rows + cos * columns], axis=-1)

    def _rise(self, z):
        """S and dS/dz: from 0 at the apex to 1 at the base."""
        s = 1 / (1 + np.exp(-(z - 0.6 * self.length) / (0.16 * self.length)))
        return s, s * (1 - s) / (0.16 * self.length)

    def _strength(self, z):
        """a and da/dz of the contraction; it ends beyond the heart."""
        t = (z - 0.55 * self.length) / (0.62 * self.length)
        a = self.contraction * np.exp(-(t**4))
        return a, -4 * t**3 / (0.62 * self.length) * a

    def _fall(self, squared):
        """P and dP / d(r^2)."""
        value = slope = 0.0
        for share, reach in ((1.0, self.reach), (0.2, 2.2 * self.reach)):
            q = squared / reach**2
            fourth = np.square(np.square(q))  # `q**4` takes ten times as long
            part = 1 / (1 + fourth * q)
            value = value + share * part
            slope = slope - share * 5 * np.square(part) * fourth / reach**2
        return value, slope

    def _angle(self, z, squared):
        """Of the twist, its derivative by z and that by r^2."""
        apex, base = self.twist
        s, slope = self._rise(z)
        fall = np.exp(-squared / (2 * 35.0**2))
        angle = (apex + (base - apex) * s) * fall
        return angle, (base - apex) * slope * fall, -angle / (2 * 35.0**2)

    def _twist(self, x):
        z, y, across = np.moveaxis(x, -1, 0)
        angle, by_z, by_squared = self._angle(z, y**2 + across**2)
        cos, sin = np.cos(angle), np.sin(angle)
        turned = np.stack([z, cos * y - sin * across, sin * y + cos * across], axis=-1)
        gradient = np.zeros((*x.shape, 3))
        gradient[..., 0, 0] = 1
        gradient[..., 1, 1], gradient[..., 1, 2] = cos, -sin
        gradient[..., 2, 1], gradient[..., 2, 2] = sin, cos
        by_angle = np.stack([-turned[..., 2], turned[..., 1]], axis=-1)
        slopes = np.stack([by_z, 2 * y * by_squared, 2 * across * by_squared], axis=-1)
        gradient[..., 1:, :] += by_angle[..., :, None] * slopes[..., None, :]
        return turned, gradient

    def _contract(self, x):
        z, y, across = np.moveaxis(x, -1, 0)
        a, slope = self._strength(z)
        fall, by_squared = self._fall(y**2 + across**2)
        scale = 1 - a * fall
        gradient = np.zeros((*x.shape, 3))
        gradient[..., 0, 0] = 1
        slopes = np.stack([-slope * fall, *(-2 * a * by_squared * c for c in (y, across))], -1)
        gradient[..., 1:, :] = x[..., 1:, None] * slopes[..., None, :]
        gradient[..., 1, 1] += scale
        gradient[..., 2, 2] += scale
        return np.stack([z, y * scale, across * scale], axis=-1), gradient

    def _shorten(self, x):
        z, y, across = np.moveaxis(x, -1, 0)
        s, slope = self._rise(z)
        fall = self.shortening * np.exp(-(y**2 + across**2) / (2 * self.along**2))
        gradient = np.broadcast_to(np.eye(3), (*x.shape, 3)).copy()
        gradient[..., 0, 0] -= fall * slope
        gradient[..., 0, 1] += fall * s * y / self.along**2
        gradient[..., 0, 2] += fall * s * across / self.along**2
        return np.stack([z - fall * s, y, across], axis=-1), gradient


def _root(function, value: np.ndarray, least: float, most: float) -> np.ndarray:
    """s in [value + least, value + most] with function(s) = value, for increasing functions."""
    low, high = value + least, value + most
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        below = function(middle) < value
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2
