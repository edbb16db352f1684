"""Commands run in the test's own process: no interpreter to start, and programs stay compiled."""

import contextlib
import importlib
import io
import logging
import subprocess
import traceback

import jax


def exit_status(command, *arguments) -> int:
    """The exit status of a command (its module), run in this process."""
    try:
        command.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def call(name, *arguments) -> subprocess.CompletedProcess:
    """`ldm-morph NAME ARGUMENTS`, as `subprocess.run` would return it, tracebacks included."""
    command = importlib.import_module(f"ldm_morph_jax.{name}")
    out, err, status = io.StringIO(), io.StringIO(), 0
    with _settings_kept(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = exit_status(command, *arguments)
        except Exception:
            traceback.print_exc()
            status = 1
    return subprocess.CompletedProcess((name, *arguments), status, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _settings_kept():
    """What a command sets for its whole process is afterwards as before."""
    caching = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in caching}
    loggers = [logging.getLogger(name) for name in (None, "absl", "asyncio", "jax")]
    levels, handlers = [logger.level for logger in loggers], loggers[0].handlers[:]
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        loggers[0].handlers[:] = handlers
        for name, value in before.items():
            jax.config.update(name, value)
