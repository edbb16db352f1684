"""Optimisers, built from a stage's configuration (`config.stage_config`), and their steps."""

import jax.numpy as jnp
import optax


def learning_rate_schedule(train) -> optax.Schedule:
    """Linear warm-up, then constant, or decay to zero at the stage's last step.

    The decay is "cosine" or, as in TransMorph, "polynomial": (1 - step / steps)^0.9.
    """
    peak, warmup = train.learning_rate, train.warmup_steps
    if train.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif train.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(train.steps - warmup, 1))
    elif train.schedule == "polynomial":
        after = optax.polynomial_schedule(peak, 0.0, 0.9, max(train.steps - warmup, 1))
    else:
        raise ValueError(
            f"schedule is {train.schedule!r}, expected 'constant', 'cosine' or 'polynomial'"
        )
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def adam(
    train, *, b1=0.9, b2=0.999, amsgrad=False, weight_decay=None
) -> optax.GradientTransformation:
    """Adam with the stage's schedule and clipping; AdamW if `weight_decay` is set, or AMSGrad."""
    rate = learning_rate_schedule(train)
    numbers = {"b1": b1, "b2": b2, "eps": train.adam_eps}
    if amsgrad:
        optimiser = optax.amsgrad(rate, **numbers)
    elif weight_decay is None:
        optimiser = optax.adam(rate, **numbers)
    else:
        optimiser = optax.adamw(rate, **numbers, weight_decay=weight_decay)
    if train.gradient_clip:
        optimiser = optax.chain(optax.clip_by_global_norm(train.gradient_clip), optimiser)
    return optimiser


def stepped(optimiser: optax.GradientTransformation, gradient, state: dict) -> dict:
    """The "params" and "optimiser" of a state after one step against the gradient."""
    updates, after = optimiser.update(gradient, state["optimiser"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "optimiser": after}


def moving_average(average, params, number, limit: float):
    """The exponential moving average of parameters after step `number`, counted from 0.

    As in the published EMA the decay warms up with (1 + n) / (10 + n) until it reaches `limit`.
    """
    n = jnp.asarray(number + 1, jnp.float32)
    decay = jnp.minimum(limit, (1 + n) / (10 + n))
    # decay * average + (1 - decay) * params: in this form 1 - decay is rounded only once
    return optax.incremental_update(average, params, decay)
