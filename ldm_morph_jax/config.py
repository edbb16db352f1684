"""The configuration of an experiment: every key, with the paper's value as its default.

The files in `configs/` start from `paper_config()` and override what differs in their experiment.
Keys are locked and typed: an unknown key or a value of another type is an error. Values are those
of Sec. 4.2 of the paper where it states them, and of the published implementation elsewhere.
"""

import copy
import importlib.util
import inspect
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from ldm_morph_jax.experiments import experiment_file
from ldm_morph_jax.methods import method_class
from ldm_morph_jax.names import nearest


def stage_config(**changes) -> dict:
    """Settings of every training stage: duration, optimiser, logging and validation intervals."""
    return {
        "steps": 1000,
        "batch_size": 1,  # over all devices
        # The gradient is averaged over this many parts of the batch, computed one after the other.
        # It equals that of the whole batch, except for the random draws of stochastic depth, and
        # takes only the memory of one part.
        "micro_batches": 1,
        "learning_rate": 1e-4,
        "schedule": "constant",  # or decay to zero: "cosine", "polynomial" (power 0.9)
        "warmup_steps": 0,
        # Adam's epsilon: a gradient well below it moves its parameter in proportion to the
        # gradient, not by the whole learning rate. Increase it from 1e-8 if rounding errors would
        # otherwise decide the sign of such steps.
        "adam_eps": 1e-8,
        "gradient_clip": 0.0,  # global norm; 0 = off
        "log_every": 50,
        "evaluate_every": 400,  # validation and checkpoint
        "patience": 0,  # stop after this many validations without a new best; 0 = never
        "sample_every": 0,  # pictures; 0 = only at the end
    } | changes


def optimiser_config(**changes) -> dict:
    """The registration stage's Adam."""
    return {"b1": 0.9, "b2": 0.999, "amsgrad": False} | changes


def augmentation_config(**changes) -> dict:
    """Augmentation of the training images; the same geometry for both images of a pair."""
    return {
        "orientations": (0,),  # elements of the dihedral group to draw from; 0 = unchanged
        "rotation_degrees": 0.0,
        "scale": 0.0,
        "gamma": 0.0,
        "brightness": 0.0,
        "contrast": 0.0,
    } | changes


# of short-axis MRI, for the weights that ship: no direction, size or contrast of a heart is special
MRI_AUGMENTATION = {
    "orientations": tuple(range(8)),
    "rotation_degrees": 20.0,
    "scale": 0.2,
    "gamma": 0.3,
    "contrast": 0.15,
    "brightness": 0.05,
}
# of echo, whose views have one orientation
ECHO_AUGMENTATION = {"rotation_degrees": 10.0, "scale": 0.1, "gamma": 0.3, "contrast": 0.15}


def paper_config() -> ConfigDict:
    """LDM-Morph with the paper's network sizes and training; the dataset is not set."""
    return ConfigDict(
        {
            "seed": 0,
            "compute": {
                # type in which layers compute, or "bfloat16"; parameters, losses, normalisation
                # statistics, softmax and displacements are always float32
                "dtype": "float32",
                "remat": False,  # True: recompute the blocks' activations in the backward pass
                # devices that share one volume, each with some of its planes (one image: rows)
                "devices_per_image": 1,
            },
            "data": {
                "name": placeholder(str),
                "source": placeholder(str),  # folder of the downloaded files
                "directory": "data",  # folder of prepared datasets
                "image_size": 128,
                "depth": 0,  # planes of a volume; 0: the data are images
                "intensity": "minmax",  # or "percentile": first clip to the 1st to 99th
                "reverse": False,  # True: moving = ES, fixed = ED, as in the published code
                "options": ConfigDict(),  # further options of this dataset
            },
            # a finished run whose autoencoder and diffusion model are used instead of new ones
            "ldm_from": placeholder(str),
            "autoencoder": {
                "model": {
                    "base_channels": 128,
                    "channel_multipliers": (1, 2, 4),
                    "residual_blocks": 2,
                    "attention_levels": (2,),
                    "codebook_size": 16384,
                    "norm_groups": 32,
                },
                "discriminator": {"base_channels": 64, "layers": 3},
                "perceptual_weight": 1.0,
                # a file (docs/converting.md says how to make it); without it there is no LPIPS term
                "lpips_weights": placeholder(str),
                "adversarial_weight": 0.75,
                "adversarial_start": 40_001,
                "commitment": 0.25,
                "commitment_order": "published",  # or "paper": the weight is on the commitment term
                "train": stage_config(
                    steps=100_000,
                    batch_size=160,
                    learning_rate=4.5e-6 * 160,
                    log_every=100,
                    evaluate_every=2000,
                ),
                "augmentation": augmentation_config(),
            },
            "diffusion": {
                "model": {
                    "base_channels": 64,
                    "channel_multipliers": (1, 2, 3, 4),
                    "residual_blocks": 2,
                    "attention_levels": (1, 2, 3),
                    "head_channels": 32,
                    "norm_groups": 32,
                },
                "timesteps": 1000,
                "beta_start": 0.0015,
                "beta_end": 0.0195,
                "latent_scale": 1.0,  # 0 = one over the standard deviation of the training latents
                "weight_decay": 0.01,
                "ema_decay": 0.9999,
                "train": stage_config(
                    steps=100_000,
                    batch_size=160,
                    learning_rate=1e-6 * 160,
                    log_every=100,
                    evaluate_every=2000,
                ),
                "augmentation": augmentation_config(),
            },
            "features": {
                "noising": "ddim",  # or "q_sample": one random draw, as in the published code
                "tap_time": 1,
                "inversion_steps": 1,
                "weights": "ema",  # or "raw", as in the published code
                "cache": True,  # compute the frozen features of training images once
            },
            "registration": _registration("ldm_morph"),
        },
        convert_dict=True,
    )


