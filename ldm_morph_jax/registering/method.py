"""Register images in Python: `load(name)(moving, fixed)`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm_morph_jax.files.images import Image, ImageError, images_from_array
from ldm_morph_jax.registering.pairs import register_images
from ldm_morph_jax.registering.result import Registration, Result
from ldm_morph_jax.runs.trained import TrainedMethod, load_method
from ldm_morph_jax.runs.weights import DEFAULT_MODEL

if TYPE_CHECKING:
    from ldm_morph_jax.registering.result import Tracked


def load(name_or_path: str | Path = DEFAULT_MODEL, *, calls: str = "often") -> "Registrar":
    """A registrar of shipped weights or an iterative method by name, a run or weights file by path.

    Args:
        name_or_path: what to load.
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
        moving,
        fixed,
        *,
        spacing=None,
        moving_spacing=None,
        centre: tuple[float, float] | None = None,
        refine: int | None = None,
    ) -> Result:
        """Register arrays.

        Args:
            moving, fixed: NumPy or JAX arrays of grey values of any range, without an axis of
                channels: `[H, W]`, or `[B, H, W]` with the same B. Sizes may differ; centres are
                then put on each other.
            spacing: mm, one number or (row, column); None where unknown.
            moving_spacing: of the moving image where it differs.
            centre: (row, column) of the fixed image that the model grid is centred on; by default
                the image's centre.
            refine: steps of refinement on the whole image; 0: what the network alone predicts. By
                default `search.STEPS` for a network, none for an iterative method.

        Raises:
            ImageError: NaN, constant images, shapes or spacing that cannot be used.
        """
        if moving_spacing is None:
            moving_spacing = spacing
        moving, batched = images_from_array(moving, moving_spacing, source="moving")
        fixed, also_batched = images_from_array(fixed, spacing, source="fixed")
        if (batched, len(moving)) != (also_batched, len(fixed)):
            counts = [
                f"{len(images)} images" if many else "one image"
                for images, many in ((moving, batched), (fixed, also_batched))
            ]
            raise ImageError(
                f"moving holds {counts[0]}, fixed {counts[1]}; expected [H, W] each, or [B, H, W] "
                "with the same B"
            )
        pairs = list(zip(moving, fixed, strict=True))
        return Result(tuple(self.register_images(pairs, centre=centre, refine=refine)), batched)

    def register_images(
        self, pairs: Sequence[tuple[Image, Image]], **options
    ) -> list[Registration]:
        """Register (moving, fixed) `Image`s; see `pairs.register_images`."""
        return register_images(self, pairs, **options)

    def track(self, frames, *, spacing=None, times=None, **options) -> "Tracked":
        """Follow the tissue of one frame of a cine `[T, H, W]`.

        Args:
            frames, spacing, times: see `files.movies.cine_from_arrays`.
            options: reference, period, settings, progress of `tracking.track_cine`.
        """
        from ldm_morph_jax.files.movies import cine_from_arrays
        from ldm_morph_jax.registering.tracking import track_cine

        return track_cine(cine_from_arrays(frames, spacing=spacing, times=times), self, **options)
