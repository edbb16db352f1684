"""The Python API: `load(name)(moving, fixed)`, with analytic, learned and iterative methods."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import SimpleITK
from analytic_method import AnalyticMethod, heart

from ldm_morph_jax import register
from ldm_morph_jax.config import paper_config, with_method
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.geometry import Geometry, plain_geometry
from ldm_morph_jax.files.images import images_from_array, read_image
from ldm_morph_jax.files.writing import write_image
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.ops.geometry import integrate_velocity
from ldm_morph_jax.registering.measures import similarity
from ldm_morph_jax.registering.method import Registrar, load

SHAPE, SPACING = (70, 90), (1.5, 1.25)


def test_api_shapes_and_contents():
    registrar = AnalyticMethod()
    moving, fixed = heart(SHAPE, radius=0.55), heart(SHAPE, radius=0.45)
    one = registrar(moving, fixed, spacing=SPACING, refine=0)
    many = registrar(
        jnp.stack([moving, fixed]), jnp.stack([fixed, moving]), spacing=SPACING, refine=0
    )
    for result, lead in ((one, ()), (many, (2,))):
        assert result.warped.shape == result.jacobian_determinant.shape == (*lead, *SHAPE)
        assert result.displacement.shape == result.inverse.shape == (*lead, *SHAPE, 2)
        assert result.inverse_residual.max() < 1e-3
    np.testing.assert_allclose(many.warped[0], one.warped, atol=0.01)
    np.testing.assert_array_equal(one.warp(moving), one.warped)
    labels = (moving > 420).astype(np.int16)
    assert set(np.unique(one.warp(labels, interpolation="nearest"))) == {0, 1}
    there_and_back = one.warp(one.warp(moving), inverse=True)[15:-15, 15:-15]
    assert (
        np.abs(there_and_back - moving[15:-15, 15:-15]).mean() < 15
    )  # of 1000, interpolated twice
    with pytest.raises(ImageError, match="2 images|expected 2"):
        many.warp(labels[None])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A pair with masks in files, and the same in arrays."""
    folder = tmp_path_factory.mktemp("pair")
    arrays = {"moving": heart((40, 44), radius=0.55), "fixed": heart((40, 44), radius=0.45)}
    arrays |= {f"{k}_mask": (image > 420).astype(np.uint8) for k, image in arrays.items()}
    for name, array in arrays.items():
        write_image(folder / f"{name}.nii.gz", array, plain_geometry(array.shape, SPACING))
    return {name: folder / f"{name}.nii.gz" for name in arrays}, arrays


def test_whatever_holds_an_image_is_taken(files):
    paths, arrays = files
    registrar = AnalyticMethod()
    expected = registrar(**arrays, spacing=SPACING, refine=0)
    for given in (str, lambda path: path, SimpleITK.ReadImage, read_image):
        result = registrar(**{name: given(path) for name, path in paths.items()}, refine=0)
        np.testing.assert_allclose(result.displacement, expected.displacement, atol=1e-5)
        assert result.metrics["dice"] == expected.metrics["dice"]
    volume = SimpleITK.JoinSeries([SimpleITK.ReadImage(paths["moving"])] * 3)
    result = registrar(volume, paths["fixed"], slice=1, refine=0)
    np.testing.assert_allclose(result.displacement, expected.displacement, atol=1e-5)
    far = SimpleITK.ReadImage(paths["moving"])
    far.SetOrigin((500.0, 0.0))
    with pytest.raises(ImageError, match="use `align` centre"):
        registrar(far, paths["fixed"])
    assert registrar(far, paths["fixed"], align="centre", refine=0).displacement.shape
    with pytest.raises(ImageError, match=r"moving: `slice` and `frame` are of files"):
        registrar(arrays["moving"], arrays["fixed"], slice=3)
    with pytest.raises(ImageError, match="moving_mask: mask is .* they must agree"):
        registrar(arrays["moving"], arrays["fixed"], moving_mask=np.ones((3, 3), int))


