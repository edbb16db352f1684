"""The training loop, one for every stage and every learned method.

A stage is a `Program`, and its data are arguments of the loop. The loop handles what all stages
share: devices, checkpoints, exact resume, logging, validation, pictures, preemption, and stopping
when values are not finite. It returns the final metrics, so that a test can assert on them.
"""

import logging
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ldm_morph_jax.devices import processes
from ldm_morph_jax.devices.mesh import global_batch, replicated
from ldm_morph_jax.runs.checkpoints import SCORE, Checkpoints
from ldm_morph_jax.runs.directory import COMPLETE, write_json
from ldm_morph_jax.training.errors import NonFiniteError, Preempted
from ldm_morph_jax.training.logging import MetricWriter, Progress
from ldm_morph_jax.training.program import Program, lower_step, placed

log = logging.getLogger(__name__)


def run_stage(
    program: Program,
    directory: Path,
    *,
    frozen,
    batches: Iterator[dict],
    validation,
    seed: int,
    profile_steps: tuple[int, int] | None = None,
    lowered: jax.stages.Lowered | None = None,
    steps_after: float = 0.0,
) -> dict[str, float]:
    """Train one stage to its last step, from its newest checkpoint if there is one.

    Args:
      program: the stage.
      directory: for its checkpoints, metrics and pictures.
      frozen: the arrays that the program reads, of the shapes `program.frozen`.
      batches: grain iterator of host batches, this process's share of each; the program gets the
        arrays that `program.batch` names.
      validation: the validation data for `program.evaluate`.
      seed: of the initial parameters and of the random draws of every step.
      profile_steps: (first, last) step of a trace, written to `directory`/profile.
      lowered: the program's step, if it has been lowered already.
      steps_after: for how many steps of this stage the run goes on after it, for the ETA.

    Returns the metrics of the best checkpoint.
    """
    directory = Path(directory)
    # -- devices and state
    train, mesh = program.train, program.mesh
    processes.wait_for_all(f"{program.name} prepared")
    # runs once, so compile without optimisation, which would take longer than all other set-up
    init = jax.jit(
        program.init,
        out_shardings=replicated(mesh),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    frozen = jax.device_put(frozen, replicated(mesh))

    # -- resume: newest intact checkpoint, or from scratch
    checkpoints = Checkpoints(directory / "checkpoints")
    restored = checkpoints.restore(placed(program.state, replicated(mesh)), batches)
    start, state = restored or (0, init(jax.random.fold_in(jax.random.key(seed), 0)))
    if restored:
        log.info("%s: resumed at step %d of %d", program.name, start, train.steps)
    writer = MetricWriter(directory, resume_step=start)
    stop = _StopOnSignal()

    def out_of_patience(step):
        """Whether so many validations in a row have been no better than the best."""
        checkpoints.wait()  # the best is that of what is on disk, also after a restart
        waited = step - (checkpoints.best() or 0)
        return 0 < train.patience * train.evaluate_every <= waited

    step = start
    try:
        # a run that was stopped between its end and the note of it trains no further
        steps = start if out_of_patience(start) else train.steps
        if start < steps:
            log.info("%s: compiling ...", program.name)
            began = time.perf_counter()
            compiled = (lowered or lower_step(program, seed=seed)).compile()
            processes.wait_for_all(f"{program.name} compiled")
            log.info("%s: compiled in %.1f s", program.name, time.perf_counter() - began)
        stop.on(signal.SIGINT)  # from here on there is something to save
        progress = Progress(
            program.name,
            train.steps,
            program.images_per_step,
            start_step=start,
            steps_after=steps_after,
            evaluate_every=train.evaluate_every,
        )
        for step in range(start, steps):
            batch = next(batches)
            batch = global_batch({name: batch[name] for name in program.batch}, mesh)
            if profile_steps and step == profile_steps[0]:
                jax.profiler.start_trace(str(directory / "profile"))
            with jax.profiler.StepTraceAnnotation(program.name, step_num=step):
                state, terms = compiled(state, frozen, batch, np.int32(step))
            if profile_steps and step + 1 == profile_steps[1]:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
                log.info("%s: profile of steps %s written", program.name, profile_steps)
            step += 1
            last = step == train.steps
            evaluating = step % train.evaluate_every == 0 or last

            # -- logging: the only place where values are read back from the device
            stopping = stop.requested_at(step)
            logging_now = step % train.log_every == 0 or evaluating
            if logging_now or stopping:
                values = {name: float(value) for name, value in terms.items()}
                if logging_now:  # not at a step where the run merely stops
                    speed = progress.report(step, values)
                    writer.scalars(step, **values, images_per_second=speed)
                _check_finite(program.name, step, values)

            # -- validation, pictures, checkpoint
            if evaluating:
                with progress.pause():
                    pictures = last or (train.sample_every and step % train.sample_every == 0)
                    scores, figures = program.evaluate(
                        state, frozen, validation, pictures=bool(pictures)
                    )
                    log.info(
                        "%s %d/%d  validation: %s",
                        program.name,
                        step,
                        train.steps,
                        "  ".join(f"{n} {v:.4g}" for n, v in scores.items() if n != SCORE),
                    )
                    writer.scalars(
                        step, **{f"validation/{n}": v for n, v in scores.items() if n != SCORE}
                    )
                    _check_finite(program.name, step, {"validation score": scores[SCORE]})
                    for name, figure in figures.items():
                        writer.picture(step, name, figure)
                    # a copy: on the CPU the arrays being written may share memory with the state,
                    # which is donated and overwritten by the next step
                    checkpoints.save(step, _copied(state), batches, scores)
                if train.patience and out_of_patience(step):
                    log.info(
                        "%s: ended at step %d, %d validations without a new best",
                        program.name,
                        step,
                        train.patience,
                    )
                    if not pictures:
                        _, figures = program.evaluate(state, frozen, validation, pictures=True)
                        for name, figure in figures.items():
                            writer.picture(step, name, figure)
                    break
            elif stopping:
                checkpoints.save(step, state, batches, {SCORE: -np.inf})
            if stopping and not last:
                checkpoints.wait()
                raise Preempted(f"{program.name}: stopped by a signal, saved at step {step}")
        checkpoints.wait()
        best = checkpoints.best()
        final = checkpoints.metrics(best)
        if processes.is_main():
            record = {"steps": step, "best_step": best, "metrics": final}
            write_json(directory / COMPLETE, record)
        processes.wait_for_all(f"{program.name} complete")
        return final
    finally:
        stop.restore()
        checkpoints.close()
        writer.close()


@jax.jit  # one program for all arrays, not one for each of their shapes
def _copied(tree):
    return jax.tree.map(jnp.copy, tree)


def _check_finite(stage: str, step: int, values: dict[str, float]) -> None:
    broken = [f"{name} = {value}" for name, value in values.items() if not np.isfinite(value)]
    if broken:
        raise NonFiniteError(
            f"{stage}: not finite at step {step}: {', '.join(broken)}. The last good checkpoint "
            "is kept. A lower learning rate or gradient clipping usually helps."
        )


class _StopOnSignal:
    """Turns SIGTERM (preemption), later SIGINT, into a request answered between two steps.

    With several processes, JAX's runtime catches the signal wherever it arrives and chooses a step
    at which all of them stop.
    """

    def __init__(self):
        self._requested, self._before = False, {}
        self.on(signal.SIGTERM)

    def on(self, number: signal.Signals) -> None:
        """Answer another signal, too."""
        if jax.process_count() > 1:
            return
        try:
            self._before[number] = signal.signal(number, self._request)
        except ValueError:  # not in the main thread: signals are the caller's business
            pass

    def _request(self, *_):
        self._requested = True

    def requested_at(self, step: int) -> bool:
        """Whether to stop; call it after every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
