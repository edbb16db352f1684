"""Where the samples of an array lie.

Arrays are `[rows, columns]`, or `[slices, rows, columns]` for a stack: the order of
`SimpleITK.GetArrayFromImage`. Positions are millimetres in LPS (x to the left, y to the back, z to
the head), as in DICOM and ITK.
"""

from dataclasses import dataclass

import numpy as np

from ldm_morph_jax.files.errors import ImageError

BELIEVABLE_MM = (0.01, 20.0)  # pixels of images of hearts: micro-ultrasound of mice to scouts
# Rounding in headers tilts an axial plane by a fraction of this; cos(0.5 deg) = 0.99996.
MAX_TILT_DEGREES = 0.5


@dataclass(frozen=True)
class Geometry:
    """Where the samples of an array lie.

    shape, spacing: per array axis, (rows, columns) or (slices, rows, columns); spacing in mm.
    origin: `[n]`, position of sample 0 in mm, (x, y) or (x, y, z), LPS.
    direction: `[n, n]` orthonormal; its columns are the directions in which the *last* array axis
      (column index), the one before it (row index) and, for a stack, the slice index increase.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: np.ndarray
    direction: np.ndarray

    @property
    def dimension(self) -> int:
        return len(self.shape)

    def axis_directions(self) -> np.ndarray:
        """`[n, n]`: row k is the unit vector (x, y[, z]), LPS, along which array axis k runs.

        Rows and columns stored in reverse have reversed vectors.
        """
        return self.direction.T[::-1].copy()

    def to_physical(self, index: np.ndarray) -> np.ndarray:
        """Array index `[..., n]` (row, column or slice, row, column) -> position `[..., n]` mm."""
        return self.origin + self.vectors_to_physical(index)

    def to_index(self, position: np.ndarray) -> np.ndarray:
        """Position `[..., n]` mm -> continuous array index `[..., n]`."""
        return self.vectors_to_index(np.asarray(position, np.float64) - self.origin)

    def vectors_to_physical(self, steps: np.ndarray) -> np.ndarray:
        """Index differences `[..., n]` -> vectors `[..., n]` in mm (x, y[, z])."""
        return (np.asarray(steps, np.float64) * self.spacing)[..., ::-1] @ self.direction.T

    def vectors_to_index(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors `[..., n]` in mm -> index differences `[..., n]`."""
        return (vectors @ self.direction)[..., ::-1] / self.spacing

    def indices(self) -> np.ndarray:
        """Index of every sample, `[*shape, n]` float64."""
        return np.moveaxis(np.indices(self.shape, np.float64), 0, -1)

    def same_as(self, other: "Geometry") -> bool:
        return (
            self.shape == other.shape
            and np.allclose(self.spacing, other.spacing, rtol=1e-4)
            and np.allclose(self.origin, other.origin, atol=1e-3)
            and np.allclose(self.direction, other.direction, atol=1e-4)
        )


def plane_geometry(stack: Geometry, k: int) -> tuple[Geometry, bool]:
    """Slice k of a stack in two dimensions, and whether its plane is that of x and y.

    In any other plane its coordinates are those of its own: x along the columns, y along the rows.
    """
    corner = stack.to_physical(np.array([k, 0.0, 0.0]))
    axial = abs(stack.direction[2, 2]) >= np.cos(np.radians(MAX_TILT_DEGREES))
    if axial:
        # U V^T is the rotation or reflection nearest to the 2x2 part
        u, _, v = np.linalg.svd(stack.direction[:2, :2])
        direction, origin = u @ v, corner[:2]
    else:
        direction, origin = np.eye(2), stack.direction[:, :2].T @ corner
    return Geometry(stack.shape[1:], stack.spacing[1:], origin, direction), bool(axial)


def inside(index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which indices `[..., n]` lie on an array: a pixel reaches half a pixel beyond its centre."""
    return ((index >= -0.5) & (index <= np.array(shape) - 0.5)).all(axis=-1)


def plain_geometry(shape: tuple[int, ...], spacing: tuple[float, ...] | None = None) -> Geometry:
    """A grid at the origin along the axes; 1 mm per pixel unless `spacing` is given."""
    n = len(shape)
    return Geometry(tuple(shape), tuple(spacing or (1.0,) * n), np.zeros(n), np.eye(n))


def is_identity(geometry: Geometry) -> bool:
    """Whether a geometry says nothing: unit spacing at the origin, as files have it by default.

    The identity matrix of a NIfTI file is in RAS, which is diag(-1, -1, 1) here.
    """
    return np.allclose(geometry.spacing, 1) and says_no_orientation(geometry)


def says_no_orientation(geometry: Geometry) -> bool:
    """Whether axes and origin are those that files have by default, whatever the spacing.

    Written by programs that know nothing of the patient (the identity is RAS in NIfTI, LPS here).
    """
    return bool(
        np.allclose(geometry.origin, 0)
        and np.allclose(np.abs(geometry.direction), np.eye(geometry.dimension))
    )


def patient_letters(vector: np.ndarray, *, at_most: int = 3) -> str:
    """Where a vector `[3]` (LPS) points in the patient, the main direction first: "A", "LP", "HLA".

    L(eft), R(ight), A(nterior), P(osterior), H(ead), F(oot), as DICOM's Patient Orientation
    (PS3.3, C.7.6.1.1.1). Components below a tenth of the vector's length, 6 degrees, are left out.
    """
    vector = np.asarray(vector, np.float64) / np.linalg.norm(vector)
    order = np.argsort(-np.abs(vector), kind="stable")[:at_most]
    return "".join("LPH"[k] if vector[k] > 0 else "RAF"[k] for k in order if abs(vector[k]) > 0.1)


def orthonormal(direction: np.ndarray, source: str) -> np.ndarray:
    """The orthonormal matrix that `direction` is up to rounding; ImageError if it is sheared."""
    if not np.isfinite(direction).all():
        raise ImageError(f"{source}: its direction holds NaN or infinity")
    u, values, v = np.linalg.svd(direction)
    if np.abs(values - 1).max() > 1e-3:
        raise ImageError(f"{source}: its axes are not orthonormal (sheared direction)")
    return u @ v


def believable(spacing) -> bool:
    """Whether every number is a pixel (mm) of an image of a heart, of a mouse or a man."""
    smallest, largest = BELIEVABLE_MM
    return all(smallest <= s <= largest for s in np.ravel(spacing))


def check_believable_spacing(spacing, source: str) -> None:
    """ImageError unless the spacing is `believable`."""
    check_positive_spacing(spacing, source)
    if not believable(spacing):
        smallest, largest = BELIEVABLE_MM
        sizes = " x ".join(f"{s:g}" for s in np.ravel(spacing))
        raise ImageError(
            f"{source}: spacing {sizes} mm, expected {smallest:g} to {largest:g} mm for a pixel of "
            "a heart's image (is it in another unit?)"
        )


def millimetres(spacing: tuple[float, ...]) -> str:
    """For messages: "1.25 x 1.25 mm"."""
    return " x ".join(f"{s:.4g}" for s in spacing) + " mm"


def check_positive_spacing(spacing, source: str) -> None:
    """ImageError unless every number is finite and above 0."""
    if not (np.isfinite(spacing) & (np.asarray(spacing) > 0)).all():
        numbers = ", ".join(f"{s:g}" for s in np.ravel(spacing))
        raise ImageError(f"{source}: spacing ({numbers}) mm, expected positive numbers")
