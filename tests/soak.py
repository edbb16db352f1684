"""Stop small training runs at random moments, start them again, compare with one left in peace.

    PYTHONPATH=.:tests python tests/soak.py --directory /somewhere --stops 25 [--signal TERM] \\
        [--variant quick] [--seed 0]

All stages of tests/tiny_run.py ("quick": the registration stage alone). After every stop each
checkpoint with a final name is read; every finished run must equal the undisturbed one bit by bit,
in parameters, optimisers, averages and logged numbers.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parents[1]
STEPS, EVALUATE_EVERY = 24, 4
PREEMPTED = 75  # commands.PREEMPTED
SECONDS = 1200  # no run takes so long


def command(directory: Path, workdir: Path, variant: str) -> list[str]:
    stages = ("registration",) if variant else ("autoencoder", "diffusion", "registration")
    settings = (("steps", STEPS), ("evaluate_every", EVALUATE_EVERY), ("log_every", 2))
    return [
        *(sys.executable, "-m", "ldm_morph_jax.train", "--config"),
        f"{ROOT}/tests/tiny_run.py" + (f":{variant}" if variant else ""),
        *("--workdir", str(workdir), f"--config.data.directory={directory / 'data'}"),
        *(f"--config.{stage}.train.{key}={value}" for stage in stages for key, value in settings),
    ]


def start(directory: Path, workdir: Path, variant: str) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        # programs are compiled once, so that stops come while it trains
        "LDM_MORPH_CACHE": str(directory / "cache"),
    }
    with (directory / f"{workdir.name}.log").open("a") as log:
        return subprocess.Popen(
            command(directory, workdir, variant), env=environment, stdout=log, stderr=log
        )


def read_checkpoints(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of every checkpoint with a final name, "stage/step/name" -> array."""
    arrays = {}
    for path in sorted(workdir.glob("*/checkpoints/0*")):
        if not path.name.isdigit():
            continue
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.metadata(path.absolute() / "state").item_metadata.tree
            host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            state = checkpointer.restore(
                path.absolute() / "state", args=ocp.args.PyTreeRestore(restore_args=host)
            )
        assert json.loads((path / "data/metadata").read_text())
        for key, leaf in jax.tree_util.tree_leaves_with_path(state):
            name = jax.tree_util.keystr(key)
            arrays[f"{path.parents[1].name}/{path.name}/{name}"] = np.asarray(leaf)
    return arrays


def numbers(workdir: Path) -> dict[str, list]:
    """What the run logged and concluded, speeds left out."""
    logged = {}
    for path in sorted(workdir.glob("*/metrics.jsonl")):
        rows = [json.loads(row) for row in path.open()]
        for row in rows:
            row.pop("images_per_second", None)
        logged[path.parent.name] = rows
    for path in sorted(workdir.glob("*/complete.json")):
        logged[f"{path.parent.name} complete"] = json.loads(path.read_text())
    return logged


def assert_equal(workdir: Path, undisturbed: Path) -> None:
    assert numbers(workdir) == numbers(undisturbed)
    expected, found = read_checkpoints(undisturbed), read_checkpoints(workdir)
    last = f"/{STEPS:08d}/"
    names = [name for name in expected if last in name]
    assert names == [name for name in found if last in name] and len(names) > 100
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def soak(directory: Path, *, stops: int, signal_name="KILL", variant="", seed=0) -> dict[str, int]:
    """Returns how many stops hit a run and how many runs were finished and compared."""
    directory.mkdir(parents=True, exist_ok=True)
    signal_number, rng = signal.Signals[f"SIG{signal_name}"], random.Random(seed)
    undisturbed = directory / "undisturbed"
    for name in ("compiling", "undisturbed"):  # the first fills the compilation cache
        began = time.perf_counter()
        assert start(directory, directory / name, variant).wait(SECONDS) == 0
    duration = time.perf_counter() - began
    assert_equal(undisturbed, directory / "compiling")

    stopped = finished = 0
    saved, patience = set(), 1.0
    while stopped < stops or finished == 0:
        workdir = directory / f"stopped{finished}"
        process = start(directory, workdir, variant)
        status = None
        if stopped < stops:
            try:
                status = process.wait(rng.uniform(0.1, 0.9) * patience * duration)
            except subprocess.TimeoutExpired:
                process.send_signal(signal_number)
                status = process.wait(SECONDS)
                # a SIGTERM before training, or while a stage ends, ends Python the usual way
                assert status in {-signal_number, PREEMPTED, 0}, (status, workdir)
                stopped += status != 0
                arrays = read_checkpoints(workdir)
                # other work may have slowed the machine down: some stops must come after a save
                patience = 1.0 if arrays.keys() - saved else 1.5 * patience
                saved = set(arrays)
                print(f"stop {stopped}: status {status}, {len(arrays)} arrays read", flush=True)
        else:
            status = process.wait(SECONDS)
        if status == 0:
            assert_equal(workdir, undisturbed)
            finished += 1
            saved, patience = set(), 1.0  # the next run starts with nothing
            print(f"finished run {finished} equals the undisturbed one", flush=True)
    return {"stops": stopped, "finished": finished}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--stops", type=int, default=25)
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM"))
    parser.add_argument("--variant", default="", choices=("", "quick"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(
        soak(
            given.directory.absolute(),
            stops=given.stops,
            signal_name=given.signal,
            variant=given.variant,
            seed=given.seed,
        )
    )
