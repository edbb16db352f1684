"""One device, several, several processes: the same numbers; what cannot be shared is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny import tiny_config

from ldm_morph_jax.devices import processes
from ldm_morph_jax.devices.mesh import check_batch_size, data_mesh, over_batches
from ldm_morph_jax.methods.ldm import build_autoencoder
from ldm_morph_jax.runs.checkpoints import restore_part
from ldm_morph_jax.training.stages.diffusion import diffusion_program

ROOT = Path(__file__).parents[2]
TRAIN = ("-m", "ldm_morph_jax.train")


def environment(devices: int) -> dict:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": str(devices)}


def command(workdir, data, *, variant="", steps=2, options=(), program=TRAIN):
    flags = [
        f"--config.{stage}.train.{key}={value}"
        for stage in ("autoencoder", "diffusion", "registration")
        for key, value in (("steps", steps), ("evaluate_every", steps), ("log_every", 1))
    ]
    return [
        *(sys.executable, *program, "--config"),
        f"{ROOT}/tests/tiny_run.py:{variant}" if variant else f"{ROOT}/tests/tiny_run.py",
        *(f"--config.data.directory={data}", "--workdir", str(workdir), *flags, *options),
    ]


def train(workdir, data, *, processes=1, devices=1, **arguments):
    """Run the command to its end, on simulated devices."""
    launcher = [str(ROOT / "launch/local.sh"), str(processes), str(devices)]
    done = subprocess.run(
        [*(launcher if processes > 1 else ()), *command(workdir, data, **arguments)],
        env=environment(devices),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def logged(workdir, stage):
    rows = [json.loads(row) for row in (workdir / stage / "metrics.jsonl").open()]
    return [row for row in rows if "images_per_second" in row]


def trained(workdir, stage, step, part="params"):
    """All parameters of a checkpoint as one vector."""
    directory = workdir / stage / "checkpoints"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = checkpointer.metadata((directory / f"{step:08d}/state").absolute())
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), stored.item_metadata.tree[part]
    )
    params = restore_part(directory, step, {part: shapes}, what=stage)[part]
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])


def assert_same_training(one, other, stage, *, step, loss, params):
    """Losses to a relative tolerance; parameters to a fraction of their Euclidean norm."""
    for a, b in zip(logged(one, stage), logged(other, stage), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=loss), (stage, a["step"])
    a, b = trained(one, stage, step), trained(other, stage, step)
    error = np.linalg.norm(a - b) / np.linalg.norm(a)
    print(f"{stage} after {step} steps: parameters differ by {error:.1e} of their norm")
    assert error < params


@pytest.mark.integration
def test_two_processes_train_as_one(tmp_path):
    """The command, on loopback: two processes with two devices each against one with one."""
    for name, count, devices in (("one", 1, 1), ("four", 2, 2)):
        out = train(
            tmp_path / name,
            tmp_path / "data",
            processes=count,
            devices=devices,
            variant="quick",
        )
        assert out.count(f"trained: {tmp_path / name}") == 1  # process 0 alone speaks
    assert json.loads((tmp_path / "four/environment.json").read_text())["processes"] == 2
    assert_same_training(
        tmp_path / "one", tmp_path / "four", "registration", step=2, loss=1e-5, params=1e-4
    )
    first, second = (
        json.loads((tmp_path / name / "registration/complete.json").read_text())["metrics"]
        for name in ("one", "four")
    )
    assert second["dsc"] == pytest.approx(first["dsc"], abs=1e-3)


@pytest.mark.integration
def test_the_step_is_what_pmap_computes():
    done = subprocess.run(
        [sys.executable, ROOT / "tests/training/pmap_step.py"],
        env=environment(2),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_devices_and_processes_give_the_same_training(tmp_path):
    """Twenty steps of every stage: 1 process x 1 device, 1 x 8, 2 x 2.

    What magnifies rounding is left out, as docs/results/scaling tells: Adam's whole steps for
    gradients that are rounding, the discriminator with its adaptive weight, and displacements that
    are whole numbers of pixels, where the derivative of bilinear interpolation jumps (registration
    starts at half a pixel, at a learning rate that leaves it there).
    """
    stages = ("autoencoder", "diffusion", "registration")
    options = [f"--config.{stage}.train.adam_eps=1e-3" for stage in stages]
    options += ["--config.autoencoder.adversarial_start=100"]
    options += ["--config.registration.train.learning_rate=1e-4"]
    same = dict(
        steps=20, options=options, program=(ROOT / "tests/training/train_half_a_pixel_off.py",)
    )

    def run(name, processes, devices):
        train(tmp_path / name, tmp_path / "data", processes=processes, devices=devices, **same)
        return tmp_path / name

    one = run("one", 1, 1)
    for other in (run("eight", 1, 8), run("four", 2, 2)):
        for stage in stages:
            assert_same_training(one, other, stage, step=20, loss=1e-5, params=1e-6)


@pytest.mark.slow
def test_late_processes_are_waited_for():
    done = subprocess.run(
        [
            ROOT / "launch/local.sh",
            "2",
            "2",
            sys.executable,
            ROOT / "tests/training/late_processes.py",
        ],
        env=environment(2),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all came" in done.stdout  # among what Gloo prints


@pytest.mark.slow
def test_preempted_processes_stop_together_and_go_on_with_other_devices(tmp_path):
    """SIGTERM to one of two processes ends both with status 75; one process then continues."""
    run = tmp_path / "run"
    arguments = dict(variant="quick", steps=4000)
    process = subprocess.Popen(
        [str(ROOT / "launch/local.sh"), "2", "1", *command(run, tmp_path / "data", **arguments)],
        env=environment(1),
    )
    metrics = run / "registration/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None
        time.sleep(0.5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGTERM)
    assert process.wait(120) == 75
    (saved,) = (int(p.name) for p in (run / "registration/checkpoints").glob("0*"))
    assert saved < 4000
    # the number of steps belongs to the run: let it end soon
    config = json.loads((run / "config.json").read_text())
    config["registration"]["train"] |= {"steps": saved + 2, "evaluate_every": saved + 2}
    (run / "config.json").write_text(json.dumps(config))
    options = [
        f"--config.{s}.train.{k}=4000"
        for s in ("autoencoder", "diffusion")
        for k in ("steps", "evaluate_every")
    ]
    train(run, tmp_path / "data", variant="quick", steps=saved + 2, options=options)
    assert logged(run, "registration")[-1]["step"] == saved + 2


@pytest.fixture(scope="module")
def diffusion():
    """A function from batch size to the validation of an untrained diffusion stage."""
    config = tiny_config("nowhere").unlock()
    images = np.random.default_rng(0).random((5, 32, 32, 1), np.float32)
    init = jax.jit(build_autoencoder(config).init)
    frozen = {
        "autoencoder": init(jax.random.key(0), images)["params"],
        "latent_scale": np.float32(1),
    }

    state = jax.jit(diffusion_program(config, cached=False).init)(jax.random.key(1))

    def validate(batch_size):
        config.diffusion.train.batch_size = batch_size
        program = diffusion_program(config, cached=False)
        return program.evaluate(state, frozen, images, pictures=False)[0]["loss"]

    return validate


def test_padded_validation_equals_unpadded(diffusion):
    """Five images in one batch, and in batches of three of which the last holds a copy."""
    assert diffusion(3) == pytest.approx(diffusion(5), rel=1e-6)


def test_results_of_filled_up_rows_are_dropped():
    arrays = {"x": np.arange(7.0, dtype=np.float32), "y": np.ones((7, 2), np.float32)}

    def add(shared, batch):
        assert batch["x"].shape == (3,)
        return batch["x"] + shared, batch["y"]

    total, y = over_batches(jax.jit(add), 1.0, arrays, batch_size=3)
    np.testing.assert_array_equal(total, arrays["x"] + 1)
    assert y.shape == (7, 2)


def test_batch_sizes_that_do_not_divide_name_the_legal_ones():
    class Mesh:
        devices = np.empty(8)

    check_batch_size(24, Mesh)
    check_batch_size(32, Mesh, micro_batches=4)
    with pytest.raises(ValueError, match=r"batch_size 20 does not divide over 8 .* 16 or 24"):
        check_batch_size(20, Mesh)
    with pytest.raises(ValueError, match=r"24 .* 8 devices x 2 micro-batches.* 16 or 32"):
        check_batch_size(24, Mesh, micro_batches=2)
    with pytest.raises(ValueError, match=r"for example 1$"):
        check_batch_size(0, data_mesh())


def test_incomplete_coordinates_are_refused():
    with pytest.raises(ValueError, match="belong together, found localhost:1, 2 and None"):
        processes.join("localhost:1", 2)


def test_errors_pass_through_a_single_process():
    with pytest.raises(ValueError, match="wrong"), processes.together():
        raise ValueError("wrong")
