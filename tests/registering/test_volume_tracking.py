"""A whole cine in three dimensions: tissue followed through slices, and what is measured of it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import SimpleITK
from analytic_method import AnalyticMethod, searching
from scipy import ndimage

from ldm_morph_jax import load, track
from ldm_morph_jax.data.ventricle import LEFT_VENTRICLE, MYOCARDIUM, ventricle, ventricle_beat
from ldm_morph_jax.files.errors import FileError, ImageError
from ldm_morph_jax.files.movies import cine_from_arrays, read_cine
from ldm_morph_jax.ops import strain
from ldm_morph_jax.registering import grid, tracking
from ldm_morph_jax.registering.anatomy import anatomy_of
from ldm_morph_jax.registering.heart import (
    MUSCLE_G_PER_ML,
    NO_LONGITUDINAL,
    directions,
    measure,
    strained,
)
from ldm_morph_jax.registering.result import Tracked
from ldm_morph_jax.registering.search import Refinement
from ldm_morph_jax.registering.tracking import Tracking
from ldm_morph_jax.runs.weights import DEFAULT_MODEL

pytestmark = pytest.mark.integration

SHAPE, SPACING = (10, 32, 32), (9.0, 4.0, 4.0)
SHARES = (0.0, 0.5, 1.0, 0.5)  # of the motion, in each frame
ES = 2
WHOLE = ("radial_strain", "circumferential_strain", "longitudinal_strain")


@pytest.fixture(scope="module", autouse=True)
def quick_search():
    """One level and few steps: a program that compiles quickly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "SEARCH", Refinement(levels=(1,), steps=(40,)))
        patch.setattr(tracking, "IMPROVE", Refinement(levels=(1,), steps=(8,)))
        patch.setattr(tracking, "DEFAULTS", Tracking(key_frames=4, rounds=1, chunk=3))
        patch.setattr(grid, "THICK_MM", 10.0)  # from no motion
        yield


@pytest.fixture(scope="module")
def beat():
    return ventricle_beat((1, 9), SHARES, SHAPE, SPACING)


@pytest.fixture(scope="module")
def heart(beat):
    return searching().track(beat.frames, mask=beat.masks, spacing=SPACING, slice="volume")


@pytest.fixture(scope="module")
def truth(beat):
    """(Tracked by the phantom's own motion, its anatomy.)"""
    cine = cine_from_arrays(beat.frames, spacing=SPACING)
    times = np.arange(len(SHARES), dtype=float)
    tracked = Tracked(cine, 0, times, beat.displacement, beat.inverse, None, None, "true")
    return tracked, anatomy_of(cine, mask=beat.masks[0])


def test_the_phantom_moves_by_shares_of_one_motion(beat):
    pair = ventricle((1, 9), SHAPE, SPACING)
    np.testing.assert_array_equal(beat.displacement[ES], pair.displacement)
    np.testing.assert_array_equal(beat.masks[[0, ES]], [pair.fixed_mask, pair.moving_mask])
    assert not beat.displacement[0].any() and not np.array_equal(beat.frames[1], beat.frames[3])
    np.testing.assert_array_equal(beat.displacement[1], beat.displacement[3])
    wall = beat.masks[0] == MYOCARDIUM
    lengths = np.linalg.norm(beat.displacement[:, wall] * SPACING, axis=-1).mean(axis=1)
    assert 0.3 < lengths[1] / lengths[ES] < 0.7


