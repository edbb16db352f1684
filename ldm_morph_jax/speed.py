"""How fast it runs here: `python -m ldm_morph_jax.speed --config configs/X.py --json out.json`.

Times, on random data and random weights: every stage's training step, with and without the cache of
frozen features, compilation apart; and registration, per pair, in batches. Medians with the range
over repeats, beside the floating point operations that XLA counts. The configuration's batch sizes
can be too large for a small machine: `--config.autoencoder.train.batch_size=1`.
"""

import json
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from ldm_morph_jax import commands

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, by name or file.")
STAGES = flags.DEFINE_list(
    "stages", ["autoencoder", "diffusion", "registration"], "Which training steps to time."
)
BATCHES = flags.DEFINE_list("batches", ["1", "8", "64"], "Pairs per call of registration.")
REPEATS = flags.DEFINE_integer("repeats", 10, "Timed calls of each kind, after one that is not.")
SECONDS = flags.DEFINE_float("seconds", 60.0, "Stop repeating a kind after so long.")
JSON = flags.DEFINE_string("json", None, "Also write the numbers to this file.")


def speed() -> None:
    import jax

    from ldm_morph_jax.devices.mesh import data_mesh
    from ldm_morph_jax.methods import build_method
    from ldm_morph_jax.profiling.timing import peak_flops, time_registration, time_step
    from ldm_morph_jax.runs.directory import environment
    from ldm_morph_jax.training.stages import STAGES as KNOWN

    config, limits = CONFIG.value, {"repeats": REPEATS.value, "seconds": SECONDS.value}
    unknown = sorted(set(STAGES.value) - set(KNOWN))
    if unknown:
        raise ValueError(f"--stages: found {', '.join(unknown)}, expected {', '.join(KNOWN)}")
    if not all(text.isdigit() and int(text) for text in BATCHES.value):
        raise ValueError(f"--batches: found {','.join(BATCHES.value)}, expected numbers of pairs")
    frozen_features = build_method(config).reads_ldm
    mesh = data_mesh()
    print(f"{mesh.devices.size} x {jax.devices()[0].device_kind}, {config.compute.dtype}")
    steps, registrations = [], []
    for name in STAGES.value:
        has_cache = name == "diffusion" or (name == "registration" and frozen_features)
        for cached in (True, False) if has_cache else (False,):
            timed = time_step(config, name, mesh, cached=cached, **limits)
            steps.append({"stage": name, "cached": cached if has_cache else None} | timed)
            _print_step(steps[-1])
    for batch in map(int, BATCHES.value):
        for given in (False, True) if frozen_features else (False,):
            timed = time_registration(config, batch, given=given, **limits)
            registrations.append({"features_given": given} | timed)
            _print_registration(registrations[-1])
    if JSON.value:
        facts = {
            "environment": environment(),
            "compute": config.compute.to_dict(),
            "image_size": config.data.image_size,
            "peak_flops_of_a_device": peak_flops(jax.devices()[0].device_kind),
            "steps": steps,
            "registration": registrations,
        }
        Path(JSON.value).write_text(json.dumps(facts, indent=2) + "\n")


def _print_step(row: dict) -> None:
    cache = {True: ", cached features", False: ", features anew", None: ""}[row["cached"]]
    _print(f"step of {row['stage']}, batch {row['batch_size']}{cache}", row, row["step_seconds"])


def _print_registration(row: dict) -> None:
    what = "features given" if row["features_given"] else "features included"
    name = f"registration per pair, batch {row['batch_size']}, {what}"
    _print(name, row, row["seconds_per_pair"])


def _print(name: str, row: dict, seconds: dict) -> None:
    used = f", {row['utilisation']:.1%} of peak" if row["utilisation"] else ""
    speed = f", {row['images_per_second']:.2f} images/s" if "images_per_second" in row else ""
    print(
        f"{name}: {seconds['median']:.4g} s ({seconds['min']:.4g} to {seconds['max']:.4g}, "
        f"{seconds['repeats']} times){speed}, {row['flops'] / 1e9:.4g} GFLOP, "
        f"{row['flops_per_second'] / 1e9:.4g} GFLOP/s{used}; compiled in "
        f"{row['compile_seconds']:.1f} s",
        flush=True,
    )


def main(argv: list[str] | None = None) -> None:
    commands.run_with_flags(speed, argv, required=["config"])


if __name__ == "__main__":
    main()
