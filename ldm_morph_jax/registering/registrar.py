"""Register images in Python: `load(name)(moving, fixed)`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_morph_jax.files.images import Image, ImageError, images_from_array
from ldm_morph_jax.registering.grid import prepare
from ldm_morph_jax.registering.method import Method
from ldm_morph_jax.registering.prediction import find, is_velocity
from ldm_morph_jax.registering.result import Registration, Result
from ldm_morph_jax.registering.search import STEPS
from ldm_morph_jax.runs.weights import DEFAULT_MODEL

if TYPE_CHECKING:
    from ldm_morph_jax.registering.cine.tracked import Tracked


def load(name_or_path: str | Path = DEFAULT_MODEL, *, calls: str = "often") -> "Registrar":
    """A registrar of shipped weights or an iterative method by name, a run or weights file by path.

    Args:
        name_or_path: what to load.
        calls: "often"; "once" starts sooner and registers more slowly.

    Raises:
        WeightsError: unknown name; file missing, damaged or tampered with.
        ValueError: a directory that is no finished run.
    """
    from ldm_morph_jax.runs.trained import load_method

    method = load_method(name_or_path, calls=calls)
    return Registrar(method, method.card)


class Registrar:
    """A method that registers images of any size. Made by `load`; can be pickled.

    method: see `Method`.
    card: the model card that came with the weights, {} without.
    """

    def __init__(self, method: Method, card: Mapping[str, Any] | None = None):
        self.method = method
        self.card = dict(card or {})

    def __call__(
        self,
        moving,
        fixed,
        *,
        spacing=None,
        moving_spacing=None,
        centre: tuple[float, float] | None = None,
        refine: int | None = None,
        diffeomorphic: bool = False,
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
                default `velocity.STEPS` for a network, none for an iterative method.
            diffeomorphic: see `prediction.is_velocity`.

        Raises:
            ImageError: NaN, constant images, shapes or spacing that cannot be used.
        """
        if moving_spacing is None:
            moving_spacing = spacing
        moving, batched = images_from_array(moving, moving_spacing, source="moving")
        fixed, also_batched = images_from_array(fixed, spacing, source="fixed")
        if (batched, len(moving)) != (also_batched, len(fixed)):
            found = [
                f"{len(images)} images" if many else "one image"
                for images, many in ((moving, batched), (fixed, also_batched))
            ]
            raise ImageError(
                f"moving holds {found[0]}, fixed {found[1]}; expected [H, W] each, or [B, H, W] "
                "with the same B"
            )
        images = list(zip(moving, fixed, strict=True))
        options = {"refine": refine, "diffeomorphic": diffeomorphic}
        return Result(tuple(self.register_images(images, centre=centre, **options)), batched)

    def register_images(
        self,
        pairs: Sequence[tuple[Image, Image]],
        *,
        align: str = "auto",
        centre: tuple[float, float] | None = None,
        refine: int | None = None,
        diffeomorphic: bool = False,
    ) -> list[Registration]:
        """Register (moving, fixed) `Image`s; a stack is registered slice by slice."""
        steps = self.steps(refine)
        velocity = is_velocity(self.method, steps=steps, diffeomorphic=diffeomorphic)
        prepared = [
            prepare(self.method, moving, fixed, align=align, centre=centre)
            for moving, fixed in pairs
        ]
        found = iter(
            find(
                self.method,
                [one for slices in prepared for one in slices],
                steps=steps,
                diffeomorphic=diffeomorphic,
            )
        )
        return [
            Registration(moving, fixed, slices, [next(found) for _ in slices], velocity)
            for (moving, fixed), slices in zip(pairs, prepared, strict=True)
        ]

    def track(self, frames, *, spacing=None, times=None, **options) -> "Tracked":
        """Follow the tissue of one frame of a cine `[T, H, W]`.

        Args:
            frames, spacing, times: see `cine.tracked.cine_from_arrays`.
            options: reference, period, settings, progress of `cine.tracked.track_cine`.
        """
        from ldm_morph_jax.registering.cine.tracked import cine_from_arrays, track_cine

        cine = cine_from_arrays(frames, spacing=spacing, times=times)
        return track_cine(cine, self, **options)

    def steps(self, refine: int | None) -> int:
        """How many steps of refinement `refine` means for this method."""
        if refine is None:
            return 0 if self.method.image_size is None else STEPS
        if refine < 0:
            raise ValueError(f"refine: found {refine}, expected 0 or more steps")
        return refine
