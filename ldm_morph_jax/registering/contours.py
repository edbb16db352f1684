"""Outlines of masks as points that a displacement can carry along. (row, column) pixels."""

import numpy as np
from contourpy import contour_generator
from scipy import ndimage

_SOFTEN = 0.7  # sigma in pixels: what takes the stairs of pixels away, but not the shape
_CLEAR = 3.0  # pixels from the structure at which an outline is open


def outline(mask: np.ndarray, *, open_at: np.ndarray | None = None, points: int = 120):
    """Outline of the largest part of `mask` `[H, W]`: `[points, 2]`, equally spaced.

    It runs from row towards column around the mask, so that `ops.strain.contour_directions` has
    its normal outwards. Closed, without repeating the first point; or, with `open_at`, open where
    that other mask is near: a ventricle at its atrium, from base over the apex to the other base.

    Raises:
        ValueError: an empty mask, or one that is nowhere away from `open_at`.
    """
    mask = np.asarray(mask, bool)
    if not mask.any():
        raise ValueError("mask: found no pixel, expected a structure to outline")
    soft = ndimage.gaussian_filter(np.pad(mask, 1).astype(float), _SOFTEN)
    lines = contour_generator(z=soft).lines(soft.max() / 2)
    closed = [line[:-1, ::-1] - 1 for line in lines if np.array_equal(line[0], line[-1])]
    line = max(closed, key=lambda p: abs(_signed_area(p)))
    if _signed_area(line) < 0:
        line = line[::-1]
    if open_at is None:
        line = np.concatenate([line, line[:1]])
    else:
        distance = ndimage.distance_transform_edt(~np.asarray(open_at, bool))
        clear = ndimage.map_coordinates(distance, line.T, order=1, mode="nearest") > _CLEAR
        if not clear.any():
            raise ValueError("mask: found it everywhere next to `open_at`, nothing to outline")
        if not clear.all():
            line = _longest_run(line, clear)
    at = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
    where = np.linspace(0, at[-1], points, endpoint=open_at is not None)
    return np.stack([np.interp(where, at, line[:, k]) for k in (0, 1)], axis=-1)


def _signed_area(line):
    row, column = line.T
    return (row * np.roll(column, -1) - np.roll(row, -1) * column).sum() / 2


def _longest_run(line, keep):
    """The longest stretch of a closed line where `keep` holds."""
    start = np.flatnonzero(~keep)[0]
    line, keep = np.roll(line, -start, axis=0), np.roll(keep, -start)
    labels, number = ndimage.label(keep)
    longest = 1 + np.argmax(np.bincount(labels, minlength=number + 1)[1:])
    return line[labels == longest]
