"""Checkpoints of the published PyTorch code -> run directory (docs/converting.md).

The published latent diffusion model's checkpoint holds its autoencoder, the U-Net, the U-Net's
moving average and the noise schedule, each under a prefix. The autoencoder's own checkpoint has no
prefix, and the registration network's file is a plain state dict.
"""

import dataclasses
import logging
from pathlib import Path

import grain
import numpy as np

from ldm_morph_jax.files.writing import atomic, sha256
from ldm_morph_jax.methods.ldm import build_schedule
from ldm_morph_jax.models.lpips import lpips_params_from_torch, save_lpips
from ldm_morph_jax.ops.diffusion import linear_schedule
from ldm_morph_jax.published.ldm import (
    autoencoder_name,
    autoencoder_widths,
    discriminator_name,
    discriminator_widths,
    ema_name,
    schedule_entries,
    unet_widths,
)
from ldm_morph_jax.published.names import CheckpointError, Entries, to_published
from ldm_morph_jax.published.registration import (
    index_tables,
    registration_name,
    registration_unread,
    registration_widths,
)
from ldm_morph_jax.published.shared import (
    AUTOENCODER,
    COUNTER,
    DISCRIMINATOR,
    EMA,
    NORM_GROUPS,
    PERCEPTUAL,
    STATISTICS,
    UNET,
    abstract_discriminator,
    abstract_registration,
    check_published_architecture,
    complete_or_absent,
    init_discriminator,
    refuse_existing,
    unet_name_of,
)
from ldm_morph_jax.published.torch_files import read_checkpoint
from ldm_morph_jax.runs.checkpoints import SCORE, Checkpoints
from ldm_morph_jax.runs.dataset import dataset_of, dataset_record
from ldm_morph_jax.runs.directory import (
    COMPLETE,
    abstract_autoencoder,
    abstract_unet,
    environment,
    save_config,
    write_json,
)

log = logging.getLogger(__name__)


def convert(
    config,
    out: Path,
    *,
    diffusion: Path,
    autoencoder: Path | None = None,
    registration: Path | None = None,
) -> None:
    """Write the run directory `out` from checkpoints of the published code.

    `config` is set to the files' network widths, noise schedule and latent scale, and to
    features.weights "raw" if there is no EMA. The dataset is prepared if necessary. Raises
    CheckpointError, listing what is wrong, for a file that does not fit, and ValueError for an
    unsuitable configuration or dataset. `out` is created completely or not at all.
    """
    refuse_existing(out)
    config = config.copy_and_resolve_references()
    config.unlock()
    files = {"autoencoder": autoencoder, "diffusion": diffusion, "registration": registration}
    files = {stage: path for stage, path in files.items() if path is not None}
    read = {stage: read_checkpoint(path) for stage, path in files.items()}
    found = {stage: Entries(read[stage].entries, source=path) for stage, path in files.items()}
    # a separate autoencoder, or the copy in the diffusion model's file
    images = found.get("autoencoder", found["diffusion"].below(AUTOENCODER))

    # first what the files determine of the configuration, then their entries as parameters
    noted = read.get("autoencoder", read["diffusion"]).settings
    _take_settings(config.autoencoder.model, noted.get("autoencoder", {}))
    config.autoencoder.model.update(autoencoder_widths(images))
    if discriminator := images.below(DISCRIMINATOR):
        config.autoencoder.discriminator.update(discriminator_widths(discriminator))
    _take_settings(config.diffusion.model, read["diffusion"].settings.get("unet", {}))
    _configure_diffusion(config, found["diffusion"])
    config.ldm_from = None
    states = {"autoencoder": _autoencoder_state(images, config)}
    if autoencoder is not None:
        _check_same_autoencoder(images, found["diffusion"])
    states["diffusion"] = _diffusion_state(found["diffusion"], config)
    if registration is not None:
        check_published_architecture(config)
        config.registration.model.update(registration_widths(found["registration"]))
        states["registration"] = _registration_state(found["registration"], config)

    converted_from = {
        stage: {"file": path.name, "sha256": sha256(path)} for stage, path in files.items()
    }
    record = dataset_record(dataset_of(config))
    with complete_or_absent(out) as part:
        save_config(config, part)
        write_json(part / "environment.json", environment() | {"converted_from": converted_from})
        write_json(part / "dataset.json", record)
        for stage, state in states.items():
            _write_stage(part / stage, state, read[stage].step if stage in read else 0)
        scale = float(config.diffusion.latent_scale)
        write_json(part / "diffusion" / "latent_scale.json", {"latent_scale": scale})


def _take_settings(c, noted: dict[str, int]) -> None:
    """Set what shapes do not reveal: as noted by `to_torch`, or else as in the published code."""
    c.norm_groups = noted.get("norm_groups", NORM_GROUPS)
    if "head_channels" in noted:  # otherwise keep the configuration's
        c.head_channels = noted["head_channels"]


def _check_same_autoencoder(alone: Entries, ldm: Entries) -> None:
    """Refuse an autoencoder that differs from the one the diffusion model was trained with."""
    different = [
        name
        for name, array in alone.state_dict.items()
        if not name.startswith("loss.")
        and AUTOENCODER + name in ldm.state_dict
        and not np.array_equal(array, ldm.state_dict[AUTOENCODER + name])
    ]
    if different:
        raise CheckpointError(
            f"{alone.source} is not the autoencoder that {ldm.source} was trained with: "
            f"{', '.join(different[:5])} differ"
            + (f", and {len(different) - 5} more" if len(different) > 5 else "")
            + "; leave out --autoencoder to use the diffusion model's own"
        )