def test_a_result_is_measured_drawn_and_saved_as_the_command_does(files, tmp_path, monkeypatch):
    paths, _ = files
    monkeypatch.setattr(register, "load_model", lambda *_: AnalyticMethod())
    given = [word for name, path in paths.items() for word in (f"--{name}", path)]
    given += ["--model", "analytic", "--refine", 0, "--inverse", "--out", tmp_path / "command"]
    register.main([str(word) for word in given])
    result = AnalyticMethod()(**paths, refine=0)
    result.save(tmp_path / "saved", inverse=True)
    saved, command = (
        {path.name: path for path in (tmp_path / name).iterdir()} for name in ("saved", "command")
    )
    assert saved.keys() == command.keys() and {"report.html", "metrics.json"} <= saved.keys()
    for name in ("warped.nii.gz", "displacement.npz", "warped_mask.nii.gz"):
        np.testing.assert_array_equal(*(read_values(f[name]) for f in (saved, command)))
    told = [json.loads(files["metrics.json"].read_text()) for files in (saved, command)]
    for name in ("arguments", "seconds"):
        assert told[1].pop(name)
    for name in ("moving", "fixed"):
        assert told[1][name].pop("slice") is told[1][name].pop("frame") is None
    assert all(one["software"].pop("date") for one in told)
    assert told[0] == told[1]
    assert result.verdict["level"] in ("plausible", "uncertain", "implausible")
    assert len(result.plot().axes) >= 8
    with pytest.raises(ImageError, match="exists; add `overwrite`"):
        result.save(tmp_path / "saved")
    result.save(tmp_path / "saved", overwrite=True, report=False)
    assert not (tmp_path / "saved" / "report.html").exists()


def read_values(path):
    return np.load(path)["displacement"] if path.suffix == ".npz" else read_image(path).array


def test_a_batch_is_measured_drawn_and_saved_pair_by_pair(files, tmp_path):
    _, arrays = files
    one = AnalyticMethod()(**arrays, spacing=SPACING, refine=0)
    batch = {name: np.stack([array, array]) for name, array in arrays.items()}
    many = AnalyticMethod()(**batch, spacing=SPACING, refine=0)
    assert [m["dice"] for m in many.metrics] == [one.metrics["dice"]] * 2
    assert [v["level"] for v in many.verdict] == [one.verdict["level"]] * 2
    many.save(tmp_path / "out", report=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0001", "0002"]
    assert (tmp_path / "out" / "0002" / "metrics.json").exists()
    assert many.plot().axes
    with pytest.raises(ImageError, match="fixed_mask: 1 masks, expected 2"):
        AnalyticMethod()(batch["moving"], batch["fixed"], fixed_mask=arrays["fixed_mask"])


def test_they_introduce_themselves_in_a_line(files):
    registrar = AnalyticMethod()
    result = registrar(**files[1], refine=0)
    assert repr(registrar) == "<AnalyticMethod 'analytic': analytic on 64 x 64 pixels of 2 mm>"
    assert repr(result) == (
        "<Result: 40 x 44 pixels onto 40 x 44, by 'analytic' and 0 steps of refinement>"
    )
    assert repr(result.registrations[0]) == "<Registration: moving onto fixed>"
    assert "metrics" not in vars(result)  # nothing was measured for it
    default = pickle.loads(pickle.dumps(load()))  # as the commands without --model
    assert default.by_default and default.model == "sunnybrook-symmetric"
    assert repr(load("lddmm")) == "<Registrar 'lddmm': lddmm on images of any size>"
    with pytest.raises(ValueError, match="calls is 'onc', .*did you mean once"):
        load("lddmm", calls="onc")


@pytest.mark.parametrize(
    "given",
    [
        lambda image: jnp.asarray(image, jnp.bfloat16).astype(jnp.float32),
        list,
    ],
)
def test_api_takes_what_becomes_an_array(given):
    registrar = AnalyticMethod()
    moving, fixed = heart(SHAPE, radius=0.55), heart(SHAPE, radius=0.45)
    result = registrar(given(moving), given(fixed), spacing=SPACING)
    assert result.displacement.shape == (*SHAPE, 2)
    expected = registrar(moving, fixed, spacing=SPACING)
    np.testing.assert_allclose(result.warped, expected.warped, atol=4)
    assert result.warp(given(moving)).shape == SHAPE


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.int16, np.uint8, np.float64])
def test_api_takes_any_type(dtype):
    images = [heart((40, 44), radius=r).clip(0, 250) for r in (0.5, 0.4)]
    images = [image.astype(dtype) for image in images]
    result = AnalyticMethod()(*images, spacing=2.0)
    assert result.warped.dtype == np.float32 and np.isfinite(result.warped).all()


