"""A training stage as a program: functions of arrays, and the shapes they take, without data.

The loop supplies data and trains it; `plan` and `speed` measure it. All of them compile the step
with `lower_step`, so that the program measured is the one that trains.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ldm_morph_jax.config import grid_shape
from ldm_morph_jax.devices.mesh import (
    available,
    check_batch_size,
    check_devices_per_image,
    data_mesh,
    for_mesh,
    replicated,
    sharded,
)
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.methods.ldm import build_autoencoder


@dataclasses.dataclass(frozen=True)
class Program:
    """A training stage.

    Attributes:
      name: used for its directory and in the log.
      train: its `config.stage_config`.
      init: key -> state, a dict of trees of arrays.
      step: (state, frozen, batch, key, step number) -> (state, terms): one optimiser step; the
        terms are scalars for the log.
      evaluate: (state, frozen, validation data, pictures=bool) -> (scores, figures): scores contain
        `score`, higher is better; figures are matplotlib figures by name, made if `pictures`.
      frozen: shapes of the arrays that `step` reads but never changes.
      batch: shapes, by name, of the batch arrays that `step` reads: `[batch_size, ...]`, over all
        devices.
      images_per_step: for reporting the speed.
      mesh: the devices that it is for (`mesh_of`).
    """

    name: str
    train: Any
    init: Callable[[jax.Array], dict]
    step: Callable[..., tuple[dict, dict]]
    evaluate: Callable[..., tuple[dict[str, float], dict]]
    frozen: Any
    batch: dict[str, Any]
    images_per_step: int
    mesh: Mesh

    @property
    def state(self) -> dict:
        """Shapes of the state."""
        return jax.eval_shape(self.init, jax.random.key(0))


def mesh_of(config) -> Mesh:
    """All devices, as many to an image or volume as the configuration says.

    Raises ValueError, naming the valid values, if they cannot share it, or its latents, equally.
    """
    if "anatomy" in config:
        sizes = {"rows of the window": config.anatomy.window.size}
    else:
        first = grid_shape(config)[0]
        kind = "planes" if config.data.depth else "rows"
        sizes = {f"{kind} of data.{'depth' if config.data.depth else 'image_size'}": first}
        if build_method(config).reads_ldm:
            sizes[f"{kind} of the latents"] = first // build_autoencoder(config).downsampling
    check_devices_per_image(config.compute.devices_per_image, available(), **sizes)
    return data_mesh(config.compute.devices_per_image)


def at_once(config, images: int) -> int:
    """Rows of a batch outside training: so many images; volumes, which are many images, singly."""
    return 1 if config.data.depth else images


def lower_step(program: Program, *, seed: int) -> jax.stages.Lowered:
    """The step (state, frozen, batch, step number) -> (state, terms) for the program's devices.

    State and frozen arrays are replicated, batches are sharded, and the state is donated. The key
    of a step is a function of the seed and the step's number, so that a resumed run makes the same
    random draws as an uninterrupted one.

    Raises ValueError for a batch that the devices cannot share equally, and see `_check_maps`.
    """
    train, mesh = program.train, program.mesh
    check_batch_size(train.batch_size, mesh, train.micro_batches)
    step_key = jax.random.fold_in(jax.random.key(seed), 1)

    def step(state, frozen, batch, number):
        return program.step(state, frozen, batch, jax.random.fold_in(step_key, number), number)

    on_all = replicated(mesh)
    jitted = jax.jit(for_mesh(step, mesh), out_shardings=(on_all, on_all), donate_argnums=0)
    lowered = jitted.lower(
        placed(program.state, on_all),
        placed(program.frozen, on_all),
        jax.tree.map(lambda a: placed(a, sharded(mesh, a.shape)), program.batch),
        np.int32(0),
    )
    if min(mesh.shape.values()) > 1:
        _check_maps(lowered.as_text(), mesh.shape["space"])
    return lowered


def _check_maps(program_text: str, sharing: int) -> None:
    """Raise ValueError for convolutions that XLA partitions wrongly over both axes of a mesh.

    In jaxlib 0.10.2 the gradient with respect to a map that has one plane (row) on each device is
    n times too large for some sizes where n groups of devices share images. So every map must have
    two planes on each of the `sharing` devices.
    """
    shapes = re.findall(r"stablehlo\.convolution\(.*: \(tensor<([\dx]+)x[a-z]", program_text)
    maps = [[int(n) for n in shape.split("x")[1:-1]] for shape in shapes]
    thin = sorted(
        {"x".join(map(str, space)) for space in maps if 1 < len(space) and space[0] < 2 * sharing}
    )
    if thin:
        raise ValueError(
            f"compute.devices_per_image is {sharing}, and a network has maps of {thin[0]} pixels; "
            f"with several images in a step expected at least {2 * sharing} along the first axis: "
            "more planes, fewer levels, fewer devices to an image, or all of them"
        )


def placed(shapes, sharding):
    """A tree of shapes with their sharding."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)
