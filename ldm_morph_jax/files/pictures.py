"""PNG, TIFF, JPEG, JPEG 2000 and BMP, where ITK loses something or does not notice damage.

None of them tells where a picture lies, and the resolution some carry is that of printing (72, 96
or 300 dpi, whatever the program that wrote them has by default), so spacing counts as unknown.
"""

import io
import logging
import zlib
from pathlib import Path

import numpy as np

from ldm_morph_jax.files import integrity, itk
from ldm_morph_jax.files.colour import to_grey
from ldm_morph_jax.files.errors import ImageError, refusing
from ldm_morph_jax.files.stored import Stored, without_place

_GREY, _PALETTE, _GREY_AND_OPACITY = 0, 3, 4  # colour types of PNG


def read_png(path: Path, source: str, *, labels: bool = False, luminance: bool = False) -> Stored:
    """Read a PNG file of any bit depth and channel layout.

    ITK reads grey and colour ones. It turns palettes into colours, spreads 1, 2 and 4 bits over 0
    to 255, both of which changes labels, and has no grey with opacity.
    """
    data = path.read_bytes()
    integrity.check_png(data, source)
    bits, kind = data[24], data[25]
    if kind == _PALETTE:
        image = _pillow(path, source, "PNG")
        array = np.asarray(image if labels else image.convert("RGBA"))
    elif kind == _GREY_AND_OPACITY:
        array = _grey_and_opacity(data, bits, source)
    else:
        array = itk.load(path, source).array
    if labels and kind == _GREY and bits < 8:
        array = array // (255 // (2**bits - 1))
    return _picture(array, source, luminance)


def read_jpeg(path: Path, source: str, *, labels: bool = False, luminance: bool = False) -> Stored:
    """Read a JPEG file with Pillow: ITK fills up with grey what a cut one lacks.

    Both decode with libjpeg, to the same values.
    """
    image = _pillow(path, source, "JPEG")
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    return _picture(np.asarray(image), source, luminance)


def read_jpeg2000(
    path: Path, source: str, *, labels: bool = False, luminance: bool = False
) -> Stored:
    """Read a JPEG 2000 file with Pillow: ITK crashes on some damaged ones.

    Both decode with OpenJPEG, to the same values.
    """
    return _picture(np.asarray(_pillow(path, source, "JPEG2000")), source, luminance)


def read_bmp(path: Path, source: str, *, labels: bool = False, luminance: bool = False) -> Stored:
    """Read a BMP file; Pillow notices where it ends early, and has the indices of a palette."""
    image = _pillow(path, source, "BMP")
    array = itk.load(path, source).array
    if labels and image.mode == "P":
        array = np.asarray(image)
    return _picture(array, source, luminance)


def read_tiff(path: Path, source: str, *, labels: bool = False, luminance: bool = False) -> Stored:
    """Read a TIFF file; its pages are slices.

    ITK reads planar, tiled and bilevel files and those with an opacity channel as eight-bit
    colours, float16 as integers, and refuses 64-bit samples, so tifffile decodes. Without the
    optional package imagecodecs it has no LZW, PackBits or JPEG; ITK then decodes those, or Pillow,
    and what they read must be what the file's tags say.

    0 is white in some files ("MINISWHITE"): they are inverted, as ITK inverts DICOM's MONOCHROME1,
    but labels are not.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters it also raises
    with refusing(f"{source}: not a readable image"), tifffile.TiffFile(path) as file:
        pages = [page.aspage() for page in file.pages]
        pages = [page for page in pages if not page.is_reduced]
        for page in pages:
            _check_strips(page, file.filehandle.size, source)
        if all(page.compression in tifffile.TIFF.DECOMPRESSORS for page in pages):
            samples = [_samples(page, source) for page in pages]
        else:
            samples = _samples_elsewhere(path, source, pages)
        planes = [
            _tiff_values(page, array, source, labels, luminance)
            for page, array in zip(pages, samples, strict=True)
        ]
    if not planes:
        raise ImageError(f"{source}: not a readable image (it has no page)")
    if len({(plane.shape, plane.dtype) for plane, _ in planes}) > 1:
        raise ImageError(f"{source}: its pages differ in size or type")
    array = np.stack([plane for plane, _ in planes])
    shape = array.shape if len(planes) > 1 else array.shape[1:]
    return without_place(array[None], shape, planes[0][1])


def _check_strips(page, length: int, source: str) -> None:
    """ImageError unless all strips or tiles are in the file; tifffile puts zeros for others."""
    ends = np.add(page.dataoffsets, page.databytecounts)
    whole = len(ends) == len(page.databytecounts) == np.prod(page.chunked)
    if not whole or min(page.databytecounts) == 0 or max(ends) > length:
        raise ImageError(f"{source}: not a readable image (damaged or cut short)")


def _samples(page, source: str) -> np.ndarray:
    """`[H, W]` or `[H, W, C]`."""
    array = page.asarray()
    if page.axes == "SYX":  # planar
        return np.moveaxis(array, 0, -1)
    if page.axes not in ("YX", "YXS"):
        raise ImageError(f"{source}: has the axes {page.axes}, expected a flat picture")
    return array


def _tiff_values(page, array, source, labels, luminance):
    """Grey values or labels of a page's samples, `[H, W]`, and notes."""
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    kind = getattr(page.photometric, "name", page.photometric)
    if kind == "PALETTE":
        if labels:
            return array, ()
        array = np.moveaxis(page.colormap[:, array], 0, -1)
    elif kind == "MINISWHITE" and not labels:
        if array.dtype.kind != "u":
            raise ImageError(f"{source}: 0 is white and samples are {array.dtype}, expected uint")
        array = (2**page.bitspersample - 1 - array.astype(np.uint64)).astype(array.dtype)
    elif kind not in ("MINISWHITE", "MINISBLACK", "RGB", "YCBCR"):
        raise ImageError(f"{source}: colour image ({kind}), expected grey values")
    return _grey(array, source, luminance)


