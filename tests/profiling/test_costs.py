"""FLOPs of the programs at the paper's size: nothing is computed that is not needed, or twice.

Programs are lowered, not compiled, and nothing is computed.
"""

import time

import jax
import numpy as np
import pytest

from ldm_morph_jax.config import paper_config
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.profiling import costs
from ldm_morph_jax.profiling.costs import flops
from ldm_morph_jax.profiling.timing import clock, peak_flops
from ldm_morph_jax.runs.directory import abstract_ldm


@pytest.fixture(scope="module")
def parts():
    """FLOPs of the method's parts for one pair, and the shapes that it takes."""
    config = paper_config()
    method = build_method(config)
    ldm = abstract_ldm(config)
    params = jax.eval_shape(lambda: method.init(jax.random.key(0), (128, 128)))
    image = jax.ShapeDtypeStruct((1, 128, 128, 1), np.float32)
    both = jax.ShapeDtypeStruct((2, 128, 128, 1), np.float32)
    z = jax.ShapeDtypeStruct((2, 32, 32, 1), np.float32)
    t = jax.ShapeDtypeStruct((2,), np.int32)
    unet, encode = method.features.unet, method.features.encode
    features = [jax.eval_shape(method.image_features, ldm, image)] * 2
    counted = {
        "encode": flops(encode, ldm, both),
        "unet": flops(lambda p, z, t: unet.apply({"params": p}, z, t), ldm["unet"], z, t),
        "taps": flops(
            lambda p, z, t: unet.apply({"params": p}, z, t, method="taps"), ldm["unet"], z, t
        ),
        "network": flops(method.predict, params, image, image, features),
    }
    return config, method, params, ldm, image, counted


@pytest.mark.integration
def test_inference_computes_no_decoder_half(parts):
    """Two encodings, one noise prediction for the inversion, the taps, the network: no more.

    The noise prediction needs the U-Net's decoder, the taps do not, and the autoencoder's decoder
    never runs. The published code spends 192 GFLOP on a pair without any inversion.
    """
    _, method, params, ldm, image, counted = parts
    whole = flops(method.displacement, params, ldm, image, image)
    assert whole == pytest.approx(sum(counted.values()), rel=0.002)
    assert counted["taps"] < 0.5 * counted["unet"]
    assert "decoder" not in ldm["autoencoder"]
    assert whole < 195e9


@pytest.mark.integration
def test_cached_features_halve_the_step(parts):
    """Of the step without cache, two encodings and the features of both images are saved."""
    config, *_, counted = parts
    cached, anew = (
        costs.step_flops(config, "registration", cached=cached) for cached in (True, False)
    )
    saved = counted["encode"] + counted["unet"] + counted["taps"]
    assert anew - cached == pytest.approx(saved, rel=0.002)
    assert anew > 1.8 * cached


@pytest.mark.integration
def test_without_taps_only_the_fixed_image_is_encoded_besides(parts):
    """The latent loss needs the fixed image's latent, which the cache has, never the moving's."""
    config = parts[0].copy_and_resolve_references()
    with config.unlocked():
        config.registration.model.fusion = "none"
    cached, anew = (
        costs.step_flops(config, "registration", cached=cached) for cached in (True, False)
    )
    assert anew - cached == pytest.approx(parts[-1]["encode"] / 2, rel=0.002)


def test_all_reduced_bytes_of_a_program():
    text = """
      %x = f32[3,4]{1,0} add(f32[3,4]{1,0} %a, f32[3,4]{1,0} %b)
      %all-reduce.1 = (f32[3,4]{1,0}, bf16[10]{0}) all-reduce(%x, %y), replica_groups={{0,1}}
      %ar = f32[] all-reduce-start(%z), to_apply=%sum
      %ard = f32[] all-reduce-done(%ar)
    """
    assert costs.all_reduced_bytes(text) == 48 + 20 + 4


@pytest.mark.integration
def test_plan_without_allocating():
    """The discriminator-free autoencoder step of a tiny network, with everything plan prints."""
    config = paper_config()
    with config.unlocked():
        config.data.image_size = 16
        config.autoencoder.adversarial_weight = 0.0
        config.autoencoder.model.base_channels = 4
        config.autoencoder.model.channel_multipliers = (1, 1)
        config.autoencoder.model.residual_blocks = 1
        config.autoencoder.model.attention_levels = ()
        config.autoencoder.train.batch_size = 2
    planned = costs.plan_stage(config, "autoencoder", cached=True)
    assert f"{planned['parameters']:,}" in costs.table({"autoencoder": planned})
    assert costs.duration({"a": planned}, 2e9) == pytest.approx(
        planned["steps"] * planned["flops_per_step"] / 2e9
    )
    planned |= costs.compiled_costs(config, "autoencoder", cached=True)
    assert planned["frozen_parameters"] == 0
    assert planned["all_reduced_bytes_per_step"] == 0  # one device
    # parameters, and Adam's two moments of them
    assert planned["argument_bytes"] >= 3 * 4 * planned["parameters"]
    # the new state takes the place of the old one, which is donated
    outputs = planned["peak_bytes"] - planned["argument_bytes"] - planned["temporary_bytes"]
    assert 0 <= outputs < planned["parameters"]  # the metrics, not another 12 bytes a parameter
    assert planned["flops_per_step"] > 6 * planned["parameters"]
    assert f"{planned['parameters']:,}" in costs.table({"autoencoder": planned})


@pytest.mark.slow
def test_further_inversion_steps_are_counted(parts):
    config = parts[0].copy_and_resolve_references()
    with config.unlocked():
        config.features.inversion_steps = 2
    counted = parts[-1]
    once, twice = (costs.step_flops(c, "registration", cached=False) for c in (parts[0], config))
    assert twice - once == pytest.approx(counted["unet"], rel=0.01)


def test_clock_reports_median_and_range(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def timed(*durations, repeats, seconds):
        """What `clock` says of calls that take so long; the first one warms up."""
        left = iter(durations)

        def call():
            nonlocal now
            now += next(left)

        result = clock(call, repeats=repeats, seconds=seconds)
        assert next(left, None) is None  # as many calls as were given
        return result

    expected = {"median": 2.5, "min": 1.0, "max": 8.0, "repeats": 4}
    assert timed(99.0, 3.0, 1.0, 8.0, 2.0, repeats=4, seconds=60) == expected
    assert timed(99.0, 3.0, 4.0, repeats=5, seconds=7)["repeats"] == 2  # the time is over
    assert timed(99.0, 3.0, repeats=5, seconds=0)["repeats"] == 1


def test_peaks():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("cpu") is None
