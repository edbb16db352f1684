"""What the commands share: options from a dataclass, logging, errors told in one line, caching.

A command is a module with `Options`, a dataclass whose documented fields are the command's options,
and `main(argv=None)`; it is reached as `ldm-morph NAME` and as `python -m ldm_morph_jax.NAME`.
Options are written `--foo-bar`; `--foo_bar` is taken, too. Keys of the configuration
(`--config.data.source=DIR`) are written as they are in its file.
"""

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import textwrap
import threading
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn, TypeVar

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.exceptions import CoercionError, MissingArgumentError, UnusedCliTokensError

from ldm_morph_jax import __version__
from ldm_morph_jax.files.errors import as_flags
from ldm_morph_jax.names import unknown
from ldm_morph_jax.training.errors import NonFiniteError, Preempted

PREEMPTED = 75  # exit status "try again": stopped by a signal, a checkpoint is saved
FAILED = 2  # bad input
PARTLY_FAILED = 1  # the others of several are done

T = TypeVar("T")


# -- options


def main(
    name: str,
    options: type[T],
    work: Callable[[T], bool | None],
    argv: Sequence[str] | None,
    description: str,
) -> None:
    """A whole command: read its options, do what they say.

    Args:
        name: of the command.
        options: a dataclass; each documented field is an option.
        work: does what they say; see `run`.
        argv: the arguments; None for those of the process.
        description: what the command does, the module's docstring; its first line is a summary.
    """
    given = parse_options(options, argv, prog=f"ldm-morph {name}", description=description)
    run(lambda: work(given))


def parse_options(
    options: type[T], argv: Sequence[str] | None, *, prog: str, description: str
) -> T:
    """A dataclass filled from the command line.

    Ends the process after --help and --version, and with one line on stderr for bad input.
    """
    arguments, overrides = _without_overrides(sys.argv[1:] if argv is None else argv)
    parser = application(options, prog, description)
    try:
        call, bound, _ = parser.parse_args(arguments, exit_on_error=False, print_error=False)
        parsed = call(*bound.args, **bound.kwargs)
    except (CycloptsError, ValueError) as error:
        _fail(_in_one_line(error))
    if not isinstance(parsed, options):  # help or the version was printed
        sys.exit(0)
    if isinstance(parsed, OptionalConfig):
        return dataclasses.replace(parsed, overrides=tuple(overrides))
    if overrides:
        _fail(f"unexpected arguments {' '.join(overrides)}")
    return parsed


def application(options: type, prog: str, description: str) -> App:
    """The parser of a command: it makes the dataclass `options`."""
    app = App(
        name=prog,
        help=description,
        help_format="plaintext",
        help_formatter=_Help(description),
        version=f"ldm-morph {__version__}",
        default_parameter=Parameter(negative=(), consume_multiple=True),
        group_commands=Group("", show=False),
        group_parameters=Group("options", sort_key=1),
    )

    def make(given):
        return options() if given is None else given

    make.__annotations__["given"] = Annotated[options, Parameter(name="*")]
    if all(field.default is not dataclasses.MISSING for field in dataclasses.fields(options)):
        make.__defaults__ = (None,)  # as cyclopts demands of options that may all be left out
    app.default(make)
    return app


class _Help:
    """Writes `--help`: the module's docstring as it stands, and a table of options."""

    def __init__(self, description: str):
        self._description = description.strip()

    def render_usage(self, console, options, usage) -> None:
        self._print(console, f"usage: {str(usage).removeprefix('Usage: ').strip()}\n")

    def render_description(self, console, options, description) -> None:
        self._print(console, self._description)

    def __call__(self, console, options, panel) -> None:
        lines = ["", f"{panel.title}:"]
        for entry in panel.entries:
            names = ", ".join(entry.display_labels_with_metavar)
            text = " ".join(entry.description.primary_renderable.plain.split())
            text += f" (one of: {', '.join(entry.choices)})" if entry.choices else ""
            text += " (required)" if entry.required else ""
            text += f" (default: {entry.default})" if entry.default not in (None, "False") else ""
            indented = {"initial_indent": f"  {names:<22}", "subsequent_indent": " " * 24}
            if len(names) > 20:
                lines.append(f"  {names}")
                indented["initial_indent"] = " " * 24
            lines += textwrap.wrap(text, 100, **indented)
        self._print(console, "\n".join(lines))

    @staticmethod
    def _print(console, text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def _in_one_line(error: Exception) -> str:
    """What was found and expected."""
    if isinstance(error, UnusedCliTokensError):
        return f"unexpected arguments {' '.join(error.unused_tokens)}"
    if isinstance(error, MissingArgumentError) and not error.tokens_so_far and not error.keyword:
        _, hint, near = str(error).partition(" Did you mean ")
        return f"{error.argument.name} is missing{hint}{near}"
    if isinstance(error, CoercionError) and error.token:
        option, value = error.token.keyword, error.token.value
        if isinstance(error.__cause__, ValueError) and error.msg is not None:  # of a converter
            return f"{option}: {error.__cause__}"
        return f"{option} is {value!r}, expected {_told(error.target_type)}"
    return " ".join(str(error).split())


def _told(kind) -> str:
    """A type in words: "a number or 'all'"."""
    if kind in (int, float, Path, str, bool):
        words = {int: "a whole number", float: "a number", bool: "true or false"}
        return words.get(kind, "a text")
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, parts))
    return " or ".join(_told(part) for part in parts if part not in (type(None), Ellipsis))


