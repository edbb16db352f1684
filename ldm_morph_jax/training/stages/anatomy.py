"""The anatomy stage: a network from an image to probabilities of structures, from masks.

It stands alone: no other stage reads it. Registering uses it to find the heart.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldm_morph_jax.devices.mesh import over_batches, replicated_jit
from ldm_morph_jax.ops.losses import segmentation_loss
from ldm_morph_jax.report.figures import image_grid
from ldm_morph_jax.runs.anatomy import load_anatomy, network_of
from ldm_morph_jax.runs.checkpoints import SCORE
from ldm_morph_jax.training.accumulation import mean_gradient
from ldm_morph_jax.training.optimiser import adam, moving_average, stepped
from ldm_morph_jax.training.program import Program, mesh_of

VALIDATION_BATCH = 16  # images


def anatomy_program(config) -> Program:
    """The stage; validation data are {"image", "mask"} `[N, S, S, 1]`.

    Raises ValueError: `config.anatomy.start` is another network.
    """
    c = config.anatomy
    network, size = network_of(config), c.window.size
    optimiser, mesh = adam(c.train, weight_decay=c.weight_decay), mesh_of(config)

    def init(key):
        params = network.init(key, jnp.zeros((1, size, size, 1)))["params"]
        if c.start:
            params = _start(c.start, params)
        ema = jax.tree.map(jnp.copy, params)
        return {"params": params, "ema": ema, "optimiser": optimiser.init(params)}

    def step(state, frozen, batch, key, number):
        def loss_of_part(params, part, _):
            logits = network.apply({"params": params}, part["image"])
            entropy, overlap = segmentation_loss(logits, part["mask"][..., 0])
            return entropy + overlap, {"cross_entropy": entropy, "dice_loss": overlap}

        (loss, terms), gradient = mean_gradient(
            loss_of_part, state["params"], batch, c.train.micro_batches
        )
        new = stepped(optimiser, gradient, state)
        ema = moving_average(state["ema"], new["params"], number, c.ema_decay)
        terms = {"loss": loss, **terms, "gradient_norm": optax.tree.norm(gradient)}
        return new | {"ema": ema}, terms

    @replicated_jit(mesh)
    def found(params, batch):
        return jnp.argmax(network.apply({"params": params}, batch["image"]), -1).astype(jnp.uint8)

    def evaluate(state, frozen, validation, *, pictures):
        images = {"image": validation["image"]}
        labels = over_batches(found, state["ema"], images, batch_size=VALIDATION_BATCH, mesh=mesh)
        truth, scores = validation["mask"][..., 0], {}
        for label, name in enumerate(c.structures, start=1):
            sizes = (labels == label).sum() + (truth == label).sum()
            both = ((labels == label) & (truth == label)).sum()
            scores[f"dice_{name.replace(' ', '_')}"] = float(2 * both / sizes) if sizes else 1.0
        score = float(np.mean(list(scores.values())))
        figures = {}
        if pictures:
            some = np.linspace(0, len(labels) - 1, min(len(labels), 8)).astype(int)
            shades = [validation["image"][some]]
            shades += [m[some, ..., None] / len(c.structures) for m in (truth, labels)]
            figures["anatomy"] = image_grid(
                np.concatenate(shades),
                columns=len(some),
                row_names=("validation image", "mask", "network"),
            )
        return {SCORE: score, "dice": score, **scores}, figures

    rows = (c.train.batch_size, size, size, 1)
    return Program(
        name="anatomy",
        train=c.train,
        init=init,
        step=step,
        evaluate=evaluate,
        frozen={},
        batch={
            "image": jax.ShapeDtypeStruct(rows, jnp.float32),
            "mask": jax.ShapeDtypeStruct(rows, jnp.uint8),
        },
        images_per_step=c.train.batch_size,
        mesh=mesh,
    )


def _start(name: str, like):
    """The parameters of a trained network, of the shapes of `like`."""
    start = load_anatomy(name).params
    shapes = [jax.tree.map(jnp.shape, params) for params in (start, like)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"anatomy.start is {name!r}, whose network has other shapes than this configuration's"
        )
    return start
