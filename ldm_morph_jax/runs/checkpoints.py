"""Checkpoints of one stage (Orbax): the latest two and the best, with the data iterator's position.

Orbax writes to a temporary directory and then renames it, so a checkpoint with its final name is
complete. All processes of a run save and restore together, on a disk that they share. A checkpoint
does not depend on the number of processes and devices: arrays are whole, and every process is at
the same position in its share of the data.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from ldm_morph_jax.devices import processes

log = logging.getLogger(__name__)

SCORE = "score"  # what "best" means: the highest value of this metric


class Checkpoints:
    """The checkpoints of one stage in `directory`.

    A checkpoint holds `state` (any pytree of arrays), the grain iterator's position and the
    validation metrics, whose `score` decides which is best.
    """

    def __init__(self, directory: Path):
        self.directory, self._failed = Path(directory).absolute(), False
        self._damaged = set()  # steps whose checkpoints could not be read
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation.AnyPreservationPolicy(
                    [
                        preservation.LatestN(2),
                        preservation.BestN(
                            get_metric_fn=lambda metrics: metrics[SCORE],
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
                best_fn=lambda metrics: metrics[SCORE],
                best_mode="max",
                step_format_fixed_length=8,
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, step: int, state, iterator, metrics: dict[str, float]) -> None:
        """Save asynchronously; `metrics` must hold `score`.

        An existing checkpoint of this step is kept, or replaced if `restore` found it damaged.
        Raises OSError if this checkpoint, or the one before it, could not be written.
        """
        if step in self._manager.all_steps() and step not in self._damaged:
            return
        with self._writing():
            if step in self._damaged:
                self._damaged.remove(step)
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=ocp.args.JsonSave(iterator.get_state()),
                ),
                metrics={name: float(value) for name, value in metrics.items()},
            )

    def best(self) -> int | None:
        return self._manager.best_step()

    def metrics(self, step: int) -> dict[str, float]:
        return dict(self._manager.metrics(step))

    def restore(self, abstract_state, iterator):
        """The newest intact checkpoint as (step, state), with the iterator set to its position.

        A checkpoint that cannot be read is reported, and the next older one is tried. Returns None
        if there is no checkpoint at all.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            restored, reason = None, "another process cannot read it"
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract_state),
                        data=ocp.args.JsonRestore(),
                    ),
                )
            except Exception as error:  # whatever a damaged file makes Orbax raise
                reason = str(error).splitlines()[0][:200]
            if np.all(processes.gather(restored is not None)):
                iterator.set_state(restored["data"])
                return step, restored["state"]
            self._damaged.add(step)
            log.warning(
                "checkpoint %s/%08d cannot be read (%s); trying an older one",
                self.directory,
                step,
                reason,
            )
        if steps:
            raise ValueError(
                f"{self.directory}: none of the checkpoints {steps} can be restored: they are "
                "damaged, or of another architecture or optimiser than the configuration's"
            )
        return None

    def wait(self) -> None:
        """Return when everything is on disk; raises OSError if it could not be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        if not self._failed:  # after a failure Orbax would fail again and hide the reason
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns whatever Orbax raises while writing into an OSError that says what remains."""
        try:
            yield
        except Exception as error:
            self._failed = True
            # Orbax abandons its unfinished writes; Python's warnings about each of them at exit
            # would bury the message
            sys.unraisablehook = lambda _: None
            raise OSError(
                f"{self.directory}: a checkpoint could not be written. Earlier ones are kept, "
                f"and the same command continues from them. Is the disk full? Reason: "
                f"{str(error).splitlines()[0][:300]}"
            ) from error


def stored_parts(directory: Path, step: int) -> set[str]:
    """Names of the parts of a checkpoint's state: "params", "ema", "discriminator", ..."""
    path = Path(directory).absolute() / f"{step:08d}" / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return set(checkpointer.metadata(path).item_metadata.tree)


def restore_part(directory: Path, step: int, abstract, *, what: str):
    """Restore only the parts of a checkpoint's state that `abstract` names, e.g. {"ema": ...}.

    They are returned as host arrays, whatever devices they were trained on.

    Raises ValueError, listing the differences, if the stored arrays are of another architecture.
    """
    path = Path(directory).absolute() / f"{step:08d}" / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = checkpointer.metadata(path).item_metadata.tree
        found = {name: stored[name] for name in abstract if name in stored}
        if "discriminator" in found:  # it consists of several parts
            inner = found["discriminator"]
            found["discriminator"] = {n: inner[n] for n in abstract["discriminator"] if n in inner}
        found = _shapes(found)
        expected = _shapes(abstract)
        different = [
            f"{name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
            for name in sorted(found.keys() | expected.keys())
            if found.get(name) != expected.get(name)
        ]
        if different:
            raise ValueError(
                f"{path.parent}: the architecture of the {what} differs from the configuration: "
                + "; ".join(different[:5])
                + (f"; and {len(different) - 5} more" if len(different) > 5 else "")
            )
        return checkpointer.restore(
            path,
            args=ocp.args.PyTreeRestore(
                item=abstract,
                restore_args=jax.tree.map(
                    lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract
                ),
                partial_restore=True,
            ),
        )


def _shapes(tree: dict) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in flatten_dict(tree, sep="/").items()}
