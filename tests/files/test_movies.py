"""Reading cines from every place they come in."""

import os

import av
import numpy as np
import pydicom
import pytest
from files import samples

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.images import images_of, in_region, read_image
from ldm_morph_jax.files.movies import cine_from_arrays, note_on_period, read_cine, read_frame_mask

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
    for other, message in (
        ("frame010.png", "frame010.png and frame10.png have the same number"),
        ("frame10 (1).png", "named 'frame# \\(#\\).png' and 'frame#.png', expected names that"),
    ):
        (tmp_path / "frame11.png").rename(tmp_path / other)
        with pytest.raises(ImageError, match=message):
            read_cine(tmp_path)
        (tmp_path / other).rename(tmp_path / "frame11.png")


HEART = np.stack([np.full((48, 64), 40 * k, np.uint8) for k in range(5)])
HEART[:, 10:20, 10:30] = 200
NOISE = np.random.default_rng(0).integers(0, 255, (12, 48, 64), np.uint8)


def write_video(path, frames, codec, pixels, b_frames=0):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        stream.codec_context.max_b_frames = b_frames
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.stack([frame] * 3, -1), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path.read_bytes()


def test_video(tmp_path):
    write_video(tmp_path / "a.avi", HEART, "mjpeg", "yuvj420p")
    cine = read_cine(tmp_path / "a.avi")
    assert np.abs(cine.frames.astype(int) - HEART).mean() < 1  # the codec's loss
    np.testing.assert_allclose(cine.times, STEP * np.arange(5), atol=1e-6)
    frame = read_image(tmp_path / "a.avi", frame=3)
    np.testing.assert_array_equal(frame.array, cine.frames[3])
    assert not frame.spacing_known and not frame.orientation_known


@pytest.mark.parametrize(
    "name, codec, pixels",
    [
        ("a.avi", "mjpeg", "yuvj420p"),
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mov", "mpeg4", "yuv420p"),
        ("a.mkv", "libx264", "yuv420p"),
        ("a.mpg", "mpeg2video", "yuv420p"),
    ],
)
def test_damaged_video(tmp_path, name, codec, pixels):
    path = tmp_path / name
    data = write_video(path, NOISE, codec, pixels)
    assert len(read_cine(path).frames) == len(NOISE)
    damaged = bytearray(data)
    for at in np.random.default_rng(1).integers(len(data) * 0.3, len(data) * 0.8, 12):
        damaged[at] ^= 0x55
    for content in (damaged, data[: int(0.45 * len(data))], data[: int(0.8 * len(data))]):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=f"{name}: not a readable video"):
            read_cine(path)
    path.write_bytes(b"hello" + data[5:200])
    with pytest.raises(ImageError, match=f"{name}: not a readable video"):
        read_cine(path)


def test_video_whose_times_do_not_increase(tmp_path):
    write_video(tmp_path / "a.avi", NOISE, "libx264", "yuv420p", b_frames=2)
    with pytest.raises(ImageError, match="do not increase .*; give `fps` or `frame_times`"):
        read_cine(tmp_path / "a.avi")
    np.testing.assert_allclose(read_cine(tmp_path / "a.avi", fps=25).times[-1], 11 / 25)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"frame_times": [0, 1, 2]}, "3 frame times, expected 5"),
        (
            {"frame_times": [0, 1, 1, 2, 3]},
            r"its frame times do not increase .*\(1 s of frame 2 af",
        ),
        (
            {"frame_times": [0, 1, 2, 3, np.nan]},
            "its frame times do not .*nan s of frame 4 after 3",
        ),
        ({"frame_times": [0, 1, 2, 3, 4], "fps": 3}, "expected one of them"),
        ({"fps": 0}, "0 frames per second, expected a positive number"),
    ],
)
def test_bad_times(tmp_path, options, message):
    np.savez(tmp_path / "a.npz", image=CINE)
    with pytest.raises(ImageError, match=message):
        read_cine(tmp_path / "a.npz", **options)


