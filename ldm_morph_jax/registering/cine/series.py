"""Arrays over time that are computed a few frames at a time, when they are looked at."""

from collections.abc import Callable

import numpy as np


class Series:
    """An array `[T, ...]` that never lies in memory as a whole, like a data set of h5py.

    `series[t]` and `series[a:b]` are NumPy arrays; other indices, `np.asarray` and arithmetic with
    arrays compute all frames. The last block is kept, so that going through the frames in order
    computes each one once.
    """

    def __init__(self, compute: Callable[[slice], np.ndarray], shape: tuple[int, ...], block: int):
        """`compute` makes the frames of a slice, at most `block`, of an array of `shape`."""
        self.shape = shape
        self._compute, self._block = compute, block
        self._kept: tuple[int, np.ndarray] | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        if isinstance(index, int | np.integer):
            t = range(len(self))[index]  # negative ones count from the end
            return self._block_of(t)[t % self._block]
        if isinstance(index, slice):
            frames = [self[t] for t in range(len(self))[index]]
            return np.stack(frames) if frames else np.empty((0, *self.shape[1:]), np.float32)
        return np.asarray(self)[index]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def _block_of(self, t) -> np.ndarray:
        first = t - t % self._block
        if self._kept is None or self._kept[0] != first:
            rows = slice(first, min(first + self._block, len(self)))
            block = np.asarray(self._compute(rows)).view()
            block.flags.writeable = False  # it will be handed out again
            self._kept = first, block
        return self._kept[1]
