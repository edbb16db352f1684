"""Images to register: one slice, or a stack of slices, with its place in space.

Arrays are `[rows, columns]`, or `[slices, rows, columns]` for a stack: the order of
`SimpleITK.GetArrayFromImage`. Positions are millimetres in LPS (x to the left, y to the back, z to
the head), as in DICOM and ITK.

A single slice of a stack becomes a 2-D image, the one that `volume[:, :, k]` is in SimpleITK. That
needs a slice plane along x and y. A slice in any other plane is given coordinates of its own
(`Image.plane`); if the plane is oblique, that is, not along two of the axes, only when asked for.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ldm_morph_jax.files import folders, itk, reading, videos
from ldm_morph_jax.files.arrays import image_planes, plain_numbers
from ldm_morph_jax.files.dicom_objects.contours import STRUCTURE_SET, read_contours
from ldm_morph_jax.files.dicom_objects.source import sop_class
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.geometry import (
    MAX_TILT_DEGREES,
    Geometry,
    believable,
    check_believable_spacing,
    is_identity,
    millimetres,
    patient_letters,
    plain_geometry,
    plane_geometry,
)
from ldm_morph_jax.files.stored import Region, Stored

Spacing: TypeAlias = float | Sequence[float] | np.ndarray  # mm: one number, or one per axis
_LONGEST = 20  # times as long as wide; what is longer is no picture
_FEWEST_PIXELS = 8  # on a side; less is an icon, or an array whose axes are in another order


VOLUME = "volume"  # in place of a slice: all that a frame holds
FEWEST_SLICES = 4  # of a volume; fewer hardly show a motion through them


@dataclass(frozen=True)
class Image:
    """An image, or a stack of slices, and where it lies.

    array: `[H, W]` or `[S, H, W]`, original values and dtype.
    geometry: see `Geometry`.
    spacing_known, position_known: False where the file does not tell (PNG: neither) and the
      geometry is a stand-in.
    plane: `[3, 3]` direction of a slice that is not in the x-y plane; its 2-D coordinates are those
      of its own plane: x along the columns, y along the rows. None otherwise.
    space: of a slice of a 3-D file, its 3-D geometry (1, H, W); None otherwise.
    source: the file, for messages.
    notes: what was done or chosen while reading, for reports.
    orientation_known: whether the file tells how the axes lie in the patient. Pictures, videos and
      arrays do not, nor do files whose origin and axes are the default ones.
    regions: the parts of an ultrasound image that has several of different scale; its spacing is
      unknown then, see `in_region`.
    """

    array: np.ndarray
    geometry: Geometry
    spacing_known: bool = True
    position_known: bool = True
    plane: np.ndarray | None = None
    source: str = "image"
    space: Geometry | None = None
    notes: tuple[str, ...] = ()
    orientation_known: bool = False
    regions: tuple[Region, ...] = ()

    @property
    def spacing(self) -> tuple[float, float]:
        """(row, column) in mm."""
        row, column = self.geometry.spacing[-2:]
        return row, column

    @property
    def origin(self) -> np.ndarray:
        return self.geometry.origin

    @property
    def direction(self) -> np.ndarray:
        return self.geometry.direction

    @property
    def axis_directions(self) -> np.ndarray | None:
        """`[array.ndim, 3]`: where each axis of the array runs in the patient, unit vectors in LPS.

        (x to the left, y to the back, z to the head; see `geometry.patient_letters`.) None where
        the file does not tell.
        """
        if not self.orientation_known:
            return None
        if self.array.ndim == 3:
            return self.geometry.axis_directions()
        if self.space is not None:
            return self.space.axis_directions()[1:]
        in_plane = np.zeros((2, 3))
        in_plane[:, :2] = self.geometry.axis_directions()
        return in_plane

    @property
    def axis_letters(self) -> list[str] | None:
        """Where rows and columns run in the patient, such as ["P", "L"]; None where unknown."""
        directions = self.axis_directions
        return None if directions is None else [patient_letters(d) for d in directions[-2:]]

    @property
    def blank_slices(self) -> tuple[int, ...]:
        """The slices of a stack that hold one value only, as those that fill up a volume do."""
        if self.array.ndim == 2:
            return ()
        return tuple(k for k, plane in enumerate(self.array) if plane.min() == plane.max())


def images_from_array(
    array: ArrayLike, spacing: Spacing | None = None, *, source: str = "image"
) -> tuple[list[Image], bool]:
    """The images of an array without a place in space, and whether it was a batch.

    Args:
        array: NumPy or JAX, `[H, W]` or `[B, H, W]`, grey values without an axis of channels.
        spacing: mm, one number or (row, column); None where unknown.
        source: what messages call it.

    Raises:
        ImageError: another shape, NaN, masked pixels, constant images, spacing that no image of a
            heart has.
    """
    planes, batched = image_planes(array, source)
    own = None if spacing is None else check_spacing(spacing, source)
    names = [f"{source}[{k}]" for k in range(len(planes))] if batched else [source]
    return [_plain_image(*one, own) for one in zip(planes, names, strict=True)], batched


def volume_from_array(
    array: ArrayLike, spacing: Spacing | None = None, *, source: str = "volume"
) -> Image:
    """A volume `[S, H, W]` without a place in space.

    Args:
        array: NumPy or JAX, grey values without an axis of channels.
        spacing: mm, one number or (slice, row, column); None where unknown.
        source: what messages call it.

    Raises:
        ImageError: what `images_from_array` refuses, and an array of another rank.
    """
    array, several = image_planes(array, source)
    if not several:
        raise ImageError(f"{source}: found shape {array.shape[1:]}, expected a volume [S, H, W]")
    own = None if spacing is None else check_spacing(spacing, source, 3)
    return _plain_image(array, source, own)


def _plain_image(array: np.ndarray, source: str, spacing: tuple[float, ...] | None) -> Image:
    """Without a place in space, checked."""
    geometry = plain_geometry(array.shape, spacing)
    image = Image(array, geometry, spacing is not None, position_known=False, source=source)
    _check_values(image, labels=False)
    return image


def images_of(
    value: Any,
    spacing: Spacing | None = None,
    *,
    source: str = "image",
    slice: int | str | Sequence[int] | None = None,
    frame: int | None = None,
    oblique: bool = False,
    volume: bool = False,
) -> tuple[list[Image], bool]:
    """The images of whatever a caller has, and whether it was a batch.

    Args:
        value: an `Image`; the path of a file or folder; a SimpleITK image; or an array `[H, W]` or
            `[B, H, W]`, NumPy, JAX or what NumPy can make one.
        spacing: mm, one number or (row, column), where `value` has none.
        source: what messages call an array or a SimpleITK image.
        slice, frame, oblique: see `read_image`; not of arrays.
        volume: an array is one volume `[S, H, W]`, see `volume_from_array`.

    Raises:
        ImageError: one line, on anything that cannot be registered.
    """
    if isinstance(value, Image):
        if spacing is not None and value.spacing_known:
            _check_given_spacing(spacing, value.spacing, value.source)
        elif spacing is not None:
            value = _scaled(value, check_spacing(spacing, value.source))
        _check_values(value, labels=False)
        return [value], False
    if isinstance(value, str | os.PathLike):
        return [read_image(value, slice, frame=frame, spacing=spacing, oblique=oblique)], False
    if _is_of_itk(value):
        stored = with_spacing(itk.stored_of(value, source), spacing, source)
        return [image_of_frame(stored, frame, slice, source, oblique=oblique)], False
    if frame is not None or slice not in (None, VOLUME):
        raise ImageError(f"{source}: `slice` and `frame` are of files; index the array")
    if volume:
        return [volume_from_array(value, spacing, source=source)], False
    return images_from_array(value, spacing, source=source)


def masks_of(
    value: Any,
    images: Sequence[Image],
    *,
    source: str = "mask",
    slice: int | str | Sequence[int] | None = None,
    frame: int | None = None,
) -> list[Image]:
    """Labels of images, on their grids, of whatever a caller has.

    Args:
        value: as of `images_of`; an array has the shape of its image, or of the batch.
        images: what the labels are of.
        source, slice, frame: as of `images_of`.

    Raises:
        ImageError: what `read_mask` refuses; another number of masks.
    """
    if isinstance(value, str | os.PathLike):
        return [read_mask(value, image, slice, frame=frame) for image in images]
    if isinstance(value, Image):
        masks = [value]
    elif _is_of_itk(value):
        stored = itk.stored_of(value, source)
        return [mask_of_frame(stored, image, frame, slice, source) for image in images]
    else:
        array = plain_numbers(value, source)
        arrays = [array] if array.ndim == images[0].array.ndim else list(array)
        masks = [
            Image(
                _as_labels(plane, source), plain_geometry(plane.shape), False, False, source=source
            )
            for plane in arrays
        ]
    if len(masks) != len(images):
        shapes = f" of shape {images[0].array.shape}, found {np.shape(value)}"
        raise ImageError(f"{source}: {len(masks)} masks, expected {len(images)}{shapes}")
    return [resample_labels(mask, image) for mask, image in zip(masks, images, strict=True)]


def _is_of_itk(value: Any) -> bool:
    return type(value).__module__.partition(".")[0] == "SimpleITK"


def check_spacing(spacing: Spacing, source: str, rank: int = 2) -> tuple[float, ...]:
    """One number or (row, column), of rank 3 (slice, row, column), in mm -> one for each axis.

    Raises ImageError if no heart's image has it.
    """
    try:
        values = np.broadcast_to(np.asarray(spacing, np.float64), (rank,))
    except (TypeError, ValueError):
        axes = ", ".join(("slice", "row", "column")[-rank:])
        raise ImageError(f"{source}: spacing {spacing}, expected one number or ({axes})") from None
    check_believable_spacing(values, source)
    return tuple(values.tolist())


def read_anything(
    path: str | os.PathLike, *, labels: bool = False, luminance: bool = False
) -> Stored:
    """Everything that a file, a video or a folder of files holds; see `reading.read_stored`."""
    path = Path(path)
    if path.is_dir():
        return folders.read_folder(path, labels=labels, luminance=luminance)
    if path.suffix.lower() in videos.SUFFIXES and path.is_file():
        return videos.read_video(path, str(path))
    return reading.read_stored(path, labels=labels, luminance=luminance)


def read_image(
    path: str | os.PathLike,
    slice: int | str | Sequence[int] | None = None,
    *,
    frame: int | None = None,
    spacing: Spacing | None = None,
    oblique: bool = False,
    labels: bool = False,
) -> Image:
    """Read an image of any kind that ITK reads, NPZ or NPY, a frame of a video, a DICOM folder.

    Args:
        path: the file or folder.
        slice: of a stack, the index (from 0) of the slice to read, several of them, evenly spaced,
            or "all" for `[S, H, W]`.
            Ignored by files of one slice, whose frames it then chooses, as ITK counts them. VOLUME:
            whatever one frame holds, a slice or all of a stack.
        frame: of a file with several frames in time, the index (from 0) of the one to read. Without
            it, a slice of such a file is that of the first frame, and the image's notes say so.
        spacing: mm, one number or (row, column), for files that do not tell theirs: pictures,
            arrays, and geometries that are the default (both codes of a NIfTI file 0, identity).
        oblique: accept a single slice whose plane is tilted against the axes.
        labels: a mask; whole numbers are required, a constant image is fine.

    Raises:
        ImageError: one line, on anything that cannot be registered.
    """
    source = os.fspath(path)
    stored = with_spacing(read_anything(path, labels=labels), spacing, source)
    return image_of_frame(stored, frame, slice, source, oblique=oblique, labels=labels)


def image_of_frame(
    stored: Stored,
    frame: int | None,
    slice: int | str | Sequence[int] | None,
    source: str,
    *,
    oblique: bool = False,
    labels: bool = False,
) -> Image:
    """A frame and slice of what a file holds, checked; arguments as in `read_image`."""
    stack, slice = _select_frame(stored, frame, slice, source)
    image = _select_slice(stack, slice, oblique)
    if labels:
        image = replace(image, array=_as_labels(image.array, source))
    _check_values(image, labels, frame if len(stored.array) > 1 else None)
    return image


def read_mask(
    path: str | os.PathLike,
    image: Image,
    slice: int | str | Sequence[int] | None = None,
    *,
    frame: int | None = None,
) -> Image:
    """Labels of `image`, on its grid.

    Where both files tell positions, labels are found by them (nearest neighbour), however either
    is stored; `slice` is then the image's business. Otherwise the two must have the same shape. Of
    a DICOM structure set the contours are filled.

    Args:
        path: the file or folder.
        image: what the labels are of; of a cine's frame see `movies.read_frame_mask`.
        slice, frame: as in `read_image`. A mask of one frame is one of whichever frame.

    Raises:
        ImageError: what `read_image` refuses; a mask that does not cover its image, or has another
            shape or spacing.
    """
    source, path = os.fspath(path), Path(path)
    if sop_class(path) == STRUCTURE_SET:
        place = image.geometry if image.geometry.dimension == 3 else image.space
        if place is None or not image.position_known:
            raise ImageError(
                f"{source}: contours are in mm of the patient; {image.source} does not tell where "
                "it lies"
            )
        labels, notes = read_contours(path, place)
        return replace(image, array=labels.reshape(image.array.shape), source=source, notes=notes)
    return mask_of_frame(read_anything(path, labels=True), image, frame, slice, source)


def mask_of_frame(
    stored: Stored,
    image: Image,
    frame: int | None,
    slice: int | str | Sequence[int] | None,
    source: str,
) -> Image:
    """A frame of what a file of masks holds, on the grid of `image`; see `read_mask`."""
    if len(stored.array) == 1:
        frame = None
    stack, slice = _select_frame(stored, frame, slice, source)
    placed = stack.position_known and image.position_known
    if not (placed and _in_space(image) and stack.array.ndim == 3):
        if image.array.ndim == 3 and (slice is None or isinstance(slice, int | str)):
            slice = "all"
        stack = _select_slice(stack, slice, oblique=True)
    mask = replace(stack, array=_as_labels(stack.array, source))
    _check_values(mask, labels=True)
    return resample_labels(mask, image)


def slices_as_frames(stored: Stored) -> Stored:
    """A stack (H, W, T), as some programs write cines."""
    geometry = replace(stored.geometry, shape=(1, *stored.geometry.shape[-2:]))
    return replace(stored, array=stored.array.swapaxes(0, 1), geometry=geometry)


def in_region(image: Image, inside: np.ndarray) -> Image:
    """An ultrasound image with the scale of the region in which something lies.

    Args:
        image: one that has `regions`; any other is returned as it is.
        inside: `[H, W]`, true where the object is (a mask, a filled contour).

    Where it lies in no region, or in several, the spacing stays unknown.
    """
    rows, columns = (np.flatnonzero(np.any(inside, axis=axis)) for axis in (1, 0))
    if not image.regions or not len(rows):
        return image
    for region in image.regions:
        (top, bottom), (left, right) = region.rows, region.columns
        if top <= rows[0] and rows[-1] <= bottom and left <= columns[0] and columns[-1] <= right:
            return _scaled(image, region.spacing, f"spacing of the ultrasound region of {region}")
    return image


def _scaled(image: Image, spacing: tuple[float, ...], *notes: str) -> Image:
    """With another spacing of its last axes, in its plane and in space, and notes on it."""
    own = image.geometry.spacing
    spacing = (*own[: len(own) - len(spacing)], *spacing)
    kept = (note for note in image.notes if note != _regions_note(image.regions))
    space = image.space and replace(image.space, spacing=(image.space.spacing[0], *spacing[-2:]))
    return replace(
        image,
        geometry=replace(image.geometry, spacing=spacing),
        space=space,
        spacing_known=True,
        notes=(*kept, *notes),
        regions=(),
    )


def _regions_note(regions: tuple[Region, ...]) -> str:
    return (
        f"{len(regions)} ultrasound regions of different scale "
        f"({'; '.join(map(str, regions))}): no spacing holds for the whole image; crop it, or give "
        "`spacing`"
    )


def on_one_scale(moving: Image, fixed: Image) -> tuple[Image, Image]:
    """Two images of which one tells its pixel spacing: the other, of as many pixels, takes it.

    Raises ImageError where it has another number of pixels, so that nothing tells its scale.
    """
    if moving.spacing_known == fixed.spacing_known or moving.array.ndim != fixed.array.ndim:
        return moving, fixed
    if moving.spacing_known:
        return moving, _with_spacing_of(moving, fixed)
    return _with_spacing_of(fixed, moving), fixed


def _with_spacing_of(other: Image, image: Image) -> Image:
    if image.array.shape != other.array.shape or image.regions:
        own, others = (" x ".join(map(str, i.array.shape)) for i in (image, other))
        raise ImageError(
            f"{image.source}: has {own} pixels and does not tell their spacing, {other.source} has "
            f"{others} of {millimetres(other.spacing)}; expected both to tell it, or as many "
            "pixels: give `spacing`"
        )
    spacing = other.geometry.spacing
    taken = f"taken to be that of {other.source}, {millimetres(spacing)}"
    return _scaled(image, spacing, f"does not tell its pixel spacing: {taken}")


def resample_labels(mask: Image, onto: Image) -> Image:
    """Labels on another image's grid, nearest neighbour in mm.

    Where one of the two has no position, their shapes (and spacings, if both are known) must agree.

    Raises:
        ImageError: the mask does not cover the image.
    """
    return _resample(mask, onto, order=0, what="mask")


def resample_image(image: Image, onto: Image) -> Image:
    """An image on another one's grid, linear in mm, float32 unless the grids are the same.

    Raises ImageError as `resample_labels` does.
    """
    return _resample(image, onto, order=1, what="image")


def check_cover(image: Image, geometry: Geometry, what: str) -> None:
    """ImageError unless `image` covers every pixel of `geometry` (2-D or 3-D, in mm)."""
    place = _place(image, geometry.dimension)
    _cover(place.to_index(geometry.to_physical(geometry.indices())), place, geometry, image, what)


def _resample(image: Image, onto: Image, order: int, what: str) -> Image:
    if not (image.position_known and onto.position_known):
        _check_alike(image, onto, what)
        return replace(onto, array=image.array, source=image.source, notes=image.notes)
    n = 3 if _in_space(image) and _in_space(onto) else 2
    array = image.array
    if n == 2 and array.ndim != onto.array.ndim:
        raise ImageError(
            f"{image.source}: {what} is {array.shape}, {onto.source} {onto.array.shape}; one is a "
            "stack of slices, the other a single image"
        )
    here, there = _place(image, n), _place(onto, n)
    here_plane, there_plane = (
        np.eye(3) if plane is None else plane for plane in (image.plane, onto.plane)
    )
    if n == 2 and not np.allclose(here_plane, there_plane, atol=5e-3):
        raise ImageError(f"{image.source}: {what} lies in another plane than {onto.source}")
    if not here.same_as(there):
        from scipy.ndimage import map_coordinates

        index = here.to_index(there.to_physical(there.indices()))
        index = _cover(index, here, there, image, onto.source)
        values = array.reshape(here.shape).astype(array.dtype if order == 0 else np.float64)
        array = map_coordinates(values, np.moveaxis(index, -1, 0), order=order, mode="nearest")
        array = array if order == 0 else array.astype(np.float32)
    return replace(
        onto, array=array.reshape(onto.array.shape), source=image.source, notes=image.notes
    )


def _in_space(image: Image) -> bool:
    return image.array.ndim == 3 or image.space is not None


def _place(image: Image, dimension: int) -> Geometry:
    if dimension == 3 and image.array.ndim == 2 and image.space is not None:
        return image.space
    if image.geometry.dimension != dimension:
        raise ImageError(
            f"{image.source}: is {image.geometry.dimension}-D, expected {dimension}-D as what it "
            "belongs to"
        )
    return image.geometry


def _cover(
    index: np.ndarray, here: Geometry, there: Geometry, image: Image, what: str
) -> np.ndarray:
    """Indices rounded into the grid `here`; ImageError if they leave it.

    A pixel reaches half a spacing beyond its centre; a slice as far as the slices of either grid.
    """
    reach = np.full(here.dimension, 0.5)
    if here.dimension == 3:
        reach[0] = 0.5 * max(1.0, there.spacing[0] / here.spacing[0])
    last = np.array(here.shape) - 1
    beyond = np.maximum(-index, index - last)
    inside = (beyond <= reach + 0.01).all(axis=-1)
    if not inside.all():
        raise ImageError(
            f"{image.source}: covers {100 * inside.mean():.0f} % of {what}, expected all of it "
            "(they are compared in mm)"
        )
    return np.clip(index, 0, last)


def _check_alike(image: Image, onto: Image, what: str) -> None:
    other = f"its image {onto.source}" if what == "mask" else onto.source
    if image.array.shape != onto.array.shape:
        raise ImageError(
            f"{image.source}: {what} is {image.array.shape}, {other} {onto.array.shape}; they must "
            "agree"
        )
    both = image.spacing_known and onto.spacing_known
    if both and not np.allclose(image.spacing, onto.spacing, rtol=1e-2):
        raise ImageError(
            f"{image.source}: {what} has spacing {millimetres(image.spacing)}, {other} "
            f"{millimetres(onto.spacing)}; they must agree"
        )


def with_spacing(stored: Stored, spacing: Spacing | None, source: str) -> Stored:
    """With a spacing (mm, row and column) given by hand, if the file's own means nothing.

    Raises ImageError where the file has another one of its own, or one that no heart's image has.
    """
    own = stored.geometry.spacing
    if spacing is None:
        if stored.spacing_known:
            try:
                check_believable_spacing(own[-2:], source)
            except ImageError as error:
                raise ImageError(f"{error}; give its `spacing`") from None
        return stored
    told = stored.spacing_known and believable(own[-2:])
    if not told or is_identity(stored.geometry):
        geometry = replace(stored.geometry, spacing=(*own[:-2], *check_spacing(spacing, source)))
        return replace(stored, geometry=geometry, spacing_known=True, regions=())
    _check_given_spacing(spacing, own[-2:], source)
    return stored


def _check_given_spacing(spacing: Spacing, own: tuple[float, ...], source: str) -> None:
    given = check_spacing(spacing, source)
    if not np.allclose(given, own, rtol=1e-3):
        raise ImageError(
            f"{source}: its spacing is {millimetres(own)}, {millimetres(given)} was given; leave "
            "`spacing` out"
        )


def _select_frame(
    stored: Stored, frame: int | None, slice: int | str | Sequence[int] | None, source: str
) -> tuple[Image, int | str | Sequence[int] | None]:
    """One frame, `[H, W]` or `[S, H, W]`, and the slice that remains to be chosen."""
    frames, slices = stored.array.shape[:2]
    notes, array, geometry = stored.notes, stored.array, stored.geometry
    if frames > 1 and slices == 1 and frame is None and slice not in (None, VOLUME):
        # as ITK counts: its third axis holds the frames
        array, slices = array.swapaxes(0, 1), frames
        space = _as_3d(geometry)
        geometry = replace(space, shape=(frames, *space.shape[1:]))
        frames = 1
    if frames > 1 and frame is None:
        if slice in (None, VOLUME):
            raise ImageError(
                f"{source}: has {frames} frames; choose one with `frame` 0 to {frames - 1}"
            )
        notes = (*notes, f"the first of {frames} frames")
    k = frame or 0
    if not 0 <= k < frames:
        raise ImageError(f"{source}: has no frame {k}; its frames are 0 to {frames - 1}")
    array = array[k]
    if geometry.dimension == 2:
        array = array[0]
    if stored.regions:
        notes = (*notes, _regions_note(stored.regions))
    return (
        Image(
            array,
            geometry,
            stored.spacing_known,
            stored.position_known,
            source=source,
            notes=notes,
            orientation_known=stored.orientation_known,
            regions=stored.regions,
        ),
        slice,
    )


def _as_3d(geometry: Geometry) -> Geometry:
    if geometry.dimension == 3:
        return geometry
    direction = np.eye(3)
    direction[:2, :2] = geometry.direction
    return Geometry(
        (1, *geometry.shape),
        (1.0, *geometry.spacing),
        np.append(geometry.origin, 0.0),
        direction,
    )


def _select_slice(image: Image, slice: int | str | Sequence[int] | None, oblique: bool) -> Image:
    """`[S, H, W]` -> the slice that was asked for; 2-D images pass."""
    if image.array.ndim == 2:
        return image
    slices = image.array.shape[0]
    if slices > 1 and slice in ("all", VOLUME):
        return image  # in space, where any direction will do
    if isinstance(slice, Sequence) and not isinstance(slice, str):
        return _substack(image, np.array(slice))
    normal = np.abs(image.direction[:, 2])
    tilt = np.degrees(np.arccos(np.minimum(1.0, normal)))
    if tilt.min() > MAX_TILT_DEGREES and not oblique:
        raise ImageError(
            f"{image.source}: oblique direction (slice plane tilted {tilt[2]:.1f} degrees against "
            "the x-y plane); add `oblique` to register in the slice's own plane"
        )
    if slices > 1 and slice is None:
        raise ImageError(
            f"{image.source}: 3-D with {slices} slices; choose one with `slice` 0 to "
            f"{slices - 1}, or all"
        )
    k = _index(slice or 0, image.source) if slices > 1 else 0  # a file of one slice has no other
    if not 0 <= k < slices:
        raise ImageError(f"{image.source}: has no slice {k}; its slices are 0 to {slices - 1}")
    whole, (geometry, axial) = image.geometry, plane_geometry(image.geometry, k)
    corner = whole.to_physical(np.array([k, 0.0, 0.0]))
    return replace(
        image,
        array=image.array[k],
        geometry=geometry,
        plane=None if axial else image.direction,
        space=Geometry((1, *whole.shape[1:]), whole.spacing, corner, whole.direction),
    )


def _index(slice: Any, source: str) -> int:
    """A slice as callers name it: 3, "3"."""
    try:
        k = float(slice)
    except (TypeError, ValueError):
        k = float("nan")
    if not k.is_integer():
        raise ImageError(
            f"{source}: found `slice` {slice!r}, expected a whole number, several, 'all' or "
            f"{VOLUME!r}"
        )
    return int(k)


def _substack(image: Image, chosen: np.ndarray) -> Image:
    """Several slices of a stack `[S, H, W]`, which are a stack again."""
    count = len(image.array)
    if len(chosen) < 2 or chosen.min() < 0 or chosen.max() >= count:
        raise ImageError(
            f"{image.source}: found `slice` {chosen.tolist()}, expected two or more of its "
            f"slices 0 to {count - 1}"
        )
    steps = np.diff(chosen)
    if steps[0] < 1 or (steps != steps[0]).any():
        raise ImageError(
            f"{image.source}: found `slice` {chosen.tolist()}, expected evenly spaced ones, from "
            "the first to the last"
        )
    whole = image.geometry
    geometry = Geometry(
        (len(chosen), *whole.shape[1:]),
        (float(whole.spacing[0] * steps[0]), *whole.spacing[1:]),
        whole.to_physical(np.array([chosen[0], 0.0, 0.0])),
        whole.direction,
    )
    return replace(image, array=image.array[chosen], geometry=geometry)


def _check_values(image: Image, labels: bool, frame: int | None = None) -> None:
    array, source = image.array, image.source
    if min(array.shape[-2:]) < _FEWEST_PIXELS:
        raise ImageError(
            f"{source}: has {array.shape[-2]} x {array.shape[-1]} pixels, too few to register; "
            f"expected at least {_FEWEST_PIXELS} x {_FEWEST_PIXELS}"
        )
    if max(array.shape[-2:]) > _LONGEST * min(array.shape[-2:]):
        raise ImageError(
            f"{source}: has {array.shape[-2]} x {array.shape[-1]} pixels, too narrow to register; "
            f"expected at most {_LONGEST} times as long as wide"
        )
    if array.dtype.kind not in "biuf":
        raise ImageError(f"{source}: holds {array.dtype}, expected real numbers")
    where = source if frame is None else f"{source}: frame {frame}"
    if not np.isfinite(array).all():
        raise ImageError(f"{where}: holds NaN or infinite values")
    if not labels and array.min() == array.max():
        raise ImageError(f"{where} is constant ({array.min()}), nothing to register")


def _as_labels(array: np.ndarray, source: str) -> np.ndarray:
    if np.issubdtype(array.dtype, np.integer):
        return array
    if array.dtype == bool:
        return array.astype(np.uint8)
    if not np.isfinite(array).all() or (array != np.round(array)).any():
        raise ImageError(f"{source}: not a mask; its values are not whole numbers")
    return array.astype(np.int32)
