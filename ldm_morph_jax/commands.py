"""What the commands share: logging, and errors of the user told in one line."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from ldm_morph_jax.training.errors import NonFiniteError, Preempted

PREEMPTED = 75  # exit status "try again": stopped by a signal, a checkpoint is saved
FAILED = 2  # bad input


def run(main: Callable[[], None]) -> None:
    """Run a command's main function; ValueError and the like become one line on stderr."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,  # in place of absl's handler, whose prefix takes half of a line
    )
    # Orbax and TFDS talk through absl; what matters they also raise
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("jax").setLevel(logging.WARNING)
    try:
        main()
    except Preempted as stop:
        print(stop, file=sys.stderr)
        sys.exit(PREEMPTED)
    except (ValueError, NonFiniteError, OSError) as error:
        if os.environ.get("LDM_MORPH_DEBUG"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)


def use_compilation_cache() -> None:
    """Keep compiled programs across processes, so that only the first call of a kind compiles."""
    import jax

    directory = os.environ.get("LDM_MORPH_CACHE") or Path.home() / ".cache" / "ldm_morph_jax"
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
