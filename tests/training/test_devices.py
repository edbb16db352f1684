"""One device, several, several processes: the same numbers; what cannot be shared is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny import tiny_config
from volume_run import volume_config

from ldm_morph_jax.devices import processes
from ldm_morph_jax.devices.mesh import (
    check_batch_size,
    check_devices_per_image,
    data_mesh,
    over_batches,
    rows_of_process,
)
from ldm_morph_jax.methods.ldm import build_autoencoder
from ldm_morph_jax.runs.checkpoints import restore_part
from ldm_morph_jax.training.program import _check_maps, mesh_of
from ldm_morph_jax.training.stages.diffusion import diffusion_program

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TRAIN = ("-m", "ldm_morph_jax.train")


def environment(devices: int) -> dict:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": str(devices)}


def command(
    workdir,
    data,
    *,
    variant="",
    experiment="",
    steps=2,
    evaluate_every=0,
    options=(),
    program=TRAIN,
):
    flags = [
        f"--config.{stage}.train.{key}={value}"
        for stage in ("autoencoder", "diffusion", "registration")
        for key, value in (
            ("steps", steps),
            ("evaluate_every", evaluate_every or steps),
            ("log_every", 1),
        )
    ]
    tiny = f"{ROOT}/tests/tiny_run.py"
    return [
        *(sys.executable, *program, "--config"),
        experiment or (f"{tiny}:{variant}" if variant else tiny),
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


def test_the_step_is_what_pmap_computes():
    done = subprocess.run(
        [sys.executable, ROOT / "tests/training/pmap_step.py"],
        env=environment(2),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def shared_volumes(*stages):
    """What tests/training/space_steps.py finds."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/training/space_steps.py", *stages],
        env=environment(4),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_shared_as_alone(found, *, four, two):
    """Equal numbers; temporary memory of at most these parts of one device's."""
    for part, error in (("terms", 1e-4), ("gradients", 1e-3), ("validation", 1e-4)):
        assert max(found[count][part] for count in ("4 of 4", "2 of 4")) < error, part
    assert found["4 of 4"]["bytes"] < four * found["1"]["bytes"]
    assert found["2 of 4"]["bytes"] < two * found["1"]["bytes"]


def test_devices_that_share_a_volume_compute_as_one():
    found = shared_volumes("voxelmorph")["voxelmorph"]
    assert_shared_as_alone(found, four=0.45, two=0.45)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["autoencoder", "diffusion", "registration"])
def test_devices_that_share_a_volume_compute_every_stage_as_one(stage):
    assert_shared_as_alone(shared_volumes(stage)[stage], four=0.7, two=0.7)


VOLUMES = f"{ROOT}/tests/volume_run.py"


@pytest.mark.slow
def test_processes_that_share_a_volume_train_as_one(tmp_path):
    """One process with one device; two processes with one each, which share every volume."""
    for name, count, sharing in (("one", 1, 1), ("two", 2, 2)):
        shared = f"--config.compute.devices_per_image={sharing}"
        train(
            tmp_path / name,
            tmp_path / "data",
            processes=count,
            experiment=f"{VOLUMES}:voxelmorph",
            options=[shared],
        )
    assert_same_training(
        tmp_path / "one", tmp_path / "two", "registration", step=2, loss=1e-5, params=1e-3
    )


@pytest.mark.slow
def test_all_stages_train_on_shared_volumes_and_go_on_with_one_device(tmp_path):
    """With cached features, validation and pictures; then the registration's end on one device."""
    run, shared = tmp_path / "run", ["--config.compute.devices_per_image=2"]
    same = dict(experiment=VOLUMES, steps=4, evaluate_every=2)
    train(run, tmp_path / "data", devices=2, options=shared, **same)
    first = json.loads((run / "registration/complete.json").read_text())["metrics"]
    (run / "registration/complete.json").unlink()
    shutil.rmtree(run / "registration/checkpoints/00000004")
    train(run, tmp_path / "data", devices=1, **same)
    again = json.loads((run / "registration/complete.json").read_text())["metrics"]
    assert again["dsc"] == pytest.approx(first["dsc"], abs=1e-3)


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

    total, y = over_batches(jax.jit(add), 1.0, arrays, batch_size=3, mesh=data_mesh())
    np.testing.assert_array_equal(total, arrays["x"] + 1)
    assert y.shape == (7, 2)


