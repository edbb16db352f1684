"""Programs that outlive the process: the next one neither traces them nor imports what made them.

JAX keeps compiled programs by what they are lowered to. To find out, a process has to import the
networks and trace them, which takes longer than one registration. What tracing gives (StableHLO, by
`jax.export`) is therefore kept, too, in the folder "traced" beside the compiled programs.
"""

import functools
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import export

from ldm_morph_jax.devices.forking import check_not_forked
from ldm_morph_jax.files.writing import atomic
from ldm_morph_jax.plugins import plugin_files

_PACKAGE = Path(__file__).parent.parent
# Of one call's time, optimisation takes more than it gains, and so do YNNPACK's kernels, which are
# made anew in every process.
_FOR_ONE_CALL = {"xla_backend_optimization_level": 0, "xla_cpu_experimental_ynn_fusion_type": ""}
_FEW_CALLS = {"xla_cpu_experimental_ynn_fusion_type": ""}


class Program:
    """A function of arrays, compiled once for all arguments of the same shapes.

    Args:
      make: gives the function; called when there is nothing kept.
      key: says all that the function depends on besides its arguments and the source code of this
        package and of plugins; None: it is traced in every process.
      options: of the compiler.
    """

    def __init__(
        self,
        make: Callable[[], Callable],
        key: str | None = None,
        options: dict[str, Any] | None = None,
    ):
        self._make, self._key, self._options = make, key, options
        self._compiled: dict[str, Callable] = {}
        self._lock = threading.Lock()

    def __call__(self, *arguments):
        """The function's value."""
        return self.compiled(*arguments)(*arguments)

    def prepare(self, *arguments) -> None:
        """Begin to compile for arguments of these shapes, in a thread of its own."""
        check_not_forked()
        threading.Thread(target=self.compiled, args=arguments, daemon=True).start()

    def compiled(self, *arguments) -> Callable:
        """The program for arguments of these shapes (or `jax.ShapeDtypeStruct`)."""
        check_not_forked()
        leaves, tree = jax.tree.flatten(arguments)
        shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
        signature = f"{tree} {shapes}"
        with self._lock:
            if signature not in self._compiled:
                abstract = jax.tree.unflatten(tree, shapes)
                traced = jax.jit(self._traced(signature, abstract), compiler_options=self._options)
                self._compiled[signature] = traced.lower(*abstract).compile()
            return self._compiled[signature]

    def _traced(self, signature: str, abstract) -> Callable:
        folder = jax.config.jax_compilation_cache_dir
        if self._key is None or folder is None:
            return self._make()
        parts = (self._key, signature, jax.__version__, jax.default_backend(), _source_digest())
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        file = Path(folder) / "traced" / f"{name}.stablehlo"
        try:
            return export.deserialize(bytearray(file.read_bytes())).call
        except Exception:  # not there, cut short, or of another version: made anew
            pass
        exported = export.export(jax.jit(self._make()))(*abstract)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic(file) as part:
                part.write_bytes(exported.serialize())
        except (OSError, ValueError):  # a cache that cannot be written is no reason to fail
            pass
        return exported.call


def options_for(calls: str) -> dict[str, Any] | None:
    """Options of the compiler for a program called "once", a "few" times, or "often"."""
    if jax.default_backend() != "cpu":
        return None
    return {"once": _FOR_ONE_CALL, "few": _FEW_CALLS, "often": None}[calls]


@functools.cache
def _source_digest() -> str:
    """Changes with the source code that programs can be made of."""
    digest = hashlib.sha256()
    for file in (*sorted(_PACKAGE.rglob("*.py")), *plugin_files()):
        digest.update(f"{file.name}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()