@pytest.mark.integration
def test_stacks_of_many_sizes_share_few_programs():
    """Every batch size is a program; what fills a batch up changes nothing."""

    class Counting(AnalyticMethod):
        def __init__(self):
            super().__init__()
            self.batches = []

        def displacement(self, moving, fixed):
            self.batches.append(len(moving))
            return super().displacement(moving, fixed)

    method = Counting()
    images = np.stack([heart((32, 32), radius=0.4 + 0.01 * k) for k in range(18)])
    for count, batches in {
        1: [1],
        2: [4],
        3: [4],
        4: [4],
        5: [4, 1],
        7: [4, 4],
        16: [16],
        18: [16, 4],
    }.items():
        method.batches.clear()
        result = method(images[:count], images[::-1][:count])
        assert method.batches == batches
        assert len(result.registrations) == count
    alone = method(images[17], images[0])
    np.testing.assert_allclose(result.displacement[17], alone.displacement, atol=1e-5)


def test_api_different_sizes():
    registrar = AnalyticMethod(amplitude=0.0)
    moving, fixed = heart((120, 100)), heart((60, 50))
    result = registrar(moving, fixed, spacing=2.0, moving_spacing=1.0)
    assert result.displacement.shape == (60, 50, 2) and result.inverse.shape == (120, 100, 2)
    # nothing moves, so the same heart appears at half the resolution, centre on centre
    np.testing.assert_allclose(result.warped[1:-1, 1:-1], fixed[1:-1, 1:-1], atol=60)
    np.testing.assert_allclose(result.jacobian_determinant, 1.0, atol=1e-6)


def test_api_refusals():
    registrar = AnalyticMethod()
    good = heart((40, 40))
    nan = good.copy()
    nan[3, 3] = np.nan
    for arguments, options, message in [
        ((nan, good), {}, "moving: holds NaN"),
        ((good, np.ones((40, 40))), {}, "fixed: is constant|constant"),
        ((good, good[None]), {}, "moving holds one image, fixed 1 images"),
        ((good[None], np.stack([good, good])), {}, "the same B"),
        (
            (good[None, None], good),
            {},
            r"found shape \(1, 1, 40, 40\), expected \[H, W\] or \[B, H, W\]",
        ),
        (
            (good[..., None], good),
            {},
            r"moving: found shape \(40, 40, 1\).*pass one, image\[..., 0\]",
        ),
        (
            (good, np.stack([good] * 3, -1)),
            {},
            r"fixed: found shape \(40, 40, 3\), expected \[H, W",
        ),
        ((good.astype(str), good), {}, "expected numbers"),
        ((good, good), {"spacing": 0}, "spacing"),
        ((good, good), {"spacing": (1, -2)}, "spacing"),
        ((good, good), {"refine": -1}, "refine"),
        ((good, good), {"refine": 1.5}, "refine: found 1.5, expected 0 or more steps"),
        ((good, good), {"frame": (0, 1, 2)}, r"`frame` is \(0, 1, 2\), expected one number or two"),
        ((good, good), {"slice": "first"}, "found 'first', expected a number, several as in 2-5"),
        ((good[None][:0], good[None][:0]), {}, r"moving: found shape \(0, 40, 40\)"),
        (
            (good, good),
            {"moving_mask": good[..., None] > 1},
            r"40 masks, expected 1 of shape \(40, 40\), found \(40, 40, 1\)",
        ),
        ((good, good), {"centre": (-3, 2)}, "outside"),
    ]:
        with pytest.raises(ValueError, match=message):
            registrar(*arguments, **options)


