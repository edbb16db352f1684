"""Small image files of every kind, written by the libraries that users write them with."""

import io
import struct
import zlib

import nibabel
import numpy as np
import PIL.Image
import SimpleITK
import tifffile
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    MRImageStorage,
    RLELossless,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

SHAPE = (11, 8)


def picture(dtype=np.uint16, shape=SHAPE, seed=0):
    """Values all over the range of an integer type, `[H, W]`; decimals of a floating one."""
    rng = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(0, 300, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def labels(shape=SHAPE):
    return np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)


def rotation(degrees, flip=1.0):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s], [s, c]]) * [1.0, flip]


def itk(array, degrees=25.0, flip=-1.0, compress=False):
    """A writer of SimpleITK's: anisotropic, moved, turned in the x-y plane, one axis flipped."""

    def write(path):
        image = SimpleITK.GetImageFromArray(array, isVector=False)
        n = image.GetDimension()
        image.SetSpacing((1.5, 2.5, 8.0, 0.04)[:n])
        image.SetOrigin((-12.0, 34.5, 7.0, 0.0)[:n])
        direction = np.eye(n)
        direction[:2, :2] = rotation(degrees, flip)
        image.SetDirection(direction.ravel().tolist())
        SimpleITK.WriteImage(image, path, compress)

    return write


def nifti(array, affine="turned", scale=None, codes=(1, 1), unit="mm", kind=nibabel.Nifti1Image):
    """A writer of nibabel's; `array` is in the file's axes (x, y[, z[, t]])."""

    def write(path):
        matrix = affine
        if isinstance(affine, str):
            matrix = np.eye(4)
            matrix[:2, :2] = rotation(40) * [1.5, 2.5]
            matrix[2, 2], matrix[:3, 3] = 8, (10, -20, 30)
        image = kind(array, matrix)
        if matrix is not None and kind is nibabel.Nifti1Image:
            image.set_qform(matrix, codes[0])
            image.set_sform(matrix, codes[1])
            image.header.set_xyzt_units(unit, "sec" if array.ndim > 3 else None)
        if array.ndim == 4:
            image.header["pixdim"][4] = 0.04
        if scale is not None:
            image.header.set_slope_inter(*scale)
        nibabel.save(image, path)

    return write


def pillow(array, mode=None, **options):
    return lambda path: (
        PIL.Image.fromarray(array).convert(mode) if mode else PIL.Image.fromarray(array)
    ).save(path, **options)


def palette(array, colours, **options):
    """A picture of indices into `colours`."""

    def write(path):
        image = PIL.Image.fromarray(array.astype(np.uint8))
        image.putpalette(np.ravel(colours).tolist())
        image.save(path, **options)

    return write


def tiff(array, **options):
    return lambda path: tifffile.imwrite(path, array, **options)


def png(array, colour_type, bits=16):
    """A PNG file made by hand, in layouts that Pillow cannot write."""

    def write(path):
        height, width = array.shape[:2]
        rows = array.astype(">u2") if bits == 16 else array.astype(np.uint8)
        raw = b"".join(b"\0" + row.tobytes() for row in rows)
        if bits < 8:
            packed = np.unpackbits(rows[..., None], axis=-1)[..., -bits:].reshape(height, -1)
            raw = b"".join(b"\0" + row.tobytes() for row in np.packbits(packed, axis=-1))
        header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(
                struct.pack(">I", len(body))
                + kind
                + body
                + struct.pack(">I", zlib.crc32(kind + body))
                for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
            )
        )

    return write


def with_opacity(*channels):
    full = np.iinfo(channels[0].dtype).max
    return np.stack([*channels, np.full_like(channels[0], full)], axis=-1)


