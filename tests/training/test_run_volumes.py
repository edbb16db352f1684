"""A run on volumes: all stages on the 3-D phantom, exact resume, scores, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
from volume_run import SPACE, volume_config, voxelmorph_config

from ldm_morph_jax import evaluate
from ldm_morph_jax.config import with_method
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.methods.lddmm import LDDMM
from ldm_morph_jax.ops.geometry import integrate_velocity
from ldm_morph_jax.profiling import costs
from ldm_morph_jax.profiling.timing import time_registration
from ldm_morph_jax.registering.method import load
from ldm_morph_jax.runs.dataset import dataset_of
from ldm_morph_jax.runs.trained import load_run
from ldm_morph_jax.runs.weights import save_weights
from ldm_morph_jax.training import run

pytestmark = pytest.mark.integration

STAGES = ("autoencoder", "diffusion", "registration")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run of VoxelMorph, and the metrics that it returned."""
    workdir = tmp_path_factory.mktemp("volumes") / "run"
    return workdir, run.train(voxelmorph_config(data), workdir)


def interrupted(finished, config, workdir):
    """A finished run, trained on from the checkpoint at its middle."""
    shutil.copytree(finished[0], workdir)
    (workdir / "registration/complete.json").unlink()
    last = f"{config.registration.train.steps:08d}"
    shutil.rmtree(workdir / "registration/checkpoints" / last)
    assert run.train(config, workdir) == finished[1]
    return [load_run(folder).weights_sha256 for folder in (workdir, finished[0])]


def test_training_descends_and_beats_no_registration(finished):
    workdir, metrics = finished
    rows = [json.loads(row) for row in (workdir / "registration/metrics.jsonl").open()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert metrics["registration"]["nonpositive_jacobian_percent"] == 0
    assert list((workdir / "registration/pictures").glob("*.png"))
    record = json.loads((workdir / "dataset.json").read_text())
    np.testing.assert_allclose(record["spacing_mm"], [12.6, 12, 12], rtol=1e-5)


def test_interrupted_run_ends_bit_equal(finished, data, tmp_path):
    ours, expected = interrupted(finished, voxelmorph_config(data), tmp_path / "run")
    assert ours == expected


def test_a_run_is_scored_pair_by_pair(finished, tmp_path):
    evaluate.main(["--workdir", str(finished[0]), "--split", "train", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "pairs.csv")
    assert (table["dsc"] > table["dsc_initial"]).all()
    assert (table["mse"] < table["mse_initial"]).all()
    columns = {"dsc_right_ventricle", "dsc_myocardium", "hd95_mm", "epe_px", "sd_log_jacobian"}
    assert columns <= set(table)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "figures/pairs.png").stat().st_size > 5000


def test_unregistered_volumes_are_scored(finished, tmp_path):
    evaluate.main(["--workdir", str(finished[0]), "--model", "initial", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "pairs.csv")
    assert (table["dsc"] == table["dsc_initial"]).all()


def test_ldm_morph_trains_on_volumes(data, tmp_path):
    """All three stages, with cached features; resumed, scored, antisymmetric by its velocity."""
    workdir, config = tmp_path / "run", volume_config(data)
    metrics = run.train(config, workdir)
    assert list(metrics) == list(STAGES) and metrics["registration"]["dsc"] > 0
    assert all(list((workdir / stage / "pictures").glob("*.png")) for stage in STAGES)
    ours, expected = interrupted((workdir, metrics), config, tmp_path / "again")
    assert ours == expected
    method = load_run(workdir)
    moving, fixed = jax.random.uniform(jax.random.key(0), (2, 1, *SPACE, 1))
    u = method.displacement(moving, fixed)
    assert u.shape == (1, *SPACE, 3) and np.all(np.isfinite(u)) and np.any(u != 0)
    v = method.velocity(moving, fixed)
    np.testing.assert_allclose(method.velocity(fixed, moving), -v, atol=1e-5)
    evaluate.main(["--workdir", str(workdir)])
    assert len(pd.read_csv(workdir / "evaluation/test/pairs.csv")) == 1


def test_plan_and_speed_take_volumes(data):
    config = volume_config(data)
    planned = costs.plan_stage(config, "registration", cached=True)
    assert planned["flops_per_step"] > 1e6 and planned["frozen_parameters"] > 0
    # TransMorph's four levels would need 32 planes: it takes those of the experiment
    transmorph = with_method(config, "transmorph", "small")
    assert costs.plan_stage(transmorph, "registration", cached=True)["parameters"] > 0
    timed = time_registration(voxelmorph_config(data), 1, given=False, repeats=1, seconds=1.0)
    assert timed["seconds_per_pair"]["median"] > 0


def test_register_takes_a_network_for_volumes(finished, data, tmp_path):
    """Alone, as in evaluation, or as the start of the search; also from a weights file."""
    registrar, alone = load(finished[0]), load_run(finished[0])
    pair = dataset_of(voxelmorph_config(data)).split("train")[0]
    moving, fixed = (pair[name] for name in ("moving", "fixed"))
    volumes = {"moving": moving[..., 0], "fixed": fixed[..., 0], "spacing": (12.6, 12.0, 12.0)}
    found = registrar(**volumes, refine=0)
    [expected] = np.asarray(integrate_velocity(alone.velocity(moving[None], fixed[None])))
    inside = (slice(1, -1),) * 3
    np.testing.assert_allclose(found.displacement[inside], expected[inside], atol=1e-3)
    searched = registrar(**volumes)
    assert searched.registrations[0].in_space and searched.model == str(finished[0])
    similarity = [r.metrics["local_correlation"][0]["after"] for r in (found, searched)]
    assert similarity[1] > similarity[0]
    file = tmp_path / "model.safetensors"
    save_weights(registrar, file, {})
    stored = load(file)
    assert stored.slice_mm == pytest.approx(12.6) and "8 x 16 x 16 pixels" in repr(stored)
    with pytest.raises(ImageError, match="registers volumes, expected two stacks"):
        registrar(moving[4, ..., 0], fixed[4, ..., 0])
    [same] = found.registrations
    with pytest.raises(ImageError, match="registers volumes, expected two stacks"):
        registrar.register_images([(same.moving, same.fixed)])
    few = volumes | {"moving": moving[2:5, ..., 0], "fixed": fixed[2:5, ..., 0]}
    with pytest.raises(ImageError, match="registers volumes, a stack of 3 slices, fewer than 4"):
        registrar(**few)


# -- what is refused


def test_methods_of_images_are_refused(data):
    config = with_method(volume_config(data), "cyclemorph", "small")
    expected = "'cyclemorph', which registers images; .* expected one of ldm_morph, transmorph, vox"
    with pytest.raises(ValueError, match=expected):
        build_method(config)


def test_another_depth_is_refused(finished, data):
    config = volume_config(data).unlock()
    config.data.depth = 0
    with pytest.raises(ValueError, match=r"data\.depth is 0, expected 32: dataset phantom_3d"):
        dataset_of(config)
    config.data.name, config.data.depth, config.data.options = "phantom", 8, {}
    with pytest.raises(ValueError, match="dataset phantom: unknown options depth"):
        dataset_of(config)


def test_iterative_methods_of_images_are_refused(finished, capsys, monkeypatch):
    monkeypatch.setattr(LDDMM, "takes_volumes", False)  # as a method of a plugin may
    with pytest.raises(SystemExit):
        evaluate.main(["--workdir", str(finished[0]), "--model", "lddmm"])
    assert "phantom_3d has volumes, lddmm registers images only" in capsys.readouterr().err
