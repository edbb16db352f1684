"""Finds the files of `configs/`, which are installed with the package, by name."""

import ast
from pathlib import Path

from ldm_morph_jax.names import unknown

_PACKAGE = Path(__file__).parent
# inside the package in a wheel, next to it in a checkout
FOLDER = next(p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if p.is_dir())


def experiment_names() -> list[str]:
    """ "quickstart", "baselines/voxelmorph", ..., in alphabetical order."""
    files = FOLDER.glob("**/[!_]*.py")
    return sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in files)


def experiment_title(name: str) -> str:
    """The first line of an experiment's docstring."""
    module = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(module) or "").partition("\n")[0]


def experiment_file(name: str) -> str:
    """The file of an experiment that comes with the package; paths to `.py` files are unchanged.

    Args:
        name: "NAME", "NAME:ARGUMENT" or a path; NAME as in `experiment_names`.

    Raises ValueError, listing the names that exist, for an unknown name.
    """
    stem, colon, argument = name.partition(":")
    if stem.endswith(".py"):
        return name
    file = FOLDER / f"{stem}.py"
    if file.is_file():
        return f"{file}{colon}{argument}"
    names = experiment_names()
    raise ValueError(f"{unknown('the experiment', stem, names)} (or a path ending in .py)")
