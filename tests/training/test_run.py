"""A whole run, small: all stages, what they leave on disk, exact resume, and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from strict import strict_promotion
from tiny import tiny_config

from ldm_morph_jax.config import with_method
from ldm_morph_jax.runs.checkpoints import restore_part
from ldm_morph_jax.runs.directory import load_config
from ldm_morph_jax.runs.trained import load_run
from ldm_morph_jax.training import loop, run
from ldm_morph_jax.training.errors import NonFiniteError

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
    latent = method.method.features.encode(method.frozen, images[1])
    given, own = (
        method.method.objective(method.frozen, *images, u, fixed_latent)
        for fixed_latent in (latent, None)
    )
    assert own["latent"] > 0
    np.testing.assert_allclose(given["loss"], own["loss"], rtol=1e-5)
    assert method.spacing_mm == 160 / 32  # the phantom's field of view


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_run_ends_bit_equal(finished, data, tmp_path, monkeypatch, stage):
    """Killed after step 3, that is after the checkpoint at 2, and started again."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(workdir / stage)

    class Killed(BaseException):
        pass

    def die(name, step, values):
        if name == stage and step == 4:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_check_finite", die)
        with pytest.raises(Killed):
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
