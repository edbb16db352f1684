"""A folder of DICOM files is put in order by what their headers say, or refused by name."""

import itertools

import numpy as np
import pydicom
import pytest
from files import samples

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.images import read_image, read_mask
from ldm_morph_jax.files.movies import read_cine

FRAMES = np.stack(
    [[samples.picture(np.uint16, seed=10 * t + s) for s in range(3)] for t in range(5)]
)  # [T, S, H, W]
ORDER = [3, 0, 4, 1, 2]  # of file names, unlike that of frames
SERIES = {"SeriesInstanceUID": "1.2.3.4", "SeriesDescription": "cine sax", "SeriesNumber": 7}


def put(folder, t, s=0, name=None, pixels=None, **tags):
    """Frame t of slice s; slices lie 10 mm apart along z."""
    folder.mkdir(exist_ok=True)
    name = name or f"IM{ORDER[t] + 5 * (2 - s):03d}"
    known = {"TriggerTime": 40 * t, "InstanceNumber": 5 * s + t + 1} | SERIES
    known |= {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    tags = known | {"ImagePositionPatient": [-12, 34.5, 10 * s]} | tags
    preset = ("ImagePositionPatient",)  # which `samples.dicom` sets, and removes where it is None
    tags = {tag: v for tag, v in tags.items() if v is not None or tag in preset}
    samples.dicom(FRAMES[t, s] if pixels is None else pixels, **tags)(folder / name)
    return folder


def stack(folder, **tags):
    for t, s in itertools.product(range(5), range(3)):
        put(folder, t, s, **tags)
    return folder


def test_slices_and_phases(tmp_path):
    folder = stack(tmp_path / "sax")
    (folder / "DICOMDIR").write_bytes(b"an index")
    (folder / "readme.txt").write_text("how to open these")
    cine = read_cine(folder, 1)
    np.testing.assert_array_equal(cine.frames, FRAMES[:, 1])
    np.testing.assert_allclose(cine.times, 0.04 * np.arange(5))
    assert cine.first.position_known and cine.first.notes == ()
    whole = read_cine(folder, "all")
    np.testing.assert_array_equal(whole.frames, FRAMES)
    assert whole.first.geometry.spacing == (10, 2.5, 1.5)
    np.testing.assert_allclose(whole.first.geometry.to_physical(np.array([2, 0, 0]))[2], 20)
    with pytest.raises(ImageError, match="sax: 3-D with 3 slices; choose one with `slice` 0 to 2"):
        read_cine(folder)
    np.testing.assert_array_equal(read_image(folder, "all", frame=3).array, FRAMES[3])
    with pytest.raises(ImageError, match="sax: has 5 frames; choose one with `frame` 0 to 4"):
        read_image(folder)


def test_a_folder_of_one_volume(tmp_path):
    (tmp_path / "study").mkdir()
    for s in range(3):
        put(tmp_path / "study" / "series", 0, s, TriggerTime=None)
    image = read_image(tmp_path / "study", "all")  # a folder of nothing but folders
    np.testing.assert_array_equal(image.array, FRAMES[0])
    np.testing.assert_allclose(image.axis_directions, np.eye(3)[::-1])
    np.savez(tmp_path / "mask.npz", image=samples.labels())
    mask = read_mask(tmp_path / "mask.npz", read_image(tmp_path / "study", 1))
    np.testing.assert_array_equal(mask.array, samples.labels())
    with pytest.raises(ImageError, match="holds one frame of 3 slices at different positions"):
        read_cine(tmp_path / "study")


def test_a_series_of_its_own_for_every_slice_and_heart_rates_that_differ(tmp_path):
    for t, s in itertools.product(range(5), range(3)):
        put(tmp_path / "sax", t, s, SeriesInstanceUID=f"1.2.{s}", TriggerTime=(40 + s) * t)
    np.testing.assert_allclose(read_cine(tmp_path / "sax", 2).times, 0.042 * np.arange(5))
    cine = read_cine(tmp_path / "sax", "all")
    np.testing.assert_array_equal(cine.frames, FRAMES)
    np.testing.assert_allclose(cine.times, 0.041 * np.arange(5))


def test_a_series_of_its_own_for_every_file(tmp_path):
    for t in range(5):
        put(tmp_path / "sax", t, SeriesInstanceUID=f"1.2.{ORDER[t]}")
    np.testing.assert_array_equal(read_cine(tmp_path / "sax").frames, FRAMES[:, 0])
    put(tmp_path / "sax", 1, name="z", pixels=FRAMES[4, 1], SeriesInstanceUID="1.2.9")
    with pytest.raises(
        ImageError, match="IM010 and z have the same place"
    ):  # two images of one time
        read_cine(tmp_path / "sax")


def test_one_file_of_all_frames_for_every_slice(tmp_path):
    for s in range(3):
        groups = samples.functional_groups([10 * s] * 5, (1, 0), delays=[40 * t for t in range(5)])
        pixels = FRAMES[:, s] // 2  # ITK takes them for signed
        samples.dicom(pixels, samples.EnhancedMRImageStorage, **groups)(tmp_path / f"IM{9 - s}")
    cine = read_cine(tmp_path, "all")
    np.testing.assert_array_equal(cine.frames, FRAMES // 2)
    np.testing.assert_allclose(cine.times, 0.04 * np.arange(5))
    assert cine.first.geometry.spacing == (10, 2.5, 1.5)
    pixels, groups = (
        pixels[:4],
        samples.functional_groups([20] * 4, (1, 0), delays=[0, 40, 80, 120]),
    )
    samples.dicom(pixels, samples.EnhancedMRImageStorage, **groups)(tmp_path / "IM7")
    with pytest.raises(ImageError, match="frames of slice 0: 5; slice 1: 5; slice 2: 4"):
        read_cine(tmp_path, 1)


def test_oblique_slices_follow_their_normal(tmp_path):
    across, down = np.array([0.8, 0.0, 0.6]), np.array([0.0, 1.0, 0.0])
    normal = np.cross(across, down)
    for t, s in itertools.product(range(5), range(3)):
        place = {"ImagePositionPatient": list(8.0 * (2 - s) * normal)}  # the last one lies first
        put(tmp_path / "a", t, s, ImageOrientationPatient=[*across, *down], **place)
    cine = read_cine(tmp_path / "a", "all", oblique=True)
    np.testing.assert_array_equal(cine.frames, FRAMES[:, ::-1])
    np.testing.assert_allclose(cine.first.axis_directions, [normal, down, across], atol=1e-6)


def test_repeated_files_are_left_out(tmp_path):
    folder = tmp_path / "a"
    for t in range(5):
        put(folder, t)
    put(folder, 4, name="IM012(1)")  # a copy
    put(folder, 2, name="again", SOPInstanceUID="1.2.99", InstanceNumber=77)  # exported again
    cine = read_cine(folder)
    np.testing.assert_array_equal(cine.frames, FRAMES[:, 0])
    assert cine.first.notes == ("left out 2 repeated files (IM012(1), again)",)


def in_order_of_acquisition(folder):
    for t in range(5):
        lost = {"TriggerTime": None, "InstanceNumber": 1}
        put(folder, t, AcquisitionTime=f"120059.{4 * t:02d}", **lost)
    return 0.04 * np.arange(5)


def across_midnight(folder):
    moments = ["20260101235959.98", "20260102000000.02", "20260102000000.06"]
    for t, moment in enumerate(moments):
        put(folder, t, TriggerTime=None, InstanceNumber=None, AcquisitionDateTime=moment)
    return 0.04 * np.arange(3)


def in_temporal_positions(folder):
    for t in range(5):
        put(folder, t, TriggerTime=0, InstanceNumber=1, TemporalPositionIdentifier=t + 1)


def in_numbers(folder):
    for t in range(5):
        put(folder, t, TriggerTime=0, AcquisitionTime="120000")


@pytest.mark.parametrize(
    "write", [in_order_of_acquisition, across_midnight, in_temporal_positions, in_numbers]
)
def test_what_puts_frames_in_order(tmp_path, write):
    times = write(tmp_path / "a")
    cine = read_cine(tmp_path / "a")
    np.testing.assert_array_equal(cine.frames, FRAMES[: len(cine.frames), 0])
    if times is None:
        assert cine.times is None
    else:
        np.testing.assert_allclose(cine.times, times, atol=1e-6)


def two_series(folder):
    for t in range(5):
        put(folder, t)
        other = {"SeriesInstanceUID": "1.2.9", "SeriesDescription": "4ch", "SeriesNumber": 8}
        put(folder, t, name=f"x{t}", pixels=FRAMES[t, 1], **other)


def magnitude_and_phase(folder):
    for t in range(5):
        put(folder, t, ImageType=["ORIGINAL", "PRIMARY", "M"], InstanceNumber=2 * t)
        kind = {"ImageType": ["ORIGINAL", "PRIMARY", "P"], "InstanceNumber": 2 * t + 1}
        put(folder, t, name=f"p{t}", pixels=FRAMES[t, 1], **kind)


def another_plane(folder):
    for t in range(5):
        put(folder, t)
    put(folder, 0, 1, name="scout", ImageOrientationPatient=[0, 1, 0, 0, 0, 1])


def two_echoes(folder):
    for t in range(5):
        put(folder, t, EchoTime=2)
        put(folder, t, name=f"e{t}", pixels=FRAMES[t, 1], EchoTime=5, InstanceNumber=t + 6)


def nothing_in_order(folder):
    for t in range(5):
        put(folder, t, TriggerTime=None, InstanceNumber=1)


def two_orders(folder):
    for t in range(5):
        put(folder, t, TriggerTime=None, InstanceNumber=9 - t, AcquisitionTime=f"1200{t:02d}")


def hole(folder):
    stack(folder)
    (folder / f"IM{ORDER[3] + 5:03d}").unlink()


def lost_slice(folder):
    for t, s in itertools.product(range(5), range(4)):
        if s != 1:
            put(folder, t, min(s, 2), f"{t} {s}", ImagePositionPatient=[0, 0, 10 * s])


def shifted(folder):
    stack(folder)
    put(folder, 0, 2, ImagePositionPatient=[-9, 34.5, 20])


def no_place(folder):
    stack(folder)
    put(folder, 0, 2, ImagePositionPatient=None)


def with_a_picture(folder):
    stack(folder)
    samples.pillow(FRAMES[0, 0])(folder / "screenshot.png")


def clips(folder):
    put(folder, 0)
    several = FRAMES[:2, 0]
    samples.dicom(several, samples.UltrasoundMultiFrameImageStorage, FrameTime=40)(folder / "z")


@pytest.mark.parametrize(
    "write, message",
    [
        (two_series, r"2 series or kinds of image.*series 7 'cine sax'.*series 8 '4ch'"),
        (magnitude_and_phase, r"2 series or kinds.*PRIMARY\\M, 11 x 8.*PRIMARY\\P, 11 x 8"),
        (another_plane, r"2 series.*5 files.*1 files, scout.*they differ in .*orientation\)"),
        (two_echoes, r"same place and the same trigger time 0; they differ in EchoTime"),
        (nothing_in_order, r"nothing tells the order of its frames.*instance numbers are missing"),
        (two_orders, "acquisition time and instance number put its frames in different orders"),
        (hole, r"3 slices, .* whole have 5 frames, but slice 1 has 4 \(without trigger time 120\)"),
        (lost_slice, "10 mm apart, but 20 mm between those at 0 and 20 mm along the normal"),
        (shifted, "its frames do not lie on each other as slices do"),
        (no_place, "has no position, which the others of its series have"),
        (with_a_picture, r"holds DICOM files and others \(screenshot.png\)"),
        (clips, r"z: holds 2 frames, expected one, or those of one slice at a known position"),
    ],
)
def test_what_does_not_belong_together_is_refused_by_name(tmp_path, write, message):
    write(tmp_path / "a")
    with pytest.raises(ImageError, match=message) as caught:
        read_cine(tmp_path / "a", "all")
    assert "\n" not in str(caught.value)


def test_frames_that_seem_to_be_missing_are_said(tmp_path):
    for t in (0, 1, 2, 4):
        put(tmp_path / "a", t, CardiacNumberOfImages=6)
    assert read_cine(tmp_path / "a").first.notes == (
        "a frame seems to be missing, trigger time between 80 and 160 after the first",
        "4 frames of the 6 that the files tell of (CardiacNumberOfImages)",
    )
    for t, s in itertools.product(range(5), (0, 2)):
        put(tmp_path / "b", t, s)
    note = "slices 20 mm apart, 8 mm according to the files: is one missing?"
    assert read_cine(tmp_path / "b", "all").first.notes == (note,)


@pytest.mark.parametrize("start", [0, 128, 132])
def test_file_without_preamble(tmp_path, start):
    path = tmp_path / "IM1"
    samples.dicom(FRAMES[0, 0])(path)
    whole = read_image(path)
    path.write_bytes(path.read_bytes()[start:])
    image = read_image(path)
    np.testing.assert_array_equal(image.array, FRAMES[0, 0])
    assert image.geometry.same_as(whole.geometry)


@pytest.mark.parametrize("implicit", [True, False])
def test_data_set_without_meta_information(tmp_path, implicit):
    samples.dicom(FRAMES[0, 0])(tmp_path / "a.dcm")
    file = pydicom.dcmread(tmp_path / "a.dcm")
    with open(tmp_path / "b.dcm", "wb") as raw:
        stream = pydicom.filebase.DicomFileLike(raw)
        stream.is_implicit_VR, stream.is_little_endian = implicit, True
        pydicom.filewriter.write_dataset(stream, file)
    np.testing.assert_array_equal(read_image(tmp_path / "b.dcm").array, FRAMES[0, 0])


def test_what_is_no_dicom_is_refused_in_our_words(tmp_path):
    for content in (b"hello", b"DICM", bytes(200), b"\2\0\0\0UL\4\0" + bytes(30)):
        (tmp_path / "a.dcm").write_bytes(content)
        with pytest.raises(ImageError, match=r"a\.dcm: not a") as caught:
            read_image(tmp_path / "a.dcm")
        assert "force" not in str(caught.value)


def test_enhanced_frames_of_one_place_and_time(tmp_path):
    delays = [0, 40, 80, 0, 40, 80]  # magnitude, then phase
    groups = samples.functional_groups([7] * 6, delays=delays)
    pixels = FRAMES.reshape(-1, *samples.SHAPE)[:6]
    samples.dicom(pixels, samples.EnhancedMRImageStorage, **groups)(tmp_path / "a.dcm")
    with pytest.raises(ImageError, match="several frames at one position and trigger delay"):
        read_cine(tmp_path / "a.dcm")
