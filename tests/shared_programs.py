"""Programs that tests share: traced and compiled once in a test process, not once in every run.

Most tests that train do so with tests/tiny.py. `training.run` builds the same programs for each of
these runs; here they are kept, by what they depend on of the configuration.
"""

import dataclasses
import functools
import json

import jax

from ldm_morph_jax.training import features, loop, program, run
from ldm_morph_jax.training.stages import STAGES

# of a stage's `train`: read by the loop, not by the program
READ_BY_LOOP = ("log_every", "evaluate_every", "sample_every", "patience")


def share(patch):
    """Make `training.run` use shared programs; returns a function that forgets them."""
    programs, compiled, methods, encoders = everything = {}, {}, {}, {}
    stage_program, lower_step = run.stage_program, program.lower_step
    build_method, encoder = run.build_method, features.encoder

    def shared_program(config, stage, *, cached):
        # what was traced under strict promotion serves all, not the other way round
        modes = ("strict", jax.config.jax_numpy_dtype_promotion)
        keys = [(_depends_on(config, stage), cached, mode) for mode in modes]
        key = next((key for key in keys if key in programs), keys[1])
        if key not in programs:
            programs[key] = stage_program(config, stage, cached=cached)
        return dataclasses.replace(programs[key], train=config[stage].train)

    def shared_step(stage, *, seed):
        key = (stage.step, seed)
        if key not in compiled:
            compiled[key] = _Once(lower_step(stage, seed=seed))
        return compiled[key]

    def shared_method(config):
        key = _depends_on(config, "registration")
        if key not in methods:
            methods[key] = method = build_method(config)
            # a bound method is a new object every time, whose programs are not found again
            object.__setattr__(method, "image_features", jax.jit(method.image_features))
        return methods[key]

    def shared_encoder(config):
        key = _depends_on(config, "autoencoder")
        if key not in encoders:
            encoders[key] = jax.jit(encoder(config))
        return encoders[key]

    patch.setattr(run, "stage_program", shared_program)
    for module in (run, loop):  # a run of several stages lowers their steps before the loop
        patch.setattr(module, "lower_step", shared_step)
    patch.setattr(run, "build_method", shared_method)
    patch.setattr(features, "encoder", shared_encoder)
    return lambda: [kept.clear() for kept in everything]


def _depends_on(config, stage: str) -> str:
    """All of a configuration that a stage's program depends on."""
    content = config.to_dict()
    before = STAGES[: STAGES.index(stage)] if stage in STAGES else ()
    parts = {name: content[name] for name in (*before, stage, "compute")}
    if stage == "registration":
        parts["features"] = content["features"]
    for name in READ_BY_LOOP:
        del parts[stage]["train"][name]
    grid = [content["data"][name] for name in ("image_size", "depth")]
    return json.dumps([stage, grid, parts])


class _Once:
    """A lowered program that is compiled, and its cost counted, once."""

    def __init__(self, lowered):
        self.compile = functools.cache(lowered.compile)
        self.cost_analysis = functools.cache(lowered.cost_analysis)