@pytest.mark.parametrize("unknown", ["moving", "fixed"])
def test_an_image_without_spacing_has_that_of_the_other_one(tmp_path, unknown):
    """Taken to be 1 mm, it would be stretched onto the other one."""
    registrar = AnalyticMethod()
    files = {"moving": heart((40, 44), radius=0.55), "fixed": heart((40, 44), radius=0.45)}
    right = registrar(*files.values(), spacing=2.0)
    for name, array in files.items():
        told = {} if name == unknown else {"spacing": [2.0, 2.0]}
        np.savez(tmp_path / f"{name}.npz", image=array, **told)
        files[name] = tmp_path / f"{name}.npz"
    result = registrar(**files)
    np.testing.assert_array_equal(result.displacement, right.displacement)
    known = {"moving": "fixed", "fixed": "moving"}[unknown]
    note = f"does not tell its pixel spacing: taken to be that of {files[known]}, 2 x 2 mm"
    assert result.metrics["notes"] == [f"{files[unknown]}: {note}"]
    np.savez(tmp_path / f"{unknown}.npz", image=heart((48, 44), radius=0.5))
    with pytest.raises(
        ImageError, match="has 48 x 44 pixels and does not tell their spacing, .*40"
    ):
        registrar(**files)


def test_slices_at_different_heights_are_told(tmp_path):
    """Two slices are registered in their planes, which need not be one plane."""
    for name, radius, height in (("moving", 0.55, 20.0), ("fixed", 0.45, 0.0), ("near", 0.5, 3.0)):
        origin, image = np.array([0.0, 0.0, height]), heart((40, 44), radius=radius)
        geometry = Geometry((1, 40, 44), (8.0, 2.0, 2.0), origin, np.eye(3))
        write_image(tmp_path / f"{name}.nii.gz", image[None], geometry)
    files = {name: tmp_path / f"{name}.nii.gz" for name in ("moving", "fixed", "near")}
    registrar = AnalyticMethod()
    notes = registrar(files["moving"], files["fixed"]).metrics["notes"]
    assert notes == ["the two slices lie 20 mm apart, across their plane"]
    assert not registrar(files["near"], files["fixed"]).metrics["notes"]


def test_network_that_returns_nan_is_named():
    class Broken(AnalyticMethod):
        def displacement(self, moving, fixed):
            return super().displacement(moving, fixed) * jnp.nan

    with pytest.raises(ValueError, match="analytic: predicted NaN"):
        Broken()(heart((40, 40)), heart((40, 40)))


@pytest.mark.integration
def test_refinement_improves_and_pairs_are_independent():
    registrar = AnalyticMethod(amplitude=0.0)
    a = heart((64, 64), radius=0.55), heart((64, 64), radius=0.47)
    b = heart((64, 64), radius=0.5, seed=3), heart((64, 64), radius=0.6, seed=3)
    both = registrar(*(np.stack(x) for x in zip(a, b, strict=True)), spacing=2.0, refine=40)
    for k, registration in enumerate(both.registrations):
        told = similarity(registration)
        assert told["correlation"]["after"] > told["correlation"]["before"] + 0.02
        assert told["rms_difference"]["after"] < 0.7 * told["rms_difference"]["before"]
        found = registration.motions[0]
        assert found.scale == 1 and found.correlation[1] > found.correlation[0]
        assert both.jacobian_determinant[k].min() > 0
    # the result of B is the same whether A, or something else, is refined beside it or before it
    other = registrar(*(np.stack(x) for x in zip(a[::-1], b, strict=True)), spacing=2.0, refine=40)
    np.testing.assert_allclose(both.displacement[1], other.displacement[1], atol=1e-3)
    alone = registrar(*b, spacing=2.0, refine=40)
    np.testing.assert_allclose(alone.displacement, both.displacement[1], atol=1e-3)


