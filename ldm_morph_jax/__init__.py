"""Deformable registration and tissue tracking of cardiac images; LDM-Morph; in JAX/Flax.

    from ldm_morph_jax import load
    result = load()(moving, fixed)
    tracked = load().track(cine, mask=mask)

Conventions (arrays, units, direction of displacements) are stated in `ldm_morph_jax.ops`.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

# name -> where it is defined; imported when it is used, because JAX takes a second to import
_PUBLIC = {
    "load": "registering.method",
    "Registrar": "registering.method",
    "Result": "registering.pair_result",
    "TrackedHeart": "registering.heart_result",
    "Cine": "files.movies",
    "read_cine": "files.movies",
    "Image": "files.images",
    "ImageError": "files.errors",
    "read_image": "files.images",
    "write_image": "files.writing",
    "Transform": "files.transforms",
    "read_transform": "files.transforms",
    "write_transform": "files.transforms",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
