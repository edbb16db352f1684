"""The training loop, one for every stage and every learned method.

A stage is four functions and some numbers (`Stage`). The loop owns what all stages share: devices,
checkpoints, exact resume, logging, validation, pictures, preemption and the stop on non-finite
numbers. It returns the final metrics, so that a test can assert on them.
"""

import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ldm_morph_jax.devices import processes
from ldm_morph_jax.devices.mesh import check_batch_size, data_mesh, global_batch, replicated
from ldm_morph_jax.runs.checkpoints import SCORE, Checkpoints
from ldm_morph_jax.runs.directory import COMPLETE, write_json
from ldm_morph_jax.training.errors import NonFiniteError, Preempted
from ldm_morph_jax.training.logging import MetricWriter, Progress

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What the loop needs to know of a training stage.

    Attributes:
      name: directory and log name.
      init: key -> state, a dict of array trees; jitted.
      train_step: (state, frozen, batch, key, step) -> (state, metrics of scalars); jitted once.
      frozen: arrays that the step reads but never differentiates or changes.
      batches: grain iterator of host batches (this process's share).
      evaluate: (state, frozen) -> (metrics, pictures); metrics hold `score`, higher is better;
        pictures are matplotlib figures by name, made only when asked for (`pictures=True`).
      train: the stage's `stage_config`.
      images_per_step: for the speed that is shown.
    """

    name: str
    init: Callable[[jax.Array], dict]
    train_step: Callable[..., tuple[dict, dict]]
    frozen: Any
    batches: Iterator
    evaluate: Callable[..., tuple[dict[str, float], dict]]
    train: Any
    images_per_step: int


def jit_step(stage: Stage, mesh: Mesh, *, seed: int) -> Callable:
    """The stage's step (state, frozen, batch, step) -> (state, metrics), compiled for the mesh."""
    step_key = jax.random.fold_in(jax.random.key(seed), 1)

    def one_step(state, frozen, batch, step):
        # the key is a function of the step: a resumed run draws what an undisturbed one would
        return stage.train_step(state, frozen, batch, jax.random.fold_in(step_key, step), step)

    return jax.jit(
        one_step, out_shardings=(replicated(mesh), replicated(mesh)), donate_argnums=(0,)
    )


def run_stage(stage: Stage, directory: Path, *, seed: int, profile_steps=None) -> dict[str, float]:
    """Train one stage to its last step, from its newest checkpoint if there is one.

    Returns the metrics of the best checkpoint.
    """
    directory = Path(directory)
    # -- devices and state
    train = stage.train
    mesh = data_mesh()
    check_batch_size(train.batch_size, mesh, train.micro_batches)
    key = jax.random.key(seed)
    processes.wait_for_all(f"{stage.name} prepared")
    # run once: not worth optimising, which would take longer than everything else before step 1
    init = jax.jit(
        stage.init,
        out_shardings=replicated(mesh),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    abstract = jax.eval_shape(stage.init, key)
    target = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated(mesh)), abstract
    )
    frozen = jax.device_put(stage.frozen, replicated(mesh))

    # -- resume: newest intact checkpoint, or from scratch
    checkpoints = Checkpoints(directory / "checkpoints")
    restored = checkpoints.restore(target, stage.batches)
    start, state = restored if restored else (0, init(jax.random.fold_in(key, 0)))
    if restored:
        log.info("%s: resumed at step %d of %d", stage.name, start, train.steps)
    writer = MetricWriter(directory, resume_step=start)
    progress = Progress(stage.name, train.steps, stage.images_per_step, start)
    train_step, compiled = jit_step(stage, mesh, seed=seed), None
    stop = _StopOnSignal()
    metrics = {}
    try:
        for step in range(start, train.steps):
            batch = global_batch(next(stage.batches), mesh)
            if compiled is None:
                with progress.pause():
                    began = time.perf_counter()
                    compiled = train_step.lower(state, frozen, batch, np.int32(step)).compile()
                    processes.wait_for_all(f"{stage.name} compiled")
                    log.info("%s: compiled in %.1f s", stage.name, time.perf_counter() - began)
            if profile_steps and step == profile_steps[0]:
                jax.profiler.start_trace(str(directory / "profile"))
            with jax.profiler.StepTraceAnnotation(stage.name, step_num=step):
                state, metrics = compiled(state, frozen, batch, np.int32(step))
            if profile_steps and step + 1 == profile_steps[1]:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
                log.info("%s: profile of steps %s written", stage.name, profile_steps)
            step += 1
            last = step == train.steps
            evaluating = step % train.evaluate_every == 0 or last

            # -- logging; the only point where numbers come back from the device
            stopping = stop.requested_at(step)
            logging_now = step % train.log_every == 0 or evaluating
            if logging_now or stopping:
                values = {name: float(value) for name, value in metrics.items()}
                if logging_now:  # and not where a run happens to be stopped
                    speed = progress.report(step, values)
                    writer.scalars(step, **values, images_per_second=speed)
                _check_finite(stage.name, step, values)

            # -- validation, pictures, checkpoint
            if evaluating:
                with progress.pause():
                    pictures = last or (train.sample_every and step % train.sample_every == 0)
                    scores, figures = stage.evaluate(state, frozen, pictures=bool(pictures))
                    log.info(
                        "%s %d/%d  validation: %s",
                        stage.name,
                        step,
                        train.steps,
                        "  ".join(f"{n} {v:.4g}" for n, v in scores.items() if n != SCORE),
                    )
                    writer.scalars(
                        step, **{f"validation/{n}": v for n, v in scores.items() if n != SCORE}
                    )
                    _check_finite(stage.name, step, {SCORE: scores[SCORE]})
                    for name, figure in figures.items():
                        writer.picture(step, name, figure)
                    # a copy: on the CPU what is being written may share memory with the state,
                    # which the next step overwrites (it is donated)
                    checkpoints.save(step, jax.tree.map(jnp.copy, state), stage.batches, scores)
            elif stopping:
                checkpoints.save(step, state, stage.batches, {SCORE: -np.inf})
            if stopping and not last:
                checkpoints.wait()
                raise Preempted(f"{stage.name}: stopped by a signal at step {step}, saved")
        checkpoints.wait()
        best = checkpoints.best()
        final = checkpoints.metrics(best)
        if processes.is_main():
            record = {"steps": train.steps, "best_step": best, "metrics": final}
            write_json(directory / COMPLETE, record)
        processes.wait_for_all(f"{stage.name} complete")
        return final
    finally:
        stop.restore()
        checkpoints.close()
        writer.close()


def _check_finite(stage: str, step: int, values: dict[str, float]) -> None:
    broken = [f"{name} = {value}" for name, value in values.items() if not np.isfinite(value)]
    if broken:
        raise NonFiniteError(
            f"{stage}: not finite at step {step}: {', '.join(broken)}. The last good checkpoint "
            "is kept; a lower learning rate or gradient clipping usually helps."
        )


class _StopOnSignal:
    """Turns SIGTERM (preemption) into a request that the loop answers between two steps.

    Among several processes JAX's runtime takes the signal, wherever it arrives, and names a step
    at which all of them stop.
    """

    def __init__(self):
        self._requested, self._before = False, None
        if jax.process_count() > 1:
            return
        try:
            self._before = signal.signal(signal.SIGTERM, self._request)
        except ValueError:  # not in the main thread: whoever runs us handles signals
            pass

    def _request(self, *_):
        self._requested = True

    def requested_at(self, step: int) -> bool:
        """To be asked after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def restore(self):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