def _samples_elsewhere(path, source, pages) -> list[np.ndarray]:
    """`[H, W]` or `[H, W, C]` of each page, decoded by ITK or Pillow, as the tags have it."""
    page = pages[0]
    shape = page.imagelength, page.imagewidth
    if page.samplesperpixel > 1:
        shape = (*shape, page.samplesperpixel)
    for decode in (_by_itk, _by_pillow):
        samples = decode(path, source, pages, shape)
        if all(array.shape == shape and array.dtype == page.dtype for array in samples):
            return samples
    kind = getattr(page.compression, "name", page.compression)
    raise ImageError(
        f"{source}: compressed by {kind}, which needs: pip install 'ldm_morph_jax[codecs]'"
    )


def _by_itk(path, source, pages, shape):
    try:
        array = itk.load(path, source).array
    except ImageError:
        return [np.empty(0)]
    whole = array.size == len(pages) * np.prod(shape)
    return list(array.reshape(len(pages), *shape)) if whole else [array]


def _by_pillow(path, source, pages, shape):
    import PIL.Image

    if pages[0].photometric == 0:  # 0 is white: Pillow inverts some types, and some it does not
        return [np.empty(0)]
    samples = []
    try:
        with itk.undisturbed(), PIL.Image.open(path, formats=("TIFF",)) as image:
            for page in pages:
                image.seek(page.index)
                samples.append(np.asarray(image))
    except (OSError, ValueError, SyntaxError):  # a layout that it does not know, damaged pixels
        return [np.empty(0)]
    return samples


def _picture(array, source, luminance) -> Stored:
    grey, notes = _grey(array, source, luminance)
    return without_place(grey[None, None], grey.shape, notes)


def _grey(array, source, luminance):
    """Grey values `[H, W]` of samples `[H, W]` or `[H, W, C]`, and notes."""
    components = 1 if array.ndim == 2 else array.shape[-1]
    return to_grey(array, components, source, luminance=luminance)


def _grey_and_opacity(data: bytes, bits: int, source: str) -> np.ndarray:
    """`[H, W, 2]` of a PNG file of grey and opacity.

    Pillow decodes 8 bits and would halve 16. But a pixel of two 16-bit samples has as many bytes
    as one of four 8-bit samples, and everything in PNG (filters, interlacing) works on bytes: with
    that said in the header instead, Pillow decodes the bytes as they are.
    """
    if bits == 16:
        header = data[12:24] + bytes([8, 6]) + data[26:29]  # 8 bits, red green blue opacity
        data = data[:12] + header + zlib.crc32(header).to_bytes(4) + data[33:]
    array = np.ascontiguousarray(_pillow(io.BytesIO(data), source, "PNG"))
    return array.view(">u2").astype(np.uint16) if bits == 16 else array


def _pillow(file, source, kind: str):
    """A decoded picture; ImageError if it is damaged."""
    import PIL.Image

    with refusing(f"{source}: not a readable image"), itk.undisturbed():
        image = PIL.Image.open(file, formats=(kind,))
        image.load()
    return image
