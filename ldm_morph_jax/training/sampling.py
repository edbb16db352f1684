"""Draws images from the trained diffusion model, to show what it has learnt."""

import itertools
from pathlib import Path

import jax
import numpy as np

from ldm_morph_jax.files.writing import atomic
from ldm_morph_jax.methods.ldm import build_autoencoder, build_schedule, build_unet
from ldm_morph_jax.models.autoencoder import Autoencoder
from ldm_morph_jax.ops.diffusion import ddpm_sample
from ldm_morph_jax.report.figures import image_grid
from ldm_morph_jax.runs.directory import latent_shape, load_autoencoder, load_config, load_ldm
from ldm_morph_jax.training.logging import Progress

BATCH_SIZE = 8  # samples at a time
REPORTS = 20  # lines of progress


def decoded(autoencoder: Autoencoder, frozen, z: jax.Array) -> jax.Array:
    """Decode the diffusion model's latents `z [B, h, w, C]` to images `[B, H, W, 1]` (or volumes).

    `frozen`: {"autoencoder": all its parameters, "latent_scale": the factor by which its latents
    were multiplied for the diffusion model}.
    """
    variables = {"params": frozen["autoencoder"]}
    quantised = autoencoder.apply(variables, z / frozen["latent_scale"], method="quantise")
    return autoencoder.apply(variables, quantised.latent, method="decode")


def sample_images(workdir: str | Path, *, count: int, seed: int = 0) -> np.ndarray:
    """Sample from the diffusion model of a run: `[count, *space, 1]` float32, about [0, 1].

    Ancestral sampling through every time index (paper Eqs. 4-5), with the weights from which the
    run's features are computed (`config.features.weights`). The first images of a seed do not
    depend on `count`. Logs the progress with the time remaining.

    Raises ValueError for a count below 1 and for a run without a finished diffusion model.
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected 1 or more")
    config = load_config(workdir)
    origin = Path(config.ldm_from or workdir)
    frozen = load_ldm(origin, config) | {"autoencoder": load_autoencoder(origin, config)}
    autoencoder, unet, schedule = (
        build(config) for build in (build_autoencoder, build_unet, build_schedule)
    )
    batches, times = -(-count // BATCH_SIZE), len(schedule.betas)
    step, steps = itertools.count(1), batches * times
    progress = None

    def report(_):
        done = next(step)
        if done % max(steps // REPORTS, 1) == 0:
            progress.report(done, {})

    def sample(frozen, key):
        def noise(z, t):
            jax.debug.callback(report, t[0])
            return unet.apply({"params": frozen["unet"]}, z, t)

        shape = (BATCH_SIZE, *latent_shape(config))
        return decoded(autoencoder, frozen, ddpm_sample(schedule, noise, key, shape))

    frozen, key = jax.device_put(frozen), jax.random.key(seed)
    compiled = jax.jit(sample).lower(frozen, key).compile()
    progress = Progress("samples", steps, BATCH_SIZE / times)
    images = [np.asarray(compiled(frozen, jax.random.fold_in(key, i))) for i in range(batches)]
    jax.effects_barrier()  # the last lines of progress
    return np.concatenate(images)[:count]


def write_samples(images: np.ndarray, out: str | Path, *, seed: int) -> Path:
    """Write images `[N, *space, 1]` to `out`: samples.npz and a contact sheet; returns its path."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with atomic(out / "samples.npz") as path:
        np.savez_compressed(path, images=images, seed=seed)
    figure = image_grid(images, title=f"samples of the diffusion model, seed {seed}")
    with atomic(out / "samples.png") as path:
        figure.savefig(path)
    return out / "samples.png"
