"""Stage 3: a learned registration method; the LDM is an input and is not differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldm_morph_jax.config import grid_shape
from ldm_morph_jax.devices.mesh import over_batches, replicated_jit
from ldm_morph_jax.methods import Method
from ldm_morph_jax.ops.geometry import warp
from ldm_morph_jax.ops.losses import overlap_loss
from ldm_morph_jax.ops.metrics import dice, nonpositive_jacobian_percent
from ldm_morph_jax.report.figures import pairs_sheet
from ldm_morph_jax.report.volumes import shown_planes
from ldm_morph_jax.runs.checkpoints import SCORE
from ldm_morph_jax.runs.directory import abstract_ldm
from ldm_morph_jax.training.accumulation import mean_gradient
from ldm_morph_jax.training.optimiser import adam, stepped
from ldm_morph_jax.training.program import Program, at_once, mesh_of

VALIDATION_BATCH = 8  # pairs
MASKS = ("moving_mask", "fixed_mask")


def registration_program(config, method: Method, *, cached: bool) -> Program:
    """The stage of a learned method.

    Validation data are (pairs, labels): "moving", "fixed", "moving_mask", "fixed_mask", each
    `[N, *space, 1]`, and label -> name of the structures that are scored by DSC.

    cached: whether batches contain the frozen features of both images, for a method with constant
    features.
    """
    c = config.registration
    optimiser, mesh = adam(c.train, **c.optimiser), mesh_of(config)

    def init(key):
        params = method.init(key, grid_shape(config))
        return {"params": params, "optimiser": optimiser.init(params)}

    def step(state, frozen, batch, key, number):
        def loss_of_part(params, part, part_number):
            part_key = jax.random.fold_in(key, part_number) if c.train.micro_batches > 1 else key
            loss, terms = method.loss(params, frozen, part, part_key, number)
            if not c.mask_weight:
                return loss, terms
            masks = mask_loss(params, frozen, part)
            loss = loss + c.mask_weight * masks
            return loss, terms | {"loss": loss, "masks": masks}

        def mask_loss(params, frozen, part):
            """Of what the method would find; its own loss may see another (dropout, noise)."""
            moving, fixed = part["moving"], part["fixed"]
            if cached:
                features = part["moving_features"], part["fixed_features"]
                field = method.field_from_features(params, frozen, moving, fixed, features)
            else:
                field = method.field(params, frozen, moving, fixed)
            moving, fixed = (structures(part[name]) for name in MASKS)
            return overlap_loss(warp(moving, method.to_displacement(field)), fixed)

        def structures(mask):
            return (mask == jnp.array(c.mask_labels, mask.dtype)).astype(jnp.float32)

        (_, terms), gradient = mean_gradient(
            loss_of_part, state["params"], batch, c.train.micro_batches
        )
        new = stepped(optimiser, gradient, state)
        return new, {**terms, "gradient_norm": optax.tree.norm(gradient)}

    @replicated_jit(mesh)
    def register(shared, pairs):
        params, frozen = shared
        u = method.displacement(params, frozen, pairs["moving"], pairs["fixed"])
        return u, warp(pairs["moving_mask"], u, interpolation="nearest")

    def evaluate(state, frozen, validation, *, pictures):
        pairs, labels = validation
        rows = at_once(config, VALIDATION_BATCH)
        u, warped_mask = over_batches(
            register, (state["params"], frozen), pairs, batch_size=rows, mesh=mesh
        )
        if not np.isfinite(u).all():  # diverged parameters have no score; the loop then stops
            return {SCORE: float("nan"), "dsc": float("nan")}, {}
        masks = zip(warped_mask, pairs["fixed_mask"], strict=True)
        dsc = float(np.mean([np.nanmean(list(dice(*both, labels).values())) for both in masks]))
        folds = float(np.mean([nonpositive_jacobian_percent(displacement) for displacement in u]))
        metrics = {SCORE: dsc, "dsc": dsc, "nonpositive_jacobian_percent": folds}
        figures = {}
        if pictures:
            some = np.linspace(0, len(u) - 1, min(len(u), 4)).astype(int)
            shown = {name: array[some] for name, array in (pairs | {"displacement": u}).items()}
            figures["pairs"] = pairs_sheet(**shown_planes(**shown), labels=labels)
        return metrics, figures

    frozen_shapes = abstract_ldm(config) if method.reads_ldm else {}
    images = jax.ShapeDtypeStruct((c.train.batch_size, *grid_shape(config), 1), jnp.float32)
    batch = {"moving": images, "fixed": images}
    if c.mask_weight:
        batch |= dict.fromkeys(MASKS, jax.ShapeDtypeStruct(images.shape, jnp.uint8))
    if cached:
        features = jax.eval_shape(method.image_features, frozen_shapes, images)
        batch |= {"moving_features": features, "fixed_features": features}
    return Program(
        name="registration",
        train=c.train,
        init=init,
        step=step,
        evaluate=evaluate,
        frozen=frozen_shapes,
        batch=batch,
        images_per_step=2 * c.train.batch_size,
        mesh=mesh,
    )
