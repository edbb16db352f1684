"""Drawing in a process of its own, which imports matplotlib while the caller computes."""

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable


class Apart:
    """A function in another process, started at once and called once.

        with Apart("package.module", "function", "prepare") as call:
            ...  # the process imports the module meanwhile and calls prepare()
            wait = call(*arguments)
            ...
            wait()  # raises what the function raised

    The value is not sent back. Leaving the block without a call ends the process.
    """

    def __init__(self, module: str, function: str, prepare: str):
        # the process is to find what this one does, and needs none of its main module
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        code = f"from {__name__} import _serve; _serve({module!r}, {function!r}, {prepare!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def __enter__(self) -> Callable:
        return self._call

    def __exit__(self, *_) -> None:
        if self._process.poll() is None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            pipe.close()
        self._process.wait()

    def _call(self, *arguments) -> Callable[[], None]:
        pickle.dump(arguments, self._process.stdin, pickle.HIGHEST_PROTOCOL)
        self._process.stdin.close()
        return self._wait

    def _wait(self) -> None:
        answer = self._process.stdout.read()
        status = self._process.wait()
        if not answer:
            raise OSError(f"the process that draws ended with status {status}")
        error = pickle.loads(answer)
        if error is not None:
            raise error


def _serve(module: str, function: str, prepare: str) -> None:
    """What the process does: read the arguments, call the function, tell how it ended."""
    answer = os.fdopen(os.dup(1), "wb")  # nothing that is printed gets in between
    os.dup2(2, 1)
    imported = importlib.import_module(module)
    getattr(imported, prepare)()
    try:
        arguments = pickle.load(sys.stdin.buffer)
    except EOFError:  # nothing to draw
        return
    error = None
    try:
        getattr(imported, function)(*arguments)
    except Exception as caught:
        error = caught
    with answer:
        pickle.dump(error, answer)
