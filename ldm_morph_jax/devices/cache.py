"""Entries of JAX's cache of compiled programs that cannot be read are removed.

A full disk or a killed process leaves entries cut short. JAX warns of them in every process,
compiles anew and, as the entry exists, does not write it again.
"""

import functools
import warnings
from pathlib import Path

from jax._src.compilation_cache import decompress_executable  # depends on what is installed

_WARNING = "Error reading persistent compilation cache entry"


@functools.cache
def mend_when_damaged(directory: Path) -> None:
    """From now on remove the damaged entries of `directory` when JAX warns of one."""
    show = warnings.showwarning

    def mend_or_show(message, category, filename, lineno, file=None, line=None):
        if str(message).startswith(_WARNING):
            remove_damaged(directory)  # JAX then compiles, and writes the entry
        else:
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = mend_or_show


def remove_damaged(directory: Path) -> list[Path]:
    """Remove the entries that cannot be decompressed; returns them."""
    damaged = []
    for entry in Path(directory).glob("*-cache"):
        try:
            decompress_executable(entry.read_bytes())
        except FileNotFoundError:  # another process was faster
            continue
        except Exception:  # of zlib or zstandard, whichever JAX uses
            damaged.append(entry)
            entry.unlink(missing_ok=True)
    return damaged
