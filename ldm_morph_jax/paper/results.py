"""What is on disk of a benchmark: scores of every evaluation, and of a method over its seeds."""

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from ldm_morph_jax.evaluation import read_pairs
from ldm_morph_jax.ops.metrics import summarise
from ldm_morph_jax.paper.plan import Evaluation, Run
from ldm_morph_jax.runs.checkpoints import SCORE
from ldm_morph_jax.runs.directory import best_step, completed

ERROR = "error.json"


# -- what is done


def finished(task: Run | Evaluation) -> bool:
    """Whether a run is trained, or an evaluation written, to its end."""
    if isinstance(task, Evaluation):
        stale = task.run.is_best_try and not finished(task.run)  # of what was best before
        return not stale and (task.directory / "summary.json").exists()
    if task.is_best_try:
        done = all(map(finished, task.tries))
        return done and task.workdir.resolve() == best_try(task).workdir.resolve()
    return all(completed(task.workdir / stage) is not None for stage in task.stages)


def place(task: Run | Evaluation) -> Path:
    """The directory of a task, where it leaves error.json when it fails."""
    return task.directory if isinstance(task, Evaluation) else task.workdir


def failure(task: Run | Evaluation) -> str | None:
    """Why a task, or what it needs, failed the last time; None if it did not, or has succeeded."""
    if finished(task):
        return None
    for part in (*task.needs, task):
        path = place(part) / ERROR
        if not finished(part) and path.exists():
            return json.loads(path.read_text())["error"]
    return None


def best_try(run: Run) -> Run:
    """Of the tries of a run, all of them finished, the one with the best validation; the first of
    equals."""
    return max(run.tries, key=lambda one: completed(one.workdir / "registration")[SCORE])


def chosen_config(run: Run) -> ConfigDict | None:
    """The configuration that a run is trained with; None before its tries are finished."""
    if not run.tries:
        return run.config
    if not all(map(finished, run.tries)):
        return None
    config = copy.deepcopy(run.config)
    config.registration.smoothness_weight = best_try(run).config.registration.smoothness_weight
    return config


def converged(run: Run) -> bool | None:
    """Whether a finished training ended because validation was no longer getting better.

    None where that cannot be said: no weights, or no patience in its configuration.
    """
    if run.stages != ("registration",) or not run.config.registration.train.patience:
        return None
    train = run.config.registration.train
    last_chance = train.steps - train.patience * train.evaluate_every
    return best_step(run.workdir, "registration") <= last_chance


# -- scores


@dataclasses.dataclass(frozen=True)
class Result:
    """One evaluation, as it is on disk.

    Attributes:
      name: the row that it belongs to: a method or a variant of it.
      trained_on: dataset; for a method without weights the one that it is tested on.
      tested_on: dataset.
      seed: None for a method without weights.
      run, directory: the run directory and that of this evaluation, relative to the benchmark's.
      summary: content of summary.json; None when there is none.
      pairs: content of pairs.csv; None when there is none.
      smoothness_weight: of the training; None without one.
      converged: see `converged`.
      error: why it failed, in one line, or None.
    """

    name: str
    trained_on: str
    tested_on: str
    seed: int | None
    run: str
    directory: str
    summary: Mapping | None = None
    pairs: pd.DataFrame | None = None
    smoothness_weight: float | None = None
    converged: bool | None = None
    error: str | None = None


def read_result(task: Evaluation, out: Path) -> Result:
    """What is on disk of an evaluation of the benchmark in `out`."""
    run, done = task.run, {}
    if finished(task):
        done["summary"] = json.loads((task.directory / "summary.json").read_text())
        done["pairs"] = read_pairs(task.directory / "pairs.csv")
        if run.stages:
            done["smoothness_weight"] = chosen_config(run).registration.get("smoothness_weight")
            done["converged"] = converged(run)
    return Result(
        name=task.name,
        trained_on=run.dataset,
        tested_on=task.target,
        seed=run.seed,
        run=run.workdir.relative_to(out).as_posix(),
        directory=task.directory.relative_to(out).as_posix(),
        error=failure(task),
        **done,
    )


@dataclasses.dataclass(frozen=True)
class Scores:
    """A row's results on one dataset, over all seeds of the plan."""

    name: str
    results: tuple[Result, ...]

    @property
    def done(self) -> list[Result]:
        return [result for result in self.results if result.summary is not None]

    @property
    def ids(self) -> list[str]:
        """The pairs, `[N]`, the same of every training."""
        by_seed = [list(result.pairs["id"]) for result in self.done]
        if any(ids != by_seed[0] for ids in by_seed):
            raise ValueError(f"{self.name}: found other pairs by seed, expected the same")
        return by_seed[0]

    @property
    def patients(self) -> list[str]:
        """The patient of every pair, `[N]`."""
        return list(self.done[0].pairs["patient"])

    def values(self, key: str) -> np.ndarray:
        """A score of every pair by every training, `[S, N]`."""
        return np.stack([result.pairs[key].to_numpy() for result in self.done])

    def pair_means(self, key: str) -> np.ndarray:
        """A score of every pair, averaged over seeds, `[N]`."""
        return self.values(key).mean(axis=0)

    def summary(self, key: str) -> dict:
        """Statistics over pairs, `ops.metrics.summarise`."""
        return summarise(self.pair_means(key))


def select(results: Sequence[Result], name: str, trained_on: str, tested_on: str) -> Scores:
    """The scores of a row: those of `trained_on`, or those without weights."""
    kept = (
        result
        for result in results
        if result.name == name and result.tested_on == tested_on
        if result.seed is None or result.trained_on == trained_on
    )
    return Scores(name, tuple(kept))