def _autoencoder_state(entries: Entries, config) -> dict:
    def unread(name):
        return name.startswith((DISCRIMINATOR, PERCEPTUAL))

    abstract = abstract_autoencoder(config)
    state = {"params": entries.parameters(abstract, autoencoder_name, unread=unread)}
    if discriminator := entries.below(DISCRIMINATOR):
        state["discriminator"] = _discriminator_state(discriminator, config)
    return state


def _discriminator_state(entries: Entries, config) -> dict:
    def kind(name: str) -> str:
        return name.split(".")[-1]

    variables = abstract_discriminator(config)
    statistics = {name: x for name, x in entries.state_dict.items() if kind(name) in STATISTICS}
    if not statistics:  # those of an untrained network
        untrained = init_discriminator(config)["batch_stats"]
        statistics = to_published(untrained, discriminator_name, prefix=entries.prefix)
    return {
        "params": entries.parameters(
            variables["params"],
            discriminator_name,
            unread=lambda name: kind(name) in (*STATISTICS, COUNTER),
        ),
        "batch_stats": dataclasses.replace(entries, state_dict=statistics).parameters(
            variables["batch_stats"], discriminator_name
        ),
    }


def _configure_diffusion(config, entries: Entries) -> None:
    """Set the diffusion model's widths, noise schedule, latent scale and the weights to use.

    Raises CheckpointError for entries that no published diffusion model has.
    """
    c, state_dict, source = config.diffusion, entries.state_dict, entries.source
    if "betas" in state_dict:
        _take_schedule(state_dict["betas"], c, source)
    schedule = schedule_entries(build_schedule(config))
    known = (AUTOENCODER, UNET, EMA)
    unexpected = [
        name
        for name in state_dict
        if not name.startswith(known) and name not in schedule and name != "scale_factor"
    ]
    if unexpected:
        raise CheckpointError(
            f"{source} is not a checkpoint of the published diffusion model: "
            + "; ".join(f"unexpected {name}" for name in unexpected[:10])
            + (f"; and {len(unexpected) - 10} more" if len(unexpected) > 10 else "")
        )
    scale = np.asarray(state_dict.get("scale_factor", np.float32(1)))
    if scale.size != 1 or not np.isfinite(scale).all() or not (scale > 0).all():
        raise CheckpointError(f"{source}: scale_factor is {scale}, expected one positive number")
    c.latent_scale = float(scale.reshape(()))
    c.model.update(unet_widths(entries.below(UNET)))
    if not entries.below(EMA):
        log.info("%s has no EMA weights: features.weights is set to raw", source)
        config.features.weights = "raw"


def _diffusion_state(entries: Entries, config) -> dict:
    abstract, name_of = abstract_unet(config), unet_name_of(config)
    state = {"params": entries.below(UNET).parameters(abstract, name_of)}
    if average := entries.below(EMA):
        state["ema"] = average.parameters(
            abstract,
            lambda path: ema_name(name_of(path)),
            unread=lambda name: name in ("decay", "num_updates"),
        )
    return state


def _take_schedule(betas, c, source) -> None:
    """Set the noise schedule's length and ends, unless they already agree with the file."""

    def says_the_same(steps, start, end):
        linear = linear_schedule(steps, start, end).betas
        return linear.shape == betas.shape and np.allclose(linear, betas, rtol=1e-5, atol=0)

    if betas.ndim != 1 or not betas.size:
        raise CheckpointError(f"{source}: betas has shape {betas.shape}, expected one axis")
    if says_the_same(c.timesteps, c.beta_start, c.beta_end):
        return
    steps, start, end = len(betas), float(betas[0]), float(betas[-1])
    if not 0 < start <= end < 1 or not says_the_same(steps, start, end):
        raise CheckpointError(f"{source}: betas are not linear in their square root")
    c.timesteps, c.beta_start, c.beta_end = steps, start, end


def _registration_state(entries: Entries, config) -> dict:
    abstract, found = abstract_registration(config), entries.state_dict
    params = entries.parameters(abstract, registration_name, unread=registration_unread)
    wrong = [
        name
        for name, table in index_tables(found).items()
        if name in found and not np.array_equal(found[name], table)
    ]
    if wrong:
        raise CheckpointError(
            f"{entries.source}: {', '.join(wrong)} are not the index tables of the published "
            "window attention; the bias tables would be read in the wrong order"
        )
    return {"params": params}


def _write_stage(directory: Path, state: dict, step: int) -> None:
    """Write a stage as a finished training would, without the optimiser and the metrics."""
    checkpoints = Checkpoints(directory / "checkpoints")
    nothing = iter(grain.MapDataset.source([0]).to_iter_dataset())  # no data has been read
    checkpoints.save(step, state, nothing, {SCORE: -np.inf})
    checkpoints.wait()
    checkpoints.close()
    write_json(directory / COMPLETE, {"steps": step, "best_step": step, "metrics": {}})


def convert_lpips(vgg: Path, linear: Path, out: Path) -> None:
    """Write a file of LPIPS weights for config.autoencoder.lpips_weights.

    vgg: torchvision's VGG16 state dict; linear: LPIPS' linear layers (`linK.model.1.weight`).
    """
    refuse_existing(out)
    states = read_checkpoint(vgg).entries, read_checkpoint(linear).entries
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic(out) as part:
            save_lpips(lpips_params_from_torch(*states), part)
    except ValueError as error:
        raise CheckpointError(f"{vgg}, {linear}: {error}") from None
