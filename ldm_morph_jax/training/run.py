"""A training run: dataset, then the stages in order, each skipped when it is complete."""

import logging
from pathlib import Path

import grain
import jax
import numpy as np

from ldm_morph_jax.data import load_dataset
from ldm_morph_jax.data.pipeline import (
    Augmentation,
    evaluation_batches,
    image_batches,
    pair_batches,
)
from ldm_morph_jax.devices import processes
from ldm_morph_jax.devices.mesh import check_batch_size, data_mesh
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.methods.ldm import build_autoencoder, build_schedule, build_unet
from ldm_morph_jax.runs.directory import (
    completed,
    latent_scale,
    load_autoencoder,
    load_ldm,
    locked,
    save_config,
    write_json,
)
from ldm_morph_jax.training.features import FeatureCache, PairImages, tree_digest
from ldm_morph_jax.training.loop import run_stage
from ldm_morph_jax.training.stages.autoencoder import autoencoder_stage
from ldm_morph_jax.training.stages.diffusion import diffusion_stage
from ldm_morph_jax.training.stages.registration import registration_stage

log = logging.getLogger(__name__)


def dataset_of(config):
    """The dataset that a configuration names, prepared when needed."""
    c = config.data
    if c.name is None:
        raise ValueError("config.data.name is not set, expected the name of a dataset")
    return load_dataset(
        c.name,
        source=c.source,
        directory=c.directory,
        intensity=c.intensity,
        image_size=c.image_size,
        reverse=c.reverse,
        **c.options.to_dict(),
    )


def dataset_record(dataset) -> dict:
    """What a run's dataset.json says about the dataset."""
    return {
        "name": dataset.name,
        "labels": dataset.labels,
        "spacing_mm": np.round(dataset.split("train")[0]["spacing"], 6).tolist(),
        "spacing_note": dataset.spacing,
        "pairs": dataset.splits,
        "fingerprints": {s: dataset.fingerprint(s) for s in ("train", "validation")},
    }


def train(
    config, workdir: str | Path, *, stages=None, profile_steps=None
) -> dict[str, dict[str, float]]:
    """Train all stages of a configuration, or the named ones; returns each's best validation.

    Raises ValueError for a configuration, dataset or workdir that does not fit, `NonFiniteError`
    when numbers explode, `Preempted` after SIGTERM.
    """
    workdir = Path(workdir)
    method = build_method(config)
    if stages is None:
        own_ldm = method.reads_ldm and config.ldm_from is None
        stages = ("autoencoder", "diffusion", "registration") if own_ldm else ("registration",)
    for stage in stages:
        c = config[stage].train
        check_batch_size(c.batch_size, data_mesh(), c.micro_batches)
    with locked(workdir):
        with processes.together():
            if processes.is_main():
                save_config(config, workdir)
        with processes.together(), processes.main_first("dataset"):
            dataset = dataset_of(config)
        if processes.is_main():
            write_json(workdir / "dataset.json", dataset_record(dataset))
        metrics = {}
        for stage in stages:
            metrics[stage] = completed(workdir / stage)
            if metrics[stage] is not None:
                log.info("%s: complete, skipped", stage)
                continue
            metrics[stage] = run_stage(
                _BUILD[stage](config, workdir, dataset, method),
                workdir / stage,
                seed=config.seed,
                profile_steps=profile_steps,
            )
        return metrics


def _autoencoder(config, workdir, dataset, method):
    c = config.autoencoder
    batches = image_batches(
        dataset.images("train"),
        seed=config.seed,
        batch_size=c.train.batch_size,
        augment=Augmentation(**c.augmentation),
        shard=grain.sharding.ShardByJaxProcess(),
    )
    return autoencoder_stage(config, build_autoencoder(config), iter(batches), _validation(dataset))


