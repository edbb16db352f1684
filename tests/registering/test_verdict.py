"""Verdicts: what speaks against a result is found and said."""

import numpy as np
import pytest
from analytic_method import AnalyticMethod, heart

from ldm_morph_jax.ops.appearance import describe
from ldm_morph_jax.registering import verdict
from ldm_morph_jax.registering.measures import measure
from ldm_morph_jax.registering.verdict import judge
from ldm_morph_jax.runs.weights import TrainedOn

SHAPE = (64, 64)


def judged(method, moving, fixed, described=None, **options):
    [registration] = method(moving, fixed, spacing=2.0, **options).registrations
    metrics = measure(registration, inverse=True)
    return judge(registration, metrics, described), metrics


def test_a_good_result_is_plausible():
    still = AnalyticMethod(amplitude=0.0)
    images = heart(SHAPE, radius=0.5), heart(SHAPE, radius=0.46)
    found, _ = judged(still, *images, refine=30)
    assert found["level"] == "plausible" and found["distance_from_training"] is None
    assert found["sentence"].startswith("Plausible: ")


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
    assert near["distance_from_training"] < 3.2 < far["distance_from_training"]
    assert "was trained on other images" in far["sentence"]
    assert "was trained on other images" not in near["sentence"]
    noisy = np.stack([images[k % 2] + rng.normal(scale=100, size=SHAPE) for k in range(40)])
    method = AnalyticMethod(amplitude=0.0)
    registered = method(noisy, noisy, spacing=2.0, refine=0).registrations
    noisy = np.stack([one.slices[0].model.moving for one in registered])
    known = {
        name: TrainedOn(method.image_size, method.spacing_mm, method.intensity, describe(x))
        for name, x in {"mri": seen, "echo": noisy}.items()
    }
    for names, hint in ((["mri"], ""), (["mri", "echo"], "; the weights echo know such images")):
        monkeypatch.setattr(verdict, "shipped", lambda names=names: {n: known[n] for n in names})
        far, _ = judged(AnalyticMethod(amplitude=0.0), *speckled, describe(seen), refine=0)
        assert ("the weights" in far["sentence"]) == bool(hint) and hint in far["sentence"]
