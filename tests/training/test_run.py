"""A whole run, small: all stages, what they leave on disk, exact resume, and what is refused."""

import csv
import dataclasses
import json
import shutil

import archives
import jax
import killing
import numpy as np
import pytest
from strict import strict_promotion
from tiny import tiny_config

from ldm_morph_jax.config import with_method
from ldm_morph_jax.runs.checkpoints import restore_part
from ldm_morph_jax.runs.directory import load_config
from ldm_morph_jax.runs.trained import load_run
from ldm_morph_jax.training import logging as logging_module
from ldm_morph_jax.training import run
from ldm_morph_jax.training.errors import NonFiniteError

pytestmark = pytest.mark.integration

STAGES = ("autoencoder", "diffusion", "registration")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory):
    """A run of every stage, and the metrics that it returned."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with strict_promotion():
        return workdir, run.train(tiny_config(data), workdir)


def voxelmorph_config(data):
    """A method without LDM, which compiles soon."""
    config = with_method(tiny_config(data), "voxelmorph", "small")
    config.registration.model.update(encoder_channels=(4,) * 2, decoder_channels=(4,) * 2)
    return config


def state_of(workdir, stage, step=4):
    """All arrays of a checkpoint, by name."""
    import orbax.checkpoint as ocp

    folder = workdir / stage / "checkpoints" / f"{step:08d}" / "state"
    tree = ocp.StandardCheckpointer().restore(folder.absolute())
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_same_state(workdir, expected_workdir, stage):
    """The last checkpoints are equal bit by bit."""
    found, expected = state_of(workdir, stage), state_of(expected_workdir, stage)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_every_stage_is_trained_and_documented(finished, data):
    workdir, metrics = finished
    assert list(metrics) == list(STAGES)
    for stage in STAGES:
        rows = [json.loads(row) for row in (workdir / stage / "metrics.jsonl").open()]
        assert [row["step"] for row in rows if "images_per_second" in row] == [2, 4]
        assert json.loads((workdir / stage / "complete.json").read_text())["steps"] == 4
        assert list((workdir / stage / "pictures").glob("*.png"))
        assert list((workdir / stage / "tensorboard").iterdir())
    assert metrics["registration"]["dsc"] > 0
    assert {"reconstructions_000004.png"} == {
        p.name for p in (workdir / "autoencoder" / "pictures").iterdir()
    }
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__
    assert load_config(workdir).to_dict() == tiny_config(data).to_dict()


def test_complete_stages_are_skipped(finished, data):
    workdir, metrics = finished
    before = {p: p.stat().st_mtime_ns for p in workdir.glob("*/checkpoints/*")}
    assert run.train(tiny_config(data), workdir) == metrics
    assert before == {p: p.stat().st_mtime_ns for p in workdir.glob("*/checkpoints/*")}
    assert run.train(tiny_config(data), workdir, stages=STAGES[:2]) == {
        stage: metrics[stage] for stage in STAGES[:2]
    }


def test_trained_method_registers(finished):
    method = load_run(finished[0])
    images = jax.random.uniform(jax.random.key(0), (2, 2, 32, 32, 1))
    u = method.displacement(images[0], images[1])
    assert u.shape == (2, 32, 32, 2)
    v = method.velocity(images[0], images[1])
    np.testing.assert_allclose(method.velocity(images[1], images[0]), -v, atol=1e-5)
    assert np.abs(v).max() > 0 and np.abs(method.velocity(images[0], images[0])).max() < 1e-5
    # the fixed image's latent, kept, is what the objective computes itself
    latent = jax.jit(method.method.features.encode)(method.frozen, images[1])
    given, own = (
        jax.jit(method.method.objective)(method.frozen, *images, u, fixed_latent)
        for fixed_latent in (latent, None)
    )
    assert own["latent"] > 0
    np.testing.assert_allclose(given["loss"], own["loss"], rtol=1e-5)
    assert method.spacing_mm == 160 / 32  # the phantom's field of view


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_run_ends_bit_equal(finished, data, tmp_path, monkeypatch, stage):
    """Killed at step 4, that is after the checkpoint at 2, and started again."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(workdir / stage)

    with monkeypatch.context() as patch:
        killing.in_validation(patch, stage, 2)
        with pytest.raises(killing.Killed):
            run.train(tiny_config(data), workdir)
    assert [p.name for p in (workdir / stage / "checkpoints").glob("0*")] == ["00000002"]
    metrics = run.train(tiny_config(data), workdir)
    assert metrics == finished[1]
    assert_same_state(workdir, finished[0], stage)


