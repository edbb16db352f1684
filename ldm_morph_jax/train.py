"""Train a method: `python -m ldm_morph_jax.train --config configs/X.py --workdir runs/X`.

Any key of the configuration is a flag: `--config.registration.train.steps=2000`. The same command
continues an interrupted run from its newest checkpoint and skips complete stages. It trains on all
devices of this machine, or, started once per machine (or GPU), on all devices of all of them:
`launch/` and docs/scaling.md.
"""

from absl import flags
from ml_collections import config_flags

from ldm_morph_jax import commands

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, by name or file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; made when missing.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 of several.")
PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    None,
    "Find the other processes through the scheduler (TPU pod, SLURM, Open MPI, GKE); default: "
    "where SLURM or GKE started several.",
)
PROFILE = flags.DEFINE_string("profile_steps", None, "Profile steps FIRST:LAST of every stage.")


def profile_range(text: str | None) -> tuple[int, int] | None:
    """ "10:15" -> (10, 15)."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ValueError(f"--profile-steps is {text!r}, expected FIRST:LAST, for example 10:15")
    return int(first), int(last)


def train() -> None:
    from ldm_morph_jax.devices import processes  # JAX is imported once flags are parsed
    from ldm_morph_jax.training.run import train

    processes.join(COORDINATOR.value, PROCESSES.value, PROCESS.value, distributed=DISTRIBUTED.value)
    commands.use_compilation_cache()
    metrics = train(CONFIG.value, WORKDIR.value, profile_steps=profile_range(PROFILE.value))
    if not processes.is_main():
        return
    for stage, values in metrics.items():
        shown = "  ".join(f"{name} {v:.4g}" for name, v in values.items() if name != "score")
        print(f"{stage}: {shown}")
    print(f"trained: {WORKDIR.value}")


def main(argv: list[str] | None = None) -> None:
    commands.run_with_flags(train, argv, required=["config", "workdir"])


if __name__ == "__main__":
    main()