def test_batch_sizes_that_do_not_divide_name_the_legal_ones():
    class Mesh:
        shape: ClassVar = {"data": 8, "space": 1}

    check_batch_size(24, Mesh)
    check_batch_size(32, Mesh, micro_batches=4)
    with pytest.raises(ValueError, match=r"batch_size 20 does not divide over 8 .* 16 or 24"):
        check_batch_size(20, Mesh)
    with pytest.raises(ValueError, match=r"24 .* 8 devices x 2 micro-batches.* 16 or 32"):
        check_batch_size(24, Mesh, micro_batches=2)
    with pytest.raises(ValueError, match=r"for example 1$"):
        check_batch_size(0, data_mesh())


class Device(NamedTuple):
    id: int
    process_index: int


def devices(count, *, each):
    """So many devices, `each` of them in one process."""
    return [Device(i, i // each) for i in range(count)]


@pytest.mark.parametrize(
    ("number", "each", "sizes", "message"),
    [
        (3, 8, {}, r"is 3, expected a divisor of the 8 devices: 1 or 2 or 4 or 8$"),
        (0, 8, {}, r"is 0, expected a divisor of the 8 devices: 1 or 2 or 4 or 8$"),
        (4, 8, {"planes": 6}, r"is 4, expected a divisor of the 6 planes: 1 or 2$"),
        (6, 4, {}, r"the 4 devices of each process, or a multiple of them: 1 or 2 or 4 or 12$"),
    ],
)
def test_numbers_of_devices_that_cannot_share_are_refused(number, each, sizes, message):
    count = 12 if each == 4 else 8
    with pytest.raises(ValueError, match=message):
        check_devices_per_image(number, devices(count, each=each), **sizes)


def test_processes_that_share_volumes_read_the_same_rows(monkeypatch):
    def shares(sharing, each):
        grid = np.empty(8, object)
        grid[:] = devices(8, each=each)
        mesh = SimpleNamespace(devices=grid.reshape(-1, sharing))
        found = []
        for process in range(8 // each):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            found.append(rows_of_process(mesh))
        return found

    assert shares(1, each=4) == [(0, 2), (1, 2)]
    assert shares(2, each=4) == [(0, 2), (1, 2)]
    assert shares(4, each=2) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert shares(8, each=1) == [(0, 1)] * 8


def test_latents_that_do_not_divide_are_refused():
    config = volume_config("nowhere").unlock()
    config.compute.devices_per_image = 2
    config.data.depth = 12  # latents of 3 planes
    with pytest.raises(ValueError, match=r"of the 1 devices and of the 3 planes of the latents: 1"):
        mesh_of(config)


def conv_text(*plane):
    """The program of a convolution of two planes, and its gradient."""
    x, w = jnp.zeros((4, 2, *plane, 3)), jnp.zeros((3, 3, 3, 3, 5))
    names = ("NDHWC", "DHWIO", "NDHWC")

    def loss(x, w):
        y = jax.lax.conv_general_dilated(x, w, (1,) * 3, "SAME", dimension_numbers=names)
        return jnp.sum(y**2)

    return jax.jit(jax.grad(loss, (0, 1))).lower(x, w).as_text()


def test_maps_that_would_be_differentiated_wrongly_are_refused():
    text = conv_text(4, 4)
    _check_maps(text, sharing=1)
    with pytest.raises(ValueError, match=r"maps of 2x4x4 pixels; .* at least 4 along"):
        _check_maps(text, sharing=2)


def test_incomplete_coordinates_are_refused():
    with pytest.raises(ValueError, match="belong together, found localhost:1, 2 and None"):
        processes.join("localhost:1", 2)


def test_errors_pass_through_a_single_process():
    with pytest.raises(ValueError, match="wrong"), processes.together():
        raise ValueError("wrong")
