"""Reading cines from every place they come in."""

import os

import av
import numpy as np
import pydicom
import pytest
from files import samples

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.movies import read_cine

CINE = np.stack([samples.picture(np.uint8, seed=t) for t in range(5)])
STEP = 0.04


def frames_of_dicom(folder, times, names, **tags):
    folder.mkdir()
    for k, (time, name) in enumerate(zip(times, names, strict=True)):
        samples.dicom(CINE[k], TriggerTime=time, **tags)(folder / name)
    return folder


def test_nifti_with_times_and_a_slice(tmp_path):
    volumes = np.stack([CINE, CINE // 2], axis=1)  # [T, S, H, W]
    samples.nifti(volumes.T)(tmp_path / "a.nii.gz")
    cine = read_cine(tmp_path / "a.nii.gz", 1)
    np.testing.assert_array_equal(cine.frames, CINE // 2)
    np.testing.assert_allclose(cine.times, STEP * np.arange(5), atol=1e-8)
    np.testing.assert_array_equal(cine.image(3).array, CINE[3] // 2)
    assert cine.first.spacing == pytest.approx((2.5, 1.5)) and cine.first.position_known
    assert read_cine(tmp_path / "a.nii.gz", "all").frames.shape == volumes.shape
    with pytest.raises(ImageError, match="3-D with 2 slices; choose one"):
        read_cine(tmp_path / "a.nii.gz")


def test_stack_and_numpy_whose_slices_are_frames(tmp_path):
    samples.nifti(CINE.T)(tmp_path / "a.nii")
    np.savez(tmp_path / "a.npz", image=CINE)
    for name in ("a.nii", "a.npz"):
        cine = read_cine(tmp_path / name, fps=25)
        np.testing.assert_array_equal(cine.frames, CINE)
        np.testing.assert_allclose(cine.times, STEP * np.arange(5))
    assert read_cine(tmp_path / "a.npz").times is None
    assert read_cine(tmp_path / "a.npz", spacing=2).first.spacing == (2, 2)


@pytest.mark.parametrize(
    "tags, times",
    [
        ({"FrameTime": 40}, STEP * np.arange(5)),
        ({"FrameTimeVector": [0, 40, 30, 50, 40]}, [0, 0.04, 0.07, 0.12, 0.16]),
        ({"CineRate": 25, "FrameIncrementPointer": 0x00181065}, STEP * np.arange(5)),
    ],
)
def test_dicom_of_several_frames(tmp_path, tags, times):
    samples.dicom(
        CINE,
        samples.UltrasoundMultiFrameImageStorage,
        SequenceOfUltrasoundRegions=samples.ultrasound_regions(),
        **tags,
    )(tmp_path / "a.dcm")
    cine = read_cine(tmp_path / "a.dcm")
    np.testing.assert_array_equal(cine.frames, CINE)
    np.testing.assert_allclose(cine.times, times)
    assert cine.first.spacing == pytest.approx((0.3, 0.5))


def test_colour_clip_becomes_its_luminance():
    """The clip that comes with pydicom: 30 frames, burnt-in text, a coloured ECG."""
    cine = read_cine(pydicom.data.get_testdata_file("examples_ybr_color.dcm"))
    assert cine.frames.shape == (30, 240, 320) and cine.frames.dtype == np.uint8
    assert cine.times is not None and "luminance of a colour image" in cine.first.notes[0]
    luminance = pydicom.pixels.pixel_array(
        pydicom.data.get_testdata_file("examples_ybr_color.dcm"), raw=True
    )[..., 0]
    # Y of YBR, up to the rounding on the way to RGB and back, which clips a few strong colours
    error = np.abs(cine.frames.astype(int) - luminance)
    assert np.mean(error > 1) < 0.01 and error.max() <= 8


def test_folder_of_dicom_by_trigger_time(tmp_path):
    folder = frames_of_dicom(tmp_path / "a", [80, 0, 120, 40, 160], "edcba")
    cine = read_cine(folder)
    np.testing.assert_array_equal(cine.frames, CINE[[1, 3, 0, 2, 4]])
    np.testing.assert_allclose(cine.times, STEP * np.arange(5))
    folder = frames_of_dicom(tmp_path / "b", [0] * 5, ["2", "10", "1", "3", "4"])
    for k, name in enumerate(["2", "10", "1", "3", "4"]):
        file = pydicom.dcmread(folder / name)
        file.InstanceNumber = 5 - k
        file.save_as(folder / name)
    cine = read_cine(folder)
    np.testing.assert_array_equal(cine.frames, CINE[::-1])
    assert cine.times is None


def test_folder_of_pictures_by_number(tmp_path):
    for k, number in enumerate([1, 2, 9, 10, 100]):
        samples.pillow(CINE[k])(tmp_path / f"frame{number}.png")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    np.testing.assert_array_equal(read_cine(tmp_path).frames, CINE)
    samples.pillow(CINE[0][1:])(tmp_path / "frame11.png")
    with pytest.raises(ImageError, match=r"frame11.png: has another grid, place or type than"):
        read_cine(tmp_path)


def test_video(tmp_path):
    frames = np.stack([np.full((48, 64), 40 * k, np.uint8) for k in range(5)])
    frames[:, 10:20, 10:30] = 200
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.stack([frame] * 3, -1), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    cine = read_cine(tmp_path / "a.avi")
    assert np.abs(cine.frames.astype(int) - frames).mean() < 1  # the codec's loss
    np.testing.assert_allclose(cine.times, STEP * np.arange(5), atol=1e-6)
    data = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(b"hello" + data[5:200])
    with pytest.raises(ImageError, match="a.avi: not a readable video"):
        read_cine(tmp_path / "a.avi")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frame_times": [0, 1, 2]}, "3 frame times, expected 5"),
        ({"frame_times": [0, 1, 1, 2, 3]}, "its frame times do not increase"),
        ({"frame_times": [0, 1, 2, 3, np.nan]}, "its frame times do not increase"),
        ({"frame_times": [0, 1, 2, 3, 4], "fps": 3}, "expected one of them"),
        ({"fps": 0}, "0 frames per second, expected a positive number"),
    ],
)
def test_bad_times(tmp_path, options, message):
    np.savez(tmp_path / "a.npz", image=CINE)
    with pytest.raises(ImageError, match=message):
        read_cine(tmp_path / "a.npz", **options)


def test_no_cine(tmp_path):
    samples.pillow(CINE[0])(tmp_path / "a.png")
    with pytest.raises(ImageError, match="a.png: holds 1 frame, expected at least 2"):
        read_cine(tmp_path / "a.png")
    os.mkdir(tmp_path / "empty")
    with pytest.raises(ImageError, match="empty: the folder holds no file"):
        read_cine(tmp_path / "empty")
    for name in ("none.avi", "none"):
        with pytest.raises(ImageError, match=f"{name}: no such file"):
            read_cine(tmp_path / name)
