"""Optimisers as the stages configure them (`config.stage_config`)."""

import optax


def learning_rate_schedule(train) -> optax.Schedule:
    """Linear warm-up, then constant or cosine to zero at the stage's last step."""
    peak, warmup = train.learning_rate, train.warmup_steps
    if train.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif train.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(train.steps - warmup, 1))
    else:
        raise ValueError(f"schedule is {train.schedule!r}, expected 'constant' or 'cosine'")
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def adam(train, *, b1=0.9, b2=0.999, weight_decay=None) -> optax.GradientTransformation:
    """Adam (AdamW when `weight_decay` is given) with the stage's schedule and clipping."""
    rate = learning_rate_schedule(train)
    if weight_decay is None:
        optimiser = optax.adam(rate, b1=b1, b2=b2)
    else:
        optimiser = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay)
    if train.gradient_clip:
        optimiser = optax.chain(optax.clip_by_global_norm(train.gradient_clip), optimiser)
    return optimiser
