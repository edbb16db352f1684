"""Run by test_devices.py on four simulated devices, of which 2 or 4 share each volume.

python space_steps.py STAGE ...; "voxelmorph" is the registration stage of that method, which
compiles sooner. Prints a JSON object, stage -> devices per volume -> "terms", "gradients",
"validation": by how much they differ from those of one device, relatively; "bytes": temporary ones
of a device in the step.
"""

import dataclasses
import json
import sys

import jax
import numpy as np
from volume_run import volume_config, voxelmorph_config

from ldm_morph_jax.devices.mesh import data_mesh, global_batch, replicated
from ldm_morph_jax.profiling.timing import random_arrays
from ldm_morph_jax.training.program import lower_step
from ldm_morph_jax.training.stages import STAGES, stage_program

SPACE = (32, 16, 16)  # two planes of the coarsest maps for each of two devices
BATCH = 4


def main():
    found = {}
    for stage in sys.argv[1:]:
        print(f"{stage} on one device", file=sys.stderr, flush=True)
        alone = results(stage, 1, devices=jax.devices()[:1])
        found[stage] = {1: {"bytes": alone["bytes"]}}
        for count in (4, 2):
            print(f"{stage}, {count} devices per volume", file=sys.stderr, flush=True)
            shared = results(stage, count)
            parts = ("terms", "gradients", "validation")
            found[stage][f"{count} of 4"] = {part: apart(alone, shared, part) for part in parts}
            found[stage][f"{count} of 4"]["bytes"] = shared["bytes"]
            print(found, file=sys.stderr, flush=True)
    print(json.dumps(found))


def results(stage, devices_per_volume, devices=None):
    """Terms, gradients and validation of one step of a stage from random weights, as vectors."""
    voxelmorph = stage == "voxelmorph"
    config = (voxelmorph_config if voxelmorph else volume_config)("nowhere").unlock()
    stage = "registration" if voxelmorph else stage
    config.data.depth, config.data.image_size, _ = SPACE
    config.compute.devices_per_image = devices_per_volume
    config.autoencoder.adversarial_start = 2  # with the discriminator
    if not voxelmorph:
        config.registration.model.drop_path_rate = 0.0
    for name in STAGES:
        config[name].train.batch_size = BATCH
    program = stage_program(config, stage, cached=stage != "autoencoder")
    mesh = data_mesh(devices_per_volume, devices)
    rng = np.random.default_rng(0)
    state = jax.device_get(jax.jit(program.init)(jax.random.key(0)))
    # not as at the beginning: where nothing moves, the derivative of interpolation jumps
    state["params"] = random_arrays(state["params"], rng)
    state |= {"ema": state["params"]} if "ema" in state else {}
    frozen = random_arrays(program.frozen, rng)
    images = rng.random((BATCH, *SPACE, 1), np.float32)
    masks = (images > 0.7).astype(np.uint8)
    pairs = {"moving": images, "fixed": images[::-1], "moving_mask": masks}
    pairs["fixed_mask"] = masks[::-1]
    validation = (pairs, {1: "one"}) if stage == "registration" else images[:3]
    scores, _ = program.evaluate(state, frozen, validation, pictures=False)
    state, frozen = jax.device_put((state, frozen), replicated(mesh))
    batch = global_batch(random_arrays(program.batch, rng), mesh)
    compiled = lower_step(dataclasses.replace(program, mesh=mesh), seed=0).compile()
    size = compiled.memory_analysis().temp_size_in_bytes
    state, terms = compiled(state, frozen, batch, np.int32(3))
    moments = jax.tree.leaves(state["optimiser"][0].mu)  # a part of the gradient
    return {
        "terms": np.array([float(value) for value in terms.values()]),
        "gradients": np.concatenate([np.ravel(leaf) for leaf in moments]),
        "validation": np.array([value for value in scores.values()]),
        "bytes": size,
    }


def apart(one, other, part):
    return float(np.linalg.norm(one[part] - other[part]) / np.linalg.norm(one[part]))


main()
