"""Registration methods: each, learned or iterative, maps (moving, fixed) -> displacement."""

import functools
import sys

from ldm_morph_jax.methods.base import METHODS, Method
from ldm_morph_jax.names import unknown
from ldm_morph_jax.plugins import import_all, load_plugins

__all__ = ["METHODS", "Method", "build_method", "method_class", "method_names"]


@functools.cache
def _import_methods() -> None:
    import_all(sys.modules[__name__])
    load_plugins()


def method_names(*, trained: bool | None = None) -> list[str]:
    """Names of all methods, or only of those that are (not) trained, in alphabetical order."""
    _import_methods()
    return sorted(n for n, c in METHODS.items() if trained is None or c.trained == trained)


def method_class(name: str, *, trained: bool | None = None) -> type[Method]:
    """The method of that name; ValueError lists the known names."""
    names = method_names(trained=trained)
    if name not in names:
        raise ValueError(unknown("registration.method", name, names))
    return METHODS[name]


def build_method(config) -> Method:
    """The learned method that `config.registration.method` names, with its settings.

    Raises ValueError for an unknown name and for settings that belong to another method.
    """
    c = config.registration
    cls = method_class(c.method, trained=True)
    missing = [f"registration.{key}" for key in sorted(set(cls.defaults) - set(c))]
    if "model" in c:
        model = cls.defaults.get("model", {})
        missing += [f"registration.model.{key}" for key in sorted(set(model) - set(c.model))]
    if missing:
        raise ValueError(
            f"registration.method is {c.method!r}, but these of its settings are missing: "
            f"{', '.join(missing)}; start from configs/baselines or with_method"
        )
    if not cls.takes_compute_options and (
        config.compute.dtype != "float32" or config.compute.remat
    ):
        raise ValueError(
            "compute.dtype and compute.remat are used only by "
            f"{', '.join(n for n in method_names() if METHODS[n].takes_compute_options)}, "
            f"but registration.method is {c.method!r}"
        )
    if config.data.depth and not cls.takes_volumes:
        of_volumes = [name for name in method_names(trained=True) if METHODS[name].takes_volumes]
        raise ValueError(
            f"registration.method is {c.method!r}, which registers images; of volumes (data.depth "
            f"is {config.data.depth}) expected one of {', '.join(of_volumes)}"
        )
    return cls.from_config(config)
