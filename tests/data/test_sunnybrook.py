"""The Sunnybrook reader on a small made-up tree, and on the real images where they are."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_morph_jax.data import load_dataset

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "sunnybrook"
# patient -> (part, [(slice, phase, radius of the blood pool), ...])
FRAMES = [(1, 0, 20), (1, 8, 12), (2, 0, 18), (2, 8, 11), (3, 0, 10)]
PATIENTS = {
    "SC-HF-I-01": (1, FRAMES),
    "SC-HF-NI-04": (1, FRAMES[:4]),
    "SC-N-05": (2, [(s, p, 20 if p else 9) for s, p, _ in FRAMES]),  # here phase 8 is ED
}


def paths(root, patient, part, slice_index, phase):
    name = f"{patient}-IM-0001-{20 * slice_index + phase + 1:04d}.dcm.png"
    stage = "Test" if part == 3 else "Train"
    base = root / "Data" / stage
    return [base / kind / f"Sunnybrook_Part{part}" / name for kind in ("Images", "Labels")]


def write(root, patients):
    for number, (patient, (part, frames)) in enumerate(patients.items()):
        for slice_index, phase, radius in frames:
            rng = np.random.default_rng([number, slice_index, phase])
            rows, cols = np.indices((256, 256))
            inside = np.hypot(rows - 128, cols - 125) < radius
            image = (rng.integers(0, 60, (256, 256)) + 150 * inside).astype(np.uint8)
            label = (255 * inside).astype(np.uint8)
            for file, array in zip(
                paths(root, patient, part, slice_index, phase), (image, label), strict=True
            ):
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.repeat(array[..., None], 3, axis=-1)).save(file)
    return root


@pytest.fixture
def tree(tmp_path):
    return write(tmp_path / "source", PATIENTS)


def load(tree, **options):
    return load_dataset("sunnybrook", source=tree, directory=tree.parent / "prepared", **options)


def replace(file, array):
    Image.fromarray(array).save(file)


def test_whole_images(tree):
    whole, crop = (load(tree, image_size=n).split("train")[0] for n in (256, 128))
    for name in ("moving", "fixed_mask"):
        assert whole[name].shape == (256, 256, 1)
    np.testing.assert_array_equal(whole["fixed_mask"][64:192, 64:192], crop["fixed_mask"])


def test_pairs_splits_and_contents(tree):
    dataset = load(tree)
    assert dataset.splits == {"train": 2, "validation": 2, "test": 2}
    assert dataset.labels == {1: "left ventricle"} and not dataset.has_displacement
    assert dataset.ids("train") == ["SC-HF-I-01-slice01", "SC-HF-I-01-slice02"]
    row = dataset.metadata("test")[1]
    assert row == {
        "id": "SC-N-05-slice02",
        "patient": "SC-N-05",
        "view": "sax",
        "phase": "ED-ES",
        "slice": 2,
    }
    example = dataset.split("train")[0]
    assert example["moving"].shape == (128, 128, 1) and example["moving"].dtype == np.float32
    np.testing.assert_array_equal(example["spacing"], np.float32([1.25, 1.25]))
    files = paths(tree, "SC-HF-I-01", 1, 1, 0)
    image, label = (np.asarray(Image.open(f))[64:192, 64:192, :1].astype(float) for f in files)
    np.testing.assert_array_equal(example["moving_mask"], label / 255)
    scaled = (image - image.min()) / (image.max() - image.min())
    np.testing.assert_allclose(example["moving"], scaled, atol=1e-6)
    # ED is the larger area, whichever phase comes first
    for split in dataset.splits:
        for pair in dataset.split(split):
            assert pair["moving_mask"].sum() > pair["fixed_mask"].sum()
    # every labelled image, also of the slice annotated once
    assert {split: len(dataset.images(split)) for split in dataset.splits} == {
        "train": 5,
        "validation": 4,
        "test": 5,
    }
    image = np.asarray(Image.open(paths(tree, "SC-HF-I-01", 1, 3, 0)[0]))[64:192, 64:192, :1]
    last = dataset.images("train")[4]["image"]
    np.testing.assert_allclose(last * np.ptp(image) + image.min(), image, atol=1e-3)


def test_reverse_and_percentile(tree):
    plain, reverse = load(tree), load(tree, reverse=True)
    a, b = plain.split("test")[0], reverse.split("test")[0]
    np.testing.assert_array_equal(a["moving"], b["fixed"])
    np.testing.assert_array_equal(a["moving_mask"], b["fixed_mask"])
    clipped = load(tree, intensity="percentile").split("test")[0]["moving"]
    assert np.mean(clipped == 1) >= 0.009 and np.mean(clipped == 0) >= 0.009
    assert clipped.min() == 0 and clipped.max() == 1


def test_part3_is_a_split_of_its_own(tree):
    write(tree, {"SC-HYP-40": (3, FRAMES)})
    dataset = load(tree)
    assert dataset.splits == {"train": 2, "validation": 2, "test": 2, "part3": 2}
    assert len(dataset.images("part3")) == 5


def test_keyed_by_the_content_of_the_source(tree):
    old = load(tree)
    assert load(tree).path == old.path
    assert load(tree / "Data").splits == old.splits  # the folder `Data` itself will do
    file = paths(tree, "SC-N-05", 2, 1, 0)[0]
    replace(file, 255 - np.asarray(Image.open(file)))
    new = load(tree)
    assert new.path != old.path and new.fingerprint("test") != old.fingerprint("test")
    # without the source the prepared data serve, unless it is unclear which
    with pytest.raises(ValueError, match="give `source`.*2 are prepared"):
        load_dataset("sunnybrook", directory=tree.parent / "prepared")


def test_prepared_data_need_no_source(tree):
    first = load(tree)
    again = load_dataset("sunnybrook", directory=tree.parent / "prepared")
    assert again.path == first.path
    with pytest.raises(ValueError, match="none is prepared.*SegNetCMR"):
        load_dataset("sunnybrook", directory=tree.parent / "prepared", reverse=True)


def test_wrong_or_empty_directory(tmp_path):
    with pytest.raises(ValueError, match="is not a directory"):
        load_dataset("sunnybrook", source=tmp_path / "none", directory=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no PNG files in .*Part1; expected Data/Train.*SegNetCMR"):
        load_dataset("sunnybrook", source=tmp_path / "empty", directory=tmp_path)
    with pytest.raises(ValueError, match="give `source`.*SegNetCMR"):
        load_dataset("sunnybrook", directory=tmp_path)
    with pytest.raises(ValueError, match="image_size is 128"):
        load_dataset("sunnybrook", directory=tmp_path, image_size=64)


def test_missing_part_split_and_partner(tree, tmp_path):
    only = write(tmp_path / "part1", {k: v for k, v in PATIENTS.items() if v[0] == 1})
    with pytest.raises(ValueError, match="no PNG files in .*Part2"):
        load(only)
    without = write(tmp_path / "no_validation", {k: PATIENTS[k] for k in ("SC-HF-I-01", "SC-N-05")})
    with pytest.raises(ValueError, match="no pair for split 'validation'.*SC-HF-NI-04"):
        load(without)
    image, _ = paths(tree, "SC-N-05", 2, 1, 0)
    image.unlink()
    with pytest.raises(
        ValueError, match="without a partner in Part2: SC-N-05-IM-0001-0021.dcm.png"
    ):
        load(tree)


def test_unexpected_file_name(tree):
    for file in paths(tree, "SC-N-05", 2, 1, 0):
        file.rename(file.with_name("heart.png"))
    with pytest.raises(ValueError, match="unexpected file name .*heart.png"):
        load(tree)


def damage_truncated(image, label):
    image.write_bytes(image.read_bytes()[:2000])


def damage_shape(image, label):
    replace(label, np.zeros((128, 128, 3), np.uint8))


def damage_size(image, label):
    replace(image, np.asarray(Image.open(image))[64:192, 64:192])


def damage_constant(image, label):
    replace(image, np.full((256, 256, 3), 9, np.uint8))


def damage_values(image, label):
    array = np.asarray(Image.open(label)).copy()
    array[128, 128] = 200
    replace(label, array)


def damage_channels(image, label):
    array = np.asarray(Image.open(image)).copy()
    array[..., 1] += 50
    replace(image, array)


def damage_border(image, label):
    array = np.asarray(Image.open(label)).copy()
    array[10, 10] = 255
    replace(label, array)


@pytest.mark.parametrize(
    "damage, message",
    [
        (damage_truncated, "0021.dcm.png: not a readable image"),
        (damage_shape, r"0021.dcm.png: mask is \(128, 128\), its image \(256, 256\)"),
        (damage_size, r"0021.dcm.png: expected 256 x 256, found \(128, 128\)"),
        (damage_constant, r"0021.dcm.png is constant \(9\)"),
        (damage_values, r"0021.dcm.png: mask values must be among \[0, 255\], found \[200\]"),
        (damage_channels, "0021.dcm.png: colour image, expected grey values"),
        (damage_border, "0021.dcm.png: 1 mask pixels lie outside the crop"),
    ],
)
def test_damaged_files(tree, damage, message):
    damage(*paths(tree, "SC-N-05", 2, 1, 0))
    with pytest.raises(ValueError, match=message):
        load(tree)
    assert not list((tree.parent / "prepared").rglob("dataset_info.json"))


@pytest.mark.parametrize("phases", [(0,), (0, 8, 12)])
def test_other_than_two_phases(tmp_path, phases):
    frames = [(1, phase, 20 - phase) for phase in phases]
    tree = write(tmp_path / "source", PATIENTS | {"SC-N-05": (2, frames)})
    with pytest.raises(ValueError, match=f"SC-N-05: expected two .* found {len(phases)}"):
        load(tree)


@pytest.mark.skipif(not REAL.is_dir(), reason="real Sunnybrook images are not here")
def test_real_images_agree_with_the_manifest(tmp_path):
    dataset = load_dataset("sunnybrook", source=REAL, directory=tmp_path)
    assert dataset.splits == {"train": 100, "validation": 25, "test": 128}
    with (REAL / "pairs.csv").open() as file:
        manifest = {
            f"{row['patient']}-slice{int(row['slice_index']):02d}": row
            for row in csv.DictReader(file)
        }
    found, patients = {}, {}
    for split in dataset.splits:
        patients[split] = {row["patient"] for row in dataset.metadata(split)}
        for name, pair in zip(dataset.ids(split), dataset.split(split), strict=True):
            moving, fixed = pair["moving_mask"] == 1, pair["fixed_mask"] == 1
            dice = 2 * np.sum(moving & fixed) / (moving.sum() + fixed.sum())
            found[name] = (split, moving.sum(), fixed.sum(), dice)
    assert {split: len(names) for split, names in patients.items()} == {
        "train": 12,
        "validation": 3,
        "test": 15,
    }
    assert found.keys() == manifest.keys()
    for name, row in manifest.items():
        split, moving_area, fixed_area, dice = found[name]
        assert (split == "test") == (row["part"] == "Sunnybrook_Part2")
        assert (moving_area, fixed_area) == (int(row["ed_area_px"]), int(row["es_area_px"]))
        assert dice == pytest.approx(float(row["dice_unregistered"]), abs=1e-4)
    test = [dice for split, _, _, dice in found.values() if split == "test"]
    assert np.mean(test) == pytest.approx(0.706, abs=5e-4)
