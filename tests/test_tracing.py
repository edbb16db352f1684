"""How often programs are traced, in training and in registering, and what moves between steps."""

import chex
import jax
import numpy as np
import pytest
from analytic_method import heart
from strict import guarded, strict_promotion
from tiny import tiny_config

from ldm_morph_jax.config import with_method
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.methods.voxelmorph import VoxelMorph
from ldm_morph_jax.registering.method import Registrar
from ldm_morph_jax.training import run

pytestmark = pytest.mark.integration


@pytest.fixture
def traced_once(monkeypatch, shared_programs):
    """A second trace of what VoxelMorph computes is an error."""
    shared_programs()
    chex.clear_trace_counter()  # which counts by function, across tests
    for name in ("loss", "field", "objective"):
        counted = chex.assert_max_traces(getattr(VoxelMorph, name), n=1)
        monkeypatch.setattr(VoxelMorph, name, counted)
    yield
    shared_programs()


def small_voxelmorph(directory):
    config = with_method(tiny_config(directory), "voxelmorph", "small")
    config.registration.model.update(encoder_channels=(4,) * 2, decoder_channels=(4,) * 2)
    return config


def test_training_traces_once_and_moves_nothing_unasked(tmp_path, traced_once, monkeypatch):
    """Four steps, and two validations of one batch each."""
    run_stage = run.run_stage

    def guarded_run(program, *arguments, batches, **options):
        program, batches = guarded(program, batches)
        try:
            return run_stage(program, *arguments, batches=batches, **options)
        finally:
            jax.config.update("jax_transfer_guard", "allow")

    monkeypatch.setattr(run, "run_stage", guarded_run)
    with strict_promotion():
        metrics = run.train(small_voxelmorph(tmp_path / "data"), tmp_path / "run")
    assert metrics["registration"]["dsc"] > 0


def test_images_of_any_size_share_one_program(tmp_path, traced_once):
    """Also while they are refined; only the number of pairs at once is part of a program."""
    config = small_voxelmorph(tmp_path)
    network = build_method(config)
    params = jax.jit(lambda: network.init(jax.random.key(0), (32, 32)))()
    registrar = Registrar(network, params=params, config=config, spacing_mm=3.0)
    for shape in ((40, 40), (33, 70), (90, 61)):
        pair = heart(shape, radius=0.55), heart(shape, radius=0.45)
        result = registrar(*pair, spacing=2.0, refine=2)
        assert result.displacement.shape == (*shape, 2) and np.any(result.displacement)
    with pytest.raises(AssertionError, match="traced > 1 times"):
        registrar(*(np.stack([image, image]) for image in pair), spacing=2.0)
