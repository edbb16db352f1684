"""Refuses to compute in a forked child of a process that computes with JAX, where it would hang."""

import os

_process: int | None = None  # that computes with JAX


def claim() -> None:
    """Note that this process computes with JAX.

    Raises RuntimeError in a child that was forked afterwards: JAX's threads are not copied, and the
    child would wait for them for ever.
    """
    global _process
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise RuntimeError(
            "this process was forked from one that computes with JAX, which cannot work; start "
            "workers by multiprocessing.get_context('spawn')"
        )