def test_known_motion_is_measured(beat, truth):
    """Without any search: strain, volumes, twist of the phantom's own displacement."""
    tracked, anatomy = truth
    assert set(anatomy.levels) == {0, 1, 2, 3, 4} and anatomy.levels[-2] == 1  # the base is last
    measures = measure(tracked, anatomy)
    curves = measures.table
    tensor = strain.green_lagrange(jnp.asarray(beat.deformation))
    inside = strained(anatomy)
    for name, normal, most in zip(WHOLE, directions(*truth), (0.05, 0.02, 0.02), strict=True):
        exact = np.asarray(strain.normal_strain(tensor, normal))[:, inside].mean(axis=1)
        np.testing.assert_allclose(curves[name], exact, atol=most)
    volume = (beat.masks == LEFT_VENTRICLE).sum(axis=(1, 2, 3)) * np.prod(SPACING) / 1000
    np.testing.assert_allclose(curves["volume_ml"], volume, rtol=0.12)  # masks count thick slices
    assert measures.end_systole == ES
    assert curves["twist_deg"][ES] > 4 and curves["apex_rotation_deg"][ES] > 3
    apex, base = anatomy.levels.index(3), max(np.flatnonzero(np.equal(anatomy.levels, 1)))
    torsion = curves["twist_deg"] / (SPACING[0] * (base - apex))
    np.testing.assert_allclose(curves["torsion_deg_per_mm"], torsion, rtol=1e-6)
    assert len(measures.pixels) == 17 and min(measures.pixels.values()) >= 12
    assert not measures.contours and measures.jacobian[1] == 0


def test_tissue_is_followed_through_slices(beat, heart):
    assert heart.displacement.shape == (*beat.frames.shape, 3)
    wall = beat.masks[0] == MYOCARDIUM
    away = np.asarray(heart.displacement) - beat.displacement
    error, motion = (
        np.linalg.norm(u[:, wall] * SPACING, axis=-1).mean(axis=1)
        for u in (away, beat.displacement)
    )
    assert (error < 0.55 * motion + 1e-6).all()  # voxels are coarse, the search short
    along = np.asarray(heart.displacement)[ES, ..., 0][wall]  # through the slices
    assert np.corrcoef(along, beat.displacement[ES, ..., 0][wall])[0, 1] > 0.7
    content = heart.summary
    volume = (beat.masks == LEFT_VENTRICLE).sum(axis=(1, 2, 3))
    assert content["end_systole"] == ES and content["cine"]["slice"] == "volume"
    assert content["ejection_fraction"] == pytest.approx(1 - volume[ES] / volume[0], abs=0.15)
    ends = content["volume_ml"]
    assert content["stroke_volume_ml"] == pytest.approx(ends["reference"] - ends["end_systole"])
    assert content["mass_g"] == pytest.approx(
        MUSCLE_G_PER_ML * content["wall_volume_ml"]["reference"]
    )
    assert 2 < content["twist"]["end_systolic_deg"] < 20
    for name in WHOLE[1:]:
        assert content["strain"][name]["peak"] < -0.05
        assert content["strain"][f"{name}_mid_inferior"]["end_systolic"] < 0
    assert content["cine"]["spacing_mm"] == list(SPACING) and content["intervals"] is None
    assert content["verdict"]["level"] in ("plausible", "uncertain", "implausible")
    carried = heart.carried(beat.masks[0], ES) == LEFT_VENTRICLE
    by_mask = 1e-3 * np.prod(SPACING) * carried.sum()
    assert content["volume_ml"]["end_systole"] == pytest.approx(by_mask, rel=0.05)
    true = beat.masks[ES] == LEFT_VENTRICLE
    assert 2 * (carried & true).sum() / (carried.sum() + true.sum()) > 0.8
    there, back = heart.transform(ES), heart.inverse_transform(ES)
    points = there.fixed.to_physical(np.argwhere(wall))
    np.testing.assert_allclose(back.map_points(there.map_points(points)), points, atol=0.3)


@pytest.mark.parametrize(("through", "left"), [(-0.4, ()), (-0.6, (0,)), (1.6, (8, 9))])
def test_tissue_from_beyond_the_stack_has_no_label_and_no_volume(beat, through, left):
    cine = cine_from_arrays(beat.frames[:2], spacing=SPACING)
    back = np.zeros((2, *SHAPE, 3), np.float32)
    back[1, ..., 0] = through
    tracked = Tracked(cine, 0, np.arange(2.0), -back, back, None, None, "moved")
    tube = np.zeros(SHAPE, np.uint8)
    tube[:, 12:20, 12:20] = 1
    expected = tube.copy()
    expected[list(left)] = 0
    np.testing.assert_array_equal(tracked.carried(tube, 1), expected)
    measures = measure(tracked, anatomy_of(cine, mask=tube))
    [volume] = [curve for curve in measures.curves if curve.quantity == "volume"]
    share = volume.values[1] / volume.values[0]
    assert share == pytest.approx(expected.sum() / tube.sum(), abs=1e-5)


