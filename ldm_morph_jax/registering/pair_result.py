"""What `load(name)(moving, fixed)` returns: a result that can be measured, drawn and saved.

`register` measures and writes by the same functions.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ldm_morph_jax.files.arrays import image_planes
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.images import Image
from ldm_morph_jax.files.writing import staged
from ldm_morph_jax.registering.measures import measure, notes
from ldm_morph_jax.registering.outputs import (
    ALL_OF_PAIR,
    METRICS,
    drawn,
    software,
    write_images,
    write_record,
)
from ldm_morph_jax.registering.result import Guidance, Registration
from ldm_morph_jax.registering.verdict import judge
from ldm_morph_jax.runs.trained import TrainedMethod

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Masks = tuple[Image | None, Image | None]
"""Labels of the moving and of the fixed image."""


@dataclass(frozen=True, repr=False)
class Result:
    """A registered pair, or a batch of pairs; arrays are `[H, W]` or `[B, H, W]` as given.

    Displacements are in pixels, components (row, column), pull-back:
    warped[x] = moving[x + displacement[x]]. Of volumes, arrays are `[S, H, W]` and components
    (slice, row, column).

    registrations: the pairs, with their geometry.
    batched: whether there is an axis B.
    masks: of every pair.
    method: what registered them.
    model: what that was loaded as.
    steps: of refinement.
    anatomy_asked: whether a network was asked to guide the search.
    """

    registrations: tuple[Registration, ...]
    batched: bool
    masks: tuple[Masks, ...]
    method: TrainedMethod
    model: str
    steps: int
    anatomy_asked: bool = False

    def __repr__(self) -> str:
        one = self.registrations[0]
        moving, fixed = (" x ".join(map(str, i.array.shape)) for i in (one.moving, one.fixed))
        count = f"{len(self.registrations)} pairs, " if self.batched else ""
        return (
            f"<Result: {count}{moving} pixels onto {fixed}, by {self.model!r} and "
            f"{self.steps} steps of refinement>"
        )

    @functools.cached_property
    def warped(self) -> np.ndarray:
        """Moving image on the fixed image's grid: `[H, W]` or `[B, H, W]` float32."""
        return self._stack(r.warped for r in self.registrations)

    @functools.cached_property
    def displacement(self) -> np.ndarray:
        """`[..., H, W, 2]` pixels; to positions in the moving *array*, also where sizes differ."""
        return self._stack(r.transform.displacement for r in self.registrations)

    @functools.cached_property
    def jacobian_determinant(self) -> np.ndarray:
        """`[..., H, W]`; area in the moving per area in the fixed image, below zero it folds."""
        return self._stack(r.transform.jacobian_determinant() for r in self.registrations)

    @functools.cached_property
    def inverse(self) -> np.ndarray:
        """`[..., H, W, 2]` pixels on the moving image's grid: carries the fixed image there.

        Warns where some pixels have no inverse: `inverse_residual` shows which.
        """
        missing = sum(r.inverse.missing for r in self.registrations)
        if missing:
            warnings.warn(
                f"{missing} pixels of the moving image have no inverse; see inverse_residual",
                stacklevel=3,
            )
        return self._stack(r.inverse.transform.displacement for r in self.registrations)

    @functools.cached_property
    def inverse_residual(self) -> np.ndarray:
        """`[..., H, W]` mm: how far the transform after its inverse lands from where it began."""
        return self._stack(r.inverse.residual_mm for r in self.registrations)

    def warp(
        self, array: ArrayLike, interpolation: str = "linear", *, inverse: bool = False
    ) -> np.ndarray:
        """Carry anything on the moving image's grid to the fixed one (labels: "nearest").

        With `inverse`, from the fixed image's grid to the moving one.
        """
        transforms = [r.inverse.transform if inverse else r.transform for r in self.registrations]
        if self.registrations[0].fixed.array.ndim == 3:
            return transforms[0].warp(np.asarray(array), interpolation)
        arrays, batched = image_planes(array, "array")
        if (batched, len(arrays)) != (self.batched, len(self.registrations)):
            expected = f"{len(self.registrations)} images" if self.batched else "one image"
            raise ImageError(f"array: found shape {np.shape(array)}, expected {expected}")
        return self._stack(
            transform.warp(image, interpolation)
            for transform, image in zip(transforms, arrays, strict=True)
        )

    @property
    def pairs(self) -> "tuple[Result, ...]":
        """The result of each pair."""
        return tuple(
            replace(self, registrations=(registration,), batched=False, masks=(masks,))
            for registration, masks in zip(self.registrations, self.masks, strict=True)
        )

    @functools.cached_property
    def metrics(self) -> Any:
        """What metrics.json holds (docs/registering.md); of a batch, a list.

        With masks of both images, "dice" has the DSC of every label, before and after.
        """
        found = [pair.measured() for pair in self.pairs]
        return found if self.batched else found[0]

    def measured(self, *, inverse: bool = False) -> dict[str, Any]:
        """`metrics` of a single pair; with `inverse` those of the inverse transform, too."""
        [registration], [masks] = self.registrations, self.masks
        metrics = {
            "model": self.model,
            "method": self.method.name,
            **measure(registration, *_arrays(masks), steps=self.steps, inverse=inverse),
            "notes": notes(registration, self.method),
        }
        guides = [motion.anatomy for motion in registration.motions if motion.anatomy is not None]
        if guides:
            metrics["anatomy"] = _guidance(guides)
            if self.anatomy_asked:
                metrics["notes"] += _unguided(guides)
        known = self.method.card.get("training_images")
        return metrics | {"verdict": judge(registration, metrics, known)}

    @property
    def verdict(self) -> Any:
        """Whether to believe it; of a batch, a list.

        "level": "plausible", "uncertain" or "implausible"; "sentence": it in words;
        "distance_from_training": of the images, see `ops.appearance`, or None.
        """
        if self.batched:
            return [metrics["verdict"] for metrics in self.metrics]
        return self.metrics["verdict"]

    def plot(self) -> "Figure":
        """The figure of overview.png; of a batch, a row for each of at most eight pairs."""
        from ldm_morph_jax.report.registered import overview

        pairs = zip(self.registrations, self.masks, strict=True)
        pictures = [drawn(r, *_arrays(masks)) for r, masks in pairs]
        if self.batched:
            return overview({f"pair {k}": slices[0] for k, (slices, _) in enumerate(pictures)}, "")
        [(_, rows)] = pictures
        return overview(rows, self.verdict["level"])

    def save(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        inverse: bool = False,
        report: bool = True,
    ) -> None:
        """Write the files that `ldm-morph register` writes; all of a pair or none.

        Args:
            folder: made where it is missing; of a batch, the pairs' are 0001, 0002, ... in it.
            overwrite: replace earlier results.
            inverse: write the inverse transform, too.
            report: draw overview.png and report.html.

        Raises:
            ImageError: there are results, and not to be overwritten; the folder is not writable.
        """
        folder = Path(folder)
        if self.batched:
            for number, pair in enumerate(self.pairs, start=1):
                pair.save(
                    folder / f"{number:04d}", overwrite=overwrite, inverse=inverse, report=report
                )
            return
        with staged(folder, ALL_OF_PAIR, overwrite, last=METRICS) as stage:
            metrics = self.measured(inverse=inverse)
            metrics |= {"report": report, "software": software(self.method.weights_sha256)}
            self.write(stage, metrics, inverse=inverse)()
            write_record(stage, METRICS, metrics)

    def write(
        self, folder: Path, metrics: dict, *, inverse: bool, draw: Callable | None = None
    ) -> Callable[[], None]:
        """Images and transforms of a pair and, if metrics["report"] says so, the pages.

        They are drawn by `draw`, perhaps in another process, in place of
        `report.registered.write_pages`. Returns what waits until they are there. metrics.json is
        left to the caller: it says that the others are complete.
        """
        [registration], [masks] = self.registrations, self.masks
        wait = None
        if metrics["report"]:
            if draw is None:
                from ldm_morph_jax.report.registered import write_pages

                draw = write_pages
            wait = draw(folder, *drawn(registration, *_arrays(masks)), metrics)
        write_images(folder, registration, masks[0], inverse=inverse)
        return wait or (lambda: None)

    def _stack(self, arrays: Iterable[np.ndarray]) -> np.ndarray:
        arrays = list(arrays)
        return np.stack(arrays) if self.batched else arrays[0]


def _arrays(masks: Masks) -> tuple[np.ndarray | None, np.ndarray | None]:
    moving, fixed = (None if mask is None else mask.array for mask in masks)
    return moving, fixed


def _guidance(guides: Sequence[Guidance]) -> dict[str, Any]:
    """What guided the search of each slice."""
    return {
        "network": guides[0].network,
        "used": [bool(one.used) for one in guides],
        "confidence": [[round(value, 3) for value in one.confidence] for one in guides],
    }


def _unguided(guides: Sequence[Guidance]) -> list[str]:
    """What to note of slices in which the network is unsure."""
    left_out = sum(not one.used for one in guides)
    if not left_out:
        return []
    where = "these images" if len(guides) == 1 else f"{left_out} slices"
    return [
        f"the anatomy network {guides[0].network!r} is unsure of the heart in {where}: the search "
        "was not guided there"
    ]
