"""Verdicts: what speaks against a result is found and said."""

import numpy as np
import pytest
from analytic_method import AnalyticMethod, heart

from ldm_morph_jax.ops.appearance import describe
from ldm_morph_jax.registering import verdict
from ldm_morph_jax.registering.measures import measure
from ldm_morph_jax.registering.verdict import (
    IMPLAUSIBLE,
    LARGEST_DISTANCE,
    PLAUSIBLE,
    UNCERTAIN,
    doubts_by_masks,
    judge,
    judge_heart,
    judge_stack,
)

SHAPE = (64, 64)


def judged(method, moving, fixed, described=None, **options):
    [registration] = method(moving, fixed, spacing=2.0, **options).registrations
    metrics = measure(registration, None, None, steps=0, inverse=True)
    return judge(registration, metrics, described), metrics


def test_a_good_result_is_plausible():
    still = AnalyticMethod(amplitude=0.0)
    images = heart(SHAPE, radius=0.5), heart(SHAPE, radius=0.46)
    found, _ = judged(still, *images, refine=30)
    assert found["level"] == "plausible" and found["distance_from_training"] is None
    assert found["sentence"].startswith("Plausible: ")


def test_the_same_image_twice_is_plausible_though_nothing_moves():
    method = AnalyticMethod()  # whatever it predicts makes the images less alike
    method.predicts_velocity = True
    image = heart(SHAPE, radius=0.5)
    found, metrics = judged(method, image, image, refine=0)
    assert metrics["scale"] == [0.0] and found["level"] == "plausible"


def test_images_of_different_things_are_implausible():
    noise = np.random.default_rng(0).normal(size=SHAPE)
    found, metrics = judged(AnalyticMethod(amplitude=0.0), noise, heart(SHAPE), refine=30)
    assert found["level"] == "implausible"
    assert f"correlation {metrics['correlation']['after']:.2f}" in found["sentence"]


def test_folds_are_told():
    class Folding(AnalyticMethod):
        def displacement(self, moving, fixed):
            u = np.zeros((*moving.shape[:3], 2), np.float32)
            u[..., 1] = 6 * np.sin(2 * np.pi * np.arange(self.image_size) / 16)
            return u

    image = heart(SHAPE)
    found, metrics = judged(Folding(), image, image, refine=0)
    assert found["level"] == "implausible"
    assert f"folds at {metrics['jacobian']['nonpositive_pixels']} pixels" in found["sentence"]


@pytest.mark.parametrize("amplitude,level", [(30.0, "implausible"), (5.0, "uncertain")])
def test_what_was_scaled_back_is_told(amplitude, level):
    method = AnalyticMethod(amplitude=amplitude)
    method.predicts_velocity = True
    image, other = heart(SHAPE, radius=0.5), heart(SHAPE, radius=0.49)
    if level == "uncertain":  # too far, in the right direction
        [right] = AnalyticMethod(amplitude=2.0)(image, image, spacing=2.0, refine=0).registrations
        other = right.warped
    found, metrics = judged(method, image, other, refine=0)
    assert metrics["scale"][0] < 1 and found["level"] == level
    expected = "only 0." if level == "uncertain" else "no deformation improved"
    assert expected in found["sentence"]


def test_images_unlike_the_training_images_are_told(monkeypatch):
    rng = np.random.default_rng(0)
    seen = np.stack([heart(SHAPE, radius=rng.uniform(0.4, 0.6), seed=k) for k in range(40)])
    seen = (seen - seen.min()) / np.ptp(seen)
    images = heart(SHAPE, radius=0.5), heart(SHAPE, radius=0.46)
    speckled = [i + rng.normal(scale=100, size=SHAPE) for i in images]
    far, _ = judged(AnalyticMethod(amplitude=0.0), *speckled, describe(seen), refine=0)
    near, _ = judged(AnalyticMethod(amplitude=0.0), *images, describe(seen), refine=0)
    assert near["distance_from_training"] < LARGEST_DISTANCE < far["distance_from_training"]
    assert "was trained on other images" in far["sentence"]
    assert "was trained on other images" not in near["sentence"]
    finer, _ = judged(
        AnalyticMethod(amplitude=0.0),
        *(np.pad(np.kron(i, np.ones((3, 3))), 40, constant_values=i.min()) for i in images),
        describe(seen),
        refine=0,
    )
    assert finer["distance_from_training"] < LARGEST_DISTANCE  # of finer pixels, with a margin
    noisy = [images[k % 2] + rng.normal(scale=100, size=SHAPE) for k in range(40)]
    known = {"mri": describe(seen), "echo": describe(noisy)}
    for names, hint in ((["mri"], ""), (["mri", "echo"], "; the weights echo know such images")):
        monkeypatch.setattr(verdict, "shipped", lambda names=names: {n: known[n] for n in names})
        far, _ = judged(AnalyticMethod(amplitude=0.0), *speckled, describe(seen), refine=0)
        assert ("the weights" in far["sentence"]) == bool(hint) and hint in far["sentence"]


