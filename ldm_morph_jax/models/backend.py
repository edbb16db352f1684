"""Which form of a computation a backend gets, decided here alone.

XLA's CPU runs a few computations many times slower than another form of the same sum
(docs/performance.md has the times). They are written twice, side by side: straightforwardly, with
the library's function where there is one, and for the CPU. Every other backend takes the
straightforward form.

The choice is made when a function is traced, by JAX's default backend, which is the same for the
life of a process. `jax.lax.platform_dependent` would make it when the program is lowered, but
traces and differentiates both forms everywhere. What is traced on one backend to run on another
(`jax.default_device`, `jax.export`) is as right, and merely slower.
"""

import dataclasses
from collections.abc import Callable

import jax


@dataclasses.dataclass(frozen=True)
class ByBackend:
    """A function in two forms that take the same arguments and give the same up to rounding.

    Attributes:
      cpu: the form for XLA's CPU.
      other: the straightforward form, for every other backend.
    """

    cpu: Callable
    other: Callable

    def __call__(self, *arguments, **options):
        form = self.cpu if jax.default_backend() == "cpu" else self.other
        return form(*arguments, **options)
