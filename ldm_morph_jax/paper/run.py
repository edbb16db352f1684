"""Run a benchmark: train what is missing, evaluate everything, write tables and figures.

Everything is decided by what is on disk, so that the same command goes on after any interruption:
a training is finished when its last stage has complete.json, an evaluation when it has
summary.json. What fails leaves an error.json in its place, is tried again the next time, and stops
nothing but itself.
"""

import contextlib
import csv
import functools
import gc
import json
import logging
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from ldm_morph_jax.evaluation import evaluate_split
from ldm_morph_jax.ops.metrics import dice
from ldm_morph_jax.paper.pages import write_benchmark
from ldm_morph_jax.paper.plan import Cell, Evaluation, all_evaluations, restrict, tasks
from ldm_morph_jax.paper.tables import Entry
from ldm_morph_jax.runs.directory import (
    check_same,
    checked_config,
    completed,
    locked,
    write_json,
)
from ldm_morph_jax.runs.trained import load_method, load_run
from ldm_morph_jax.training.errors import Preempted
from ldm_morph_jax.training.run import dataset_of, train

log = logging.getLogger(__name__)

ERROR = "error.json"


def describe(config, out: str | Path, **only) -> str:
    """The plan, a line per task, with what is finished already; `only` as `run_benchmark`."""
    todo = tasks(restrict(all_evaluations(config, Path(out)), **only))
    lines = []
    for number, task in enumerate(todo, start=1):
        state = "done" if finished(task) else "failed before" if failure(task) else "to do"
        lines.append(f"{number:>4}/{len(todo)}  {_verb(task):<8}  {state:<13}  {task}")
    return "\n".join(lines)