@pytest.mark.parametrize(
    "step, note",
    [
        (100.0, "frames 100 s apart, 400 s in all: no heart beats so slowly"),  # ms as seconds
        (1e-4, "frames 0.0001 s apart, 0.0004 s in all: too fast for a heart"),
        (0.04, None),
        (0.003, None),  # ultrafast ultrasound
    ],
)
def test_times_that_no_heart_keeps_are_said(tmp_path, step, note):
    np.savez(tmp_path / "a.npz", image=CINE)
    times = step * np.arange(5)
    for cine in (
        read_cine(tmp_path / "a.npz", frame_times=times),
        read_cine(tmp_path / "a.npz", fps=1 / step),
        cine_from_arrays(CINE, times=times),
    ):
        assert [text[: len(note or "")] for text in cine.first.notes] == ([note] if note else [])


def test_periods_that_no_heart_has_are_said():
    assert note_on_period(0.8) == note_on_period(0.1) == ()
    assert note_on_period(800)[0].startswith("a period of 800 s: no heart beats so")


def test_blank_and_damaged_frames_are_named(tmp_path):
    blank, holes = CINE.copy(), CINE.astype(np.float32)
    blank[3], holes[2, 4, 4] = 7, np.nan
    np.savez(tmp_path / "a.npz", image=blank)
    with pytest.raises(ImageError, match=r"a.npz: frame 3 is constant \(7\), nothing to register"):
        read_cine(tmp_path / "a.npz")
    samples.nifti(holes.T)(tmp_path / "a.nii")
    with pytest.raises(ImageError, match="a.nii: frame 2: holds NaN or infinite values"):
        read_cine(tmp_path / "a.nii")


def test_blank_slices_of_a_stack(tmp_path):
    stack = np.stack([0 * CINE, CINE, CINE], axis=1)
    samples.nifti(stack.T)(tmp_path / "a.nii")
    cine = read_cine(tmp_path / "a.nii", "all")
    np.testing.assert_array_equal(cine.frames, stack)
    assert cine.blank_slices == cine.first.blank_slices == (0,)
    with pytest.raises(ImageError, match="frame 0 is constant"):
        read_cine(tmp_path / "a.nii", 0)
    stack[3, 2] = 5
    samples.nifti(stack.T)(tmp_path / "a.nii")
    with pytest.raises(ImageError, match=r"frame 3 is constant \(5\) in slice 2, which other"):
        read_cine(tmp_path / "a.nii", "all")


MASKS = np.stack([np.roll(samples.labels(), t, axis=0) for t in range(5)])


@pytest.mark.parametrize("frame", [0, 3])
def test_the_mask_of_a_frame(tmp_path, frame):
    """However masks of all frames are stored, and a mask of one frame."""
    samples.nifti(CINE[:, None].T)(tmp_path / "in time.nii")  # [T, 1, H, W]
    samples.nifti(CINE.T)(tmp_path / "in slices.nii")
    np.savez(tmp_path / "array.npz", image=CINE)
    samples.nifti(MASKS[:, None].T)(tmp_path / "masks in time.nii")
    samples.nifti(MASKS.T)(tmp_path / "masks in slices.nii")
    np.savez(tmp_path / "masks.npz", image=MASKS)
    samples.nifti(MASKS[frame, None, None].T)(tmp_path / "mask.nii")
    for image, masks in (
        ("in time.nii", ("masks in time.nii", "masks.npz", "mask.nii")),
        ("in slices.nii", ("masks in slices.nii", "masks.npz")),
        ("array.npz", ("masks.npz", "masks in time.nii", "masks in slices.nii", "mask.nii")),
    ):
        cine = read_cine(tmp_path / image)
        for mask in masks:
            labels = read_frame_mask(tmp_path / mask, cine, frame)
            np.testing.assert_array_equal(labels.array, MASKS[frame], err_msg=f"{image}, {mask}")
    with_slice = read_frame_mask(
        tmp_path / "masks in time.nii", read_cine(tmp_path / "in time.nii"), frame, 0
    )
    np.testing.assert_array_equal(with_slice.array, MASKS[frame])