@pytest.mark.integration
def test_by_construction():
    """No motion for the same image, the inverse for exchanged ones, never worse than nothing."""
    registrar = diffeomorphic_voxelmorph()
    shape = (48, 40)  # larger than the network's grid
    moving, fixed = heart(shape, radius=0.5), heart(shape, radius=0.42)
    for refine in (0, 20):
        same = registrar(moving, moving, spacing=1.0, refine=refine)
        assert np.abs(same.displacement).max() < 1e-3
        there = registrar(moving, fixed, spacing=1.0, refine=refine)
        back = registrar(fixed, moving, spacing=1.0, refine=refine)
        assert there.inverse_residual.max() < 1e-3
        np.testing.assert_allclose(there.inverse, back.displacement, atol=0.1)
        rms = similarity(there.registrations[0])["rms_difference"]
        assert rms["after"] <= rms["before"] * (1 + 1e-6)
    assert np.abs(there.displacement).max() > 0.5


def test_a_prediction_that_makes_it_worse_is_taken_back():
    method = AnalyticMethod(amplitude=8.0)
    method.predicts_velocity = True
    image = heart(SHAPE, radius=0.5)
    [registration] = method(image, heart(SHAPE, radius=0.48), refine=0).registrations
    assert registration.motions[0].scale < 1
    rms = similarity(registration)["rms_difference"]
    assert rms["after"] <= rms["before"] * (1 + 1e-6)


def test_an_inverse_that_is_missing_is_told():
    class Folding(AnalyticMethod):
        def displacement(self, moving, fixed):
            x = np.arange(self.image_size)
            wave = np.zeros((*moving.shape[:3], 2), np.float32)
            wave[..., 1] = 25 * np.sin(2 * np.pi * x / 32)
            return jnp.asarray(wave)

    result = Folding()(heart((64, 64)), heart((64, 64), radius=0.4), spacing=2.0, refine=0)
    assert result.jacobian_determinant.min() < 0
    found = result.registrations[0].inverse
    with pytest.warns(UserWarning, match=f"{found.missing} pixels of the moving image have no"):
        _ = result.inverse
    assert 0 < found.missing == np.count_nonzero(result.inverse_residual > 0.01 * 2.0)