def grid_shape(config: ConfigDict) -> tuple[int, ...]:
    """Of the experiment's images, (rows, columns), or volumes, (planes, rows, columns)."""
    c = config.data
    return (c.depth,) * (c.depth > 0) + (c.image_size,) * 2


def anatomy_config(structures: tuple[str, ...], **changes) -> ConfigDict:
    """`config.anatomy`, of the anatomy network; an experiment that has it trains nothing else.

    structures: names of the labels 1, 2, ... of the dataset's masks.
    """
    return ConfigDict(
        {
            "structures": structures,
            "model": {"channels": (32, 64, 96, 128), "norm_groups": 8},
            # of the network's grid; spacing_mm 0: the whole image fills the window
            "window": {"size": 112, "spacing_mm": 1.5},
            "variation": {},  # data.windows.Variation
            "start": "",  # a trained network, as of `register --anatomy`; "": random weights
            "ema_decay": 0.995,
            "weight_decay": 1e-4,
            "train": stage_config(
                steps=2400,
                batch_size=8,
                learning_rate=2e-3,
                schedule="cosine",
                warmup_steps=100,
                gradient_clip=1.0,
                evaluate_every=300,
            ),
        }
        | changes,
        convert_dict=True,
    )


def official_code(config: ConfigDict) -> ConfigDict:
    """Preset: all known departures of the published code from the paper.

    docs/fidelity.md has a row for each. The published code's use of the same files for validation
    and test is not reproduced. Changes and returns `config`.
    """
    config.data.reverse = True  # ES -> ED
    config.features.noising = "q_sample"  # a random draw; config.features.cache is then ignored
    config.features.weights = "raw"
    c = config.registration
    c.latent_gradient = False
    # a reference, so that it follows evaluate_every if that is overridden later
    c.stochastic_depth_steps = c.train.get_ref("evaluate_every")
    c.smoothness_scale = "half_size"
    return config


def preset(config: ConfigDict, variant: str, known: tuple[str, ...] | None = None) -> ConfigDict:
    """Apply the argument of an experiment file: "" or "paper" for the paper, or another preset.

    known: the arguments that the experiment takes; None: all. Changes and returns `config`. Raises
    ValueError for another one.
    """
    presets = {
        "paper": lambda c: c,
        "small": small,
        "symmetric": symmetric,
        "one_gpu": one_gpu,
        "official_code": official_code,
    }
    known = known or tuple(presets)
    if variant and variant not in known:
        raise ValueError(
            f"config argument {variant!r}, expected nothing or {' or '.join(map(repr, known))}"
            f"{nearest(variant, known)}"
        )
    return presets[variant or "paper"](config)


def small(config: ConfigDict) -> ConfigDict:
    """Preset: networks and batches for a laptop, with the paper's displacement and loss weights.

    Experiments for a laptop start from it. It names no LPIPS weights, so `perceptual_weight` has
    nothing to act on until `autoencoder.lpips_weights` is set (docs/converting.md says which
    results are with LPIPS). Changes and returns `config`.
    """
    c = config.autoencoder
    c.model.base_channels = 16
    c.model.channel_multipliers = (1, 2, 2)
    c.model.residual_blocks = 1
    c.model.attention_levels = ()
    c.model.codebook_size = 64
    c.model.norm_groups = 8
    c.commitment_order = "paper"
    c.train = stage_config(
        steps=600, batch_size=4, learning_rate=1e-3, schedule="cosine", evaluate_every=200
    )
    c = config.diffusion
    c.model.base_channels = 32
    c.model.residual_blocks = 1
    c.model.norm_groups = 8
    c.latent_scale = 0.0
    c.ema_decay = 0.995
    c.train = stage_config(
        steps=800, batch_size=8, learning_rate=5e-4, schedule="cosine", evaluate_every=400
    )
    config.registration = method_config(config.registration.method, "small")
    return config


