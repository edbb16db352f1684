"""Chooses between two implementations of a function, depending on the backend.

On XLA's CPU backend, the straightforward implementation of a few functions is many times slower
than a mathematically equal one (docs/performance.md has the times). These functions are written
twice, side by side: a straightforward implementation, which calls the library where it can, and one
for the CPU. Every other backend uses the straightforward implementation.

The choice is made when a function is traced and depends on JAX's default backend, which does not
change during a process. `jax.lax.platform_dependent` would choose when the program is lowered, but
it traces and differentiates both implementations everywhere. A function that is traced on one
backend and run on another (`jax.default_device`, `jax.export`) is still correct, only slower.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable

import jax

_straightforward = contextvars.ContextVar("straightforward", default=False)


@contextlib.contextmanager
def straightforward():
    """Whatever is traced within takes the straightforward implementations, on every backend.

    For counting operations: a program's number must not depend on the machine that counts.
    """
    token = _straightforward.set(True)
    try:
        yield
    finally:
        _straightforward.reset(token)


@dataclasses.dataclass(frozen=True)
class ByBackend:
    """Two implementations with the same arguments and, up to rounding, the same results.

    Attributes:
      cpu: the implementation for XLA's CPU backend.
      other: the straightforward implementation, for every other backend.
    """

    cpu: Callable
    other: Callable

    def __call__(self, *arguments, **options):
        own = jax.default_backend() == "cpu" and not _straightforward.get()
        form = self.cpu if own else self.other
        return form(*arguments, **options)
