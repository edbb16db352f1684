"""Run a benchmark: train what is missing, evaluate everything, write tables and figures.

Everything is decided by what is on disk, so that the same command goes on after any interruption:
a training is finished when its last stage has complete.json, an evaluation when it has
summary.json. What fails leaves an error.json in its place, is tried again the next time, and stops
nothing but itself.
"""

import contextlib
import functools
import gc
import json
import logging
import os
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
from ldm_morph_jax.paper.plan import Evaluation, Run, all_evaluations, restrict, tasks
from ldm_morph_jax.paper.results import (
    ERROR,
    best_try,
    chosen_config,
    failure,
    finished,
    place,
    read_result,
)
from ldm_morph_jax.registering.pairs import refined_displacement
from ldm_morph_jax.runs.dataset import dataset_of
from ldm_morph_jax.runs.directory import check_same, checked_config, locked, write_json
from ldm_morph_jax.runs.metrics import read_curves
from ldm_morph_jax.runs.trained import load_method
from ldm_morph_jax.training.errors import Preempted
from ldm_morph_jax.training.run import train

log = logging.getLogger(__name__)


def describe(config, out: str | Path, **only) -> str:
    """The plan, a line per task, with what is finished already; `only` as `run_benchmark`."""
    todo = tasks(restrict(all_evaluations(config, Path(out)), **only))
    lines = []
    for number, task in enumerate(todo, start=1):
        state = "done" if finished(task) else "failed before" if failure(task) else "to do"
        lines.append(f"{number:>4}/{len(todo)}  {_verb(task):<8}  {state:<13}  {task}")
    return "\n".join(lines)


def run_benchmark(config, out: str | Path, **only) -> list[str]:
    """Bring a benchmark's directory up to date; returns what failed, a line each.

    Args:
      config: of `paper.plan.benchmark_config`.
      out: the benchmark's directory.
      only: `methods`, `datasets`, `seeds`: do only these now, see `paper.plan.restrict`. Tables
        and figures show all that is finished.

    Raises:
      ValueError: for a plan that cannot be, or a directory whose runs are configured differently.
      Preempted: after SIGTERM; the same command goes on from there.
    """
    out = Path(out)
    if jax.process_count() > 1:
        raise ValueError(f"found {jax.process_count()} processes, expected 1 with all its devices")
    everything = all_evaluations(config, out)
    todo = tasks(restrict(everything, **only))
    for evaluation in everything:
        _check_same(evaluation)
    dataset = functools.cache(lambda name: dataset_of({**config.datasets, **config.unseen}[name]))

    def write():
        write_benchmark(config, [read_result(evaluation, out) for evaluation in everything], out)

    with locked(out):
        clock = _Clock(todo)
        unwritten = False
        for number, task in enumerate(todo, start=1):
            if finished(task):
                continue
            if not all(map(finished, task.needs)):
                log.info("%s %s: skipped, what it needs has failed", _verb(task), task)
                continue
            if isinstance(task, Run) and unwritten:  # a dataset is through: show what there is
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
    for run in task.needs:
        config = chosen_config(run)
        if run.stages and config is not None and not run.is_best_try:
            checked_config(config, run.workdir)
    if finished(task):
        path = task.directory / "summary.json"
        stored = json.loads(path.read_text())["config"]
        check_same(path, stored["tested_on"], task.tested_on)


def _verb(task: Run | Evaluation) -> str:
    if isinstance(task, Evaluation):
        return "evaluate"
    return "choose" if task.is_best_try else "train"


def _attempt(task: Run | Evaluation, dataset) -> None:
    """Do a task; a failure of any kind is noted down, and is this task's alone."""
    error = place(task) / ERROR
    try:
        if isinstance(task, Evaluation):
            _evaluate(task, dataset(task.target))
        elif task.is_best_try:
            _choose(task)
        else:
            train(chosen_config(task), task.workdir, stages=task.stages)
    except Preempted:
        raise
    except Exception as found:
        line = " ".join(f"{type(found).__name__}: {found}".split())
        log.error("%s %s failed: %s", _verb(task), task, line)
        write_json(error, {"error": line, "traceback": traceback.format_exc()})
    else:
        error.unlink(missing_ok=True)


def _choose(run: Run) -> None:
    """Make the best of a run's tries the run: a link, so that nothing is trained or kept twice."""
    best = best_try(run)
    log.info("%s: smoothness weight %g", run, best.config.registration.smoothness_weight)
    if run.workdir.is_dir() and not run.workdir.is_symlink():
        raise ValueError(f"{run.workdir} is a run of its own, expected a link to one of its tries")
    link = run.workdir.with_name(f"{run.workdir.name}.new")
    link.unlink(missing_ok=True)
    link.symlink_to(best.workdir.name, target_is_directory=True)
    os.replace(link, run.workdir)


def _evaluate(task: Evaluation, dataset) -> None:
    run = task.run
    method = load_method(run.workdir if run.stages else run.name)
    register = method.displacement
    if task.refine:
        register = functools.partial(refined_displacement, method, steps=task.refine)
    evaluate_split(
        register,
        dataset,
        "test",
        task.directory,
        method=task.name,
        config=chosen_config(run).to_dict() | {"tested_on": task.tested_on},
        curves=read_curves(run.workdir),
        keep=typical_pair(dataset.split("test"), dataset.labels),
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


class _Clock:
    """Progress over the whole plan: which task, time elapsed, and what the others may take."""

    def __init__(self, todo: Sequence[Run | Evaluation]):
        self._todo, self._began = todo, time.perf_counter()
        self._seconds: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def measure(self, number: int, task: Run | Evaluation):
        log.info(
            "task %d/%d: %s %s, elapsed %s, ETA %s",
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
