"""Logging of a run: JSON lines, TensorBoard, and progress lines with an ETA.

Only process 0 writes. TensorBoard events are written by tensorboardX, which does not need
TensorFlow.
"""

import contextlib
import json
import logging
import statistics
import time
from pathlib import Path

import numpy as np

from ldm_morph_jax.devices.processes import is_main
from ldm_morph_jax.files.writing import atomic

log = logging.getLogger(__name__)


class MetricWriter:
    """Scalars and pictures of one stage: metrics.jsonl, tensorboard/ and pictures/."""

    def __init__(self, directory: Path, *, resume_step: int = 0):
        self.directory = Path(directory)
        self._enabled = is_main()
        if not self._enabled:
            return
        from tensorboardX import SummaryWriter  # slow to import, and only process 0 needs it

        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "metrics.jsonl"
        _drop_after(path, resume_step)
        self._file = path.open("a", buffering=1)
        self._board = SummaryWriter(
            str(self.directory / "tensorboard"), purge_step=resume_step + 1 if resume_step else None
        )

    def scalars(self, step: int, **values: float) -> None:
        if not self._enabled:
            return
        values = {name: float(value) for name, value in values.items()}
        # JSON has no NaN; such values are written as null
        row = {name: value if np.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, figure) -> None:
        """Save a matplotlib figure as pictures/`name`_`step`.png and show it in TensorBoard."""
        if not self._enabled:
            return
        path = self.directory / "pictures" / f"{name}_{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=80)
        self._board.add_figure(name, figure, step)

    def close(self) -> None:
        for part in (self._file, self._board) if self._enabled else ():
            try:
                part.close()
            except OSError as error:  # do not hide the error that ended training
                log.warning("%s: metrics could not be written: %s", self.directory, error)


def _drop_after(path: Path, step: int) -> None:
    """Remove entries that a killed run logged after the checkpoint that is being resumed."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:  # a line truncated by the kill
            continue
    with atomic(path) as part:
        part.write_text("".join(kept))


class Progress:
    """Speed between log points, without validation and compilation, and the ETA of the run.

    Args:
      name: of what makes progress, for example a stage.
      steps: at which it is complete.
      images_per_step: for the speed.
      start_step: where it begins.
      steps_after: for how many such steps the run goes on after it.
      evaluate_every: steps between validations.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        images_per_step: float,
        *,
        start_step: int = 0,
        steps_after: float = 0.0,
        evaluate_every: int = 1,
    ):
        self._name, self._steps, self._images_per_step = name, steps, images_per_step
        self._steps_after, self._evaluate_every = steps_after, evaluate_every
        self._step, self._time, self._paused = start_step, time.perf_counter(), 0.0
        self._seconds_per_step = None
        self._pauses: list[float] = []

    @contextlib.contextmanager
    def pause(self):
        """Time in the block, a validation, does not count for the speed."""
        began = time.perf_counter()
        yield
        self._pauses.append(time.perf_counter() - began)
        self._paused += self._pauses[-1]

    def report(self, step: int, metrics: dict[str, float]) -> float:
        """Log one line; returns images per second since the last report."""
        now = time.perf_counter()
        seconds = max(now - self._time - self._paused, 1e-9) / max(step - self._step, 1)
        self._step, self._time, self._paused = step, now, 0.0
        before = self._seconds_per_step
        self._seconds_per_step = seconds if before is None else 0.7 * before + 0.3 * seconds
        steps, every = self._steps, self._evaluate_every
        left = (steps - step + self._steps_after) * self._seconds_per_step
        if self._pauses:
            validations = -(-steps // every) - step // every
            left += validations * statistics.median(self._pauses)
        log.info(
            "%s %d/%d (%.0f%%)  %s  %.1f images/s  ETA %d:%02d:%02d",
            self._name,
            step,
            steps,
            100 * step / steps,
            "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()),
            self._images_per_step / seconds,
            left // 3600,
            left % 3600 // 60,
            left % 60,
        )
        return self._images_per_step / seconds
