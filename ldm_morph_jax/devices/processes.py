"""Runs with several processes: how they find each other and synchronise.

With a single process these functions do nothing special. With several, `workdir` must be on a disk
that all of them share, because they write checkpoints together. Prepared data and cached features
can be on a shared disk, where one process creates them while the others wait, or on local disks,
where each host creates its own.
"""

import contextlib
import logging
import os
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)

_MESSAGE_BYTES = 1024  # length to which an exchanged error message is cut
_PATIENCE_MS = (
    24 * 3600 * 1000
)  # preparing a dataset may take hours; a process that dies ends the run anyway
_SHUTDOWN_SECONDS = 60  # how long a failed process waits for the others before it exits


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    distributed: bool | None = None,
) -> None:
    """Join the other processes of the run; call it before anything else touches JAX's devices.

    Args:
      coordinator: "host:port" of process 0, given together with `num_processes` and `process_id`;
        for machines without a common scheduler.
      distributed: True: JAX determines these three values (TPU pods, SLURM, Open MPI, GKE). None:
        the same if SLURM or GKE report several processes, otherwise nothing.

    Raises:
      ValueError: some but not all of the three values are given.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given):
        if None in given:
            raise ValueError(
                "coordinator, num_processes and process_id belong together, found "
                f"{coordinator}, {num_processes} and {process_id}"
            )
        jax.distributed.initialize(
            coordinator, num_processes, process_id, shutdown_timeout_seconds=_SHUTDOWN_SECONDS
        )
    elif distributed or (distributed is None and _scheduled_together()):
        jax.distributed.initialize(shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
    if jax.process_count() > 1:
        if not is_main():  # log common steps only once
            logging.getLogger().setLevel(logging.WARNING)
        log.info(
            "%d processes, %d devices, %d of them in this process",
            jax.process_count(),
            jax.device_count(),
            jax.local_device_count(),
        )


def _scheduled_together() -> bool:
    """Whether the environment indicates one of several processes (SLURM step, TPUs in GKE)."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 or "," in os.environ.get(
        "TPU_WORKER_HOSTNAMES", ""
    )


def is_main() -> bool:
    """Whether this is process 0, which alone writes logs, configuration and results."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Return when every process has reached this call, however late.

    Communication between devices has a short timeout (30 s for Gloo, on CPUs). This is therefore
    called before it wherever the processes may have taken different times.
    """
    ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=_PATIENCE_MS)


def gather(value) -> np.ndarray:
    """`value` of every process, stacked."""
    if jax.process_count() == 1:
        return np.asarray(value)[None]
    wait_for_all("gather")
    return multihost_utils.process_allgather(value)


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
    """Process 0 runs the block first, then all others run it together."""
    if not is_main():
        wait_for_all(name)
    try:
        yield
    finally:
        if is_main():
            wait_for_all(name)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """If the block fails on one process it fails on all, so that none waits for the failed one."""
    error = None
    try:
        yield
    except (ValueError, OSError) as raised:
        error = raised
    if jax.process_count() > 1:
        message = np.zeros(_MESSAGE_BYTES, np.uint8)
        text = f"{error}".encode()[:_MESSAGE_BYTES] if error else b""
        message[: len(text)] = np.frombuffer(text, np.uint8)
        for process, row in enumerate(gather(message)):
            if row.any() and error is None:
                text = row.tobytes().rstrip(b"\0").decode(errors="replace")
                raise ValueError(f"process {process} failed: {text}")
    if error is not None:
        raise error