def test_images_of_different_sizes_on_grids_of_their_own():
    """A method for any grid registers every image on one of its own size, in any order."""

    class AnySize(AnalyticMethod):
        def displacement(self, moving, fixed):
            self.image_size = moving.shape[1]
            found = super().displacement(moving, fixed)
            self.image_size = None
            return found

    shapes = [(40, 44), (70, 60), (44, 40)]
    pairs = [(heart(shape), heart(shape, radius=0.4)) for shape in shapes]
    images = [tuple(images_from_array(array)[0][0] for array in pair) for pair in pairs]
    registrations = AnySize(None, None).register_images(images)
    for shape, pair, registration in zip(shapes, images, registrations, strict=True):
        assert registration.fixed is pair[1]
        assert registration.warped.shape == shape
        size = 32 * -(-max(shape) // 32)
        assert registration.slices[0].model.grid.shape == (size, size)
        alone = AnySize(None, None).register_images([pair])[0]
        np.testing.assert_array_equal(registration.warped, alone.warped)


def test_lddmm_by_name():
    registrar = load("lddmm")
    moving, fixed = heart((64, 60), radius=0.5), heart((64, 60), radius=0.42)
    result = registrar(moving, fixed)
    registration = result.registrations[0]
    told = similarity(registration)["correlation"]
    assert told["after"] > 0.95 > told["before"] + 0.1
    assert result.jacobian_determinant.min() > 0
    with pytest.raises(ValueError, match="works on what a network predicts; lddmm has none"):
        registrar(moving, fixed, refine=3)


def test_syn_by_name():
    pytest.importorskip("ants")
    moving, fixed = heart((64, 60), radius=0.5), heart((64, 60), radius=0.42)
    registration = load("syn")(moving, fixed).registrations[0]
    assert similarity(registration)["correlation"]["after"] > 0.95


def diffeomorphic_voxelmorph():
    """An untrained VoxelMorph that integrates a velocity of some pixels."""
    config = with_method(paper_config(), "voxelmorph", "small")
    config.data.image_size = 32
    config.registration.integration_steps = 7
    method = build_method(config.lock())
    params = jax.jit(lambda: method.init(jax.random.key(0), (32, 32)))()
    # untrained, the last layer moves nothing: enlarge it, so that there is something to see
    params = jax.tree.map(lambda leaf: leaf * 1e6 if leaf.shape[-1:] == (2,) else leaf, params)
    return Registrar(method, params=params, config=config, card={"name": "a test"})


@pytest.mark.integration
def test_a_velocity_is_integrated_once():
    """VoxelMorph with integration steps."""
    method = diffeomorphic_voxelmorph()
    moving, fixed = heart((32, 32), radius=0.5), heart((32, 32), radius=0.42)
    result = method(moving, fixed, refine=0)
    assert np.abs(result.displacement).max() > 0.3
    [registration] = result.registrations
    assert registration.diffeomorphic
    one, found = registration.slices[0].model, registration.motions[0]
    velocity = found.scale * method.velocity(
        one.moving[None, ..., None], one.fixed[None, ..., None]
    )
    once = integrate_velocity(velocity)
    np.testing.assert_allclose(found.displacement, once[0], atol=1e-4)


@pytest.mark.parametrize("name", ["lddmm", "voxelmorph"])
def test_registrars_can_be_pickled(name):
    registrar = diffeomorphic_voxelmorph() if name == "voxelmorph" else load(name)
    again = pickle.loads(pickle.dumps(registrar))
    assert type(again) is Registrar and again.card == registrar.card and again.name == name
    assert again.iterative == registrar.iterative == (name == "lddmm")
    assert again.model == registrar.model and again.by_default is registrar.by_default is False
    images = [heart((32, 32), radius=r) for r in (0.5, 0.42)]
    np.testing.assert_array_equal(again(*images).displacement, registrar(*images).displacement)


@pytest.mark.integration
def test_blank_slices_of_a_stack_are_left_as_they_are(tmp_path):
    def stack(name, *slices):
        array = np.stack(slices).astype(np.float32)
        write_image(tmp_path / name, array, plain_geometry(array.shape, (8.0, 2.0, 2.0)))
        return read_image(tmp_path / name, slice="all")

    shape = (64, 60)
    nothing, a, b = np.zeros(shape), heart(shape, radius=0.5), heart(shape, radius=0.4)
    moving, fixed = (
        stack("moving.nii.gz", nothing, a, a),
        stack("fixed.nii.gz", nothing, b, 7 + nothing),
    )
    for refine in (0, 4):
        result = AnalyticMethod()(moving, fixed, refine=refine)
        moved = np.abs(result.displacement).max(axis=(1, 2, 3))
        assert moved[1] > 0.1 and moved[0] == moved[2] == 0
        np.testing.assert_array_equal(result.warped[[0, 2]], moving.array[[0, 2]])
        told = result.metrics["notes"]
        assert [note for note in told if "blank" in note] == [
            f"slice {k} is blank: left as it is" for k in (0, 2)
        ]
        assert "nan" not in result.verdict["sentence"]
    full = AnalyticMethod()(stack("m.nii.gz", a, a), stack("f.nii.gz", b, b), refine=4)
    np.testing.assert_allclose(result.displacement[1], full.displacement[1], atol=1e-4)
    with pytest.raises(ImageError, match="no slice shows anything in both"):
        AnalyticMethod()(stack("empty.nii.gz", nothing, nothing, a), fixed, refine=0)
