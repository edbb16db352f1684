"""A training run: prepares the dataset, then runs the stages in order, skipping complete ones."""

import logging
from pathlib import Path

import grain
import numpy as np

from ldm_morph_jax.data.pipeline import Augmentation, image_batches, pair_batches
from ldm_morph_jax.data.windows import Variation, VariedWindows, validation_windows
from ldm_morph_jax.devices import processes
from ldm_morph_jax.devices.mesh import (
    check_batch_size,
    over_batches,
    replicated_jit,
    rows_of_process,
)
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.runs.anatomy import window_of
from ldm_morph_jax.runs.dataset import check_same_dataset, dataset_of, dataset_record
from ldm_morph_jax.runs.directory import (
    completed,
    latent_scale,
    load_autoencoder,
    load_ldm,
    locked,
    save_config,
    write_json,
)
from ldm_morph_jax.training import features
from ldm_morph_jax.training.loop import run_stage
from ldm_morph_jax.training.program import Program, at_once, lower_step, mesh_of
from ldm_morph_jax.training.stages import stage_program, trained_stages
from ldm_morph_jax.training.stages.autoencoder import load_frozen
from ldm_morph_jax.training.stages.registration import MASKS

log = logging.getLogger(__name__)

VALIDATION_IMAGES = 64  # at most, for the autoencoder and the diffusion model


def train(
    config, workdir: str | Path, *, stages=None, profile_steps=None
) -> dict[str, dict[str, float]]:
    """Train all stages of a configuration, or the named ones; returns each one's best validation.

    Raises ValueError for an unsuitable configuration, dataset or workdir, `NonFiniteError` if
    values become NaN or infinite, `Preempted` after SIGTERM.
    """
    workdir, method = Path(workdir), build_method(config)
    stages = trained_stages(config) if stages is None else stages
    for stage in stages:
        _check_settings(config, stage)
    if config.data.depth and "anatomy" in stages:
        raise ValueError(
            f"data.depth is {config.data.depth}, expected 0: the anatomy network reads images"
        )
    with locked(workdir):
        with processes.together():
            if processes.is_main():
                save_config(config, workdir)
        with processes.together(), processes.main_first("dataset"):
            dataset = dataset_of(config)
        if "registration" in stages:
            _check_masks(config.registration, dataset)
        record = dataset_record(dataset)
        with processes.together():
            check_same_dataset(workdir, record)
        if processes.is_main():
            write_json(workdir / "dataset.json", record)
        metrics = {stage: completed(workdir / stage) for stage in stages}
        for stage in (stage for stage in stages if metrics[stage] is not None):
            log.info("%s: complete, skipped", stage)
        left = [stage for stage in stages if metrics[stage] is None]
        cached = {stage: features.are_cached(config, stage, method) for stage in left}
        programs = {stage: stage_program(config, stage, cached=cached[stage]) for stage in left}
        lowered, steps_after = _look_ahead(programs, config.seed)
        for stage in left:
            data = _DATA[stage](config, workdir, dataset, method, cached[stage])
            frozen, batches, validation = data
            metrics[stage] = run_stage(
                programs[stage],
                workdir / stage,
                frozen=frozen,
                batches=iter(batches),
                validation=validation,
                seed=config.seed,
                profile_steps=profile_steps,
                lowered=lowered.pop(stage, None),
                steps_after=steps_after.get(stage, 0.0),
            )
        return metrics


def _check_settings(config, stage: str) -> None:
    """Raise ValueError for a stage's settings with which no step can be made."""
    c = config[stage].train
    check_batch_size(c.batch_size, mesh_of(config), c.micro_batches)
    least = {"steps": 1, "log_every": 1, "evaluate_every": 1, "warmup_steps": 0, "patience": 0}
    for key, smallest in (least | {"sample_every": 0, "learning_rate": 0}).items():
        if not smallest <= c[key] < np.inf:
            raise ValueError(f"{stage}.train.{key} is {c[key]}, expected {smallest} or more")
    for key, value in config[stage].items():
        if key.endswith("_weight") and value is not None and not 0 <= value < np.inf:
            raise ValueError(f"{stage}.{key} is {value}, expected 0 or more")
    if config.seed < 0:
        raise ValueError(f"seed is {config.seed}, expected 0 or more")


def _check_masks(c, dataset) -> None:
    """Raise ValueError where pairs have no label: of validation, which scores the overlap of
    masks, and of training, if masks are in the loss."""
    needs = {"validation": ("training validates by the overlap of masks", list(dataset.labels))}
    if c.mask_weight:
        reason = f"registration.mask_weight is {c.mask_weight}"
        needs["train"] = f"{reason}, mask_labels {c.mask_labels}", list(c.mask_labels)
    for split, (reason, labels) in needs.items():
        names = [
            name
            for name, pair in zip(dataset.ids(split), dataset.split(split), strict=True)
            if not np.isin(np.stack([pair[mask] for mask in MASKS]), labels).any()
        ]
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise ValueError(
                f"dataset {dataset.name}: {len(names)} {split} pairs have no masks ({shown}); "
                f"{reason}, expected labels for each of them"
            )