def smoothed_velocity(
    config: ConfigDict,
    *,
    sigma: float = 6.0,
    smoothness_weight: float = 0.03,
    pixel_weight: float = 0.95,
    symmetric: bool = True,
) -> ConfigDict:
    """What small experiments predict instead of the paper's displacement, and its loss weights.

    With the paper's smoothness weight of 0.01 a displacement folds; with a weight large enough to
    prevent folds it cannot follow large contractions. A smoothed velocity does both, and the
    smoother it is, the better hearts overlap. At the paper's beta of 0.6 the latent term, from an
    autoencoder trained for minutes, would outweigh the pixel term (docs/results). `symmetric` makes
    the network antisymmetric in the two images. `sigma` is in pixels. Changes and returns `config`.
    """
    config.registration.update(
        integration_steps=6,
        velocity_sigma=sigma,
        smoothness_weight=smoothness_weight,
        pixel_weight=pixel_weight,
        symmetric=symmetric,
    )
    return config


def symmetric(config: ConfigDict) -> ConfigDict:
    """Preset: the small network alone, without LDM, antisymmetric in the two images.

    The weights that ship are trained so; experiments add their augmentation. Changes and returns
    `config`.
    """
    c = smoothed_velocity(small(config), pixel_weight=1.0).registration
    c.model.fusion = "none"
    c.train.update(steps=1500, batch_size=8, evaluate_every=150)
    return config


def one_gpu(config: ConfigDict) -> ConfigDict:
    """Preset: the paper's networks, trained briefly on one large GPU (launch/one_gpu.sh).

    bfloat16, large batches with the learning rate scaled up, few steps; a smoothed velocity,
    trained by local correlation like the weights for echo that ship. Changes and returns `config`.
    """
    config.compute.dtype = "bfloat16"
    c = config.autoencoder
    c.commitment_order = "paper"
    c.train = stage_config(
        steps=600, batch_size=64, learning_rate=4.5e-6 * 64, schedule="cosine", evaluate_every=200
    )
    c = config.diffusion
    c.latent_scale = 0.0
    c.ema_decay = 0.999
    c.train = stage_config(
        steps=1200, batch_size=128, learning_rate=2.5e-4, schedule="cosine", evaluate_every=400
    )
    c = smoothed_velocity(config, sigma=4.0, smoothness_weight=0.05).registration
    c.similarity = "ncc"
    c.train = stage_config(
        steps=1500,
        batch_size=8,
        learning_rate=4e-4,
        schedule="cosine",
        warmup_steps=100,
        evaluate_every=250,
    )
    return config


def _small_training() -> dict:
    """The registration stage of a small experiment, whatever the method."""
    return stage_config(
        steps=1500,
        batch_size=4,
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=100,
        evaluate_every=300,
    )


def _registration(method: str) -> dict:
    """`config.registration` with a method's defaults (docs/baselines.md has their sources)."""
    defaults = dict(method_class(method, trained=True).defaults)
    return {
        "method": method,
        # Dice of the warped and the fixed structures, for data with masks; 0 = off, as in the paper
        "mask_weight": 0.0,
        "mask_labels": (1, 2, 3),  # the structures; those that a pair does not have do not count
        **defaults,
        "optimiser": optimiser_config(**defaults.get("optimiser", {})),
        "train": stage_config(**{"steps": 24_000} | defaults.get("train", {})),
        "augmentation": augmentation_config(),
    }


def method_config(method: str, size: str = "paper") -> ConfigDict:
    """`config.registration` with the defaults of a learned method.

    size: "paper" or "small". "small" selects a network for a laptop and, since its training is
    short, the learning rate, cosine decay and warm-up of small LDM-Morph.
    """
    if size not in ("paper", "small"):
        raise ValueError(f"size is {size!r}, expected 'paper' or 'small'")
    config = ConfigDict(_registration(method), convert_dict=True)
    if size == "small":
        config.update(method_class(method).small)
        config.train = ConfigDict(_small_training())
    return config


def with_method(config: ConfigDict, method: str, size: str = "paper") -> ConfigDict:
    """A copy of an experiment with another registration method and everything else equal.

    Data, seed, augmentation, steps, batch size, validation interval and patience are kept;
    networks, loss weights and optimiser are replaced by the method's (`method_config`). Of volumes,
    whose few planes cannot be halved often, the levels of a transformer are kept as well.
    """
    config = copy.deepcopy(config)
    registration, before = method_config(method, size), config.registration
    budget = ("steps", "batch_size", "log_every", "evaluate_every", "patience", "sample_every")
    for key in budget:
        registration.train[key] = before.train[key]
    registration.augmentation = before.augmentation
    if config.data.depth and "window_size" in registration.model:
        for key in ("depths", "num_heads", "window_size"):
            registration.model[key] = before.model[key]
    locked = config.is_locked
    with config.unlocked():
        config.registration = registration
    return config.lock() if locked else config


