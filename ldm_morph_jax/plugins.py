"""Methods and datasets from outside the package.

A method (`methods.base.Method`) or a dataset registers itself when its file is imported. Files
outside the package are found in two ways:

* the entry points of the group `ldm_morph_jax.plugins` of installed packages, each naming a module;
* the environment variable `LDM_MORPH_PLUGINS`: Python files or module names, separated as in PATH.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import sys
from pathlib import Path

GROUP = "ldm_morph_jax.plugins"
VARIABLE = "LDM_MORPH_PLUGINS"


def import_all(package) -> None:
    """Import every module of a package, so that what they define is registered."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


@functools.cache
def load_plugins() -> None:
    """Import everything that the entry points and `LDM_MORPH_PLUGINS` name, once.

    Raises ValueError naming the plugin that cannot be imported.
    """
    for name, origin in _plugins():
        _import(name, origin)


def plugin_files() -> list[Path]:
    """The source files of all plugins, of a package all that are in its folder."""
    files = []
    for name, _ in _plugins():
        if name.endswith(".py"):
            files.append(Path(name))
        else:
            top = importlib.util.find_spec(name.partition(".")[0])
            folders = [Path(folder) for folder in top.submodule_search_locations or ()]
            files += [file for folder in folders for file in sorted(folder.rglob("*.py"))]
            files += [] if folders else [Path(top.origin)]
    return files


@functools.cache
def _plugins() -> list[tuple[str, str]]:
    """(module or file, where it is named) of every plugin."""
    points = importlib.metadata.entry_points(group=GROUP)
    named = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    return [
        *((point.value, f"entry point {point.name!r} of {GROUP}") for point in points),
        *((name, f"{VARIABLE} names {name}") for name in named),
    ]


def _import(name: str, origin: str) -> None:
    try:
        if not name.endswith(".py"):
            importlib.import_module(name)
            return
        path = Path(name)
        if path.stem in sys.modules:
            raise ImportError(f"a module {path.stem!r} is already loaded; rename the file")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # dataclasses look up their module
        spec.loader.exec_module(module)
    except (ImportError, OSError) as error:
        raise ValueError(f"{origin}, which cannot be imported: {error}") from error