def _look_ahead(programs: dict[str, Program], seed: int) -> tuple[dict, dict[str, float]]:
    """Lower the steps of several stages, and compare what they cost, for the ETA of the run.

    Returns the lowered steps, and for each stage how many of its steps all later stages equal, if
    all compute at the same speed.
    """
    if len(programs) < 2:
        return {}, {}
    lowered = {name: lower_step(p, seed=seed) for name, p in programs.items()}
    steps_after, flops_after = {}, 0.0
    for name, program in reversed(programs.items()):
        # XLA counts the body of the loop over micro-batches once
        flops = lowered[name].cost_analysis()["flops"] * program.train.micro_batches
        steps_after[name] = flops_after / max(flops, 1.0)
        flops_after += flops * program.train.steps
    return lowered, steps_after


# -- inputs of each stage's program: frozen arrays, training batches, validation data


def _autoencoder_data(config, workdir, dataset, method, cached):
    batches = image_batches(dataset.images("train"), **_batch_options(config, "autoencoder"))
    return load_frozen(config), batches, _validation_images(dataset)


def _diffusion_data(config, workdir, dataset, method, cached):
    images = dataset.images("train")
    batches = image_batches(images, **_batch_options(config, "diffusion"))
    params = load_autoencoder(workdir, config)
    encode = features.encoder(config)
    if cached:
        cache = features.latent_cache(config, encode, params, dataset)
        batches = batches.map(lambda batch: {"latent": cache(batch["index"], batch["orientation"])})
    scale = _latent_scale(config, workdir, encode, params, images)
    frozen = {"autoencoder": params, "latent_scale": scale}
    return frozen, batches, _validation_images(dataset)


def _registration_data(config, workdir, dataset, method, cached):
    batches = pair_batches(dataset.split("train"), **_batch_options(config, "registration"))
    frozen = load_ldm(Path(config.ldm_from or workdir), config) if method.reads_ldm else {}
    if cached:
        cache = features.pair_cache(config, method, frozen, dataset)
        batches = batches.map(lambda batch: batch | cache.of_pairs(batch))
    pairs = list(dataset.split("validation"))
    stacked = {n: np.stack([pair[n] for pair in pairs]) for n in ("moving", "fixed", *MASKS)}
    return frozen, batches, (stacked, dataset.labels)


def _anatomy_data(config, workdir, dataset, method, cached):
    c, window = config.anatomy, window_of(config)
    varied = VariedWindows(Variation(**c.variation), window)
    options = _batch_options(config, "anatomy") | {"augment": varied}
    batches = image_batches(dataset.annotated("train"), **options)
    return {}, batches, validation_windows(dataset.annotated("validation"), window)


_DATA = {
    "anatomy": _anatomy_data,
    "autoencoder": _autoencoder_data,
    "diffusion": _diffusion_data,
    "registration": _registration_data,
}


def _batch_options(config, stage: str) -> dict:
    c = config[stage]
    return {
        "seed": config.seed,
        "batch_size": c.train.batch_size,
        "augment": Augmentation(**c.get("augmentation", {})),
        "shard": grain.sharding.ShardOptions(*rows_of_process(mesh_of(config))),
    }


def _validation_images(dataset) -> np.ndarray:
    """Images of the validation pairs, `[N, *space, 1]`, spread over the patients."""
    images = dataset.pair_images("validation")
    count = min(len(images), VALIDATION_IMAGES)
    numbers = np.unique(np.linspace(0, len(images) - 1, count).astype(int))
    return np.stack([images[i]["image"] for i in numbers])


def _latent_scale(config, workdir, encode, params, images) -> np.float32:
    """The factor by which the diffusion model multiplies latents, fixed once for the whole run."""
    file = workdir / "diffusion" / "latent_scale.json"
    if processes.gather(file.exists()).all():  # on a shared disk some may see it later
        return latent_scale(workdir)
    scale = np.float32(config.diffusion.latent_scale)
    if not scale:
        sample = np.stack([images[i]["image"] for i in range(min(len(images), 64))])
        mesh, rows = mesh_of(config), at_once(config, 64)
        encode = replicated_jit(mesh)(encode)
        latents = over_batches(encode, params, sample, batch_size=rows, mesh=mesh)
        scale = np.float32(1 / np.std(latents))
    if processes.is_main():
        write_json(file, {"latent_scale": float(scale)})
    return scale
