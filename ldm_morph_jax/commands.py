"""What the commands share: options in one spelling, logging, errors told in one line, caching.

Every command is a module with `main(argv=None)`, reached as `ldm-morph NAME` and as
`python -m ldm_morph_jax.NAME`. Options are written `--foo-bar`; `--foo_bar` is taken, too. Keys of
the configuration (`--config.data.source=DIR`) are written as they are in its file.
"""

import argparse
import contextlib
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ldm_morph_jax.experiments import experiment_file
from ldm_morph_jax.files.errors import as_flags
from ldm_morph_jax.training.errors import NonFiniteError, Preempted

PREEMPTED = 75  # exit status "try again": stopped by a signal, a checkpoint is saved
FAILED = 2  # bad input
PARTLY_FAILED = 1  # the others of several are done


def spelled(arguments: Sequence[str], separator: str) -> list[str]:
    """The arguments with `-` and `_` inside the names of options replaced by `separator`.

    Values stay as they are, and so do keys of the configuration.
    """

    def one(argument):
        name, equals, value = argument.partition("=")
        if not name.startswith("--") or "." in name:
            return argument
        return f"--{name[2:].replace('-', separator).replace('_', separator)}{equals}{value}"

    return [one(argument) for argument in arguments]


def with_experiment_files(arguments: Sequence[str]) -> list[str]:
    """The arguments with the name of an experiment after `--config` replaced by its file."""
    found = list(arguments)
    for k, argument in enumerate(arguments):
        if argument.startswith("--config="):
            found[k] = f"--config={experiment_file(argument.removeprefix('--config='))}"
        elif argument == "--config" and k + 1 < len(found):
            found[k + 1] = experiment_file(found[k + 1])
    return found


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """`parser.parse_args` that takes either spelling of an option."""
    return parser.parse_args(spelled(sys.argv[1:] if argv is None else argv, "-"))


def add_slice_option(parser: argparse.ArgumentParser) -> None:
    """The option that chooses a slice of a file."""
    parser.add_argument(
        "--slice",
        type=_slice_argument,
        metavar="K|all",
        help="which slice of a 3-D file (from 0), or all",
    )


def add_frame_option(parser: argparse.ArgumentParser, count: str | None = None) -> None:
    """The option that chooses a frame, or with `count` "+" one of each of two files."""
    parser.add_argument(
        "--frame",
        type=int,
        nargs=count,
        metavar="K",
        help="which frame of a file with several in time (from 0)"
        + ("; two numbers: of the moving and of the fixed file" if count else ""),
    )


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that reads images of any kind."""
    add_slice_option(parser)
    parser.add_argument(
        "--spacing",
        type=float,
        nargs="+",
        metavar="MM",
        help="pixel spacing in mm, one number or row and column, for files that do not tell it; "
        "refused where a file says otherwise",
    )
    parser.add_argument(
        "--oblique",
        action="store_true",
        help="accept slices that are tilted against the x-y plane; work in their own plane",
    )


def _slice_argument(text: str) -> int | str:
    from ldm_morph_jax.files.images import parse_slice

    try:
        return parse_slice(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(main: Callable[[], bool | None]) -> None:
    """Run a command's main function; ValueError and the like become one line on stderr.

    Where it returns False, some of the work failed and has been reported: exit status 1.
    """
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
    with contextlib.suppress(AttributeError):  # a stream in memory
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may be any bytes
    try:
        if main() is False:
            sys.exit(PARTLY_FAILED)
    except Preempted as stop:
        print(stop, file=sys.stderr)
        sys.exit(PREEMPTED)
    except (ValueError, NonFiniteError, OSError, MemoryError) as error:
        if os.environ.get("LDM_MORPH_DEBUG"):
            raise
        _fail(f"not enough memory {error}" if isinstance(error, MemoryError) else error)


def _fail(message) -> NoReturn:
    print(f"error: {as_flags(str(message))}", file=sys.stderr)
    sys.exit(FAILED)


def run_with_flags(
    main: Callable[[], None], argv: Sequence[str] | None, required: Sequence[str] = ()
) -> None:
    """Run a command whose options are absl flags, as those with a configuration are.

    Args:
        main: the command, in the module that defines its flags.
        argv: the arguments; None for those of the process.
        required: names of flags that must be given.
    """
    from absl import app, flags

    arguments = spelled(sys.argv[1:] if argv is None else argv, "_")
    if {"--help", "-h"} & set(arguments):
        print(_flags_help(sys.modules[main.__module__]))
        return
    try:
        # ml_collections looks for the configuration's keys in sys.argv
        sys.argv[1:] = with_experiment_files(arguments)
    except ValueError as error:
        _fail(error)
    flags.mark_flags_as_required(list(required))

    def flags_parser(arguments):
        try:
            program, *unexpected = flags.FLAGS(arguments)
            message = f"unexpected arguments {' '.join(unexpected)}" if unexpected else None
        except flags.Error as error:
            message = " ".join(str(error).split())
        if message:
            _fail(message)
        return [program]

    app.run(lambda _: run(main), flags_parser=flags_parser)


def _flags_help(module) -> str:
    """What a command does and its options."""
    from absl import flags

    lines = [module.__doc__.strip(), "", "options:"]
    for flag in flags.FLAGS.get_key_flags_for_module(module):
        name = spelled([f"--{flag.name}"], "-")[0]
        default = "" if flag.default is None else f" (default: {flag.default_as_str})"
        text = f"  {name:<18}{flag.help}{default}"
        lines.append(textwrap.fill(text, 100, subsequent_indent=" " * 20))
    return "\n".join(lines)


def use_compilation_cache(at_least_seconds: float = 0.5) -> None:
    """Keep compiled programs across processes, so that only the first call of a kind compiles.

    They are kept in LDM_MORPH_CACHE, JAX_COMPILATION_CACHE_DIR or ~/.cache/ldm_morph_jax; where
    that cannot be written, what is there is read, and nothing is kept.

    Args:
        at_least_seconds: how long a program must take to compile to be kept.
    """
    import jax

    directory = os.environ.get("LDM_MORPH_CACHE") or jax.config.jax_compilation_cache_dir
    try:
        directory = Path(directory or Path.home() / ".cache" / "ldm_morph_jax")
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # not writable; a user without a home
        jax.config.update("jax_compilation_cache_dir", None)
        return
    if not os.access(directory, os.W_OK):
        at_least_seconds = float("inf")
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", at_least_seconds)
