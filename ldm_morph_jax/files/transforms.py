"""Spatial transforms between a fixed and a moving image: apply, invert, save, load.

A transform sends positions of the fixed image to positions of the moving image, T(p) = p + d(p) in
millimetres (LPS): warped(p) = moving(T(p)). That is pull-back, and what ITK, ANTs and 3D Slicer
mean by a displacement field. Between the pixels of the fixed image d is linear, outside it d keeps
its border value.

Everything here is NumPy in float64: sizes differ from image to image, and a compiled function per
size would cost more than it saves.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from scipy.ndimage import map_coordinates

from ldm_morph_jax.files import nifti
from ldm_morph_jax.files.arrays import read_npz
from ldm_morph_jax.files.dicom_objects.registration import read_registration
from ldm_morph_jax.files.dicom_objects.source import sop_class
from ldm_morph_jax.files.errors import ImageError, TransformError
from ldm_morph_jax.files.geometry import (
    Geometry,
    check_positive_spacing,
    orthonormal,
    plane_geometry,
)
from ldm_morph_jax.files.itk import name_for_itk
from ldm_morph_jax.files.writing import atomic, write_image
from ldm_morph_jax.ops.jacobian import jacobian_determinant

CONVENTION = (
    "pull-back: fixed pixel x samples the moving image at x + displacement[x]; pixels, components "
    "in array-axis order (row, column; slice first for a stack); origin and direction LPS, in mm"
)


@dataclass(frozen=True)
class Affine:
    """T(p) = matrix p + offset: positions `[..., n]` in mm, LPS.

    matrix: `[n, n]`; offset: `[n]`; components (x, y[, z]).
    """

    matrix: np.ndarray
    offset: np.ndarray

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        return positions @ self.matrix.T + self.offset

    def after(self, first: "Affine") -> "Affine":
        """p -> self(first(p))."""
        return Affine(self.matrix @ first.matrix, self(first.offset))

    def inverse(self) -> "Affine":
        """Raises `numpy.linalg.LinAlgError` where there is none."""
        matrix = np.linalg.inv(self.matrix)
        return Affine(matrix, -matrix @ self.offset)


@dataclass(frozen=True)
class Transform:
    """T(p) = p + d(p), given on the pixels of the fixed image.

    displacement_mm: `[*fixed.shape, n]`, (x, y[, z]) in mm, LPS.
    fixed: geometry of the fixed image.
    moving: geometry of the moving image; None where a file does not tell (NIfTI vectors).
    """

    displacement_mm: np.ndarray
    fixed: Geometry
    moving: Geometry | None = None

    def moving_indices(self, moving: Geometry | None = None) -> np.ndarray:
        """Where every fixed pixel falls in the moving image's array, `[*fixed.shape, n]`."""
        moving = self._geometry(moving)
        return moving.to_index(self.fixed.to_physical(self.fixed.indices()) + self.displacement_mm)

    @property
    def displacement(self) -> np.ndarray:
        """`[*fixed.shape, n]` pixels: fixed pixel x samples the moving *array* at x + u(x).

        Components in array-axis order. Where fixed and moving image differ in geometry, u includes
        the way from one grid to the other.
        """
        return self.moving_indices() - self.fixed.indices()

    def warp(
        self,
        array: np.ndarray,
        interpolation: str = "linear",
        moving: Geometry | None = None,
    ) -> np.ndarray:
        """`array` on the moving image's grid -> fixed image's grid.

        "linear" gives float32, "nearest" keeps dtype and labels. Beyond the border of the moving
        image its border value is used.
        """
        moving = self._geometry(moving)
        if array.shape != moving.shape:
            raise ImageError(f"image: found shape {array.shape}, expected {moving.shape}")
        return sample(array, self.moving_indices(moving), interpolation)

    def jacobian_determinant(self) -> np.ndarray:
        """det dT/dp on the fixed image, `[*fixed.shape]`; below zero the map folds (eq. 18).

        A ratio of areas in mm^2, of a volume in mm^3, so free of spacing and orientation; see
        `ops.jacobian`.
        """
        return jacobian_determinant(self.fixed.vectors_to_index(self.displacement_mm))

    def map_points(self, points: np.ndarray) -> np.ndarray:
        """T(p): positions `[P, n]` mm in the fixed image -> in the moving image."""
        return points + sample_vectors(self.displacement_mm, self.fixed.to_index(points))

    def map_points_back(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solve T(p) = q: positions `[P, n]` mm in the moving image -> in the fixed image.

        By Newton's method (`ops.inverse`), which finds p wherever there is one that T does not fold
        onto another.

        Returns:
            (p `[P, n]`, residual `[P]`): |T(p) - q| in mm, below `Inverse.TOLERANCE` of a pixel
            where p was found.
        """
        u = self.fixed.vectors_to_index(self.displacement_mm)
        # JAX, which that module needs for its other half, takes a second to import
        from ldm_morph_jax.ops.inverse import invert_at

        index, _ = invert_at(u, self.fixed.to_index(points))
        positions = self.fixed.to_physical(index)
        return positions, np.linalg.norm(self.map_points(positions) - points, axis=-1)

    def inverse(self) -> "Inverse":
        """The transform from moving to fixed image, on the moving image's grid."""
        moving = self._geometry(None)
        positions = moving.to_physical(moving.indices())
        sources, residual = self.map_points_back(positions.reshape(-1, moving.dimension))
        displacement = sources.reshape(positions.shape) - positions
        return Inverse(Transform(displacement, moving, self.fixed), residual.reshape(moving.shape))

    def in_space(self, fixed: Geometry, moving: Geometry) -> "Transform":
        """The same map between slices in space, 3-D geometries (1, H, W); a 3-D map itself.

        Displacements then also lead from the one slice's plane to the other's.
        """
        if self.fixed.dimension == 3:
            return self
        index = np.insert(self.moving_indices(), 0, 0, axis=-1)[None]
        displacement = moving.to_physical(index) - fixed.to_physical(fixed.indices())
        return Transform(displacement, fixed, moving)

    def _geometry(self, moving: Geometry | None) -> Geometry:
        moving = moving or self.moving
        if moving is None:
            raise TransformError("the transform does not tell the moving image's geometry")
        if moving.dimension != self.fixed.dimension:
            raise TransformError(
                f"the transform is {self.fixed.dimension}-D, the image {moving.dimension}-D"
            )
        return moving


@dataclass(frozen=True)
class Inverse:
    """The inverse of a transform.

    transform: from the moving to the fixed image, given on the moving image.
    residual_mm: `[*moving.shape]`, |T(inverse(q)) - q|: how far there and back leads from q.
    """

    TOLERANCE: ClassVar[float] = 0.01  # pixels
    transform: Transform
    residual_mm: np.ndarray

    @property
    def converged(self) -> np.ndarray:
        """`[*moving.shape]` bool, False at positions that have no inverse."""
        return self.residual_mm <= self.TOLERANCE * min(self.transform.fixed.spacing)

    @property
    def missing(self) -> int:
        """How many positions have no inverse."""
        return int(self.converged.size - np.count_nonzero(self.converged))


def sample(array: np.ndarray, indices: np.ndarray, interpolation: str = "linear") -> np.ndarray:
    """Values of `array` at array indices `[..., n]`; its border value outside."""
    if interpolation not in ("linear", "nearest"):
        raise ValueError(f"interpolation: found {interpolation!r}, expected 'linear' or 'nearest'")
    coordinates = np.moveaxis(indices, -1, 0)
    if interpolation == "nearest":
        return map_coordinates(array, coordinates, order=0, mode="nearest")
    array = array.astype(np.float64)
    return map_coordinates(array, coordinates, order=1, mode="nearest").astype(np.float32)


def sample_vectors(vectors: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """`[*shape, C]` at array indices `[..., n]`, linear, border value outside: `[..., C]`."""
    coordinates = np.moveaxis(indices, -1, 0)
    parts = [
        map_coordinates(vectors[..., c], coordinates, order=1, mode="nearest")
        for c in range(vectors.shape[-1])
    ]
    return np.stack(parts, axis=-1)


def write_transform(path: str | os.PathLike, transform: Transform) -> None:
    """Write `.nii.gz` / `.nii` (vectors in mm, for ITK, ANTs, 3D Slicer) or `.npz` (pixels).

    The `.npz` holds "displacement" `[H, W, 2]` (or `[S, H, W, 3]`), float32, and the geometry of
    both images; `scipy.ndimage.map_coordinates(moving, indices + displacement)` applies it.
    """
    name = Path(path).name.lower()
    if name.endswith((".nii", ".nii.gz")):
        vectors = transform.displacement_mm.astype(np.float32)
        write_image(path, vectors, transform.fixed, vectors=True)
    elif name.endswith(".npz"):
        entries = {"displacement": transform.displacement.astype(np.float32)}
        for side in ("fixed", "moving"):
            geometry = getattr(transform, side)
            entries[f"{side}_shape"] = np.array(geometry.shape)
            entries[f"{side}_spacing"] = np.array(geometry.spacing)
            entries[f"{side}_origin"] = geometry.origin
            entries[f"{side}_direction"] = geometry.direction
        with atomic(Path(path)) as part:
            entries["convention"] = np.array(CONVENTION)
            np.savez_compressed(part, **entries)  # type: ignore[arg-type]  # numpy's stub
    else:
        raise TransformError(f"{path}: unknown suffix, expected .nii.gz, .nii or .npz")


def write_affine(path: str | os.PathLike, affine: Affine) -> None:
    """Write `.tfm`, a text file of ITK that SimpleITK, ANTs and 3D Slicer read."""
    import SimpleITK

    transform = SimpleITK.AffineTransform(len(affine.offset))
    transform.SetMatrix(affine.matrix.ravel().tolist())
    transform.SetTranslation(affine.offset.tolist())
    with atomic(Path(path)) as part, name_for_itk(part) as name:
        SimpleITK.WriteTransform(transform, name)


def read_transform(path: str | os.PathLike) -> Transform:
    """Read what `write_transform` wrote, any ITK displacement field in NIfTI (ANTs' warps), or REG.

    A DICOM Deformable Spatial Registration of a single slice becomes two-dimensional.

    Raises TransformError on anything else.
    """
    path = Path(path)
    name = path.name.lower()
    if not path.is_file():
        found = "is a folder, expected a file" if path.is_dir() else "no such file"
        raise TransformError(f"{path}: {found}")
    try:
        if name.endswith(".npz"):
            transform = _read_npz(path)
        elif name.endswith((".nii", ".nii.gz")):
            transform = Transform(*nifti.read_vectors(path, str(path)))
        elif name.endswith(".dcm") or sop_class(path):
            transform = _of_slice(Transform(*read_registration(path)))
        else:
            raise TransformError(f"{path}: unknown suffix, expected .nii.gz, .nii, .npz or .dcm")
    except (ImageError, OSError) as error:
        raise TransformError(str(error)) from None
    if not np.isfinite(transform.displacement_mm).all():
        raise TransformError(f"{path}: holds NaN or infinite displacements")
    return transform


def _of_slice(transform: Transform) -> Transform:
    """In the coordinates of the slice's plane, where there is but one slice."""
    stack = transform.fixed
    if stack.shape[0] > 1:
        return transform
    plane, axial = plane_geometry(stack, 0)
    vectors = transform.displacement_mm[0]
    return Transform(vectors[..., :2] if axial else vectors @ stack.direction[:, :2], plane)


def _read_npz(path: str | os.PathLike) -> Transform:
    try:
        entries = read_npz(Path(path))
    except ImageError as error:
        raise TransformError(f"{path}: not a readable transform ({error})") from None
    try:
        fixed, moving = (_geometry_of(entries, side, path) for side in ("fixed", "moving"))
        displacement = entries["displacement"].astype(np.float64)
    except KeyError as error:
        raise TransformError(f"{path}: has no entry {error}; not a saved transform") from None
    except (TypeError, ValueError) as error:
        raise TransformError(f"{path}: not a readable transform ({error})") from None
    if displacement.shape != (*fixed.shape, fixed.dimension):
        raise TransformError(
            f"{path}: displacement has shape {displacement.shape}, expected "
            f"{(*fixed.shape, fixed.dimension)}"
        )
    indices = fixed.indices()
    positions = moving.to_physical(indices + displacement)
    return Transform(positions - fixed.to_physical(indices), fixed, moving)


def _geometry_of(entries: Mapping[str, np.ndarray], side: str, path: str | os.PathLike) -> Geometry:
    shape = tuple(int(n) for n in entries[f"{side}_shape"])
    spacing = tuple(float(s) for s in entries[f"{side}_spacing"])
    origin, direction = (
        entries[f"{side}_{name}"].astype(np.float64) for name in ("origin", "direction")
    )
    n = len(shape)
    if n not in (2, 3) or (len(spacing), origin.shape, direction.shape) != (n, (n,), (n, n)):
        raise ValueError(f"the {side} image's geometry is not that of 2 or 3 dimensions")
    check_positive_spacing(spacing, str(path))
    return Geometry(shape, spacing, origin, orthonormal(direction, str(path)))
