"""One process at a time in a folder, which the others can name."""

import contextlib
import fcntl
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


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone in a folder, for moments: waits for the others, and leaves no file behind."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # network file systems lock no folders
            with FileLock(folder / ".lock"):
                yield
        else:
            yield
    finally:
        os.close(descriptor)  # which ends the lock