def test_a_method_without_ldm_is_trained_alone(data, tmp_path):
    """The same loop, workdir and loading for another method."""
    config, workdir = voxelmorph_config(data), tmp_path / "run"
    metrics = run.train(config, workdir)
    assert list(metrics) == ["registration"] and metrics["registration"]["dsc"] > 0
    assert not (workdir / "autoencoder").exists() and not (workdir / "diffusion").exists()
    assert run.train(config, workdir) == metrics

    stored = json.loads((workdir / "config.json").read_text())
    del stored["registration"]["optimiser"]  # a run that is older than this key
    (workdir / "config.json").write_text(json.dumps(stored))
    assert run.train(config, workdir) == metrics
    assert load_config(workdir).to_dict() == config.to_dict()

    method = load_run(workdir)
    assert method.name == "voxelmorph" and method.frozen == {}
    images = jax.random.uniform(jax.random.key(0), (2, 1, 32, 32, 1))
    u = method.displacement(*images)
    assert u.shape == (1, 32, 32, 2) and np.all(np.isfinite(u))
    config.registration.smoothness_weight = 0.5
    with pytest.raises(ValueError, match=r"registration\.smoothness_weight: found 0.01, now 0.5"):
        run.train(config, workdir)


def test_cached_features_are_what_is_computed_anew(finished, data, tmp_path):
    """The first steps from the cache and those without it give the same loss and gradient."""
    config = tiny_config(data)
    assert config.features.cache  # as in the finished run
    config.ldm_from = str(finished[0])
    config.features.cache = False
    run.train(config, tmp_path)
    cached, anew = (
        json.loads(next((workdir / "registration" / "metrics.jsonl").open()))
        for workdir in (finished[0], tmp_path)
    )
    for term in ("loss", "latent", "gradient_norm"):
        assert cached[term] == pytest.approx(anew[term], rel=1e-4)


def test_training_ends_when_validation_no_longer_improves(data, tmp_path, monkeypatch):
    """Two validations without a new best; the same when it was stopped before it noted its end."""
    config = voxelmorph_config(data)
    config.registration.train.update(steps=20, evaluate_every=2, patience=2)
    scores = {2: 0.5, 4: 0.9, 6: 0.8, 8: 0.7, 10: 1.0}
    programs = run.stage_program

    def scripted(*arguments, **options):
        program, steps = programs(*arguments, **options), iter(scores)

        def evaluate(state, frozen, validation, *, pictures):
            return {"score": scores[next(steps)]}, {}

        # pictures are drawn once more at the end, when no score is asked for
        return dataclasses.replace(program, evaluate=evaluate)

    monkeypatch.setattr(run, "stage_program", scripted)
    record = tmp_path / "run/registration/complete.json"
    for _ in range(2):
        assert run.train(config, tmp_path / "run")["registration"]["score"] == 0.9
        assert json.loads(record.read_text()) | {"metrics": 0} == {
            "steps": 8,
            "best_step": 4,
            "metrics": 0,
        }
        record.unlink()


def test_another_configuration_is_refused(finished, data):
    config = tiny_config(data)
    config.registration.train.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"registration\.train\.learning_rate: found 0.001, now"):
        run.train(config, finished[0])


def test_checkpoint_of_another_architecture_is_refused(finished, data, tmp_path):
    config = tiny_config(data)
    config.ldm_from = str(finished[0])
    config.diffusion.model.base_channels = 16
    with pytest.raises(ValueError, match=r"architecture of the diffusion model differs .*found \("):
        run.train(config, tmp_path / "other")


def test_missing_stage_is_named(data, tmp_path):
    config = tiny_config(data)
    config.ldm_from = str(tmp_path / "nothing")
    with pytest.raises(ValueError, match="'autoencoder' is not complete"):
        run.train(config, tmp_path / "run")


def test_two_runs_cannot_share_a_workdir(data, tmp_path):
    from ldm_morph_jax.runs.directory import locked

    with locked(tmp_path), pytest.raises(ValueError, match="in use by another run"):
        run.train(tiny_config(data), tmp_path)


def test_non_finite_numbers_stop_the_run(data, tmp_path):
    config = voxelmorph_config(data)
    config.registration.train.update(learning_rate=1e30, warmup_steps=0)
    with pytest.raises(NonFiniteError, match=r"registration: not finite at step \d: .*loss"):
        run.train(config, tmp_path / "run")
    row = json.loads((tmp_path / "run/registration/metrics.jsonl").read_text().splitlines()[-1])
    assert row["loss"] is None


def test_parameters_that_explode_right_before_a_validation_stop_the_run(data, tmp_path):
    """The step's loss is still finite, of the parameters before it."""
    config = voxelmorph_config(data)
    config.registration.train.update(learning_rate=1e30, warmup_steps=0, steps=1, evaluate_every=1)
    with pytest.raises(NonFiniteError, match="not finite at step 1: validation score = nan"):
        run.train(config, tmp_path / "run")
    assert not list((tmp_path / "run/registration/checkpoints").glob("0*"))


