"""What goes wrong with files: one line that names the file, what was found, what is expected.

Messages name an option as Python has it, in backquotes: "choose one with `slice`". The command line
shows them through `as_flags`.
"""

import contextlib
import re
from collections.abc import Iterator


class FileError(ValueError):
    """A file that cannot be read or written."""


class ImageError(FileError):
    """An image that cannot be used."""


class TransformError(FileError):
    """A transform file that cannot be used."""


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """Whatever a library raises becomes an ImageError: `what`, with the reason in brackets.

    Of damaged files libraries raise errors of a dozen kinds. Our own pass.
    """
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        raise ImageError(f"{what} ({one_line(error)})") from None


def as_flags(message: str) -> str:
    """A message in the words of the command line: `frame_times` becomes --frame-times."""
    return re.sub(r"`([a-z_]+)`", lambda name: f"--{name[1].replace('_', '-')}", message)


def one_line(error: BaseException) -> str:
    """The reason that another library gave, short enough for one line of ours."""
    text = " ".join(str(error).split())
    text = text.rsplit("ERROR: ", 1)[-1]  # SimpleITK puts its own source files before it
    return text[:200] or type(error).__name__
