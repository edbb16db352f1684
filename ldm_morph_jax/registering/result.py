"""What registering a pair gives: the transform, its inverse, the warped image."""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldm_morph_jax.files.arrays import image_planes
from ldm_morph_jax.files.images import Image, ImageError
from ldm_morph_jax.files.transforms import Inverse, Transform
from ldm_morph_jax.registering.grid import Slice, to_transform
from ldm_morph_jax.registering.prediction import Found


@dataclass(frozen=True)
class Registration:
    """One registered pair of images.

    moving, fixed: the images.
    slices: the same on the grids, and `found`: what was found there, one for every slice.
    diffeomorphic: whether the displacement is the integral of a velocity.
    """

    moving: Image
    fixed: Image
    slices: Sequence[Slice]
    found: Sequence[Found]
    diffeomorphic: bool = False

    @functools.cached_property
    def transform(self) -> Transform:
        """From fixed to moving, see `files.transforms.Transform`."""
        return self._transform_of([(one.grid, one.displacement) for one in self.found])

    @functools.cached_property
    def warped(self) -> np.ndarray:
        """Moving image on the fixed image's grid, float32, original intensities."""
        return self.transform.warp(self.moving.array)

    @functools.cached_property
    def inverse(self) -> Inverse:
        """The transform from moving to fixed, and where there is none."""
        return self.transform.inverse()

    @functools.cached_property
    def pixel_displacement(self) -> np.ndarray:
        """`[*fixed.shape, 2]` in fixed pixels, without shift and change of grid: what moved."""
        moved = self.transform.displacement_mm - self.start.displacement_mm
        return self.fixed.geometry.vectors_to_index(moved)[..., -2:]

    @functools.cached_property
    def start(self) -> Transform:
        """The transform before registration: the shift alone."""
        return self._transform_of(
            [(one.grid, np.zeros_like(one.displacement)) for one in self.found]
        )

    def _transform_of(self, displacements):
        return to_transform(self.slices, displacements, self.moving.geometry, self.fixed.geometry)


@dataclass(frozen=True)
class Result:
    """What `load(name)(moving, fixed)` returns; arrays are `[H, W]` or `[B, H, W]` as given.

    Displacements are in pixels, components (row, column), pull-back:
    warped[x] = moving[x + displacement[x]].
    """

    registrations: tuple[Registration, ...]
    batched: bool

    @functools.cached_property
    def warped(self) -> np.ndarray:
        """Moving image on the fixed image's grid: `[H, W]` or `[B, H, W]` float32."""
        return self._stack(r.warped for r in self.registrations)

    @functools.cached_property
    def displacement(self) -> np.ndarray:
        """`[..., H, W, 2]` pixels; to positions in the moving *array*, also where sizes differ."""
        return self._stack(r.transform.displacement for r in self.registrations)

    @functools.cached_property
    def jacobian_determinant(self) -> np.ndarray:
        """`[..., H, W]`; area in the moving per area in the fixed image, below zero it folds."""
        return self._stack(r.transform.jacobian_determinant() for r in self.registrations)

    @functools.cached_property
    def inverse(self) -> np.ndarray:
        """`[..., H, W, 2]` pixels on the moving image's grid: carries the fixed image there.

        Warns where some pixels have no inverse: `inverse_residual` shows which.
        """
        missing = sum(r.inverse.missing for r in self.registrations)
        if missing:
            warnings.warn(
                f"{missing} pixels of the moving image have no inverse; see inverse_residual",
                stacklevel=3,
            )
        return self._stack(r.inverse.transform.displacement for r in self.registrations)

    @functools.cached_property
    def inverse_residual(self) -> np.ndarray:
        """`[..., H, W]` mm: how far the transform after its inverse lands from where it began."""
        return self._stack(r.inverse.residual_mm for r in self.registrations)

    def warp(self, array, interpolation: str = "linear", *, inverse: bool = False) -> np.ndarray:
        """Carry anything on the moving image's grid to the fixed one (labels: "nearest").

        With `inverse`, from the fixed image's grid to the moving one.
        """
        arrays, batched = image_planes(array, "array")
        if (batched, len(arrays)) != (self.batched, len(self.registrations)):
            expected = f"{len(self.registrations)} images" if self.batched else "one image"
            raise ImageError(f"array: found shape {np.shape(array)}, expected {expected}")
        return self._stack(
            (r.inverse.transform if inverse else r.transform).warp(one, interpolation)
            for r, one in zip(self.registrations, arrays, strict=True)
        )

    def _stack(self, arrays):
        arrays = list(arrays)
        return np.stack(arrays) if self.batched else arrays[0]
