"""Stage 3: a learned registration method; the LDM is an input, outside the differentiated."""

import jax
import numpy as np
import optax

from ldm_morph_jax.devices.mesh import over_batches, replicated_jit
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.metrics import dice, nonpositive_jacobian_percent
from ldm_morph_jax.report.figures import pairs_sheet
from ldm_morph_jax.runs.checkpoints import SCORE
from ldm_morph_jax.training.accumulation import mean_gradient
from ldm_morph_jax.training.loop import Stage
from ldm_morph_jax.training.optimiser import adam

PICTURED = ("moving", "fixed", "moving_mask", "fixed_mask")


def registration_stage(config, method, frozen, batches, validation, labels) -> Stage:
    """Build the stage.

    Args:
      config: the whole configuration.
      method: a learned method (`methods.base.LearnedMethod`).
      frozen: what the method reads and never trains.
      batches: iterator of pair batches, with the frozen features where they are cached.
      validation: batches of the validation pairs with a `valid` mask, in order.
      labels: label -> structure name, scored by DSC.
    """
    c = config.registration
    optimiser = adam(c.train, **c.optimiser)

    def init(key):
        params = method.init(key, config.data.image_size)
        return {"params": params, "optimiser": optimiser.init(params)}

    def train_step(state, frozen, batch, key, step):
        def loss_of_part(params, part, number):
            part_key = jax.random.fold_in(key, number) if c.train.micro_batches > 1 else key
            return method.loss(params, frozen, part, part_key, step)

        _, terms, gradient = mean_gradient(
            loss_of_part, state["params"], batch, c.train.micro_batches
        )
        updates, optimiser_state = optimiser.update(gradient, state["optimiser"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        terms = {**terms, "gradient_norm": optax.tree.norm(gradient)}
        return {"params": params, "optimiser": optimiser_state}, terms

    @replicated_jit
    def register(shared, pairs):
        params, frozen = shared
        u = method.displacement(params, frozen, pairs["moving"], pairs["fixed"])
        return u, warp(pairs["moving_mask"], u, interpolation="nearest")

    def evaluate(state, frozen, *, pictures):
        scores, folds, shown = [], [], []
        for batch in validation:
            pairs = {name: batch[name] for name in PICTURED}
            u, warped_mask = over_batches(
                register, (state["params"], frozen), pairs, batch_size=len(batch["valid"])
            )
            for i in np.flatnonzero(batch["valid"]):
                by_label = dice(warped_mask[i], batch["fixed_mask"][i], labels)
                scores.append(np.nanmean(list(by_label.values())))
                folds.append(nonpositive_jacobian_percent(u[i]))
                shown.append({name: batch[name][i] for name in PICTURED} | {"displacement": u[i]})
        dsc = float(np.mean(scores))
        metrics = {SCORE: dsc, "dsc": dsc, "nonpositive_jacobian_percent": float(np.mean(folds))}
        figures = {}
        if pictures:
            some = [
                shown[i] for i in np.linspace(0, len(shown) - 1, min(len(shown), 4)).astype(int)
            ]
            columns = {name: np.stack([pair[name] for pair in some]) for name in some[0]}
            figures["pairs"] = pairs_sheet(**columns, labels=labels)
        return metrics, figures

    return Stage(
        name="registration",
        init=init,
        train_step=train_step,
        frozen=frozen,
        batches=batches,
        evaluate=evaluate,
        train=c.train,
        images_per_step=2 * c.train.batch_size,
    )
