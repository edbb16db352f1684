"""Register images in Python: `load(name)(moving, fixed)`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm_morph_jax.devices.batches import fill_up
from ldm_morph_jax.files.images import Image, ImageError, images_from_array
from ldm_morph_jax.registering.grid import Prepared, prepare, to_transform
from ldm_morph_jax.registering.method import Method
from ldm_morph_jax.registering.prediction import Prediction, join, predict
from ldm_morph_jax.registering.result import Registration, Result
from ldm_morph_jax.runs.weights import DEFAULT_MODEL


def load(name_or_path: str | Path = DEFAULT_MODEL) -> "Registrar":
    """A registrar of shipped weights or an iterative method by name, a run or weights file by path.

    Raises:
        WeightsError: unknown name; file missing, damaged or tampered with.
        ValueError: a directory that is no finished run.
    """
    from ldm_morph_jax.runs.trained import load_method

    method = load_method(name_or_path)
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
        refine: int = 0,
        diffeomorphic: bool = False,
    ) -> Result:
        """Register arrays.

        Args:
            moving, fixed: NumPy or JAX arrays of grey values of any range: `[H, W]`, `[H, W, 1]`,
                `[H, W, 3]` of equal channels, or `[B, H, W]` with the same B. Sizes may differ;
                centres are then put on each other.
            spacing: mm, one number or (row, column); None where unknown.
            moving_spacing: of the moving image where it differs.
            centre: (row, column) of the fixed image that the model grid is centred on; by default
                the image's centre.
            refine: steps of instance optimisation.
            diffeomorphic: see `prediction.predict`.

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
        refine: int = 0,
        diffeomorphic: bool = False,
    ) -> list[Registration]:
        """Register (moving, fixed) `Image`s; a stack is registered slice by slice."""
        if refine < 0:
            raise ValueError(f"refine: found {refine}, expected 0 or more steps")
        prepared = [
            prepare(self.method, moving, fixed, align=align, centre=centre)
            for moving, fixed in pairs
        ]
        predictions = self._predict(prepared, refine=refine, diffeomorphic=diffeomorphic)
        integrated = diffeomorphic or self.method.predicts_velocity
        return [
            Registration(
                to_transform(one, found.displacement, moving.geometry, fixed.geometry),
                moving,
                fixed,
                one,
                found,
                integrated,
            )
            for (moving, fixed), one, found in zip(pairs, prepared, predictions, strict=True)
        ]

    def _predict(self, prepared: list[Prepared], **options) -> list[Prediction]:
        """One prediction for every pair; all slices on grids of one size go through together."""
        found: dict[int, Prediction] = {}
        for size in dict.fromkeys(one.grid.size for one in prepared):
            members = {k: one for k, one in enumerate(prepared) if one.grid.size == size}
            stacks = [
                np.concatenate([getattr(one, name) for one in members.values()])
                for name in ("moving", "fixed")
            ]
            parts, first = [], 0
            while left := len(stacks[0]) - first:
                # an iterative method would spend on filling up what nobody reads
                batch = 1 if self.method.image_size is None else _batch_size(left)
                used = min(batch, left)
                filled, _ = fill_up([stack[first : first + used] for stack in stacks], batch)
                parts.append(predict(self.method, *filled, **options)[:used])
                first += used
            whole, first = join(parts), 0
            for k, one in members.items():
                found[k] = whole[first : first + len(one.shift)]
                first += len(one.shift)
        return [found[k] for k in range(len(prepared))]


def _batch_size(left: int) -> int:
    """How many pairs a network takes at once while `left` are left.

    Every size is a program to compile, the largest bounds the memory. Two or three pairs are filled
    up to four.
    """
    return 16 if left >= 16 else min(left, 2) ** 2