def test_masks_of_a_stack_and_of_another_number_of_frames(tmp_path):
    both = np.stack([MASKS, np.roll(MASKS, 2, axis=0)], axis=1)
    samples.nifti(np.stack([CINE, CINE], axis=1).T)(tmp_path / "a.nii")
    samples.nifti(both.T)(tmp_path / "masks.nii")
    for slice in (0, 1, "all"):
        cine = read_cine(tmp_path / "a.nii", slice)
        labels = read_frame_mask(tmp_path / "masks.nii", cine, 3, slice).array
        np.testing.assert_array_equal(labels, both[3] if slice == "all" else both[3, slice])
    samples.nifti(both[:2].T)(tmp_path / "two.nii")
    with pytest.raises(ImageError, match="two.nii: holds masks of 2 frames, expected 1 or 5 as"):
        read_frame_mask(tmp_path / "two.nii", cine, 0, 1)
    np.savez(tmp_path / "four.npz", image=MASKS[:4])
    with pytest.raises(ImageError, match="four.npz: holds masks of 4 frames, expected 1 or 5 as"):
        read_frame_mask(tmp_path / "four.npz", read_cine(tmp_path / "a.nii", 0), 0)


def ultrasound(path, *regions):
    """Frames 16 columns wide; regions are (first column, last column, cm per pixel)."""
    frames = np.concatenate([CINE, CINE], axis=2)
    items = [
        samples.item(
            RegionFlags=0,
            RegionDataType=1,
            RegionSpatialFormat=1,
            RegionLocationMinX0=first,
            RegionLocationMaxX1=last,
            RegionLocationMinY0=0,
            RegionLocationMaxY1=10,
            PhysicalUnitsXDirection=3,
            PhysicalUnitsYDirection=3,
            PhysicalDeltaX=cm,
            PhysicalDeltaY=cm,
        )
        for first, last, cm in regions
    ]
    samples.dicom(
        frames,
        samples.UltrasoundMultiFrameImageStorage,
        FrameTime=40,
        SequenceOfUltrasoundRegions=items,
    )(path)
    return path


def test_ultrasound_regions_of_different_scale(tmp_path):
    alike = ultrasound(tmp_path / "a.dcm", (0, 7, 0.08), (8, 15, 0.08))
    assert read_cine(alike).first.spacing == pytest.approx((0.8, 0.8))
    two = ultrasound(tmp_path / "b.dcm", (0, 7, 0.08), (8, 15, 0.125))
    first = read_cine(two).first
    assert not first.spacing_known
    assert "2 ultrasound regions of different scale (0.8 x 0.8 mm in rows" in first.notes[0]
    assert "1.25 x 1.25 mm in rows 0 to 10, columns 8 to 15" in first.notes[0]
    assert read_cine(two, spacing=1.25).first.spacing == (1.25, 1.25)
    assert read_cine(two, spacing=1.25).first.notes == ()
    inside = np.zeros((11, 16), bool)
    inside[3:6, 9:13] = True
    there = in_region(first, inside)
    assert there.spacing_known and there.spacing == (1.25, 1.25) == there.space.spacing[1:]
    assert there.notes == (
        "spacing of the ultrasound region of 1.25 x 1.25 mm in rows 0 to 10, columns 8 to 15",
    )
    assert not in_region(first, np.ones_like(inside)).spacing_known  # in both
    assert in_region(there, inside) is there
    [given], _ = images_of(first, 1.25)  # an image in Python, with the spacing that its file lacks
    assert given.spacing_known and given.spacing == (1.25, 1.25) == given.space.spacing[1:]
    assert given.notes == () == given.regions


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