def experiment(name: str | Path, argument: str = "") -> ConfigDict:
    """The configuration of an experiment, as `--config NAME:ARGUMENT` or `FILE:ARGUMENT` gives it.

    Raises ValueError if there is no experiment of that name, it does not take the argument, or its
    file is no such thing.
    """
    path = Path(experiment_file(str(name)))
    if not path.is_file():
        raise ValueError(f"{path} is not an experiment file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise ValueError(
                f"{path} has no get_config, expected a function that returns a ConfigDict"
            )
        if argument and not inspect.signature(get_config).parameters:
            raise ValueError(f"experiment {name} has no variants, found {argument!r}")
        config = get_config(argument) if argument else get_config()
    except ValueError:
        raise
    except Exception as error:  # a file of the user's: anything can be wrong with it
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: {type(error).__name__}: {reason}") from error
    if not isinstance(config, ConfigDict):
        found = type(config).__name__
        raise ValueError(f"{path}: get_config returns {found}, expected ConfigDict")
    return config


def overridden(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """A configuration with flags `--config.key=value` applied and locked; changes `config`.

    Raises ValueError for a key that does not exist, naming the nearest one, and for a value of
    another type.
    """
    keys = [override.partition("=")[0].partition(".")[2] for override in overrides]
    before = {key: _value(config, key) for key in keys}
    sections = {  # the options of a dataset are its own business
        key: set(old)
        for key, old in before.items()
        if isinstance(old, ConfigDict) and key != "data.options"
    }
    values = flags.FlagValues()
    arguments = ["", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        values(arguments)
    except flags.IllegalFlagValueError as error:
        key = str(error).removeprefix("flag --config.").partition("=")[0]
        raise ValueError(f"{_flag(key, overrides)}, {_expected(before[key])}") from None
    except (flags.Error, TypeError) as error:
        raise ValueError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from None
    for key, names in sections.items():
        if set(_value(config, key)) != names:
            raise ValueError(f"{_flag(key, overrides)}, {_expected(before[key])}")
    for key, old in before.items():
        if isinstance(old, tuple):  # the parser takes anything for its elements
            kinds = {float if kind is int else kind for kind in map(type, old)}
            new = {float if kind is int else kind for kind in map(type, _value(config, key))}
            if kinds and not new <= kinds:
                raise ValueError(f"{_flag(key, overrides)}, {_expected(old)}")
    return values.config


def _flag(key: str, overrides: Sequence[str]) -> str:
    [*_, flag] = [text for text in overrides if text.partition("=")[0].endswith(f"config.{key}")]
    name, _, value = flag.partition("=")
    return f"{name} is {value!r}"


def _expected(value) -> str:
    if isinstance(value, ConfigDict):
        return "a section, expected one of its keys with a value"
    return f"expected a value of type {type(value).__name__}, such as {value!r}"


def _value(config: ConfigDict, key: str):
    """The value of "a.b.c"; ValueError if there is no such key."""
    node, names = config, key.split(".")
    for depth, name in enumerate(names):
        if not isinstance(node, ConfigDict) or name not in node:
            parent = ".".join(names[:depth]) or "the configuration"
            everything = flatten_dict(config.to_dict(), sep=".")
            known = ", ".join(sorted(node)) if isinstance(node, ConfigDict) and node else "no keys"
            raise ValueError(
                f"there is no key --config.{key}: {parent} has {known}{nearest(key, everything)}"
            )
        node = node[name]
    return node


def baseline(method: str, like: str) -> ConfigDict:
    """An experiment repeated with another method, as the files in configs/baselines do it.

    like: "NAME" or "NAME:ARGUMENT" of the experiment. The method's network is small unless that
    experiment uses the paper's network.
    """
    name, _, argument = like.partition(":")
    config = experiment(name, argument)
    papers = config.registration.model == paper_config().registration.model
    return with_method(config, method, "paper" if papers else "small")


def config_from_json(values: dict) -> ConfigDict:
    """A stored configuration (JSON: lists for tuples) on top of the defaults, locked.

    Those of its method, and of the anatomy network if it trains one.
    """

    def tuples(value):
        if isinstance(value, dict):
            return {key: tuples(v) for key, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    method = values.get("registration", {}).get("method", "ldm_morph")
    config = with_method(paper_config(), method)
    with config.unlocked():
        if "anatomy" in values:
            config.anatomy = anatomy_config(tuple(values["anatomy"]["structures"]))
        config.update(tuples(values))
    return config.lock()
