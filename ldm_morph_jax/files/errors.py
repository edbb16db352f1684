"""What goes wrong with files: one line that names the file, what was found, what is expected."""


class FileError(ValueError):
    """A file that cannot be read or written."""


class ImageError(FileError):
    """An image that cannot be used."""


class TransformError(FileError):
    """A transform file that cannot be used."""


def one_line(error: BaseException) -> str:
    """The reason that another library gave, short enough for one line of ours."""
    text = " ".join(str(error).split())
    text = text.rsplit("ERROR: ", 1)[-1]  # SimpleITK puts its own source files before it
    return text[:200] or type(error).__name__