def dicom(array, storage=MRImageStorage, syntax=ExplicitVRLittleEndian, photometric=None, **more):
    """A writer of pydicom's; `array` `[H, W]`, `[N, H, W]` or, of 8-bit colours, `[H, W, 3]`.

    Attributes in `more` are set; None removes one.
    """

    def write(path):
        file = Dataset()
        file.file_meta = FileMetaDataset()
        file.file_meta.TransferSyntaxUID = syntax
        file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = storage
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
        colour = array.ndim == 3 and array.shape[-1] == 3
        file.SamplesPerPixel = 3 if colour else 1
        file.PhotometricInterpretation = photometric or ("RGB" if colour else "MONOCHROME2")
        file.Rows, file.Columns = array.shape[:2] if colour else array.shape[-2:]
        if colour:
            file.PlanarConfiguration = 0
        elif array.ndim == 3:
            file.NumberOfFrames = len(array)
        bits = 8 * array.dtype.itemsize
        file.BitsAllocated = file.BitsStored = bits
        file.HighBit, file.PixelRepresentation = bits - 1, int(array.dtype.kind == "i")
        file.Modality = "MR"
        if storage == MRImageStorage:
            file.PixelSpacing, file.SliceThickness = [2.5, 1.5], 8
            file.ImagePositionPatient = [-12, 34.5, 7]
            file.ImageOrientationPatient = [0, 1, 0, -1, 0, 0]
        file.PixelData = array.tobytes()
        for name, value in more.items():
            if name == "PixelData":
                file.PixelData = encapsulate([value])
                file["PixelData"].is_undefined_length = True
            elif value is None:
                delattr(file, name)
            else:
                setattr(file, name, value)
        if syntax == RLELossless:
            file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            file.compress(RLELossless)
        file.save_as(path, enforce_file_format=True)

    return write


def ramp_palette():
    ramp = (np.arange(256) * 257).astype("<u2").tobytes()
    tags = {}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{colour}PaletteColorLookupTableData"] = ramp
    return tags


def jpeg(array):
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def item(**tags):
    one = Dataset()
    for name, value in tags.items():
        setattr(one, name, value)
    return one


def ultrasound_regions(column_cm=0.05, row_cm=0.03):
    """A small region in seconds and centimetres (M-mode), then the 2-D one."""
    place = {"RegionFlags": 0, "RegionDataType": 1}
    place |= {"RegionLocationMinX0": 0, "RegionLocationMinY0": 0}
    return [
        item(
            **place,
            RegionSpatialFormat=2,
            RegionLocationMaxX1=90,
            RegionLocationMaxY1=90,
            PhysicalUnitsXDirection=4,
            PhysicalUnitsYDirection=3,
            PhysicalDeltaX=9.0,
            PhysicalDeltaY=9.0,
        ),
        item(
            **place,
            RegionSpatialFormat=1,
            RegionLocationMaxX1=7,
            RegionLocationMaxY1=10,
            PhysicalUnitsXDirection=3,
            PhysicalUnitsYDirection=3,
            PhysicalDeltaX=column_cm,
            PhysicalDeltaY=row_cm,
        ),
    ]


def functional_groups(positions, rescale=(2.0, -100.0), delays=None, slopes=None):
    """Tags of an enhanced MR file whose frames lie at these z."""
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[2.5, 1.5], SliceThickness=8)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    )
    if slopes is None:
        shared.PixelValueTransformationSequence = [_rescale(*rescale)]
    frames = []
    for k, z in enumerate(positions):
        frame = item(PlanePositionSequence=[item(ImagePositionPatient=[-12, 34.5, z])])
        if delays is not None:
            frame.CardiacSynchronizationSequence = [item(NominalCardiacTriggerDelayTime=delays[k])]
        if slopes is not None:
            frame.PixelValueTransformationSequence = [_rescale(slopes[k], 0)]
        frames.append(frame)
    return {
        "NumberOfFrames": len(frames),
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": frames,
    }


def _rescale(slope, intercept):
    return item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")


_grey8, _grey16 = picture(np.uint8), picture(np.uint16)
_stack = np.stack([picture(np.int16, seed=k) for k in range(4)])
_cine = np.stack([_stack + k for k in range(3)])
_three8, _three16 = (np.stack([one] * 3, axis=-1) for one in (_grey8, _grey16))
_chroma = np.full_like(_grey8, 128)
_rgb24 = np.zeros((*SHAPE[::-1], 1), [(k, "u1") for k in "RGB"])
for _k in "RGB":
    _rgb24[_k][..., 0] = _grey8.T