def test_a_volume_is_searched_around_its_heart(beat, heart, monkeypatch):
    wider = [(0, 0), (0, 0), (60, 4), (64, 0)]
    frames = np.pad(beat.frames, wider, mode="reflect")
    seen = []

    def search(moving, *rest):
        seen.append(moving.shape[1:])
        return tracking_search(moving, *rest)

    tracking_search = tracking.search_velocity
    monkeypatch.setattr(tracking, "search_velocity", search)
    found = searching().track(frames, mask=np.pad(beat.masks[0], wider[1:]), spacing=SPACING)
    assert set(seen) == {(10, 64, 64)} and frames.shape[2:] == (96, 96)
    there = np.asarray(found.displacement)
    wall = beat.masks[0] == MYOCARDIUM
    away = np.linalg.norm(
        (there[:, :, 60:92, 64:][:, wall] - heart.displacement[:][:, wall]), axis=-1
    )
    assert away.mean() < 0.2 and there[ES, :, :, 90:].any()
    assert np.abs(there[:, :, 0]).max() < 1e-3 and np.abs(there[:, :, :, 0]).max() < 1e-3
    assert strain.jacobian_determinant(jnp.asarray(there)).min() > 0


def test_what_does_not_move_stays(beat):
    still = np.repeat(beat.frames[:1], len(SHARES), axis=0)
    heart = searching().track(still, mask=beat.masks[0], spacing=SPACING)
    assert np.abs(np.asarray(heart.displacement)).max() < 1e-3


def test_files_of_a_volume(beat, heart, tmp_path):
    """By the command: of the same cine the same numbers; SimpleITK applies what is written."""
    volumes = [SimpleITK.GetImageFromArray(frame) for frame in beat.frames]
    cine = SimpleITK.JoinSeries(volumes)
    cine.SetSpacing((*SPACING[::-1], 0.04))
    mask = SimpleITK.GetImageFromArray(beat.masks[0])
    mask.SetSpacing(SPACING[::-1])
    SimpleITK.WriteImage(cine, tmp_path / "cine.nii.gz")
    SimpleITK.WriteImage(mask, tmp_path / "mask.nii.gz")
    out = tmp_path / "out"
    files = ["--cine", str(tmp_path / "cine.nii.gz"), "--mask", str(tmp_path / "mask.nii.gz")]
    track.main([*files, "--slice", "volume", "--out", str(out)])
    assert {path.name for path in out.iterdir()} == set(
        "displacement inverse_displacement warped masks curves.csv segments.csv summary.json "
        "curves.png beat.gif bullseye.png report.html".split()
    )
    content = json.loads((out / "summary.json").read_text())
    assert content["ejection_fraction"] == pytest.approx(
        heart.summary["ejection_fraction"], abs=0.01
    )
    assert len((out / "segments.csv").read_text().splitlines()) == 18  # header, wall, 16 segments
    page = (out / "report.html").read_text()
    assert page.count("<svg") > 3 and "peak longitudinal strain" in page and "peak twist" in page
    field = SimpleITK.ReadImage(out / "inverse_displacement/frame_002.nii.gz")
    transform = SimpleITK.DisplacementFieldTransform(
        SimpleITK.Cast(field, SimpleITK.sitkVectorFloat64)
    )
    resampled = SimpleITK.Resample(mask, mask, transform, SimpleITK.sitkNearestNeighbor)
    written = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(out / "masks/frame_002.nii.gz"))
    inner = np.s_[1:-1, 3:-3, 3:-3]  # beyond its border ITK fills with zeros
    assert (SimpleITK.GetArrayFromImage(resampled) == written)[inner].mean() > 0.999


