"""Deformable Spatial Registration (REG): written and read.

DICOM maps the Registered frame of reference, that of the object, to the Source one (PS3.3,
C.20.3.1.1):

    x_source = M_post (M_pre x + d(x)),    d given at the points x of a grid in the Registered one.

That is pull-back, as our transforms are: Registered is the fixed image, Source the moving one, and
T(p) = p + d(p) goes in as it is, without M_pre and M_post. Vectors are in mm along the axes of the
patient, x fastest in the grid.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.dicom_objects.source import (
    CREATOR,
    Series,
    Source,
    code_item,
    decimals,
    item,
    new_object,
    refer,
    save,
)
from ldm_morph_jax.files.errors import TransformError, one_line
from ldm_morph_jax.files.geometry import Geometry, check_positive_spacing, orthonormal

DEFORMABLE_REGISTRATION = "1.2.840.10008.5.1.4.1.1.66.3"


def write_registration(
    path: str | Path,
    displacement: np.ndarray,
    grid: Geometry,
    fixed: Source,
    moving: Source,
    series: Series,
    *,
    instance: int = 1,
) -> None:
    """Write T(p) = p + d(p) from the fixed to the moving image.

    Args:
        displacement: d, `[S, H, W, 3]`, (x, y, z) in mm, LPS.
        grid: where it is given, (S, H, W) in the fixed image's frame of reference.
        fixed, moving: what was registered.
        series, instance: the series, and the number in it.
    """
    from pydicom.sr.codedict import codes

    if displacement.shape != (*grid.shape, 3) or grid.dimension != 3:
        raise ValueError(
            f"displacement: found shape {displacement.shape}, expected {(*grid.shape, 3)}"
        )
    if np.linalg.det(grid.direction) < 0:  # DICOM's third axis is the cross product of the others
        displacement, last = displacement[::-1], grid.to_physical([grid.shape[0] - 1.0, 0, 0])
        grid = Geometry(grid.shape, grid.spacing, last, grid.direction * [1, 1, -1])
    new = new_object(fixed, DEFORMABLE_REGISTRATION, "REG", series, instance)
    new.FrameOfReferenceUID = fixed.frame_of_reference
    new.PositionReferenceIndicator = fixed.header.get("PositionReferenceIndicator", "")
    new.ContentLabel, new.ContentCreatorName = "DEFORMATION", CREATOR
    new.ContentDescription = "Displacement from the fixed to the moving image"
    new.DeformableRegistrationSequence = [
        item(
            SourceFrameOfReferenceUID=source.frame_of_reference,
            ReferencedImageSequence=_references(source),
            RegistrationTypeCodeSequence=[code_item(codes.DCM.ImageContentBasedAlignment)],
        )
        for source in (fixed, moving)
    ]
    new.DeformableRegistrationSequence[1].DeformableRegistrationGridSequence = [
        item(
            ImageOrientationPatient=decimals(grid.direction[:, :2].T.ravel()),
            ImagePositionPatient=decimals(grid.origin),
            GridDimensions=list(grid.shape[::-1]),
            GridResolution=list(map(float, grid.spacing[::-1])),
            VectorGridData=np.ascontiguousarray(displacement, "<f4").tobytes(),
        )
    ]
    refer(new, fixed, moving)
    save(path, new)


def read_registration(path: str | Path) -> tuple[np.ndarray, Geometry]:
    """(d `[S, H, W, 3]` in mm, its grid) of a REG that deforms one image onto another.

    Raises TransformError: no REG, none or several deformations, a grid that does not hold what it
    says.
    """
    import pydicom

    try:
        file = pydicom.dcmread(path)
    except (pydicom.errors.InvalidDicomError, OSError) as error:
        raise TransformError(f"{path}: not a readable DICOM file ({one_line(error)})") from None
    if file.get("SOPClassUID") != DEFORMABLE_REGISTRATION:
        raise TransformError(
            f"{path}: holds {file.get('SOPClassUID', 'no SOP class')}, expected a Deformable "
            f"Spatial Registration ({DEFORMABLE_REGISTRATION})"
        )
    found = [
        one
        for one in file.get("DeformableRegistrationSequence") or []
        if one.get("DeformableRegistrationGridSequence")
    ]
    if len(found) != 1:
        raise TransformError(f"{path}: holds {len(found)} deformations, expected 1")
    try:
        vectors, grid = _field(found[0].DeformableRegistrationGridSequence[0], str(path))
        before, after = (
            _matrix(found[0], f"{name}DeformationMatrixRegistrationSequence")
            for name in ("Pre", "Post")
        )
    except (AttributeError, TypeError, ValueError) as error:
        if isinstance(error, TransformError):
            raise
        raise TransformError(f"{path}: not a readable deformation ({one_line(error)})") from None
    if not (np.array_equal(before, np.eye(4)) and np.array_equal(after, np.eye(4))):
        points = grid.to_physical(grid.indices())
        vectors = _apply(after, _apply(before, points) + vectors) - points
    return vectors, grid


def _references(source: Source) -> list:
    """Its frames; those of one file in one item."""
    references, numbers = {}, defaultdict(set)
    for row in source.frames:
        for frame in row:
            uid = frame.header.SOPInstanceUID
            references.setdefault(uid, frame.reference())
            if frame.number is not None:
                numbers[uid].add(frame.number)
                references[uid].ReferencedFrameNumber = sorted(numbers[uid])
    return list(references.values())


def _field(field, source: str) -> tuple[np.ndarray, Geometry]:
    shape = tuple(int(n) for n in field.GridDimensions)[::-1]
    values = np.frombuffer(field.VectorGridData, "<f4")
    if len(shape) != 3 or values.size != 3 * np.prod(shape):
        raise TransformError(
            f"{source}: its grid is {shape}, but it holds {values.size / 3:g} vectors"
        )
    orientation = np.array(field.ImageOrientationPatient, float)
    across, down = orientation[:3], orientation[3:]
    direction = orthonormal(np.stack([across, down, np.cross(across, down)], axis=1), source)
    spacing = tuple(map(float, field.GridResolution))[::-1]
    check_positive_spacing(spacing, source)
    grid = Geometry(shape, spacing, np.array(field.ImagePositionPatient, float), direction)
    return values.reshape(*shape, 3).astype(np.float64), grid


def _matrix(deformation, name: str) -> np.ndarray:
    found = deformation.get(name)
    if not found:
        return np.eye(4)
    return np.array(found[0].FrameOfReferenceTransformationMatrix, float).reshape(4, 4)


def _apply(matrix, points):
    return points @ matrix[:3, :3].T + matrix[:3, 3]
