"""Damage files of every format at random and read them.

    python tests/fuzz_files.py [--damages 500] [--seed 0] [--formats png nii.gz ...]

Three quarters of the damages turn one bit over, the others cut the file short. Every reading must
end in one line that names the file or in

* the undamaged array, where the format protects its content with checksums;
* otherwise what SimpleITK reads of the damaged file: nobody can see a changed pixel there. A file
  that was cut short is refused all the same.

Prints a row per format; exits 1 after a traceback, another array, or a file that it left behind.
"""

import argparse
import collections
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK

sys.path.insert(0, str(Path(__file__).parent))

from files import samples

from ldm_morph_jax.files.errors import FileError
from ldm_morph_jax.files.geometry import plain_geometry
from ldm_morph_jax.files.images import read_anything
from ldm_morph_jax.files.transforms import Transform, read_transform, write_transform

SHAPE = (40, 30)


def smooth(dtype):
    """Compresses as real images do, which leaves more for a decoder to go wrong with."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    noise = np.random.default_rng(0).integers(0, 8, SHAPE)
    return ((rows * 3 + columns * 2 + noise) % 250).astype(dtype)


GREY8, GREY16 = smooth(np.uint8), smooth(np.uint16) * 200
THREE = np.stack([GREY8] * 3, axis=-1)


def arrays(save):
    def write(path):
        with open(path, "wb") as file:
            save(file)

    return write


def field(path):
    geometry = plain_geometry(SHAPE)
    vectors = np.random.default_rng(0).normal(size=(*SHAPE, 2))
    write_transform(path, Transform(vectors, geometry, geometry))


def without_preamble(writer):
    def write(path):
        writer(path)
        path.write_bytes(path.read_bytes()[132:])

    return write


def video(codec, pixels):
    def write(path):
        import av

        frames = np.random.default_rng(0).integers(0, 255, (8, 48, 64), np.uint8)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
            stream.codec_context.max_b_frames = 0
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.stack([frame] * 3, -1), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())

    return write


# format -> (writer, whether checksums protect all of its content)
FORMATS = {
    "nii.gz": (samples.itk(GREY16), True),
    "nii": (samples.itk(GREY16), False),
    "compressed.mha": (samples.itk(GREY16, compress=True), False),
    "compressed.mhd": (samples.itk(GREY16, compress=True), False),
    "mha": (samples.itk(GREY16), False),
    "gzip.nrrd": (samples.itk(GREY16, compress=True), False),
    "nrrd": (samples.itk(GREY16), False),
    "png": (samples.pillow(GREY16), True),
    "opacity.png": (samples.png(samples.with_opacity(GREY16), 4), True),
    "deflate.tif": (samples.tiff(GREY16, compression="zlib"), False),
    "tif": (samples.tiff(GREY16), False),
    "lzw.tif": (samples.pillow(GREY16, compression="tiff_lzw"), False),
    "jpg": (samples.pillow(GREY8), False),
    "bmp": (samples.pillow(GREY8), False),
    "jp2": (samples.pillow(GREY8), False),
    "dcm": (samples.dicom(GREY16), False),
    "rle.dcm": (samples.dicom(GREY16, syntax=samples.RLELossless), False),
    "jpeg.dcm": (
        samples.dicom(
            THREE,
            samples.UltrasoundImageStorage,
            samples.JPEGBaseline8Bit,
            "YBR_FULL_422",
            PixelData=samples.jpeg(THREE),
        ),
        False,
    ),
    "implicit": (without_preamble(samples.dicom(GREY16)), False),
    "avi": (video("mjpeg", "yuvj420p"), False),
    "mp4": (video("libx264", "yuv420p"), False),
    "mkv": (video("libx264", "yuv420p"), False),
    "npz": (arrays(lambda file: np.savez_compressed(file, image=GREY16, spacing=[1, 2])), True),
    "npy": (arrays(lambda file: np.save(file, GREY16)), False),
    "field.nii.gz": (field, True),
    "field.npz": (field, True),
}


def read(path):
    """(array, geometry as text) of an image or a transform."""
    if path.name.startswith("field"):
        transform = read_transform(path)
        return transform.displacement_mm, str(transform.fixed)
    stored = read_anything(path)
    return stored.array, str(stored.geometry)


def damaged(data, random, number):
    """(bytes, whether they were cut short)."""
    if number % 4 == 3:
        return data[: random.integers(1, len(data))], True
    at = random.integers(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.integers(8)]) + data[at + 1 :], False


def fuzz(folder: Path, name: str, damages: int, seed: int) -> tuple[collections.Counter, list[str]]:
    """(number of each outcome, faults) of one format."""
    write, protected = FORMATS[name]
    path = folder / (name if name.startswith("field") else f"image.{name}")
    write(path)
    whole = read(path)
    before = set(os.listdir(folder))
    target = path.with_suffix(".zraw") if name == "compressed.mhd" else path
    data = target.read_bytes()
    random = np.random.default_rng(seed)
    outcomes, faults = collections.Counter(), []
    for number in range(damages):
        content, cut = damaged(data, random, number)
        target.write_bytes(content)
        try:
            array, geometry = read(path)
        except FileError as error:
            outcomes["refused"] += 1
            if str(path) not in str(error) or "\n" in str(error):
                faults.append(f"{name} {number}: said {error!s}")
            continue
        except Exception as error:
            faults.append(f"{name} {number}: {type(error).__name__}: {error}")
            continue
        same = array.shape == whole[0].shape and np.array_equal(array, whole[0])
        if same and geometry == whole[1]:
            outcomes["undamaged"] += 1
        elif protected or cut:
            faults.append(f"{name} {number}: {'cut' if cut else 'one bit'}: read as another image")
        else:
            outcomes["not noticed"] += 1
            faults += [f"{name} {number}: {text}" for text in _unlike_itk(path, array, name)]
    if left := set(os.listdir(folder)) - before:
        faults.append(f"{name}: left {sorted(left)} behind")
    return outcomes, faults


def _unlike_itk(path, array, name):
    # ITK has no reader of .npy, videos and DICOM without a preamble; JPEG is Pillow's, which takes
    # damaged streams otherwise; damaged JPEG 2000 crashes ITK
    if name in ("npy", "jpg", "jp2", "implicit", "avi", "mp4", "mkv"):
        return
    try:
        itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))
    except RuntimeError as error:
        yield f"ITK refuses it ({' '.join(str(error).split())[-80:]})"
        return
    tolerance = 0
    if itk.size == 3 * array.size:  # three channels that differ slightly became one
        itk, tolerance = itk[..., 0], 4
    if itk.size != array.size or not np.allclose(
        itk.ravel(), array.ravel(), rtol=0, atol=tolerance, equal_nan=True
    ):
        yield "read unlike ITK"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--damages", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    args = parser.parse_args()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    all_faults = []
    for name in args.formats:
        with tempfile.TemporaryDirectory() as folder:
            outcomes, faults = fuzz(Path(folder), name, args.damages, args.seed)
        print(f"{name:15s} {dict(outcomes)} faults {len(faults)}", flush=True)
        for fault in faults[:10]:
            print(f"    {fault[:300]}")
        all_faults += faults
    sys.exit(1 if all_faults else 0)


if __name__ == "__main__":
    main()
