"""What registering a pair and tracking a cine give: transforms, their inverses, warped images."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from ldm_morph_jax.files.geometry import Geometry
from ldm_morph_jax.files.images import Image
from ldm_morph_jax.files.transforms import Inverse, Transform
from ldm_morph_jax.ops.geometry import within_slices
from ldm_morph_jax.registering.grid import Alignment, Grid, Slice, to_transform

if TYPE_CHECKING:
    from ldm_morph_jax.files.movies import Cine


# ---------------------------------------------------------------------------- pairs


class Guidance(NamedTuple):
    """What guided a search, see `guiding`.

    network: its name.
    used: whether the network is sure of the heart in both images, in volumes in a third of their
        slices.
    confidence: of the heart in both images; of volumes the mean over their slices.
    """

    network: str
    used: bool
    confidence: tuple[float, float]


@dataclass(frozen=True)
class SliceMotion:
    """The motion of one slice, or of a volume.

    grid: where the displacement is given.
    displacement: `[*grid.shape, rank]` pixels of the grid, pull-back.
    scale: largest s in [0, 1] at which exp(s v) is no worse than the identity on the whole image;
        1 where a method predicts a displacement.
    correlation: (before, after) mean local correlation on the whole image; None where a method
        predicts a displacement.
    anatomy: what guided the search; None: nothing.
    """

    grid: Grid
    displacement: np.ndarray
    scale: float = 1.0
    correlation: tuple[float, float] | None = None
    anatomy: Guidance | None = None


@dataclass(frozen=True, repr=False)
class Registration:
    """One registered pair of images.

    moving, fixed: the images.
    slices: the same on the grids; of volumes registered in three dimensions, one.
    motions: of every slice.
    alignment: what was found before anything deformed; it is in `transform`. None: nothing.
    notes: what should be said of how they were registered.
    """

    moving: Image
    fixed: Image
    slices: Sequence[Slice]
    motions: Sequence[SliceMotion]
    alignment: Alignment | None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Registration: {self.moving.source} onto {self.fixed.source}>"

    @property
    def in_space(self) -> bool:
        """Whether volumes were registered in three dimensions, not slice by slice."""
        return self.slices[0].in_space

    @property
    def diffeomorphic(self) -> bool:
        """Whether the displacement is the integral of a velocity."""
        return self.motions[0].correlation is not None

    @functools.cached_property
    def transform(self) -> Transform:
        """From fixed to moving, see `files.transforms.Transform`."""
        found = [(m.grid, m.displacement) for m in self.motions]
        geometries = self.moving.geometry, self.fixed.geometry
        return to_transform(self.slices, found, *geometries, self.alignment)

    @functools.cached_property
    def warped(self) -> np.ndarray:
        """Moving image on the fixed image's grid, float32, original intensities."""
        return self.transform.warp(self.moving.array)

    @functools.cached_property
    def inverse(self) -> Inverse:
        """The transform from moving to fixed, and where there is none."""
        return self.transform.inverse()

    @functools.cached_property
    def pixel_displacement(self) -> np.ndarray:
        """`[*fixed.shape, n]` in fixed pixels, without shift and change of grid: what moved."""
        moved = self.transform.displacement_mm - self.start.displacement_mm
        return self.fixed.geometry.vectors_to_index(moved)

    @functools.cached_property
    def start(self) -> Transform:
        """The transform before registration: the shift alone."""
        nothing = [(m.grid, np.zeros_like(m.displacement)) for m in self.motions]
        return to_transform(self.slices, nothing, self.moving.geometry, self.fixed.geometry)


# ---------------------------------------------------------------------------- cines


class Series:
    """An array `[T, ...]` that never lies in memory as a whole, like a data set of h5py.

    `series[t]` and `series[a:b]` are NumPy arrays; other indices, `np.asarray` and arithmetic with
    arrays compute all frames. The last block is kept, so that going through the frames in order
    computes each one once.
    """

    def __init__(
        self, compute: Callable[[slice], np.ndarray], shape: tuple[int, ...], block: int
    ) -> None:
        """`compute` makes the frames of a slice, at most `block`, of an array of `shape`."""
        self.shape = shape
        self._compute, self._block = compute, block
        self._kept: tuple[int, np.ndarray] | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, int | np.integer):
            t = range(len(self))[index]  # negative ones count from the end
            return self._block_of(t)[t % self._block]
        if isinstance(index, slice):
            frames = [self[t] for t in range(len(self))[index]]
            return np.stack(frames) if frames else np.empty((0, *self.shape[1:]), np.float32)
        return np.asarray(self)[index]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def _block_of(self, t: int) -> np.ndarray:
        first = t - t % self._block
        if self._kept is None or self._kept[0] != first:
            rows = slice(first, min(first + self._block, len(self)))
            block = np.asarray(self._compute(rows)).view()
            block.flags.writeable = False  # it will be handed out again
            self._kept = first, block
        return self._kept[1]


@dataclass(frozen=True)
class Tracked:
    """A cine and the motion of the tissue of its reference frame.

    cine: frames `[T, *space]`, of a slice or of volumes.
    reference: number of the frame whose tissue is followed.
    times: `[T]` seconds; frame numbers where the cine does not tell.
    displacement: `[T, *space, n]` float32 pixels, Lagrangian: the tissue at x of the reference is
        at x + displacement[t](x) in frame t. Computed when it is looked at; `np.asarray` makes an
        array of all frames.
    inverse: `[T, *space, n]` float32 pixels, from frame t back to the reference; likewise.
    period: of the motion, in the unit of `times`; None where it was not told.
    unconstrained_last: `[*space, n]`, displacement of the last frame when it is registered by
        itself, before anything is smoothed in time; None where that was not done.
    method: "search", or the name of the method.
    """

    cine: "Cine"
    reference: int
    times: np.ndarray
    displacement: Series | np.ndarray
    inverse: Series | np.ndarray
    period: float | None
    unconstrained_last: np.ndarray | None
    method: str

    @property
    def geometry(self) -> Geometry:
        """Of every frame."""
        return self.cine.first.geometry

    @property
    def spacing(self) -> tuple[float, ...]:
        """Of a pixel in mm, in axis order; 1 where unknown."""
        return self.geometry.spacing

    @property
    def whole_beat(self) -> bool:
        """Whether the last frame is one period after the first."""
        length = self.times[-1] - self.times[0]
        return self.period is not None and math.isclose(length, self.period, rel_tol=1e-6)

    def transform(self, t: int) -> Transform:
        """T with frame_t(T(p)) ~ reference(p): brings frame t to the reference frame."""
        return self._transform(self.displacement[t])

    def inverse_transform(self, t: int) -> Transform:
        """Brings images and labels of the reference frame to frame t."""
        return self._transform(self.inverse[t])

    def warped(self, t: int) -> np.ndarray:
        """Frame t brought to the reference frame, `[*space]` float32, original intensities."""
        return self.transform(t).warp(self.cine.frames[t])

    def carried(self, labels: np.ndarray, t: int) -> np.ndarray:
        """Labels `[*space]` of the reference frame in frame t; nearest neighbour.

        In volumes tissue from beyond the outermost slices has none.
        """
        inverse = self.inverse[t]
        found = self._transform(inverse).warp(labels, "nearest")
        return found * within_slices(inverse) if labels.ndim == 3 else found

    def _transform(self, u: np.ndarray) -> Transform:
        geometry = self.geometry
        return Transform(geometry.vectors_to_physical(u), geometry, geometry)
