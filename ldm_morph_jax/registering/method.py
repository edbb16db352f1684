"""Register images in Python: `load(name)(moving, fixed)`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ldm_morph_jax.devices.forking import check_not_forked
from ldm_morph_jax.files.images import (
    Image,
    ImageError,
    Spacing,
    images_from_array,
    volume_from_array,
)
from ldm_morph_jax.registering.pairs import register_images
from ldm_morph_jax.registering.result import Registration, Result
from ldm_morph_jax.runs.anatomy import AnatomyModel
from ldm_morph_jax.runs.trained import TrainedMethod, load_method
from ldm_morph_jax.runs.weights import DEFAULT_MODEL

if TYPE_CHECKING:
    from ldm_morph_jax.registering.result import Tracked
    from ldm_morph_jax.registering.tracking import Tracking


def load(name_or_path: str | Path = DEFAULT_MODEL, *, calls: str = "often") -> "Registrar":
    """A registrar of shipped weights or an iterative method by name, a run or weights file by path.

    Args:
        name_or_path: the name of weights ("sunnybrook-symmetric", the default, "sunnybrook-small",
            "acdc-small", "camus-4ch-small"; docs/weights.md says what each was trained on); the
            name of an iterative method ("lddmm", "syn"); the path of a run directory of `train`
            ("runs/sb"; "./NAME" where the name is one of these) or of a `.safetensors` file with
            its `.sha256` beside it.
        calls: "often"; "once" starts sooner and registers more slowly.

    Raises:
        WeightsError: unknown name; file missing, damaged or tampered with.
        ValueError: a directory that is no finished run.
    """
    return load_method(name_or_path, calls=calls, kind=Registrar)


class Registrar(TrainedMethod):
    """A method with its weights that registers images of any size. Made by `load`; can be pickled.

    Its attributes are those of `runs.trained.TrainedMethod`, among them `name`, `card` and
    `iterative`.
    """

    def __call__(
        self,
        moving: ArrayLike,
        fixed: ArrayLike,
        *,
        spacing: Spacing | None = None,
        moving_spacing: Spacing | None = None,
        centre: tuple[float, float] | None = None,
        refine: int | None = None,
        volume: bool = False,
    ) -> Result:
        """Register arrays.

        Args:
            moving, fixed: NumPy or JAX arrays of grey values of any range, without an axis of
                channels: `[H, W]`, or `[B, H, W]` with the same B. Sizes may differ; centres are
                then put on each other.
            spacing: mm, one number or (row, column), of volumes (slice, row, column); None where
                unknown.
            moving_spacing: of the moving image where it differs.
            centre: (row, column) of the fixed image that the model grid is centred on; by default
                the image's centre.
            refine: steps of refinement on the whole image; 0: what the network alone predicts. By
                default `search.STEPS` for a network, none for an iterative method.
            volume: the arrays are one volume `[S, H, W]` each, registered in three dimensions, and
                not a batch of images; so are those that have a spacing of three numbers.

        Raises:
            ImageError: NaN, constant images, shapes or spacing that cannot be used.
        """
        if moving_spacing is None:
            moving_spacing = spacing
        if volume or any(np.size(s) == 3 for s in (spacing, moving_spacing) if s is not None):
            volumes = (
                volume_from_array(moving, moving_spacing, source="moving"),
                volume_from_array(fixed, spacing, source="fixed"),
            )
            return Result(tuple(self.register_images([volumes], refine=refine, volume=True)), False)
        movings, batched = images_from_array(moving, moving_spacing, source="moving")
        fixeds, also_batched = images_from_array(fixed, spacing, source="fixed")
        if (batched, len(movings)) != (also_batched, len(fixeds)):
            counts = [
                f"{len(images)} images" if many else "one image"
                for images, many in ((movings, batched), (fixeds, also_batched))
            ]
            raise ImageError(
                f"moving holds {counts[0]}, fixed {counts[1]}; expected [H, W] each, or [B, H, W] "
                "with the same B"
            )
        pairs = list(zip(movings, fixeds, strict=True))
        return Result(tuple(self.register_images(pairs, centre=centre, refine=refine)), batched)

    def register_images(
        self,
        pairs: Sequence[tuple[Image, Image]],
        *,
        align: str = "auto",
        centre: tuple[float, float] | None = None,
        refine: int | None = None,
        volume: bool = False,
        anatomy: AnatomyModel | None = None,
    ) -> list[Registration]:
        """Register (moving, fixed) `Image`s; see `pairs.register_images`."""
        check_not_forked()
        options = {"align": align, "centre": centre, "refine": refine, "volume": volume}
        return register_images(self, pairs, **options, anatomy=anatomy)

    def track(
        self,
        frames: ArrayLike,
        *,
        spacing: Spacing | None = None,
        times: Sequence[float] | np.ndarray | None = None,
        reference: int = 0,
        period: float | str | None = None,
        settings: "Tracking | None" = None,
        progress: Callable[[float], None] = lambda share: None,
    ) -> "Tracked":
        """Follow the tissue of one frame of a cine.

        Args:
            frames: `[T, H, W]`, NumPy or JAX, grey values of any range.
            spacing: mm, one number or (row, column); None where unknown.
            times: `[T]` seconds, increasing; None where unknown.
            reference: the frame whose tissue is followed, usually end-diastole.
            period: of the beat, in seconds (frames, where times are unknown); "whole": the last
                frame shows what the first one does; None: the motion need not repeat.
            settings: see `tracking.Tracking`.
            progress: called with the share that is done.

        Raises:
            ImageError: frames, times or spacing that cannot be used; no such frame; a period
                shorter than the cine.
        """
        from ldm_morph_jax.files.movies import cine_from_arrays
        from ldm_morph_jax.registering.tracking import track_cine

        check_not_forked()
        return track_cine(
            cine_from_arrays(frames, spacing=spacing, times=times),
            self,
            reference=reference,
            period=period,
            settings=settings,
            progress=progress,
        )
