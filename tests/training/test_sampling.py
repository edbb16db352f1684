"""Samples of a diffusion model: against the same chain written out, and what the command writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from ldm_morph_jax import sample
from ldm_morph_jax.methods.ldm import build_autoencoder, build_schedule, build_unet
from ldm_morph_jax.runs.directory import abstract_autoencoder, abstract_ldm
from ldm_morph_jax.training import sampling

pytestmark = pytest.mark.integration

TIMES = 4


@pytest.fixture
def ldm(tmp_path, monkeypatch):
    """(configuration, frozen arrays) of a run whose weights are random instead of trained."""
    config = tiny_config("nowhere").unlock()
    config.diffusion.timesteps, config.diffusion.beta_end = TIMES, 0.9
    rng = np.random.default_rng(0)

    def random(shapes):
        return jax.tree.map(lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), a.dtype), shapes)

    autoencoder = random(abstract_autoencoder(config))
    frozen = random(abstract_ldm(config)) | {"latent_scale": jnp.float32(2)}
    monkeypatch.setattr(sampling, "load_config", lambda workdir: config)
    monkeypatch.setattr(sampling, "load_ldm", lambda workdir, config: frozen)
    monkeypatch.setattr(sampling, "load_autoencoder", lambda workdir, config: autoencoder)
    monkeypatch.setattr(sampling, "BATCH_SIZE", 2)
    return config, frozen | {"autoencoder": autoencoder}


def written_out(config, frozen, key):
    """Ho et al. 2020, algorithm 2 with the posterior's variance, in NumPy float64 but the U-Net."""
    schedule, unet = build_schedule(config), build_unet(config)
    autoencoder = build_autoencoder(config)
    start_key, noise_key = jax.random.split(key)
    z = np.asarray(jax.random.normal(start_key, (2, 8, 8, 1)), float)
    betas = schedule.betas.astype(float)
    abar = np.cumprod(1 - betas)
    predict = jax.jit(lambda z, t: unet.apply({"params": frozen["unet"]}, z, t))
    for t in reversed(range(TIMES)):
        noise = np.asarray(predict(z.astype(np.float32), np.full(2, t, np.int32)), float)
        z = (z - betas[t] / np.sqrt(1 - abar[t]) * noise) / np.sqrt(1 - betas[t])
        if t:
            variance = betas[t] * (1 - abar[t - 1]) / (1 - abar[t])
            draw = jax.random.normal(jax.random.fold_in(noise_key, t), z.shape)
            z += np.sqrt(variance) * np.asarray(draw)
    variables = {"params": frozen["autoencoder"]}
    latent = (z / 2).astype(np.float32)  # the latent scale
    quantised = autoencoder.apply(variables, latent, method="quantise")
    return autoencoder.apply(variables, quantised.latent, method="decode")


def test_samples_are_the_chain_written_out(ldm):
    config, frozen = ldm
    images = sampling.sample_images("run", count=3, seed=5)
    assert images.shape == (3, 32, 32, 1) and images.dtype == np.float32
    for batch, found in enumerate((images[:2], images[2:])):
        expected = written_out(config, frozen, jax.random.fold_in(jax.random.key(5), batch))
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(found, expected[: len(found)], atol=1e-3 * scale)
    assert np.abs(images[0] - images[2]).max() > 0.01 * scale


def test_command_writes_a_sheet_and_the_arrays(ldm, tmp_path, capsys, caplog):
    arguments = ["--workdir", "run", "--out", str(tmp_path / "out"), "--count", "1", "--seed", "3"]
    with caplog.at_level("INFO"):
        sample.main(arguments)
    assert capsys.readouterr().out == f"1 samples: {tmp_path / 'out/samples.png'}\n"
    stored = np.load(tmp_path / "out/samples.npz")
    assert stored["images"].shape == (1, 32, 32, 1) and stored["seed"] == 3
    assert (tmp_path / "out/samples.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["samples.npz", "samples.png"]


def test_progress_ends_with_the_last_step(ldm, caplog):
    with caplog.at_level("INFO"):
        sampling.sample_images("run", count=3)
    steps = [record.message for record in caplog.records if "ETA" in record.message]
    assert len(steps) == 2 * TIMES
    assert steps[-1].startswith("samples 8/8 (100%)") and steps[-1].endswith("ETA 0:00:00")


def test_what_cannot_be_sampled_is_refused(tmp_path, capsys):
    for count in (0, -1):
        with pytest.raises(ValueError, match=f"count is {count}, expected 1 or more"):
            sampling.sample_images(tmp_path, count=count)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("nowhere").to_dict()))
    with pytest.raises(ValueError, match="the stage 'autoencoder' is not complete"):
        sampling.sample_images(tmp_path, count=1)
    with pytest.raises(SystemExit):
        sample.main(["--workdir", str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert "is not a run directory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
