"""Contours of a radiotherapy structure set (RTSTRUCT), read as labels of an image."""

from pathlib import Path

import numpy as np

from ldm_morph_jax.files.errors import ImageError, one_line
from ldm_morph_jax.files.geometry import Geometry

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"


def read_contours(path: str | Path, place: Geometry) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of the pixels whose centres lie inside the closed contours of a structure set.

    Args:
        path: the RTSTRUCT.
        place: 3-D geometry (S, H, W) of the image, in the frame of reference of the contours.

    Returns:
        (`[S, H, W]` uint16: the number of the structure (ROI Number), the smaller one where two
        overlap; contours of one structure inside each other are holes; notes).

    Raises:
        ImageError: no structure set, no closed contour, none of them in the image's slices, or
            contours across its slices.
    """
    import pydicom
    from matplotlib.path import Path as Outline

    try:
        file = pydicom.dcmread(path)
        structures = {
            int(s.ROINumber): str(s.get("ROIName", "")) for s in file.StructureSetROISequence
        }
        contours = [
            (int(roi.ReferencedROINumber), np.array(one.ContourData, float).reshape(-1, 3))
            for roi in file.ROIContourSequence
            for one in roi.get("ContourSequence") or []
            if one.ContourGeometricType in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
        ]
    except (pydicom.errors.InvalidDicomError, AttributeError, TypeError, ValueError) as error:
        raise ImageError(f"{path}: not a readable structure set ({one_line(error)})") from None
    if not contours:
        raise ImageError(f"{path}: holds no closed contour")
    pixels = place.indices()[0, ..., 1:].reshape(-1, 2)
    masks = {number: np.zeros(place.shape, bool) for number in structures}
    for number, points in contours:
        index = place.to_index(points)
        depth = index[:, 0]
        if np.ptp(depth) > 0.5:
            raise ImageError(
                f"{path}: a contour of {structures.get(number, number)} crosses the image's slices"
            )
        k = round(float(depth.mean()))
        if 0 <= k < place.shape[0] and len(points) > 2:
            inside = Outline(index[:, 1:]).contains_points(pixels)
            masks.setdefault(number, np.zeros(place.shape, bool))[k] ^= inside.reshape(
                place.shape[1:]
            )
    labels = np.zeros(place.shape, np.uint16)
    for number in sorted(masks, key=lambda n: -masks[n].sum()):
        labels[masks[number]] = number
    if not labels.any():
        raise ImageError(f"{path}: none of its contours lies in the slices of the image")
    names = ", ".join(f"{number} {structures.get(number, '')}" for number in sorted(masks))
    return labels, (f"DICOM structures: {names}",)
