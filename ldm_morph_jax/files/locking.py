"""One process at a time in a folder, which the others can name."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def held(folder: Path, when_taken: Callable[[str], None]) -> Iterator[None]:
    """Hold a folder's lock, `.lock`, for the block.

    Where another process holds it, `when_taken` is told which ("process 12 on host") and may raise;
    otherwise the lock is waited for. Raises OSError where the folder cannot be written.
    """
    lock, holder = FileLock(folder / ".lock"), folder / ".lock-holder"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        known = holder.read_text() if holder.exists() else "another process"
        when_taken(known)
        lock.acquire()
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
