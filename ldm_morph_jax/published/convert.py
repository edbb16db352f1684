"""Run directories from, and to, checkpoints of the published PyTorch code (docs/fidelity.md).

The published latent diffusion model's checkpoint holds its autoencoder, the U-Net, the U-Net's
moving average and the noise schedule under prefixes; the autoencoder's own checkpoint holds it
without one; the registration network is a bare state dict.
"""

import contextlib
import functools
import hashlib
import logging
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.files.images import atomic
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.methods.ldm import build_schedule
from ldm_morph_jax.models.discriminator import PatchDiscriminator
from ldm_morph_jax.models.lpips import lpips_file_from_torch
from ldm_morph_jax.ops.diffusion import linear_schedule
from ldm_morph_jax.published.ldm import (
    autoencoder_name,
    autoencoder_widths,
    discriminator_name,
    discriminator_widths,
    ema_name,
    schedule_entries,
    unet_name,
    unet_widths,
)
from ldm_morph_jax.published.names import CheckpointError, Sizes, from_published, to_published
from ldm_morph_jax.published.registration import (
    LEVELS,
    index_tables,
    registration_name,
    registration_unread,
    registration_widths,
    unread_entries,
)
from ldm_morph_jax.published.torch_files import (
    SETTINGS,
    Checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from ldm_morph_jax.runs.checkpoints import SCORE, Checkpoints, stored_parts
from ldm_morph_jax.runs.directory import (
    COMPLETE,
    abstract_autoencoder,
    abstract_unet,
    best_step,
    completed,
    environment,
    latent_scale,
    load_autoencoder,
    load_config,
    save_config,
    trained_part,
    write_json,
)
from ldm_morph_jax.training.run import dataset_of, dataset_record

log = logging.getLogger(__name__)

# prefixes of the published latent diffusion model's entries
AUTOENCODER, UNET, EMA = "first_stage_model.", "model.diffusion_model.", "model_ema."
# within the autoencoder: its training loss, which holds two networks of its own
DISCRIMINATOR, PERCEPTUAL = "loss.discriminator.", "loss.perceptual_loss."
NORM_GROUPS = 32  # of every GroupNorm in the published code
STATISTICS = ("running_mean", "running_var")  # of the discriminator's norms
COUNTER = "num_batches_tracked"


# -- published code -> run directory ---------------------------------------------------------------


def convert(
    config,
    out: Path,
    *,
    diffusion: Path,
    autoencoder: Path | None = None,
    registration: Path | None = None,
) -> None:
    """Write the run directory `out` from checkpoints of the published code.

    `config` gets the widths of the networks that the files hold, their noise schedule and latent
    scale, and features.weights "raw" where there is no EMA; the dataset is prepared when needed.
    Raises CheckpointError for a file that does not fit, listing what is wrong, ValueError for a
    configuration or dataset that does not. `out` appears when it is complete, or not at all.
    """
    _refuse_existing(out)
    config = config.copy_and_resolve_references()
    config.unlock()
    files = {"autoencoder": autoencoder, "diffusion": diffusion, "registration": registration}
    files = {stage: path for stage, path in files.items() if path is not None}
    read = {stage: read_checkpoint(path) for stage, path in files.items()}

    # one stage after the other: widths to the configuration, then entries to parameters
    states, ldm = {}, read["diffusion"].entries
    if autoencoder is None:
        _take_settings(config.autoencoder.model, read["diffusion"], "autoencoder")
        states["autoencoder"] = _autoencoder_state(ldm, config, diffusion, prefix=AUTOENCODER)
    else:
        alone = read["autoencoder"].entries
        _take_settings(config.autoencoder.model, read["autoencoder"], "autoencoder")
        states["autoencoder"] = _autoencoder_state(alone, config, autoencoder, prefix="")
        _check_same_autoencoder(alone, autoencoder, ldm, diffusion)
    _take_settings(config.diffusion.model, read["diffusion"], "unet")
    states["diffusion"] = _diffusion_state(ldm, config, diffusion)
    if registration is not None:
        entries = read["registration"].entries
        states["registration"] = _registration_state(entries, config, registration)
    config.ldm_from = None

    converted_from = {
        stage: {"file": path.name, "sha256": _sha256(path)} for stage, path in files.items()
    }
    record = dataset_record(dataset_of(config))
    with _complete_or_absent(out) as part:
        save_config(config, part)
        write_json(part / "environment.json", environment() | {"converted_from": converted_from})
        write_json(part / "dataset.json", record)
        for stage, state in states.items():
            _write_stage(part / stage, state, read[stage].step if stage in read else 0)
        scale = float(config.diffusion.latent_scale)
        write_json(part / "diffusion" / "latent_scale.json", {"latent_scale": scale})


def _take_settings(c, checkpoint: Checkpoint, network: str) -> None:
    """Set what no shape shows: as noted by `to_torch`, else as in the published code."""
    noted = checkpoint.settings.get(network, {})
    c.norm_groups = noted.get("norm_groups", NORM_GROUPS)
    if "head_channels" in noted:  # else the configuration's
        c.head_channels = noted["head_channels"]


def _check_same_autoencoder(alone, alone_path, ldm, ldm_path) -> None:
    """The diffusion model's latents are those of its own copy: another autoencoder is an error."""
    different = [
        name
        for name in alone
        if not name.startswith("loss.")
        and AUTOENCODER + name in ldm
        and not np.array_equal(alone[name], ldm[AUTOENCODER + name])
    ]
    if different:
        raise CheckpointError(
            f"{alone_path} holds another autoencoder than {ldm_path} was trained with: "
            f"{', '.join(different[:5])} differ"
            + (f", and {len(different) - 5} more" if len(different) > 5 else "")
            + "; leave --autoencoder out to take the diffusion model's own"
        )


def _autoencoder_state(entries, config, source, *, prefix: str) -> dict:
    config.autoencoder.model.update(autoencoder_widths(Sizes(entries, prefix, str(source))))
    state = {
        "params": from_published(
            entries,
            abstract_autoencoder(config),
            autoencoder_name,
            prefix=prefix,
            unread=lambda name: name.startswith((DISCRIMINATOR, PERCEPTUAL)),
            source=str(source),
        )
    }
    prefix = prefix + DISCRIMINATOR
    if any(name.startswith(prefix) for name in entries):
        c = config.autoencoder.discriminator
        c.update(discriminator_widths(Sizes(entries, prefix, str(source))))
        state["discriminator"] = _discriminator_state(entries, config, source, prefix)
    return state


def _discriminator_state(entries, config, source, prefix: str) -> dict:
    def kind(name: str) -> str:
        return name.split(".")[-1]

    variables = _abstract_discriminator(config)
    statistics = {name: x for name, x in entries.items() if kind(name) in STATISTICS}
    if not statistics:  # those of a network that has seen nothing
        statistics = {
            prefix + name: np.full(leaf.shape, name.endswith("var"), np.float32)
            for name, leaf in _named(variables["batch_stats"], discriminator_name).items()
        }
    return {
        "params": from_published(
            entries,
            variables["params"],
            discriminator_name,
            prefix=prefix,
            unread=lambda name: kind(name) in (*STATISTICS, COUNTER),
            source=str(source),
        ),
        "batch_stats": from_published(
            statistics,
            variables["batch_stats"],
            discriminator_name,
            prefix=prefix,
            source=str(source),
        ),
    }


def _diffusion_state(entries, config, source) -> dict:
    c = config.diffusion
    if "betas" in entries:
        _take_schedule(entries["betas"], c, source)
    schedule = schedule_entries(build_schedule(config))
    known = (AUTOENCODER, UNET, EMA)
    unexpected = [
        name
        for name in entries
        if not name.startswith(known) and name not in schedule and name != "scale_factor"
    ]
    if unexpected:
        raise CheckpointError(
            f"{source} is no checkpoint of the published diffusion model: "
            + "; ".join(f"unexpected {name}" for name in unexpected[:10])
            + (f"; and {len(unexpected) - 10} more" if len(unexpected) > 10 else "")
        )
    scale = np.asarray(entries.get("scale_factor", np.float32(1)))
    if scale.size != 1 or not np.isfinite(scale).all() or not (scale > 0).all():
        raise CheckpointError(f"{source}: scale_factor is {scale}, expected one positive number")
    c.latent_scale = float(scale.reshape(()))

    c.model.update(unet_widths(Sizes(entries, UNET, str(source))))
    abstract, name_of = abstract_unet(config), _unet_name_of(config)
    state = {"params": from_published(entries, abstract, name_of, prefix=UNET, source=str(source))}
    if any(name.startswith(EMA) for name in entries):
        state["ema"] = from_published(
            entries,
            abstract,
            lambda path: ema_name(name_of(path)),
            prefix=EMA,
            unread=lambda name: name in ("decay", "num_updates"),
            source=str(source),
        )
    else:
        log.info("%s holds no EMA weights: features.weights becomes raw", source)
        config.features.weights = "raw"
    return state


def _take_schedule(betas, c, source) -> None:
    """Set the noise schedule's length and ends; they stay where they say the same already."""

    def says_the_same(steps, start, end):
        found = linear_schedule(steps, start, end).betas
        return found.shape == betas.shape and np.allclose(found, betas, rtol=1e-5, atol=0)

    if betas.ndim != 1 or not betas.size:
        raise CheckpointError(f"{source}: betas has shape {betas.shape}, expected one axis")
    if says_the_same(c.timesteps, c.beta_start, c.beta_end):
        return
    steps, start, end = len(betas), float(betas[0]), float(betas[-1])
    if not 0 < start <= end < 1 or not says_the_same(steps, start, end):
        raise CheckpointError(f"{source}: betas are not linear in their square root")
    c.timesteps, c.beta_start, c.beta_end = steps, start, end


def _registration_state(entries, config, source) -> dict:
    _check_published_architecture(config)
    c = config.registration.model
    c.update(registration_widths(Sizes(entries, source=str(source))))
    params = from_published(
        entries,
        _abstract_registration(config),
        registration_name,
        unread=registration_unread,
        source=str(source),
    )
    wrong = [
        name
        for name, table in index_tables(entries).items()
        if name in entries and not np.array_equal(entries[name], table)
    ]
    if wrong:
        raise CheckpointError(
            f"{source}: {', '.join(wrong)} are not the index tables of the published window "
            "attention; the bias tables would be read in another order"
        )
    return {"params": params}


def _check_published_architecture(config) -> None:
    c = config.registration
    if c.method != "ldm_morph" or c.model.fusion != "lgca" or len(c.model.depths) != LEVELS:
        raise ValueError(
            f"the configuration is of registration.method {c.method!r}, fusion {c.model.fusion!r} "
            f"and {len(c.model.depths)} levels; the published registration network is ldm_morph, "
            f"lgca and {LEVELS} levels"
        )


def _write_stage(directory: Path, state: dict, step: int) -> None:
    """A stage as training leaves it at its end, without the optimiser and the metrics."""
    checkpoints = Checkpoints(directory / "checkpoints")
    nothing = iter(grain.MapDataset.source([0]).to_iter_dataset())  # no data was read here
    checkpoints.save(step, state, nothing, {SCORE: -np.inf})
    checkpoints.wait()
    checkpoints.close()
    write_json(directory / COMPLETE, {"steps": step, "best_step": step, "metrics": {}})


# -- run directory -> published code ---------------------------------------------------------------


def to_torch(workdir: Path, out: Path) -> list[str]:
    """Write a run's networks as the published code's checkpoints; returns the files' names.

    autoencoder.ckpt and diffusion.ckpt ({"state_dict": ...}) and registration.pth (a state dict),
    of the stages that are complete. Raises ValueError for a run that the published networks cannot
    hold. `out` appears when it is complete, or not at all.
    """
    _refuse_existing(out)
    config = load_config(workdir)
    ldm = Path(config.ldm_from or workdir)
    files = {}
    settings = {
        "autoencoder": {"norm_groups": config.autoencoder.model.norm_groups},
        "unet": {name: config.diffusion.model[name] for name in ("norm_groups", "head_channels")},
    }
    if any(noted["norm_groups"] != NORM_GROUPS for noted in settings.values()):
        log.warning(
            "this run's GroupNorms have %d (autoencoder) and %d (U-Net) groups; the published code "
            "fixes %d, and computes something else with these weights until that is changed there",
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
        _check_published_architecture(config)
        files["registration.pth"] = _published_registration(workdir, config)
    if not files:
        raise ValueError(f"{workdir}: no stage of this run is complete")
    with _complete_or_absent(out) as part:
        for name, content in files.items():
            write_checkpoint(part / name, content)
    return list(files)


def _published_autoencoder(workdir: Path, config) -> dict[str, np.ndarray]:
    entries = to_published(load_autoencoder(workdir, config), autoencoder_name)
    if "discriminator" in _stored(workdir, "autoencoder"):
        abstract = {"discriminator": _abstract_discriminator(config)}
        part = trained_part(workdir, "autoencoder", abstract, what="discriminator")
        variables = part["discriminator"]
    else:  # never trained; the published module has one all the same
        variables = jax.tree.map(np.asarray, _init_discriminator(config))
    for collection in ("params", "batch_stats"):
        entries |= to_published(variables[collection], discriminator_name, prefix=DISCRIMINATOR)
    for name in [name for name in entries if name.endswith("running_mean")]:
        counter = name.replace("running_mean", COUNTER)
        entries[counter] = np.array(0, np.int64)  # read under another momentum setting only
    return entries


def _published_diffusion(workdir: Path, config) -> dict[str, np.ndarray]:
    names = [name for name in ("params", "ema") if name in _stored(workdir, "diffusion")]
    abstract = abstract_unet(config)
    part = trained_part(
        workdir, "diffusion", {name: abstract for name in names}, what="diffusion model"
    )
    name_of = _unet_name_of(config)
    entries = schedule_entries(build_schedule(config))
    entries |= to_published(part["params"], name_of, prefix=UNET)
    if "ema" in part:
        entries |= to_published(part["ema"], lambda path: ema_name(name_of(path)), prefix=EMA)
        entries[f"{EMA}decay"] = np.array(config.diffusion.ema_decay, np.float32)
        entries[f"{EMA}num_updates"] = np.array(best_step(workdir, "diffusion"), np.int32)
    scale = latent_scale(workdir)
    if scale != 1:  # the published module has this buffer where it scales latents by their spread
        entries["scale_factor"] = np.array(scale, np.float32)
    return entries


def _published_registration(workdir: Path, config) -> dict[str, np.ndarray]:
    abstract = {"params": _abstract_registration(config)}
    part = trained_part(workdir, "registration", abstract, what="registration network")
    entries = to_published(part["params"], registration_name)
    return entries | unread_entries(entries) | index_tables(entries)


def _stored(workdir: Path, stage: str) -> set[str]:
    return stored_parts(workdir / stage / "checkpoints", best_step(workdir, stage))


# -- LPIPS -----------------------------------------------------------------------------------------


def convert_lpips(vgg: Path, linear: Path, out: Path) -> None:
    """Write the file of LPIPS weights that config.autoencoder.lpips_weights names.

    vgg: torchvision's VGG16 state dict; linear: LPIPS' linear layers (`linK.model.1.weight`).
    """
    _refuse_existing(out)
    states = read_checkpoint(vgg).entries, read_checkpoint(linear).entries
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic(out) as part:
            lpips_file_from_torch(*states, part)
    except ValueError as error:
        raise CheckpointError(f"{vgg}, {linear}: {error}") from None


# -- shared ----------------------------------------------------------------------------------------


def _unet_name_of(config):
    c = config.diffusion.model
    return functools.partial(
        unet_name,
        levels=len(c.channel_multipliers),
        residual_blocks=c.residual_blocks,
        attention_levels=c.attention_levels,
    )


def _init_discriminator(config) -> dict:
    size = config.data.image_size
    model = PatchDiscriminator(**config.autoencoder.discriminator)
    return dict(model.init(jax.random.key(0), jnp.zeros((1, size, size, 1)), train=True))


def _abstract_discriminator(config) -> dict:
    return jax.eval_shape(lambda: _init_discriminator(config))


def _abstract_registration(config) -> dict:
    method = build_method(config)
    return jax.eval_shape(lambda: method.init(jax.random.key(0), config.data.image_size))


def _named(tree, name_of) -> dict:
    """Leaves of a tree by published name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name_of(tuple(key.key for key in path)): leaf for path, leaf in leaves}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} exists; choose a new name")


@contextlib.contextmanager
def _complete_or_absent(out: Path):
    """A directory to fill; it gets its name `out` when the block ends well, else it vanishes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic(out) as part:
        part.mkdir()
        yield part
