"""Refusing files that are damaged where ITK would read on.

ITK does not notice a gzip stream that ends early, a zlib stream with a wrong checksum in a
MetaImage, or a short NIfTI or BMP file; it fills up with zeros or garbage. What a format protects
with a checksum is checked here in full. Uncompressed pixels have none: their damages cannot be
seen, but that a file ends early can.
"""

import gzip
import zlib
from pathlib import Path

from ldm_morph_jax.files.errors import ImageError, one_line

_BLOCK = 1 << 20


def check(path: Path, source: str) -> None:
    """ImageError if a MetaImage or NRRD file holds a damaged compressed stream."""
    with open(path, "rb") as file:
        head = file.read(4)
    if head.startswith(b"NRRD"):
        _check_nrrd(path, source)
    elif path.suffix.lower() in (".mha", ".mhd"):
        _check_metaimage(path, source)


def unzipped(path: Path, source: str, keep: int, skip: int = 0) -> tuple[bytes, int]:
    """The first `keep` bytes and the length of a gzip file, decompressed in full and checked.

    The stream starts `skip` bytes into the file.
    """
    try:
        with open(path, "rb") as raw:
            raw.seek(skip)
            with gzip.GzipFile(fileobj=raw) as file:
                start = file.read(keep)
                length = len(start)
                while block := file.read(_BLOCK):
                    length += len(block)
    except (OSError, EOFError, zlib.error) as error:
        raise ImageError(f"{source}: damaged or cut short ({one_line(error)})") from None
    return start, length


def check_png(data: bytes, source: str) -> None:
    """ImageError unless every chunk of a PNG file has its checksum and the last one is there."""
    at, kind = 8, b""
    while kind != b"IEND":
        length = int.from_bytes(data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 4 : at + 8 + length]
        checksum = data[at + 8 + length : at + 12 + length]
        if len(checksum) < 4 or zlib.crc32(body) != int.from_bytes(checksum):
            raise ImageError(f"{source}: not a readable image (damaged or cut short)")
        at += 12 + length


def _check_metaimage(path, source):
    with open(path, "rb") as file:
        fields = {}
        while "ElementDataFile" not in fields and (line := file.readline(4096)):
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
        data_at = file.tell()
    data = fields.get("ElementDataFile", "")
    compressed = fields.get("CompressedData", "")[:1] in ("T", "t", "1")  # as ITK decides
    several_files = data.upper().startswith("LIST") or "%" in data
    if not compressed or not data or several_files:
        return
    if data.upper() != "LOCAL":
        path, data_at = path.parent / data, 0
    elif not fields.get("CompressedDataSize", "").isdecimal():
        # ITK takes the header for a part of the stream, and garbage for its pixels
        raise ImageError(f"{source}: compressed without CompressedDataSize, expected in its header")
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib or gzip
    try:
        with open(path, "rb") as file:
            file.seek(data_at)
            length = 0
            while not stream.eof and (block := file.read(_BLOCK)):
                stream.decompress(block)
                length += len(block)
    except (OSError, ValueError, zlib.error) as error:
        raise ImageError(f"{source}: damaged or cut short ({one_line(error)})") from None
    length -= len(stream.unused_data)
    if not stream.eof or fields.get("CompressedDataSize", str(length)) != str(length):
        raise ImageError(f"{source}: damaged or cut short ({length} bytes of compressed pixels)")


def _check_nrrd(path, source):
    fields = {}
    with open(path, "rb") as file:
        while line := file.readline(4096).strip():
            key, _, value = line.decode("latin-1").partition(":")
            fields[key.strip().lower().replace(" ", "")] = value.strip()
        data_at = file.tell()
    skips = any(fields.get(key, "0") != "0" for key in ("byteskip", "lineskip"))
    if fields.get("encoding", "").lower() not in ("gzip", "gz") or skips:
        return
    data = fields.get("datafile")
    if data is None:
        unzipped(path, source, 0, data_at)
    elif (path.parent / data).is_file():  # not a list or a pattern of several files
        unzipped(path.parent / data, source, 0)
