"""Datasets of volumes: where every voxel is, directions, splits, augmentation."""

import archives
import numpy as np
import pytest

from ldm_morph_jax.data import contact_sheet, load_dataset
from ldm_morph_jax.data.acdc_3d import Acdc3dOptions
from ldm_morph_jax.data.orientation import orient, orient_displacement
from ldm_morph_jax.data.pipeline import PLANE, Augmentation, pair_batches, turn_displacement
from ldm_morph_jax.data.ventricle import LEFT_VENTRICLE, MYOCARDIUM
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.metrics import dice

SMALL = {"image_size": 32, "depth": 12, "n_train": 2, "n_validation": 1, "n_test": 1}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return load_dataset("phantom_3d", directory=tmp_path_factory.mktemp("phantom"), **SMALL)


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    root = tmp_path_factory.mktemp("acdc")
    options = {"allow_partial": True, "image_size": 64, "validation_until": 96, "depth": 16}
    return load_dataset("acdc_3d", source=archives.write_acdc(root), directory=root, **options)


def test_the_phantom_carries_its_motion(phantom, tmp_path):
    assert phantom.splits == {"train": 2, "validation": 1, "test": 1}
    assert phantom.shape == (12, 32, 32) and phantom.has_displacement
    pair = phantom.split("test")[0]
    assert {key: (v.shape, v.dtype.name) for key, v in pair.items() if v.ndim} == {
        "moving": ((12, 32, 32, 1), "float32"),
        "fixed": ((12, 32, 32, 1), "float32"),
        "moving_mask": ((12, 32, 32, 1), "uint8"),
        "fixed_mask": ((12, 32, 32, 1), "uint8"),
        "spacing": ((3,), "float32"),
        "displacement": ((12, 32, 32, 3), "float32"),
    }
    np.testing.assert_allclose(pair["spacing"], [8.4, 6, 6], rtol=1e-6)
    assert phantom.metadata("test")[0]["phase"] == "ED-ES"
    assert (pair["moving_mask"] == 3).sum() > (pair["fixed_mask"] == 3).sum()  # it contracts
    u = pair["displacement"][None]
    masks = [warp(pair["moving_mask"][None], k * u, interpolation="nearest")[0] for k in (0, 1)]
    before, after = (dice(np.asarray(m), pair["fixed_mask"], phantom.labels) for m in masks)
    assert min(after.values()) > 0.7  # labels of voxels of 6 x 6 x 8.4 mm
    assert all(after[k] > before[k] + 0.2 for k in (MYOCARDIUM, LEFT_VENTRICLE))
    back = load_dataset("phantom_3d", directory=tmp_path, reverse=True, **SMALL)
    other = back.split("test")[0]
    np.testing.assert_array_equal(other["moving"], pair["fixed"])
    composed = pair["displacement"] + np.asarray(warp(other["displacement"][None], u))[0]
    inner = composed[2:-2, 4:-4, 4:-4]
    assert np.abs(inner).max() < 0.25 < np.abs(u).max()  # inverse to each other
    contact_sheet(phantom, "train", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 3000


def test_every_patient_is_there_in_both_directions(stacks):
    assert stacks.splits == {"train": 2, "validation": 2, "test": 6}
    assert stacks.ids("test")[:2] == ["patient101-ed-es", "patient101-es-ed"]
    rows = stacks.metadata("test")
    assert [row["phase"] for row in rows[:2]] == ["ED-ES", "ES-ED"]
    assert {row["patient"] for row in rows} == {"patient101", "patient117", "patient124"}
    there, back = stacks.split("test")[0], stacks.split("test")[1]
    for a, b in (("moving", "fixed"), ("moving_mask", "fixed_mask")):
        np.testing.assert_array_equal(there[a], back[b])
        np.testing.assert_array_equal(there[b], back[a])
    assert stacks.labels == {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}
    np.testing.assert_allclose(there["spacing"], [6.3, 3, 3])


@pytest.mark.parametrize("row", [0, 2, 4])
def test_voxels_are_where_they_belong(stacks, row):
    """The prepared masks against the scene, drawn at the positions of the prepared voxels."""
    name, pair = stacks.ids("test")[row], stacks.split("test")[row]
    patient = int(name[7:10])
    scene, (shape, spacing, _) = archives.acdc_scene(patient), archives.ACDC[patient]
    new = (3.0, 3.0, 6.3)
    counts = [round(n * s / m) for n, s, m in zip(shape, spacing, new, strict=True)]
    starts = [
        (count - size) // 2 if count > size else -((size - count) // 2)
        for count, size in zip(counts, (64, 64, 16), strict=True)
    ]
    points = archives.grid((64, 64), (3, 3)) + 3 * np.array(starts[:2])
    first = -starts[2]  # the first plane that shows the stack
    for role, phase in (("moving", "ED"), ("fixed", "ES")):
        truth = scene.mask(points, phase, **archives.ACDC_LABELS)
        seen = pair[f"{role}_mask"][..., 0]
        assert not seen[:first].any() and not seen[first + counts[2] :].any()
        inside = truth > 0
        for plane in seen[first : first + counts[2] - 1]:
            assert (plane[inside] == truth[inside]).mean() > 0.93
    image = pair["moving"][..., 0]
    assert image.min() == 0 and image.max() == 1
    brightness = image[first : first + counts[2] - 1][:, inside].mean(1)
    assert np.all(np.diff(brightness) > -1e-3)  # it grows through the stack


def test_wrong_splits_and_missing_patients_are_refused(tmp_path):
    with pytest.raises(ValueError, match="train_until is 90 and validation_until 90"):
        Acdc3dOptions(train_until=90)
    with pytest.raises(ValueError, match="depth must be at least 2 planes, found 1"):
        Acdc3dOptions(depth=1)
    source = archives.write_acdc(tmp_path / "few", patients=(1, 101))
    with pytest.raises(ValueError, match="138 of 140 patients are missing"):
        load_dataset("acdc_3d", source=source, directory=tmp_path)


@pytest.mark.parametrize("k", range(8))
def test_turned_volumes_keep_their_displacement(phantom, k):
    pair = phantom.split("train")[0]
    u, moving = pair["displacement"], pair["moving"]
    turned = np.asarray(warp(moving[None], u[None]))[0]
    turned_u = orient_displacement(u, k, PLANE)
    moved = np.asarray(warp(orient(moving, k, PLANE)[None], turned_u[None]))[0]
    np.testing.assert_allclose(moved, orient(turned, k, PLANE), atol=1e-5)


def test_augmented_volumes(phantom):
    augment = Augmentation(orientations=(1,), rotation_degrees=20, scale=0.2, gamma=0.2)
    pair = dict(phantom.split("train")[0])
    pair["spacing"] = np.array([8, 6, 5], np.float32)
    new = augment(pair, np.random.default_rng(0))
    assert new["moving"].shape == pair["moving"].shape
    assert new["spacing"][0] == 8  # planes stay where they are
    assert new["spacing"][1] / new["spacing"][2] == pytest.approx(5 / 6, rel=1e-5)
    warped = np.asarray(
        warp(new["moving_mask"][None], new["displacement"][None], interpolation="nearest")
    )[0]
    scores = dice(warped, new["fixed_mask"], phantom.labels)
    assert min(scores.values()) > 0.7
    u = np.zeros((3, 9, 9, 3), np.float32)
    u[..., 0], u[..., 1] = 1, 2
    turned = turn_displacement(u, np.pi / 2, 1.5)
    np.testing.assert_allclose(turned[1, 4, 4], [1, 0, 3], atol=1e-6)
    batch = next(iter(pair_batches(phantom.split("train"), seed=0, batch_size=2)))
    assert batch["moving"].shape == (2, 12, 32, 32, 1) and batch["spacing"].shape == (2, 3)