def beat(**changes):
    """Numbers of a tracked heart, as `heart.summary` gives them."""
    values = {"wall": 1.04, "radial": 0.28, "circumferential": -0.15, "sector": -0.12} | changes
    strains = [
        ("radial", "wall", values["radial"]),
        ("circumferential", "wall", values["circumferential"]),
        ("circumferential", "inferior", values["sector"]),
        ("radial", "inferior", 3.0),  # noisy, and looked at as a mean only
    ]
    numbers = {
        "reference": 0,
        "end_systole": 1,
        "jacobian": {"nonpositive_percent": values.get("folded", 0.0)},
        "curves": {"wall_area_mm2": [100.0, 100 * values["wall"], 90.0]},
        "strain": {
            f"{direction} {region}": {"direction": direction, "region": region, "end_systolic": at}
            for direction, region, at in strains
        },
    }
    more = "drift_px", "end_systole", "mask_contrast"
    return numbers | {k: values[k] for k in more if k in values}


@pytest.mark.parametrize(
    ("changes", "level", "told"),
    [
        ({}, PLAUSIBLE, "the wall changes as it does in a heart"),
        ({"wall": 1.3}, PLAUSIBLE, "the wall changes as it does in a heart"),
        ({"wall": 1.4}, UNCERTAIN, "the wall's area grows by 40 % to end-systole"),
        ({"wall": 0.9}, UNCERTAIN, "the wall's area shrinks by 10 % to end-systole"),
        (
            {"wall": 0.6},
            IMPLAUSIBLE,
            "the wall's area shrinks by 40 % to end-systole, at most 35 %",
        ),
        ({"circumferential": 0.02}, UNCERTAIN, "the wall lengthens: circumferential strain 2 %"),
        ({"circumferential": 0.13}, IMPLAUSIBLE, "the wall lengthens"),
        ({"sector": 0.08}, UNCERTAIN, "the inferior sector lengthens by 8 %"),
        ({"sector": 0.2}, IMPLAUSIBLE, "the inferior sector"),
        # a value and its limit that would print alike
        (
            {"sector": 0.152},
            IMPLAUSIBLE,
            "the inferior sector lengthens by 15.2 %, at most 15.0 % in a heart",
        ),
        ({"radial": 1.2}, UNCERTAIN, "radial strain is 120 %"),
        ({"radial": 1.6}, IMPLAUSIBLE, "radial strain is 160 %, at most 150 % in a heart"),
        ({"radial": -0.1}, UNCERTAIN, "becomes thinner"),
        ({"folded": 0.3}, IMPLAUSIBLE, "folds at 0.3 %"),
        ({"drift_px": {"registered_alone": 2.4}}, UNCERTAIN, "2.4 pixels from the first"),
        ({"mask_contrast": [2.0, 2.3]}, PLAUSIBLE, "the wall changes as it does in a heart"),
        (
            {"mask_contrast": [2.0, 2.5]},
            UNCERTAIN,
            "fits frame 1 better than the reference, frame 0",
        ),
        ({"wall": 1.4, "radial": 1.6}, IMPLAUSIBLE, "; the wall's area grows by 40 %"),
    ],
)
def test_hearts_are_judged_by_what_muscle_does(changes, level, told):
    verdict = judge_heart(beat(**changes))
    assert verdict["level"] == level and told in verdict["sentence"]


def test_nothing_measured_is_not_judged():
    assert judge_heart(beat(end_systole=None)) is None


def test_a_stack_is_as_plausible_as_its_slices_and_its_wall():
    good, bad = judge_heart(beat()), judge_heart(beat(radial=1.6))
    assert judge_stack({"slice-00": good, "slice-01": None}, 0.19)["level"] == PLAUSIBLE
    assert judge_stack({"slice-00": good}, None)["level"] == PLAUSIBLE
    verdict = judge_stack({"slice-00": good, "slice-01": bad}, 0.1)
    assert verdict["level"] == UNCERTAIN and "slice-01 is implausible" in verdict["sentence"]
    verdict = judge_stack({"slice-00": good}, 0.37)
    assert verdict["level"] == IMPLAUSIBLE and "volume changes by 37 %" in verdict["sentence"]
    verdict = judge_stack({"slice-00": good}, -0.304)
    assert "changes by -30.4 % to end-systole, in a heart at most 30.0 %" in verdict["sentence"]


def test_masks_doubt_what_the_images_do_not():
    def score(before, after):
        return {"before": before, "after": after}

    good = {"1": score(0.6, 0.9), "2": score(0.5, 0.71), "3": score(0.92, 0.917)}
    assert doubts_by_masks({}) == doubts_by_masks({"dice": good}) == []
    little = doubts_by_masks({"dice": good | {"2": score(0.4, 0.69)}})
    assert little == ["label 2 overlaps little (DSC 0.69, usually above 0.7)"]
    less = doubts_by_masks({"dice": good | {"1": score(0.93, 0.91)}})
    assert less == ["label 1 overlaps less than before (DSC 0.93 → 0.91)"]
