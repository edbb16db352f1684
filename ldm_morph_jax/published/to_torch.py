"""Run directory -> checkpoints of the published PyTorch code (docs/converting.md)."""

import logging
from pathlib import Path

import jax
import numpy as np

from ldm_morph_jax.methods.ldm import build_schedule
from ldm_morph_jax.published.ldm import (
    autoencoder_name,
    discriminator_name,
    ema_name,
    schedule_entries,
)
from ldm_morph_jax.published.names import to_published
from ldm_morph_jax.published.registration import index_tables, registration_name, unread_entries
from ldm_morph_jax.published.shared import (
    AUTOENCODER,
    COUNTER,
    DISCRIMINATOR,
    EMA,
    NORM_GROUPS,
    UNET,
    abstract_discriminator,
    abstract_registration,
    check_published_architecture,
    complete_or_absent,
    init_discriminator,
    refuse_existing,
    unet_name_of,
)
from ldm_morph_jax.published.torch_files import SETTINGS, write_checkpoint
from ldm_morph_jax.runs.checkpoints import stored_parts
from ldm_morph_jax.runs.directory import (
    abstract_unet,
    best_step,
    completed,
    latent_scale,
    load_autoencoder,
    load_config,
    trained_part,
)

log = logging.getLogger(__name__)


def to_torch(workdir: Path, out: Path) -> list[str]:
    """Write a run's networks as the published code's checkpoints; returns the files' names.

    autoencoder.ckpt and diffusion.ckpt ({"state_dict": ...}) and registration.pth (a state dict),
    for the stages that are complete. Raises ValueError for a run that the published networks cannot
    represent. `out` is created completely or not at all.
    """
    refuse_existing(out)
    config = load_config(workdir)
    if config.registration.method != "ldm_morph":
        raise ValueError(
            f"{workdir} trained {config.registration.method}, expected ldm_morph, which the "
            "published code trains"
        )
    ldm = Path(config.ldm_from or workdir)
    files = {}
    settings = {
        "autoencoder": {"norm_groups": config.autoencoder.model.norm_groups},
        "unet": {name: config.diffusion.model[name] for name in ("norm_groups", "head_channels")},
    }
    if any(noted["norm_groups"] != NORM_GROUPS for noted in settings.values()):
        log.warning(
            "this run's GroupNorms have %d (autoencoder) and %d (U-Net) groups; the published code "
            "fixes %d and gives other results with these weights unless that number is changed",
            settings["autoencoder"]["norm_groups"],
            settings["unet"]["norm_groups"],
            NORM_GROUPS,
        )
    if completed(ldm / "autoencoder") is not None:
        autoencoder = _published_autoencoder(ldm, config)
        files["autoencoder.ckpt"] = {"state_dict": autoencoder, SETTINGS: settings}
        if completed(ldm / "diffusion") is not None:
            diffusion = _published_diffusion(ldm, config)
            diffusion |= {AUTOENCODER + name: x for name, x in autoencoder.items()}
            files["diffusion.ckpt"] = {"state_dict": diffusion, SETTINGS: settings}
    if completed(workdir / "registration") is not None:
        check_published_architecture(config)
        files["registration.pth"] = _published_registration(workdir, config)
    if not files:
        raise ValueError(f"{workdir}: no stage of this run is complete")
    with complete_or_absent(out) as part:
        for name, content in files.items():
            write_checkpoint(part / name, content)
    return list(files)


def _published_autoencoder(workdir: Path, config) -> dict[str, np.ndarray]:
    entries = to_published(load_autoencoder(workdir, config), autoencoder_name)
    if "discriminator" in _stored(workdir, "autoencoder"):
        abstract = {"discriminator": abstract_discriminator(config)}
        part = trained_part(workdir, "autoencoder", abstract, what="discriminator")
        variables = part["discriminator"]
    else:  # not trained in this run, but the published module always has one
        variables = jax.tree.map(np.asarray, init_discriminator(config))
    for collection in ("params", "batch_stats"):
        entries |= to_published(variables[collection], discriminator_name, prefix=DISCRIMINATOR)
    for name in [name for name in entries if name.endswith("running_mean")]:
        counter = name.replace("running_mean", COUNTER)
        entries[counter] = np.array(0, np.int64)  # read only with another momentum setting
    return entries


def _published_diffusion(workdir: Path, config) -> dict[str, np.ndarray]:
    names = [name for name in ("params", "ema") if name in _stored(workdir, "diffusion")]
    abstract = abstract_unet(config)
    part = trained_part(
        workdir, "diffusion", {name: abstract for name in names}, what="diffusion model"
    )
    name_of = unet_name_of(config)
    entries = schedule_entries(build_schedule(config))
    entries |= to_published(part["params"], name_of, prefix=UNET)
    if "ema" in part:
        entries |= to_published(part["ema"], lambda path: ema_name(name_of(path)), prefix=EMA)
        entries[f"{EMA}decay"] = np.array(config.diffusion.ema_decay, np.float32)
        entries[f"{EMA}num_updates"] = np.array(best_step(workdir, "diffusion"), np.int32)
    scale = latent_scale(workdir)
    if scale != 1:  # the published module has this buffer if it scales latents by their spread
        entries["scale_factor"] = np.array(scale, np.float32)
    return entries


def _published_registration(workdir: Path, config) -> dict[str, np.ndarray]:
    abstract = {"params": abstract_registration(config)}
    part = trained_part(workdir, "registration", abstract, what="registration network")
    entries = to_published(part["params"], registration_name)
    return entries | unread_entries(entries) | index_tables(entries)


def _stored(workdir: Path, stage: str) -> set[str]:
    return stored_parts(workdir / stage / "checkpoints", best_step(workdir, stage))