# name -> writer(path): read as SimpleITK reads them, array and geometry
AS_ITK = {
    **{f"{t}.nii": nifti(picture(t).T) for t in (np.uint8, np.int16, np.float32, np.float64)},
    "2d.nii.gz": itk(picture(np.float32)),
    "3d.nii.gz": itk(_stack),
    "4d.nii.gz": itk(_cine),
    "uint32.nii": nifti(picture(np.uint32).T),
    "qform.nii": nifti(picture(np.int16).T, codes=(1, 0)),
    "sform.nii": nifti(picture(np.int16).T, codes=(0, 1)),
    "aligned.nii": nifti(picture(np.int16).T, codes=(0, 2)),
    "no orientation.nii": nifti(picture(np.int16).T, affine=None),
    "scaled.nii.gz": nifti(_stack.T, scale=(2.0, 5.0)),
    "metres.nii": nifti(_stack.T, unit="meter"),
    "microns.nii": nifti(_stack.T, unit="micron"),
    "pair.img": nifti(_stack.T, kind=nibabel.Nifti1Pair),
    "analyze.img": nifti(_stack.T, affine=np.eye(4), kind=nibabel.AnalyzeImage),
    "rgb24.nii.gz": nifti(_rgb24),
    "2d.mha": itk(picture(np.float32)),
    "3d.mhd": itk(_stack),
    "compressed.mha": itk(_stack, compress=True),
    "compressed.mhd": itk(_stack, compress=True),
    "4d.mha": itk(_cine),
    "2d.nrrd": itk(picture(np.uint16)),
    "3d.nrrd": itk(_stack, compress=True),
    "detached.nhdr": itk(_stack),
    "2d.vtk": itk(picture(np.float32), degrees=0, flip=1),
    "grey8.png": pillow(_grey8),
    "grey16.png": pillow(_grey16),
    "rgb8.png": pillow(_three8),
    "rgba8.png": pillow(with_opacity(*[_grey8] * 3)),
    "rgb16.png": png(_three16, 2),
    "rgba16.png": png(with_opacity(*[_grey16] * 3), 6),
    "palette of greys.png": pillow(_grey8, "P"),
    "bits2.png": png(labels(), 0, bits=2),
    "int8.tif": tiff(picture(np.int8)),
    "uint16.tif": tiff(_grey16),
    "int32.tif": tiff(picture(np.int32)),
    "uint32.tif": tiff(picture(np.uint32)),
    "float32.tif": tiff(picture(np.float32)),
    "big endian.tif": tiff(_grey16, byteorder=">"),
    "deflate.tif": tiff(_grey16, compression="zlib", predictor=True),
    "lzw.tif": pillow(_grey16, compression="tiff_lzw"),
    "packbits.tif": pillow(_grey8, compression="packbits"),
    "rgb16.tif": tiff(_three16, photometric="rgb"),
    "rgba16.tif": tiff(with_opacity(*[_grey16] * 3), photometric="rgb", extrasamples=[2]),
    "pages.tif": tiff(np.stack([_grey16] * 4), photometric="minisblack"),
    "grey.jpg": pillow(_grey8),
    "rgb.jpg": pillow(_three8),
    "grey.bmp": pillow(_grey8),
    "rgb.bmp": pillow(_three8),
    "grey.jp2": pillow(_grey8),
    "grey16.jp2": pillow(_grey16),
    "rgb.jp2": pillow(_three8),
    "mr.dcm": dicom(_grey16),
    "signed.dcm": dicom(picture(np.int16)),
    "IM0001": dicom(_grey16, RescaleSlope=2, RescaleIntercept=-1000),
    "rescaled by half.dcm": dicom(_grey16, RescaleSlope=0.5, RescaleIntercept=0.25),
    "monochrome1.dcm": dicom(_grey16, photometric="MONOCHROME1"),
    "monochrome1 signed.dcm": dicom(picture(np.int16), photometric="MONOCHROME1"),
    "rle.dcm": dicom(_grey16, syntax=RLELossless),
    "rgb.dcm": dicom(_three8, UltrasoundImageStorage),
    "ybr.dcm": dicom(
        np.stack([_grey8, _chroma, _chroma], -1), UltrasoundImageStorage, photometric="YBR_FULL"
    ),
    "jpeg.dcm": dicom(
        _three8,
        UltrasoundImageStorage,
        JPEGBaseline8Bit,
        "YBR_FULL_422",
        PixelData=jpeg(_three8),
    ),
    "palette.dcm": dicom(
        _grey8, UltrasoundImageStorage, photometric="PALETTE COLOR", **ramp_palette()
    ),
    "frames.dcm": dicom(np.stack([_grey8] * 3), UltrasoundMultiFrameImageStorage),
    "enhanced.dcm": dicom(_grey16[None], EnhancedMRImageStorage, **functional_groups([7])),
    "enhanced stack.dcm": dicom(
        np.stack([_grey16, _grey16 // 2, _grey16 // 3]),
        EnhancedMRImageStorage,
        **functional_groups([7, 15, 23]),
    ),
    "imager.dcm": dicom(
        _grey16, ComputedRadiographyImageStorage, ImagerPixelSpacing=[0.2, 0.3], Modality="CR"
    ),
}