def run_benchmark(
    config,
    out: str | Path,
    *,
    methods: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[str]:
    """Bring a benchmark's directory up to date; returns what failed, a line each.

    Args:
      config: of `training.plan.benchmark_config`.
      out: the benchmark's directory.
      methods, datasets, seeds: do only these now. Tables and figures show all that is finished.

    Raises:
      ValueError: for a plan that cannot be, or a directory whose runs are configured differently.
      Preempted: after SIGTERM; the same command goes on from there.
    """
    out = Path(out)
    if jax.process_count() > 1:
        raise ValueError(f"found {jax.process_count()} processes, expected 1 with all its devices")
    everything = all_evaluations(config, out)
    todo = tasks(restrict(everything, methods=methods, datasets=datasets, seeds=seeds))
    for one in everything:
        _check_same(one)
    dataset = functools.cache(lambda name: dataset_of({**config.datasets, **config.unseen}[name]))

    def write():
        write_benchmark(config, [_entry(one, out) for one in everything], out)

    with locked(out):
        clock = _Clock(todo)
        unwritten = False
        for number, task in enumerate(todo, start=1):
            if finished(task):
                continue
            if any(not finished(other) for other in _needed(task)):
                log.info("%s %s: skipped, what it needs has failed", _verb(task), task)
                continue
            if isinstance(task, Cell) and unwritten:  # a dataset is through: show what there is
                write()
                unwritten = False
            with clock.measure(number, task):
                _attempt(task, dataset)
            unwritten |= isinstance(task, Evaluation)
            # the next method's programs are others: give the memory of this one's back
            jax.clear_caches()
            gc.collect()
        write()
    return [f"{_verb(task)} {task}: {failure(task)}" for task in todo if not finished(task)]


def _check_same(task: Evaluation) -> None:
    """Raise ValueError where what is on disk was made with another configuration."""
    for cell in (task.cell, task.cell.ldm):
        if cell is not None and cell.stages:
            checked_config(cell.config, cell.workdir)
    if finished(task):
        path = task.directory / "summary.json"
        stored = json.loads(path.read_text())["config"]
        check_same(path, stored["tested_on"], task.config["tested_on"])


def finished(task: Cell | Evaluation) -> bool:
    """Whether a cell is trained, or an evaluation written, to its end."""
    if isinstance(task, Evaluation):
        return (task.directory / "summary.json").exists()
    return all(completed(task.workdir / stage) is not None for stage in task.stages)


def failure(task: Cell | Evaluation) -> str | None:
    """Why a task, or what it needs, failed the last time; None if it did not, or has succeeded."""
    if finished(task):
        return None
    for one in (*_needed(task), task):
        path = _place(one) / ERROR
        if not finished(one) and path.exists():
            return json.loads(path.read_text())["error"]
    return None


def _needed(task: Cell | Evaluation) -> list[Cell]:
    """What has to be trained before, first things first."""
    cell = task.cell if isinstance(task, Evaluation) else task
    return [one for one in (cell.ldm, cell) if one is not None and one is not task]


def _place(task: Cell | Evaluation) -> Path:
    return task.directory if isinstance(task, Evaluation) else task.workdir


def _verb(task: Cell | Evaluation) -> str:
    return "evaluate" if isinstance(task, Evaluation) else "train"


def _attempt(task: Cell | Evaluation, dataset) -> None:
    """Do a task; a failure of any kind is noted down, and is this task's alone."""
    error = _place(task) / ERROR
    try:
        if isinstance(task, Evaluation):
            _evaluate(task, dataset(task.target))
        else:
            train(task.config, task.workdir, stages=task.stages)
    except Preempted:
        raise
    except Exception as found:
        line = " ".join(f"{type(found).__name__}: {found}".split())
        log.error("%s %s failed: %s", _verb(task), task, line)
        write_json(error, {"error": line, "traceback": traceback.format_exc()})
    else:
        error.unlink(missing_ok=True)


def _evaluate(task: Evaluation, dataset) -> None:
    cell = task.cell
    if cell.stages:
        trained = load_run(cell.workdir)
        register = trained.displacement
    else:
        register = load_method(cell.name).displacement
    pairs = dataset.split("test")
    evaluate_split(
        register,
        pairs,
        ids=dataset.ids("test"),
        labels=dataset.labels,
        method=cell.name,
        dataset=task.target,
        split="test",
        out_dir=task.directory,
        config=task.config,
        workdir=cell.workdir,
        keep=typical_pair(pairs, dataset.labels),
    )


def typical_pair(pairs, labels) -> int:
    """Number of the pair whose overlap before registration is the (lower) median of the split.

    The choice knows no method's result, so the pictures flatter none.
    """
    overlap = np.array(
        [np.nanmean([*dice(p["moving_mask"], p["fixed_mask"], labels).values()]) for p in pairs]
    )
    order = np.argsort(overlap, kind="stable")  # NaN last
    return int(order[max(np.count_nonzero(~np.isnan(overlap)) - 1, 0) // 2])


def _entry(task: Evaluation, out: Path) -> Entry:
    """What is on disk of an evaluation."""
    cell, summary, rows = task.cell, None, []
    if finished(task):
        summary = json.loads((task.directory / "summary.json").read_text())
        with (task.directory / "pairs.csv").open(newline="") as file:
            rows = [
                {key: text if key == "id" else float(text or "nan") for key, text in row.items()}
                for row in csv.DictReader(file)
            ]
    return Entry(
        method=cell.name,
        trained_on=cell.dataset,
        tested_on=task.target,
        seed=cell.seed,
        run=cell.workdir.relative_to(out).as_posix(),
        results=task.directory.relative_to(out).as_posix(),
        summary=summary,
        rows=rows,
        error=failure(task),
    )


class _Clock:
    """Progress over the whole plan: which task, time elapsed, and what the others may take."""

    def __init__(self, todo: Sequence[Cell | Evaluation]):
        self._todo, self._began = todo, time.perf_counter()
        self._seconds: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def measure(self, number: int, task: Cell | Evaluation):
        log.info(
            "cell %d/%d: %s %s, elapsed %s, ETA %s",
            number,
            len(self._todo),
            _verb(task),
            task,
            _clock_time(time.perf_counter() - self._began),
            self._left(number),
        )
        began = time.perf_counter()
        yield
        if finished(task):  # a failure tells nothing about the others
            self._seconds.setdefault(_verb(task), []).append(time.perf_counter() - began)

    def _left(self, number: int) -> str:
        """Unfinished tasks from this one on, each as long as the mean of its kind so far.

        A kind that none has been seen of is counted instead.
        """
        kinds = Counter(_verb(task) for task in self._todo[number - 1 :] if not finished(task))
        seen = [kind for kind in kinds if kind in self._seconds]
        known = sum(kinds[kind] * np.mean(self._seconds[kind]) for kind in seen)
        counted = [f"{kinds[kind]} to {kind}" for kind in kinds if kind not in seen]
        return " and ".join([_clock_time(known)] * bool(seen) + counted)


def _clock_time(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d}:{int(seconds) % 60:02d}"
