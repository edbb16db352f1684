"""Dataset `phantom_cine`: whole beats of the phantom, whose motion and strain are known exactly.

Its pairs lead from end-diastole to end-systole, in one split, "test". `prepare` writes every beat
as files that other programs read, too; `evaluate --displacements` scores what they found
(docs/results/tracking):

    beats/sax-88-0/beat.json              view, seed, end-systole (a frame, counted from 0)
                   cine.nii.gz            all frames; frame 0 is end-diastole
                   masks.nii.gz           labels: 1 cavity, 2 wall, 3 right ventricle or atrium
                   ed.nii.gz, es.nii.gz   end-diastole and end-systole
                   mask.nii.gz            labels of end-diastole
                   displacement/frame_007.nii.gz   T(p) = p + d(p), mm, LPS, on end-diastole's grid:
                                          frame_7(T(p)) shows the tissue of ed(p)
                   strain_xx.nii.gz, strain_xy.nii.gz, strain_yy.nii.gz
                                          Green and Lagrange's strain of all frames at the pixels of
                                          end-diastole; x along the columns, y along the rows
"""

import dataclasses
from pathlib import Path

import numpy as np

from ldm_morph_jax.data import phantom
from ldm_morph_jax.data.base import DatasetBuilder, Entry, Found, Options, Pair
from ldm_morph_jax.data.phantom_cine import PhantomCine, phantom_cine
from ldm_morph_jax.files.geometry import Geometry, plain_geometry
from ldm_morph_jax.files.transforms import Transform, write_transform
from ldm_morph_jax.files.writing import atomic, json_text, write_image

BEATS = "beats"
VIEWS = {"sax": "sax", "echo": "apical"}  # of the phantom's looks, as `track --view` names them


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomCineOptions(Options):
    """Which beats."""

    look: str = "both"
    """sax (short-axis MRI), echo (apical echo), or both"""

    beats: int = 20
    """how many of each look"""

    seed: int = 88
    """first number of their seeds: (88, 0), (88, 1), ..."""

    first: int = 0
    """second number of the first seed"""

    frames: int = 30
    """of a beat; the last one is the next beat's first"""

    def __post_init__(self):
        super().__post_init__()
        if self.look not in (*phantom.LOOKS, "both"):
            raise ValueError(f"phantom_cine: look must be sax, echo or both, found {self.look!r}")
        least = {"beats": 1, "seed": 0, "first": 0, "frames": 3, "image_size": 32}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(
                    f"phantom_cine: {name} must be at least {value}, found {getattr(self, name)}"
                )


class PhantomCines(DatasetBuilder):
    """See ldm_morph_jax/data/phantom_cine.py; increase `version` when its images change."""

    name = "phantom_cine"
    Options = PhantomCineOptions
    spacing_note = f"field of view {phantom.FIELD_OF_VIEW_MM:g} mm, by definition"
    has_displacement = True
    labels = {
        phantom.LV: "left ventricle",
        phantom.MYOCARDIUM: "myocardium",
        phantom.THIRD: "right ventricle or left atrium",
    }
    description = "Whole beats of the 2D cardiac phantom with known motion and strain."

    @property
    def spacing(self) -> float:
        """mm"""
        return phantom.FIELD_OF_VIEW_MM / self.options.image_size

    def find(self) -> Found:
        options = self.options
        looks = phantom.LOOKS if options.look == "both" else (options.look,)
        numbers = range(options.first, options.first + options.beats)
        return Found(
            {
                "test": [
                    Entry(f"{look}-{options.seed}-{n}", view=look, detail=(options.seed, n))
                    for look in looks
                    for n in numbers
                ]
            }
        )

    def pair(self, entry: Entry) -> Pair:
        beat = self._beat(entry)
        es = beat.end_systole
        order, motion = [0, es], beat.inverse
        if self.options.reverse:
            order, motion = [es, 0], beat.displacement
        return Pair(
            *beat.frames[order],
            *beat.masks[order],
            spacing=(self.spacing, self.spacing),
            displacement=motion[es],
        )

    def write_files(self, folder: Path) -> None:
        """The files that the module's docstring lists."""
        (folder / BEATS).mkdir(exist_ok=True)
        for entry in self.found.pairs["test"]:
            if not (folder / BEATS / entry.id).exists():
                with atomic(folder / BEATS / entry.id) as part:
                    part.mkdir()
                    self._write_beat(part, entry)

    def _beat(self, entry: Entry) -> PhantomCine:
        size = {"image_size": self.options.image_size, "frames": self.options.frames}
        return phantom_cine(entry.detail, look=entry.view, **size)

    def _write_beat(self, folder: Path, entry: Entry) -> None:
        beat, spacing = self._beat(entry), (self.spacing, self.spacing)
        grid = plain_geometry(beat.frames.shape[1:], spacing)
        whole = Geometry(  # with one slice, as NIfTI has time on its fourth axis
            beat.frames[:, None].shape, (beat.times[1], 1.0, *spacing), np.zeros(4), np.eye(4)
        )
        deformation = beat.deformation.astype(np.float64)
        strain = (np.einsum("...ki,...kj->...ij", deformation, deformation) - np.eye(2)) / 2
        series = {"cine": beat.frames, "masks": beat.masks, "strain_xx": strain[..., 1, 1]}
        series |= {"strain_xy": strain[..., 0, 1], "strain_yy": strain[..., 0, 0]}
        for name, values in series.items():
            values = values.astype(np.float32) if values.dtype == np.float64 else values
            write_image(folder / f"{name}.nii.gz", values[:, None], whole)
        es = beat.end_systole
        for name, values in (("ed", beat.frames[0]), ("es", beat.frames[es])):
            write_image(folder / f"{name}.nii.gz", values, grid)
        write_image(folder / "mask.nii.gz", beat.masks[0], grid)
        (folder / "displacement").mkdir()
        for t, u in enumerate(beat.displacement):
            transform = Transform(grid.vectors_to_physical(u), grid)
            write_transform(folder / "displacement" / f"frame_{t:03}.nii.gz", transform)
        about = {"view": VIEWS[entry.view], "seed": list(entry.detail), "end_systole": es}
        (folder / "beat.json").write_text(json_text(about), encoding="utf-8")
