"""Refuses to compute in a forked child of a process that computes with JAX, where it would hang.

JAX's threads are not copied by a fork, and the child would wait for them for ever.
"""

import os

_process: int | None = None  # the first that computed with JAX, here or before a fork


def claim() -> None:
    """Note that this process computes with JAX."""
    global _process
    if _process is None:
        _process = os.getpid()


def check_not_forked() -> None:
    """Claim this process; RuntimeError if it was forked from one that had been claimed."""
    claim()
    if _process != os.getpid():
        raise RuntimeError(
            "this process was forked from one that computes with JAX, which cannot work; start "
            "workers by multiprocessing.get_context('spawn')"
        )
