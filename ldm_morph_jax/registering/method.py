"""Register images in Python: `load(name)(moving, fixed)`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm_morph_jax.devices.forking import check_not_forked
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.images import VOLUME, Image, Spacing, images_of, masks_of
from ldm_morph_jax.names import unknown
from ldm_morph_jax.registering.affine import NONE
from ldm_morph_jax.registering.options import parse_slice
from ldm_morph_jax.registering.pair_result import Result
from ldm_morph_jax.registering.pairs import AUTO, refinement_steps, register_images
from ldm_morph_jax.registering.result import Registration
from ldm_morph_jax.runs.anatomy import anatomy_network
from ldm_morph_jax.runs.trained import TrainedMethod, load_method
from ldm_morph_jax.runs.weights import DEFAULT_ANATOMY, DEFAULT_MODEL

if TYPE_CHECKING:
    from ldm_morph_jax.registering.heart_result import TrackedHeart
    from ldm_morph_jax.registering.tracking import Tracking


def load(name_or_path: str | Path | None = None, *, calls: str = "often") -> "Registrar":
    """A registrar of shipped weights or an iterative method by name, a run or weights file by path.

    Args:
        name_or_path: the name of weights ("sunnybrook-symmetric", "sunnybrook-small",
            "acdc-small", "camus-4ch-small"; docs/weights.md says what each was trained on); the
            name of an iterative method ("lddmm", "syn"); the path of a run directory of `train`
            ("runs/sb"; "./NAME" where the name is one of these) or of a `.safetensors` file with
            its `.sha256` beside it. None, as the commands have it without `--model`: pairs are
            registered by `DEFAULT_MODEL`, cines tracked as `heart_result.track_heart` says.
        calls: "often"; "once" starts sooner and registers more slowly.

    Raises:
        WeightsError: unknown name; file missing, damaged or tampered with.
        ValueError: a directory that is no finished run; other `calls`.
    """
    if calls not in (known := ("often", "once")):
        raise ValueError(unknown("calls", calls, known))
    name = DEFAULT_MODEL if name_or_path is None else str(name_or_path)
    registrar = load_method(name, calls=calls, kind=Registrar)
    registrar.loaded_as, registrar.by_default = name, name_or_path is None
    return registrar


class Registrar(TrainedMethod):
    """A method with its weights that registers images of any size. Made by `load`; can be pickled.

    Its attributes are those of `runs.trained.TrainedMethod`, among them `name`, `card` and
    `iterative`, and

    loaded_as: what `load` was given; None where it was not made by `load`.
    by_default: whether `load` was given nothing; cines are then tracked as without `--model`.
    """

    loaded_as: str | None = None
    by_default: bool = False

    @property
    def model(self) -> str:
        """What it was loaded as, or the method's name."""
        return self.loaded_as or self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return (*super().__reduce__(), {"loaded_as": self.loaded_as, "by_default": self.by_default})

    def __call__(
        self,
        moving: Any,
        fixed: Any,
        *,
        moving_mask: Any = None,
        fixed_mask: Any = None,
        spacing: Spacing | None = None,
        moving_spacing: Spacing | None = None,
        slice: int | str | Sequence[int] | None = None,
        frame: int | tuple[int, int] | None = None,
        oblique: bool = False,
        align: str = "auto",
        centre: tuple[float, float] | None = None,
        refine: int | None = None,
        anatomy: str | Path = AUTO,
        affine: str = "none",
        volume: bool = False,
    ) -> Result:
        """Register two images, with the defaults of `ldm-morph register`.

        Args:
            moving, fixed: paths of files or DICOM folders, SimpleITK images, `Image`s, or NumPy or
                JAX arrays of grey values of any range, without an axis of channels: `[H, W]`, or
                `[B, H, W]` with the same B. Sizes may differ. Stacks of slices that are not arrays
                are volumes, see `slice`.
            moving_mask, fixed_mask: their labels, of any of these kinds, for `Result.metrics`.
            spacing: mm, one number or (row, column), of volumes (slice, row, column); None where
                unknown. Only of what has no spacing of its own.
            moving_spacing: of the moving image where it differs.
            slice: of a volume, which slice (from 0); several of them, evenly spaced, or "all":
                slice by slice; "volume", the default: in three dimensions.
            frame: of files with several in time, which one (from 0); two numbers: of the moving and
                of the fixed file.
            oblique: accept a single slice that is tilted against the x-y plane.
            align: how the images lie on each other before registration: "world", as their files
                say; "centre", centre on centre; "auto": world where both tell their position.
            centre: (row, column) of the fixed image that the model grid is centred on; by default
                the image's centre.
            refine: steps of refinement on the whole image; 0: what the network alone predicts. By
                default `search.STEPS` for a network, none for an iterative method.
            anatomy: a network that finds the heart in both images and guides the search by it:
                name, run or file. "auto": `anatomy`, in volumes of thick slices; "none": not.
            affine: what is found before anything deforms, of volumes in three dimensions: "rigid"
                (shift and rotation), "affine" (also scales and shear) or "none". It is in the
                displacement.
            volume: the arrays are one volume `[S, H, W]` each, registered in three dimensions, and
                not a batch of images; so are those that have a spacing of three numbers.

        Raises:
            ImageError: NaN, constant images, shapes or spacing that cannot be used; files that
                cannot be read; images that do not fit together.
            ValueError: options that cannot be used: steps of an iterative method, anatomy without
                a search, an unknown `affine`.
        """
        check_not_forked()
        if moving_spacing is None:
            moving_spacing = spacing
        volume |= any(np.size(s) == 3 for s in (spacing, moving_spacing) if s is not None)
        frames = tuple(frame) if isinstance(frame, tuple | list) else (frame, frame)
        if len(frames) != 2:
            raise ImageError(f"`frame` is {frame}, expected one number or two")
        of_moving, of_fixed = frames
        slice = parse_slice(slice) if isinstance(slice, str) else slice
        which = VOLUME if slice is None else slice
        read = partial(images_of, slice=which, oblique=oblique, volume=volume)
        movings, batched = read(moving, moving_spacing, source="moving", frame=of_moving)
        fixeds, also_batched = read(fixed, spacing, source="fixed", frame=of_fixed)
        if (batched, len(movings)) != (also_batched, len(fixeds)):
            counts = [
                f"{len(images)} images" if many else "one image"
                for images, many in ((movings, batched), (fixeds, also_batched))
            ]
            raise ImageError(
                f"moving holds {counts[0]}, fixed {counts[1]}; expected [H, W] each, or [B, H, W] "
                "with the same B"
            )
        masks = [
            [None] * len(images)
            if mask is None
            else masks_of(mask, images, source=f"{name}_mask", slice=which, frame=k)
            for name, mask, images, k in (
                ("moving", moving_mask, movings, of_moving),
                ("fixed", fixed_mask, fixeds, of_fixed),
            )
        ]
        steps = refinement_steps(self, refine)
        registrations = self.register_images(
            list(zip(movings, fixeds, strict=True)),
            align=align,
            centre=centre,
            refine=steps,
            volume=volume or which == VOLUME,
            anatomy=anatomy,
            affine=affine,
        )
        return Result(
            tuple(registrations),
            batched,
            tuple(zip(*masks, strict=True)),
            self,
            self.model,
            steps,
            anatomy not in (AUTO, NONE),
        )

    def __repr__(self) -> str:
        grid = "images of any size"
        if self.image_size is not None:
            pixels = "" if self.spacing_mm is None else f" of {self.spacing_mm:g} mm"
            planes = f"{self.depth} x " if self.depth else ""
            grid = f"{planes}{self.image_size} x {self.image_size} pixels{pixels}"
        return f"<{type(self).__name__} {self.model!r}: {self.name} on {grid}>"

    def register_images(
        self, pairs: Sequence[tuple[Image, Image]], **options: Any
    ) -> list[Registration]:
        """Register (moving, fixed) `Image`s; options as of `pairs.register_images`."""
        check_not_forked()
        return register_images(self, pairs, **options)

    def track(
        self,
        cine: Any,
        *,
        mask: Any = None,
        contours: Any = None,
        landmarks: Any = None,
        anatomy: str | Path | None = None,
        labels: tuple[int, int] | None = None,
        view: str | None = None,
        septum: tuple[float, float] | None = None,
        levels: str | None = None,
        reference: int | None = None,
        period: float | str | None = None,
        spacing: Spacing | None = None,
        times: Sequence[float] | np.ndarray | None = None,
        fps: float | None = None,
        valves: Mapping[str, float] | None = None,
        slice: int | str | None = None,
        oblique: bool = False,
        settings: "Tracking | None" = None,
        progress: Callable[[float], None] = lambda share: None,
    ) -> "TrackedHeart":
        """Follow the tissue of one frame of a cine, with the defaults of `ldm-morph track`.

        With a mask or contours the result has areas, volumes and strain.

        Args:
            cine: the path of a file, video or folder, a `Cine`, or an array `[T, H, W]`, or `[T, S,
                H, W]` of volumes, NumPy or JAX, grey values of any range.
            mask: labels of the reference frame: a path, an `Image`, a SimpleITK image, or an array
                `[H, W]`, of all frames `[T, H, W]`; "auto": the anatomy network finds the heart.
            contours: in its place, the path of a CSV, or {"endo": `[N, 2]`, "epi": ...}, (row,
                column).
            landmarks: points to carry along: the path of a CSV, or {name: (row, column)}.
            anatomy: the network that finds the heart, in place of a mask: name, run or file.
            labels: (cavity, wall) of the mask; by default the wall is 2, the cavity what it
                encloses.
            view: "sax" (short-axis: radial, circumferential strain) or "apical" (longitudinal,
                volume); by default what the mask's wall or the anatomy network shows, else "sax".
            septum: (row, column) in the direction of the middle of the septum, for sectors; by
                default the mask's right ventricle.
            levels: the level of a short-axis slice: "b" (basal), "m" (middle), "a" (apical), "c"
                (cap); of volumes a letter for each slice.
            reference: the frame whose tissue is followed, usually end-diastole; by default 0, or
                end-diastole as the network finds it.
            period: of the beat, in seconds (frames, where times are unknown); "whole": the last
                frame shows what the first one does; None: the motion need not repeat.
            spacing: mm, one number or (row, column), of arrays of volumes (slice, row, column),
                where the cine does not tell it.
            times: `[T]` seconds, increasing, where the cine does not tell them.
            fps: frames per second, in their place.
            valves: when they open and close, ms from the reference frame, as {"AVC": 350}: "MVC",
                "AVO", "AVC", "MVO". Strain at end-systole and what comes after it are those of AVC.
            slice: of a file of several, which one (from 0); "volume", the default for stacks of
                `FEWEST_SLICES` or more: tissue is followed through the slices.
            oblique: accept a slice that is tilted against the x-y plane.
            settings: see `tracking.Tracking`.
            progress: called with the share that is done.

        Raises:
            FileError: files, frames, times, spacing, mask or points that cannot be used; no such
                frame; a period shorter than the cine.
            ValueError: options of `settings` or valves that cannot be used.
        """
        from ldm_morph_jax.files.movies import cine_of
        from ldm_morph_jax.registering.finding import known_or_found
        from ldm_morph_jax.registering.heart_result import track_heart

        check_not_forked()
        frames = cine_of(cine, slice, times=times, fps=fps, spacing=spacing, oblique=oblique)
        if frames.frames.ndim == 4:
            if slice not in (None, VOLUME):
                raise ImageError(
                    f"{frames.first.source}: has {frames.frames.shape[1]} slices, expected one at "
                    "a time, or `slice` volume"
                )
            slice = VOLUME
        if isinstance(mask, str) and mask == "auto":
            mask, anatomy = None, anatomy or DEFAULT_ANATOMY
        if anatomy is not None and not (mask is contours is None):
            raise ImageError("`anatomy` finds the heart, expected no mask and no contours with it")
        known = known_or_found(
            frames,
            None if anatomy is None else anatomy_network(anatomy),
            reference=reference,
            view=view,
            mask=mask,
            contours=contours,
            landmarks=landmarks,
            labels=labels,
            septum=septum,
            levels=levels,
            slice=slice,
        )
        return track_heart(
            known,
            None if self.by_default else self,
            period=period,
            settings=settings,
            progress=progress,
            model=None if self.by_default else self.model,
            slice=slice,
            valves=valves,
        )
