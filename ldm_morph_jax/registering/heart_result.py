"""What `load().track(cine)` returns: a tracked heart that can be measured, drawn and saved.

`track` measures and writes by the same functions.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.movies import note_on_period
from ldm_morph_jax.files.writing import staged
from ldm_morph_jax.ops.beat import check_valves
from ldm_morph_jax.registering.anatomy import Anatomy
from ldm_morph_jax.registering.grid import has_thick_slices
from ldm_morph_jax.registering.heart import Curve, Measures, end_of_systole, measure, summary
from ldm_morph_jax.registering.intervals import with_intervals
from ldm_morph_jax.registering.outputs import (
    ALL_OF_CINE,
    SUMMARY,
    cine_figures,
    draw_cine_pages,
    software,
    write_frames,
    write_record,
    write_tables,
)
from ldm_morph_jax.registering.result import Tracked
from ldm_morph_jax.registering.segments import WALL, Segments
from ldm_morph_jax.registering.tracking import Tracking, track_cine
from ldm_morph_jax.registering.verdict import judge_heart
from ldm_morph_jax.runs.trained import TrainedMethod, load_method
from ldm_morph_jax.runs.weights import DEFAULT_MODEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ldm_morph_jax.registering.finding import Findings, Known


@dataclass(frozen=True, repr=False)
class TrackedHeart(Tracked):
    """A tracked cine, and what is known of the heart in its reference frame.

    anatomy: masks, contours and landmarks of the reference frame.
    findings: of the network that found the heart; None where it was told.
    model: what registered, as `load` was given it; None for the search from no motion.
    slice: of a stack, the one that was tracked; "volume" of volumes.
    weights_sha256: of the network; None for the search from no motion.
    valves: times of `beat.VALVES` in ms from the reference frame, as they were told.
    """

    anatomy: Anatomy
    findings: "Findings | None" = None
    model: str | None = None
    slice: int | str | None = None
    weights_sha256: str | None = None
    valves: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        frames, *shape = self.cine.frames.shape
        parts = ("cavity", self.anatomy.has_cavity), ("wall", self.anatomy.has_wall)
        known = " and ".join(name for name, there in parts if there) or "no anatomy"
        return (
            f"<TrackedHeart: {frames} frames of {' x '.join(map(str, shape))} pixels, reference "
            f"{self.reference}, by {self.method!r}; {self.anatomy.view}, {known} known>"
        )

    @functools.cached_property
    def measures(self) -> Measures:
        """All that the anatomy allows to measure."""
        return measure(self, self.anatomy)

    @property
    def curves(self) -> dict[str, Curve]:
        """Column of curves.csv, such as "circumferential_strain" -> curve.

        A curve has `values` `[T]`, `quantity`, `unit`, `region` and, of strain, `direction`.
        """
        return {curve.column: curve for curve in self.measures.curves}

    @functools.cached_property
    def segments(self) -> Segments | None:
        """The segments of the wall; None where it is not measured."""
        measures = self.measures
        if measures.end_systole is None or not measures.pixels:
            return None
        times = self.times - self.times[self.reference]
        ends = end_of_systole(times, measures.end_systole, self.valves)
        strains = {
            (curve.direction, curve.region): curve.values
            for curve in measures.curves
            if curve.quantity == "strain" and (curve.region == WALL or curve.of_sector)
        }
        return Segments(strains, measures.pixels, times, ends)

    @property
    def segment_rows(self) -> list[dict]:
        """Those of segments.csv; none where nothing is measured."""
        return [] if self.segments is None else self.segments.rows(self.summary["strain"])

    @property
    def notes(self) -> list[str]:
        """What is doubtful, was assumed or could not be measured."""
        of_period: tuple[str, ...] = ()
        if self.period is not None and self.cine.times is not None and not self.whole_beat:
            of_period = note_on_period(self.period)
        found = () if self.findings is None else self.findings.notes
        of_view = self.anatomy.notes
        return [*self.cine.first.notes, *of_period, *of_view, *self.measures.notes, *found]

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """What summary.json holds (docs/tracking.md)."""
        first, curves = self.cine.first, self.measures.table
        numbers = summary(self, self.anatomy, self.measures, self.valves)
        told = self.findings is None
        numbers = with_intervals(numbers, self, self.anatomy, self.measures.curves, told=told)
        numbers["curves"] = {name: values.tolist() for name, values in curves.items()}
        spacing = list(self.spacing) if first.spacing_known else None
        pixel = None if spacing is None else float(np.prod(spacing))
        return {
            "cine": {
                "file": first.source,
                "slice": self.slice,
                "shape": list(self.cine.frames.shape),
                "spacing_mm": spacing,
                "axes": first.axis_letters,
                "times": list(map(float, self.times)),
                "times_known": self.cine.times is not None,
            },
            "method": self.method,
            "model": self.model,
            "view": self.anatomy.view,
            "view_by": self.anatomy.view_by,
            "period": self.period,
            **numbers,
            "verdict": judge_heart(numbers),
            "timing": {} if self.segments is None else self.segments.timing(),
            "found": None if self.findings is None else self.findings.summary(pixel),
            "notes": self.notes,
        }

    @property
    def verdict(self) -> dict[str, str] | None:
        """Whether to believe it: "level" and "sentence"; None where nothing was measured."""
        return self.summary["verdict"]

    def plot(self) -> "Figure":
        """The figure of curves.png. Raises ValueError where nothing was measured."""
        figures = cine_figures(self, self.summary)
        if not figures:
            raise ValueError(f"nothing to plot: {'; '.join(self.measures.notes)}")
        return figures[0]

    def save(self, folder: str | Path, *, overwrite: bool = False, report: bool = True) -> None:
        """Write the files that `ldm-morph track` writes; all of them or none.

        Args:
            folder: made where it is missing.
            overwrite: replace earlier results.
            report: draw curves.png, beat.gif and report.html.

        Raises:
            ImageError: there are results, and not to be overwritten; the folder is not writable.
        """
        with staged(Path(folder), ALL_OF_CINE, overwrite, last=SUMMARY) as stage:
            content = self.summary | {"software": software(self.weights_sha256)}
            self.write(stage)
            if report:
                draw_cine_pages(stage, self, content)
            write_record(stage, SUMMARY, content)

    def write(self, folder: Path) -> None:
        """Transforms, frames, masks and tables."""
        write_frames(folder, self)
        write_tables(folder, self)


@functools.cache
def _default_method() -> TrainedMethod:
    """`DEFAULT_MODEL`, read and traced once for all cines of a batch."""
    return load_method(DEFAULT_MODEL)


def track_heart(
    known: "Known",
    method: TrainedMethod | None,
    *,
    period: float | str | None = None,
    settings: Tracking | None = None,
    progress: Callable[[float], None] = lambda share: None,
    model: str | None = None,
    slice: int | str | None = None,
    valves: Mapping[str, float] | None = None,
) -> TrackedHeart:
    """Track a cine of one slice or of volumes; arguments as of `tracking.track_cine` and
    `TrackedHeart`. Without a method the search in volumes of thick slices starts from
    `DEFAULT_MODEL`, all others from no motion. Raises ImageError where times of valves do not fit
    the cine, too."""
    cine, reference, anatomy, findings = known
    valves = dict(valves or {})
    if valves:
        if cine.times is None:
            raise ImageError(
                f"{cine.first.source}: `valves` are told in ms, and the times of the frames are "
                "not known; `fps` or `frame_times` tell them"
            )
        last = 1000 * float(cine.times[-1] - cine.times[min(reference, len(cine.times) - 1)])
        try:
            check_valves(valves, last)
        except ValueError as error:
            raise ImageError(f"{cine.first.source}: {error}") from None
    if method is None and cine.frames.ndim == 4 and has_thick_slices(cine.first):
        model, method = DEFAULT_MODEL, _default_method()
    tracked = track_cine(
        cine,
        method,
        reference=reference,
        region=None if anatomy.labels is None else anatomy.labels != 0,
        period=period,
        settings=settings,
        progress=progress,
    )
    return TrackedHeart(
        **vars(tracked),
        anatomy=anatomy,
        findings=findings,
        model=model,
        slice=slice,
        weights_sha256=None if method is None else method.weights_sha256,
        valves=valves,
    )