def test_a_stack_is_a_volume_and_a_few_slices_are_chosen(beat, tmp_path):
    for slices in (10, 3):
        frames = [SimpleITK.GetImageFromArray(frame[:slices]) for frame in beat.frames]
        cine = SimpleITK.JoinSeries(frames)
        cine.SetSpacing((4.0, 4.0, 9.0, 0.04))
        SimpleITK.WriteImage(cine, tmp_path / f"{slices}.nii.gz")
    assert read_cine(tmp_path / "10.nii.gz").frames.shape == beat.frames.shape
    assert read_cine(tmp_path / "10.nii.gz", 4).frames.shape == beat.frames[:, 0].shape
    with pytest.raises(ImageError, match="3-D with 3 slices; choose one with `slice`"):
        read_cine(tmp_path / "3.nii.gz")
    with pytest.raises(
        ImageError, match="has 10 slices, expected one at a time, or `slice` volume"
    ):
        searching().track(tmp_path / "10.nii.gz", slice="all")


def test_in_thick_slices_the_search_starts_from_a_network(beat, monkeypatch):
    monkeypatch.setattr(tracking, "SEARCH", Refinement(levels=(1,), steps=(0,)))
    monkeypatch.setattr(tracking, "IMPROVE", Refinement(levels=(1,), steps=(0,)))
    monkeypatch.setattr(tracking, "DEFAULTS", Tracking(twicing=False, chunk=1))
    monkeypatch.setattr(grid, "THICK_MM", 5.0)
    pair, by_default = beat.frames[[0, ES]], load()
    heart = by_default.track(pair, spacing=SPACING)
    there, back = (
        by_default(*order, spacing=SPACING, refine=0, slice=None, volume=True)
        .registrations[0]
        .pixel_displacement
        for order in ((pair[1], pair[0]), (pair[0], pair[1]))
    )
    velocity = np.asarray(heart.displacement)[1]
    assert not velocity[..., 0].any()  # a network for slices
    expected = ndimage.gaussian_filter1d(there - back, 1.0, axis=0, mode="nearest")
    assert np.corrcoef(velocity.ravel(), expected.ravel())[0, 1] > 0.95
    assert heart.summary["model"] == DEFAULT_MODEL and heart.weights_sha256
    measured = by_default.track(pair, mask=beat.masks[0], spacing=SPACING).summary
    assert "longitudinal_strain" not in measured["strain"] and NO_LONGITUDINAL in measured["notes"]
    monkeypatch.setattr(grid, "THICK_MM", 10.0)
    still = by_default.track(pair, spacing=SPACING)
    assert not np.asarray(still.displacement).any() and still.summary["model"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"contours": {"endo": [[1, 2], [3, 4], [5, 1]]}},
            "contours and landmarks are of one slice",
        ),
        ({"landmarks": {"apex": (3, 4)}}, "contours and landmarks are of one slice"),
        ({"view": "apical"}, "a volume is a stack of short-axis slices"),
        ({"levels": "bma"}, r"expected a letter for each slice \(10\)"),
        ({"levels": 10 * "-"}, "expected slices of the ventricle"),
        ({"slice": 2}, "frames: `slice` is of files"),
        ({"spacing": (1.0, 2.0)}, "expected one number or"),
        ({"mask": np.ones((10, 32), int)}, "mask"),
    ],
)
def test_what_volumes_do_not_take(options, message, beat):
    with pytest.raises(FileError, match=message):
        searching().track(beat.frames, **({"spacing": SPACING} | options))


def test_few_slices_and_iterative_methods_are_refused(beat):
    with pytest.raises(ImageError, match="3 slices, fewer than 4, shows no motion through them"):
        searching().track(beat.frames[:, :3], spacing=SPACING)
    with pytest.raises(ImageError, match="knows no volumes; expected a network as `model`"):
        AnalyticMethod(image_size=None).track(beat.frames, spacing=SPACING)


@pytest.mark.parametrize("option", ["--dicom", "--landmarks=a.csv", "--view=apical"])
def test_options_of_slices_are_refused_in_one_line(option, tmp_path, capsys):
    arguments = ["--cine", "c.nii.gz", "--slice", "volume", option, "--out", str(tmp_path / "o")]
    with pytest.raises(SystemExit):
        track.main(arguments)
    assert "volume does not go with" in capsys.readouterr().err


def test_without_a_mask_nothing_is_measured(beat, truth):
    cine = truth[0].cine
    found = measure(truth[0], anatomy_of(cine))
    assert found.curves == () and "neither a mask nor a contour" in found.notes[0]
