"""Published PyTorch state dicts <-> our parameter trees.

Every leaf of our trees has one published entry. Its name comes from a function
`leaf path -> published name`, its layout from the kind of leaf (kernels are channel-last here and
channel-first there; linear maps are transposed). Loading is strict: entries that are missing,
unexpected, of the wrong shape or not finite are all listed in one error.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

NameOf = Callable[[tuple[str, ...]], str]


class CheckpointError(ValueError):
    """A checkpoint does not fit; the message names entries, what was found and what expected."""


def _leaves(tree) -> Iterable[tuple[tuple[str, ...], object]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield tuple(key.key for key in path), leaf


def _to_ours(array: np.ndarray) -> np.ndarray:
    """PyTorch (out, in, kh, kw) -> (kh, kw, in, out); linear (out, in) -> (in, out)."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _to_published(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def from_published(
    state_dict: Mapping[str, np.ndarray],
    abstract_params,
    name_of: NameOf,
    *,
    prefix: str = "",
    unread: Callable[[str], bool] = lambda name: False,
    source: str | Path = "state dict",
):
    """Fill a parameter tree (same structure as `abstract_params`) from published entries.

    Entries are those under `prefix`; `name_of` and `unread` use names without it. `unread`
    identifies entries that the published networks contain but never read; these may be present.
    Raises CheckpointError listing every entry that is missing, unexpected, of the wrong shape or
    not finite.
    """
    problems, used = [], set()

    def fill(path, leaf):
        name = prefix + name_of(tuple(key.key for key in path))
        used.add(name)
        if name not in state_dict:
            problems.append(f"missing {name}")
            return None
        array = np.asarray(state_dict[name])
        if path[-1].key == "kernel":
            array = _to_ours(array)
        if array.shape != leaf.shape:
            expected = np.zeros(leaf.shape, np.int8)
            expected = _to_published(expected) if path[-1].key == "kernel" else expected
            problems.append(
                f"{name} has shape {np.shape(state_dict[name])}, expected {expected.shape}"
            )
            return None
        if not np.issubdtype(array.dtype, np.floating):
            problems.append(f"{name} is {array.dtype}, expected floating point")
            return None
        if not np.all(np.isfinite(array)):
            problems.append(f"{name} holds NaN or Inf")
        return np.ascontiguousarray(array, dtype=leaf.dtype)

    params = jax.tree_util.tree_map_with_path(fill, abstract_params)
    problems += [
        f"unexpected {name}"
        for name in state_dict
        if name.startswith(prefix) and name not in used and not unread(name.removeprefix(prefix))
    ]
    if problems:
        raise CheckpointError(f"{source} does not fit the network: " + "; ".join(problems))
    return params


def to_published(params, name_of: NameOf, *, prefix: str = "") -> dict[str, np.ndarray]:
    """Parameter tree -> state dict with published names (after `prefix`) and layouts."""
    state_dict = {}
    for path, leaf in _leaves(params):
        array = np.asarray(leaf)
        if path[-1] == "kernel":
            array = _to_published(array)
        state_dict[prefix + name_of(path)] = np.ascontiguousarray(array)
    return state_dict


@dataclasses.dataclass(frozen=True)
class Entries:
    """A state dict's entries under a prefix: a network's parameters, and what says its widths.

    Widths come from entries with one axis (biases) wherever possible. Such an entry cannot be
    transposed, so a transposed kernel is detected and named by `from_published`.
    """

    state_dict: Mapping[str, np.ndarray]
    prefix: str = ""
    source: str | Path = "state dict"

    def below(self, prefix: str) -> "Entries":
        """Those under a longer prefix."""
        return dataclasses.replace(self, prefix=self.prefix + prefix)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return any(name.startswith(self.prefix) for name in self.state_dict)

    def parameters(self, abstract, name_of: NameOf, **more):
        """A parameter tree filled from them, see `from_published`."""
        where = {"prefix": self.prefix, "source": self.source}
        return from_published(self.state_dict, abstract, name_of, **where, **more)

    def shape(self, name: str, axes: int = 1) -> tuple[int, ...]:
        """The shape of an entry; CheckpointError if it is missing or has other axes."""
        if self.prefix + name not in self.state_dict:
            raise self.error(f"missing {self.prefix}{name}")
        shape = np.shape(self.state_dict[self.prefix + name])
        if len(shape) != axes or 0 in shape:
            raise self.error(f"{self.prefix}{name} has shape {shape}, expected {axes} axes")
        return shape

    def multiple(self, name: str, unit: int) -> int:
        """The length of an entry with one axis, in multiples of `unit`."""
        (length,) = self.shape(name)
        if length % unit:
            raise self.error(
                f"{self.prefix}{name} has shape ({length},), expected a multiple of {unit}"
            )
        return length // unit

    def numbers(self, pattern: str) -> set[tuple[int, ...]]:
        """The numbers matched by the groups of `pattern` at the beginning of the names."""
        pattern = re.compile(re.escape(self.prefix) + pattern)
        found = (pattern.match(name) for name in self.state_dict)
        return {tuple(int(group) for group in match.groups()) for match in found if match}

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.source} does not fit the network: {problem}")