def _diffusion(config, workdir, dataset, method):
    c = config.diffusion
    autoencoder = build_autoencoder(config)
    params = load_autoencoder(workdir, config)
    images = dataset.images("train")
    augment = Augmentation(**c.augmentation)
    batches = image_batches(
        images,
        seed=config.seed,
        batch_size=c.train.batch_size,
        augment=augment,
        shard=grain.sharding.ShardByJaxProcess(),
    )

    def encode(params, x):
        return autoencoder.apply({"params": params}, x, method="encode")

    scale = np.float32(c.latent_scale)
    if not c.latent_scale:
        sample = np.stack([images[i]["image"] for i in range(min(len(images), 64))])
        scale = np.float32(1 / np.std(np.asarray(jax.jit(encode)(params, sample))))
    scale_file = workdir / "diffusion" / "latent_scale.json"
    if scale_file.exists():
        scale = latent_scale(workdir)
    elif processes.is_main():
        write_json(scale_file, {"latent_scale": float(scale)})
    if config.features.cache and augment.orientation_only:
        cache = FeatureCache(
            Path(config.data.directory) / "features",
            "latents",
            images,
            augment.orientations,
            encode,
            params,
            depends_on=[
                tree_digest(params["encoder"]),
                repr(autoencoder.clone(remat=False)),  # does not change them
                dataset.fingerprint("train"),
            ],
        )
        batches = batches.map(lambda batch: {"latent": cache(batch["index"], batch["orientation"])})
    frozen = {"autoencoder": params, "latent_scale": scale}
    return diffusion_stage(
        config,
        autoencoder,
        build_unet(config),
        build_schedule(config),
        frozen,
        iter(batches),
        _validation(dataset),
    )


def _registration(config, workdir, dataset, method):
    c = config.registration
    pairs = dataset.split("train")
    augment = Augmentation(**c.augmentation)
    batches = pair_batches(
        pairs,
        seed=config.seed,
        batch_size=c.train.batch_size,
        augment=augment,
        shard=grain.sharding.ShardByJaxProcess(),
    )
    frozen = {}
    if method.reads_ldm:
        frozen = load_ldm(Path(config.ldm_from or workdir), config)
        cache = _feature_cache(config, dataset, pairs, augment, method, frozen)
        if cache is not None:

            def add_features(batch):
                features = [
                    cache(2 * batch["index"] + side, batch["orientation"]) for side in (0, 1)
                ]
                return batch | {"moving_features": features[0], "fixed_features": features[1]}

            batches = batches.map(add_features)
    keep = ("moving", "fixed", "moving_features", "fixed_features")
    batches = batches.map(lambda batch: {k: v for k, v in batch.items() if k in keep})
    validation = list(evaluation_batches(dataset.split("validation"), batch_size=8))
    return registration_stage(config, method, frozen, iter(batches), validation, dataset.labels)


def _feature_cache(config, dataset, pairs, augment, method, frozen):
    """The cached features of the training pairs, or None where they have to be computed anew."""
    if not config.features.cache:
        return None
    if not method.features_are_constant:
        log.info("features: computed at every step, since noising is random (%s)", "q_sample")
        return None
    if not augment.orientation_only:
        log.info("features: computed at every step, since augmentation changes the images")
        return None
    return FeatureCache(
        Path(config.data.directory) / "features",
        "taps",
        PairImages(pairs),
        augment.orientations,
        method.image_features,
        frozen,
        depends_on=[tree_digest(frozen), method.feature_settings(), dataset.fingerprint("train")],
    )


_BUILD = {"autoencoder": _autoencoder, "diffusion": _diffusion, "registration": _registration}


def _validation(dataset) -> np.ndarray:
    """The images of the validation pairs, `[N, H, W, 1]`, at most 64 spread over the patients."""
    images = PairImages(dataset.split("validation"))
    numbers = np.unique(np.linspace(0, len(images) - 1, min(len(images), 64)).astype(int))
    return np.stack([images[i]["image"] for i in numbers])