def test_damaged_checkpoint_falls_back_to_the_one_before(finished, data, tmp_path, caplog):
    """The steps since then are trained again, and what was damaged is replaced by their result."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (workdir / "registration/complete.json").unlink()
    for file in (workdir / "registration/checkpoints/00000004/state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    with caplog.at_level("INFO"):
        assert run.train(tiny_config(data), workdir) == finished[1]
    assert "00000004 cannot be read" in caplog.text
    assert "registration: resumed at step 2 of 4" in caplog.text
    assert_same_state(workdir, finished[0], "registration")


def test_restore_part_lists_what_differs(finished):
    abstract = {"params": {"nothing": jax.ShapeDtypeStruct((3,), np.float32)}}
    with pytest.raises(ValueError, match="expected nothing"):
        restore_part(finished[0] / "registration/checkpoints", 4, abstract, what="network")


# -- what is refused before anything is trained


@pytest.mark.parametrize("key", ["steps", "log_every", "evaluate_every"])
@pytest.mark.parametrize("value", [0, -3])
def test_settings_without_a_step_are_refused(data, tmp_path, key, value):
    config = voxelmorph_config(data)
    config.registration.train[key] = value
    with pytest.raises(ValueError, match=f"registration.train.{key} is {value}, expected 1 or"):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def folder_config(table, tmp_path):
    config = voxelmorph_config(tmp_path / "data")
    with config.unlocked():
        config.data.update(name="folder", source=str(table))
        config.data.options = {}
        config.registration.train.update(steps=1, batch_size=1)
    return config


def test_validation_pairs_without_masks_are_refused(tmp_path):
    table = archives.write_folder(tmp_path / "folder")
    rows = list(csv.DictReader(table.open()))
    for row in rows:
        if row["split"] == "validation":
            row |= {"moving_mask": "", "fixed_mask": ""}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ValueError, match=r"1 validation pairs have no masks \(heart-2\)"):
        run.train(folder_config(table, tmp_path), tmp_path / "run")
    assert not (tmp_path / "run" / "registration").exists()


def test_masks_in_the_loss_need_masks(tmp_path):
    config = folder_config(archives.write_folder(tmp_path / "folder"), tmp_path)
    config.registration.update(mask_weight=0.5, mask_labels=(7,))
    with pytest.raises(
        ValueError, match=r"\d train pairs have no masks .* mask_labels \(7,\), exp"
    ):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "registration").exists()
    config.registration.mask_weight = -1.0
    with pytest.raises(ValueError, match=r"mask_weight is -1\.0, expected 0 or more"):
        run.train(config, tmp_path / "other")


@pytest.mark.parametrize(
    "key, value",
    [
        ("seed", -1),
        ("registration.smoothness_weight", -0.1),
        ("registration.train.learning_rate", float("nan")),
    ],
)
def test_numbers_that_no_step_can_be_made_with(tmp_path, key, value):
    config = folder_config(archives.write_folder(tmp_path / "folder"), tmp_path)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=f"{key} is {value}, expected 0 or more"):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "registration").exists()


def test_a_run_goes_on_with_the_images_that_it_began_with(tmp_path, caplog):
    table = archives.write_folder(tmp_path / "folder")
    with caplog.at_level("INFO"):
        metrics = run.train(folder_config(table, tmp_path), tmp_path / "run")
    assert "registration: compiling ..." in caplog.text
    assert run.train(folder_config(table, tmp_path), tmp_path / "run") == metrics
    with np.load(tmp_path / "folder/1_moving.npz") as stored:
        changed = {**stored, "image": stored["image"].max() - stored["image"]}
    np.savez(tmp_path / "folder/1_moving.npz", **changed)
    with pytest.raises(ValueError, match="dataset.json belongs to a run with other data: .*train"):
        run.train(folder_config(table, tmp_path), tmp_path / "run")


def test_one_eta_over_all_stages(data, monkeypatch, caplog):
    """The later stages count as steps of this one, by their FLOPs; validations by their time."""
    programs = {
        name: run.stage_program(tiny_config(data), name, cached=name != "autoencoder")
        for name in STAGES[1:]
    }
    lowered, after = run._look_ahead(programs, seed=0)
    assert list(lowered) == list(programs) and after["registration"] == 0
    flops = [lowered[name].cost_analysis()["flops"] for name in programs]
    assert after["diffusion"] == pytest.approx(4 * flops[1] / flops[0])
    assert run._look_ahead({"registration": programs["registration"]}, seed=0) == ({}, {})

    now = [0.0]
    monkeypatch.setattr(logging_module.time, "perf_counter", lambda: now[0])
    train = programs["diffusion"].train
    progress = logging_module.Progress(
        "diffusion", train.steps, 2, steps_after=10.0, evaluate_every=train.evaluate_every
    )
    now[0] = 200.0  # 2 steps of 100 s, 2 to come, 10 after this stage
    with caplog.at_level("INFO"):
        progress.report(2, {"loss": 1.0})
        with progress.pause():
            now[0] += 50.0
        now[0] += 100.0
        progress.report(3, {"loss": 1.0})
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("diffusion 2/4 (50%)  loss 1 ") and first.endswith("ETA 0:20:00")
    assert second.endswith("ETA 0:19:10")  # 1 + 10 steps of 100 s, a validation of 50 s
