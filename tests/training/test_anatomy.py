"""An anatomy network from training to a weights file: the stage, calibration, scores, export."""

import csv
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from in_process import call
from tiny import tiny_config

from ldm_morph_jax import anatomy_scores
from ldm_morph_jax.config import anatomy_config, config_from_json
from ldm_morph_jax.data import no_heart
from ldm_morph_jax.runs.anatomy import is_anatomy, load_anatomy
from ldm_morph_jax.runs.weights import WeightsError
from ldm_morph_jax.training.run import train
from ldm_morph_jax.training.stages import stage_program

pytestmark = pytest.mark.integration

STRUCTURES = ("left ventricle", "myocardium", "right ventricle")


def anatomy_experiment(directory):
    c = tiny_config(directory).unlock()
    c.anatomy = anatomy_config(STRUCTURES)
    c.anatomy.window.update(size=32, spacing_mm=0.0)
    c.anatomy.model.update(channels=(8, 16), norm_groups=4)
    c.anatomy.variation = {"rotation_degrees": 20.0, "noise": 0.05, "nothing": 0.2}
    c.anatomy.train.update(steps=4, batch_size=2, log_every=2, evaluate_every=2, warmup_steps=0)
    return c.lock()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anatomy")
    metrics = train(anatomy_experiment(folder / "data"), folder / "run")
    assert set(metrics) == {"anatomy"}  # nothing else is trained
    assert {"dice_left_ventricle", "dice_myocardium"} < set(metrics["anatomy"])
    return folder / "run"


def test_the_loss_falls_on_one_batch(tmp_path):
    config = anatomy_experiment(tmp_path).unlock()
    config.anatomy.train.update(steps=100, learning_rate=5e-3)
    program = stage_program(config, "anatomy", cached=False)
    rows, columns = np.indices((16, 16)) - 7.5
    mask = (np.hypot(rows, columns) < 5).astype(np.uint8)
    batch = {"mask": jnp.asarray(np.stack([mask, mask.T])[..., None])}
    batch["image"] = batch["mask"].astype(jnp.float32)
    step = jax.jit(program.step)
    state, losses = program.init(jax.random.key(0)), []
    for number in range(25):
        state, terms = step(state, {}, batch, jax.random.key(1), number)
        losses.append(float(terms["loss"]))
        assert losses[-1] == pytest.approx(
            float(terms["cross_entropy"] + terms["dice_loss"]), rel=1e-5
        )
    assert losses[-1] < 0.6 * losses[0]
    different = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), state["ema"], state["params"]
    )
    assert max(jax.tree.leaves(different)) > 0


def test_a_training_starts_from_a_trained_network(tmp_path):
    config = anatomy_experiment(tmp_path).unlock()
    config.anatomy = anatomy_config(("left ventricle",), start="anatomy")
    state = stage_program(config, "anatomy", cached=False).init(jax.random.key(0))
    for params in (state["params"], state["ema"]):
        chex.assert_trees_all_equal(params, load_anatomy("anatomy").params)
    config.anatomy.model.channels = (8, 16)
    with pytest.raises(ValueError, match="start is 'anatomy', whose network has other shapes"):
        stage_program(config, "anatomy", cached=False).init(jax.random.key(0))


def test_calibration_scores_and_a_weights_file(run, tmp_path, monkeypatch):
    monkeypatch.setattr(anatomy_scores, "_OF_EACH_KIND", 1)
    done = call("evaluate", "--workdir", run, "--split", "validation")
    assert done.returncode == 0, done.stderr
    assert "left ventricle     ED  Dice" in done.stdout
    calibration = json.loads((run / "calibration.json").read_text())
    assert 0.5 <= calibration["temperature"] <= 3.0
    assert 0 <= calibration["least_confidence"] <= 1
    assert set(calibration["others_taken"]) == {"altered", *no_heart.KINDS, "other modality"}
    out = run / "evaluation" / "validation"
    with open(out / "patients.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["phase"], row["structure"]) for row in rows} == {
        (phase, name) for phase in ("ED", "ES") for name in STRUCTURES
    }
    summary = json.loads((out / "summary.json").read_text())
    of_rows = [
        float(r["dice"]) for r in rows if (r["phase"], r["structure"]) == ("ED", STRUCTURES[0])
    ]
    assert summary["structures"][STRUCTURES[0]]["ED"]["mean"] == pytest.approx(
        np.mean(of_rows), abs=1e-3
    )

    record = json.loads((run / "dataset.json").read_text())
    record["fingerprints"]["test"] = "of other images"
    changed = shutil.copytree(run, tmp_path / "changed")
    (changed / "dataset.json").write_text(json.dumps(record))
    done = call("evaluate", "--workdir", changed)
    assert done.returncode == 0 and "have changed since the run began to train" in done.stdout

    (tmp_path / "card.json").write_text('{"name": "tiny"}')
    arguments = ("--card", tmp_path / "card.json", "--out", tmp_path / "tiny.safetensors")
    done = call("convert", "--to-weights", run, *arguments)
    assert done.returncode == 0, done.stderr
    assert is_anatomy(tmp_path / "tiny.safetensors") and is_anatomy(run)
    stored, trained = load_anatomy(tmp_path / "tiny.safetensors"), load_anatomy(run)
    assert stored.card["name"] == "tiny"
    assert stored.card["metrics"]["validation"]["structures"] == summary["structures"]
    for name in ("temperature", "least_confidence", "largest_distance"):
        assert getattr(stored, name) == getattr(trained, name) == calibration[name]
    assert stored.config["data"]["source"] is None
    config_from_json(stored.config)
    windows = np.random.default_rng(0).random((5, 32, 32)).astype("f4")
    np.testing.assert_allclose(stored.distance(windows), trained.distance(windows), rtol=0.02)
    assert (trained.distance(windows) > 1.2).all()  # noise
    np.testing.assert_allclose(
        stored.probabilities(windows), trained.probabilities(windows), atol=2e-3
    )
    np.testing.assert_allclose(stored.probabilities(windows).sum(-1), 1, atol=1e-5)


def test_what_is_no_anatomy_network(tmp_path):
    with pytest.raises(WeightsError, match="unknown anatomy network 'nothing'"):
        load_anatomy("nothing")
    assert not is_anatomy("sunnybrook-symmetric")
    done = call("evaluate", "--workdir", tmp_path, "--refine", "3")
    assert done.returncode == 2


def test_limits_lie_in_the_middle_of_what_is_equally_good():
    """Hearts from 0.8 on and up to 1.2 away; others are less certain, or further away."""
    hearts = np.array([[0.8, 1.0], [0.9, 1.2], [0.95, 0.8]])
    others = {
        "unsure": np.array([[0.4, 1.0], [0.0, 0.9]]),
        "far": np.array([[0.95, 2.0], [0.9, 3.0]]),
    }
    level, limit = anatomy_scores._limits(hearts, others)
    assert level == pytest.approx(0.6, abs=0.011)
    assert limit == pytest.approx(1.6, abs=0.041)
    # what is not sure at all is no heart, even if only its distance would tell
    unsure = np.concatenate([hearts, [[0.0, 1.0]]])
    assert anatomy_scores._limits(unsure, {"far": others["far"]})[0] > 0
    # every kind counts alike, however many there are of it
    others["as sure"] = np.array([[0.97, 1.0]] * 50)
    assert anatomy_scores._limits(hearts, others)[0] == pytest.approx(0.6, abs=0.011)