def comma_separated(type_, tokens) -> tuple:
    """ "a,b" -> ("a", "b"), each of the type in `tuple[type, ...]`."""
    kind = typing.get_args(type_)[0]
    try:
        return tuple(kind(text) for text in tokens[0].value.split(",") if text)
    except ValueError:
        raise ValueError(
            f"found {tokens[0].value!r}, expected {_told(kind)}, or several separated by commas"
        ) from None


COMMAS = Parameter(  # --stages diffusion,registration
    converter=comma_separated,
    n_tokens=1,
    show_default=lambda values: values and ",".join(map(str, values)),
)


# -- options of several commands


_CONFIG = Parameter(metavar="NAME[:VARIANT]|FILE.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptionalConfig:
    """A configuration and its overrides, `--config NAME --config.key=value ...`."""

    config: Annotated[str | None, _CONFIG] = None
    """experiment, by name or file; each of its keys is an option: --config.data.source=DIR"""

    overrides: Annotated[tuple[str, ...], Parameter(parse=False)] = ()

    def read_config(self):
        """The configuration, with the overrides; ValueError names what is wrong with it."""
        from ldm_morph_jax.config import experiment, overridden

        if self.config is None:
            if self.overrides:
                raise ValueError(f"--config is missing, but {self.overrides[0]} is given")
            return None
        name, _, variant = self.config.partition(":")
        return overridden(experiment(name, variant), self.overrides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigOptions(OptionalConfig):
    """As `OptionalConfig`, but the configuration must be given."""

    config: Annotated[str, _CONFIG] = dataclasses.field()
    """experiment, by name or file; each of its keys is an option: --config.data.source=DIR"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagesOption:
    """Chooses stages of training."""

    stages: Annotated[tuple[str, ...] | None, COMMAS, Parameter(metavar="NAME,...")] = None
    """stages: autoencoder, diffusion, registration; by default those that are trained"""

    def stages_of(self, config) -> tuple[str, ...]:
        """The stages chosen, or all that are trained; ValueError for one that does not exist."""
        from ldm_morph_jax.training.stages import STAGES, trained_stages

        for name in self.stages or ():
            if name not in STAGES:
                raise ValueError(unknown("--stages", name, STAGES))
        return self.stages or trained_stages(config)


def _without_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments, and those that set a key: `--config.key=value` or `--config.key value`."""
    others, overrides, words = [], [], list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith(("--config.", "--noconfig.")):
            others.append(word)
        elif "=" not in word and words and not words[0].startswith("--"):
            overrides.append(f"{word}={words.pop(0)}")
        else:
            overrides.append(word)
    return others, overrides


# -- running


def told_of_batch(rows: Sequence[dict], table: Path, done: str) -> bool:
    """Print how many rows of a table are done, such as "pairs registered"; whether all are."""
    good = sum(row["status"] != "failed" for row in rows)
    print(f"{good} of {len(rows)} {done}; table in {table}")
    return good == len(rows)


def run(work: Callable[[], bool | None]) -> None:
    """Run a command's work; ValueError and the like become one line on stderr.

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
        with _prompt_interrupts():
            if work() is False:
                sys.exit(PARTLY_FAILED)
    except KeyboardInterrupt:
        _interrupted()
    except Preempted as stop:
        print(stop, file=sys.stderr)
        sys.exit(PREEMPTED)
    except (ValueError, NonFiniteError, OSError, MemoryError) as error:
        if os.environ.get("LDM_MORPH_DEBUG"):
            raise
        _fail(f"not enough memory {error}" if isinstance(error, MemoryError) else error)


@contextlib.contextmanager
def _prompt_interrupts():
    """Ctrl-C ends the process within a second, also while XLA compiles.

    Python answers a signal only when the main thread runs Python again, and XLA compiles for
    minutes. Where the work answers SIGINT itself, as training does, only the second one counts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    answered = threading.Event()

    def raise_interrupt(*_):
        answered.set()
        raise KeyboardInterrupt

    def watch():
        times = 0
        while number := os.read(reader, 1):  # written when the signal arrives
            if number[0] != signal.SIGINT:
                continue
            times += 1
            ours = signal.getsignal(signal.SIGINT) is raise_interrupt
            if (ours or times > 1) and not answered.wait(1.0):
                _interrupted()
        os.close(reader)

    before = signal.signal(signal.SIGINT, raise_interrupt)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGINT, before)
        os.close(writer)  # ends the thread


def _interrupted() -> NoReturn:
    """End at once: threads that still compile would crash in the interpreter's regular end."""
    sys.stdout.flush()
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


def _fail(message) -> NoReturn:
    print(f"error: {as_flags(str(message))}", file=sys.stderr)
    sys.exit(FAILED)


def use_compilation_cache(at_least_seconds: float = 0.5) -> None:
    """Keep compiled programs across processes, so that only the first call of a kind compiles.

    They are kept in LDM_MORPH_CACHE, JAX_COMPILATION_CACHE_DIR or ~/.cache/ldm_morph_jax; where
    that cannot be written, what is there is read, and nothing is kept. An entry that cannot be read
    is removed, so that it is written anew.

    Raises ValueError where there is no device to compile for.

    Args:
        at_least_seconds: how long a program must take to compile to be kept.
    """
    import jax

    from ldm_morph_jax.devices.cache import mend_when_damaged
    from ldm_morph_jax.devices.mesh import available

    available()
    directory = os.environ.get("LDM_MORPH_CACHE") or jax.config.jax_compilation_cache_dir
    try:
        directory = Path(directory or Path.home() / ".cache" / "ldm_morph_jax")
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # not writable; a user without a home
        jax.config.update("jax_compilation_cache_dir", None)
        return
    if not os.access(directory, os.W_OK):
        at_least_seconds = float("inf")
    else:
        mend_when_damaged(directory)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", at_least_seconds)
