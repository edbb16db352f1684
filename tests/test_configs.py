"""Every experiment file: it loads, its networks fit each other, and the paper's sizes are right."""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ldm_morph_jax.config import (
    config_from_json,
    experiment,
    grid_shape,
    overridden,
    paper_config,
    with_method,
)
from ldm_morph_jax.data.pipeline import Augmentation
from ldm_morph_jax.methods import build_method, method_names
from ldm_morph_jax.methods.ldm import build_autoencoder, build_unet
from ldm_morph_jax.models.discriminator import PatchDiscriminator
from ldm_morph_jax.training.optimiser import adam

ROOT = Path(__file__).parent.parent
VARIANTS = {
    "sunnybrook": ("", "official_code"),
    "sunnybrook_small": ("", "official_code"),
    "camus_2ch": ("", "small"),
    "camus_4ch": ("", "small"),
    "echonet": ("", "small"),
    "acdc": ("", "small"),
    "acdc_3d": ("", "small"),
    "folder": ("", "small"),
    "folder_3d": ("", "small"),
}
CASES = [
    (path, variant)
    for path in sorted(ROOT.glob("configs/*.py"))
    for variant in VARIANTS.get(path.stem, ("",))
] + [
    (path, variant)
    for path in sorted(ROOT.glob("configs/baselines/*.py"))
    for variant in ("", "camus_2ch")
]


def parameters(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def shapes_of(networks: str):
    """Shapes of a displacement, the loss and its terms, without computing anything.

    `networks` is a configuration's JSON without what does not change them, so that experiments
    which differ in their data only are traced once.
    """
    config = config_from_json(json.loads(networks))
    space = grid_shape(config)
    images, key, method = jnp.zeros((2, *space, 1)), jax.random.key(0), build_method(config)

    def everything():
        frozen = {}
        if method.reads_ldm:
            autoencoder, unet = build_autoencoder(config), build_unet(config)
            variables = autoencoder.init(key, images)
            latent = autoencoder.apply(variables, images, method="encode")
            frozen = {
                "autoencoder": variables["params"],
                "unet": unet.init(key, latent, jnp.zeros(2, jnp.int32))["params"],
                "latent_scale": 1.0,
            }
        params, batch = method.init(key, space), {"moving": images, "fixed": images}
        features = method.image_features(frozen, images, key)
        if features is not None:
            batch |= {"moving_features": features, "fixed_features": features}
        loss, terms = method.loss(params, frozen, batch, key, 0)
        pair = images, images, (features, features)
        field = method.field_from_features(params, frozen, *pair)
        return method.to_displacement(field), loss, terms

    return jax.eval_shape(everything)


@pytest.mark.integration
@pytest.mark.parametrize(("path", "variant"), CASES, ids=lambda v: getattr(v, "stem", v))
def test_config_builds(path, variant):
    config = experiment(path, variant).lock()
    # the card names its command
    name = path.relative_to(ROOT / "configs").with_suffix("").as_posix()
    assert re.search(rf"^    ldm-morph train --config {name}[ :]", path.read_text(), re.MULTILINE)
    parts = config.to_dict()
    networks = {name: parts[name] for name in ("features", "registration")}
    networks["data"] = {name: config.data[name] for name in ("image_size", "depth")}
    networks["autoencoder"] = {"model": parts["autoencoder"]["model"]}
    networks["diffusion"] = {"model": parts["diffusion"]["model"]}
    for name in ("train", "augmentation"):
        del networks["registration"][name]
    displacement, loss, terms = shapes_of(json.dumps(networks, sort_keys=True))
    space = grid_shape(config)
    assert displacement.shape == (2, *space, len(space))
    assert loss.shape == () and {"loss", "smoothness"} <= terms.keys()
    adam(config.registration.train, **config.registration.optimiser)
    for stage in (config.autoencoder, config.diffusion, config.registration):
        adam(stage.train)
        Augmentation(**stage.augmentation)


def test_paper_parameter_counts():
    config = paper_config()
    images, key = jnp.zeros((1, 128, 128, 1)), jax.random.key(0)
    autoencoder, unet, method = (
        build_autoencoder(config),
        build_unet(config),
        build_method(config),
    )
    assert parameters(jax.eval_shape(autoencoder.init, key, images)) == 60_549_766
    latent = jnp.zeros((1, 32, 32, 1))
    assert parameters(jax.eval_shape(unet.init, key, latent, jnp.zeros(1, jnp.int32))) == 22_409_537
    assert parameters(jax.eval_shape(lambda: method.init(key, (128, 128)))) == 29_144_934
    discriminator = PatchDiscriminator(**config.autoencoder.discriminator)
    shapes = jax.eval_shape(lambda: discriminator.init(key, images, train=True)["params"])
    assert parameters(shapes) == 2_763_585


def test_unknown_argument_is_refused():
    with pytest.raises(ValueError, match="'paper_code', expected nothing or 'official_code'"):
        experiment(ROOT / "configs/sunnybrook.py", "paper_code")


def test_unknown_key_is_refused():
    with pytest.raises((AttributeError, KeyError), match="learning"):
        experiment(ROOT / "configs/quickstart.py").lock().registration.learning = 1


def test_unknown_method_is_refused():
    config = paper_config()
    config.registration.method = "voxelmoprh"
    with pytest.raises(ValueError, match=r"'voxelmoprh', expected one of .*ldm_morph"):
        build_method(config)


def test_method_of_other_settings_is_refused():
    config = paper_config()
    config.registration.method = "voxelmorph"
    with pytest.raises(ValueError, match="missing: .*model.decoder_channels.*configs/baselines"):
        build_method(config)
    config = with_method(config, "transmorph")
    config.registration.method = "transmatch"
    with pytest.raises(
        ValueError, match=r"missing: registration\.model\.cross_depth, .*cross_heads"
    ):
        build_method(config)


@pytest.mark.parametrize("size", ["paper", "small"])
@pytest.mark.parametrize("method", method_names(trained=True))
def test_with_method(method, size):
    before = experiment(ROOT / "configs/sunnybrook_small.py").lock()
    text = before.to_json_best_effort()
    config = with_method(before, method, size)
    assert before.to_json_best_effort() == text  # a copy
    assert config.registration.method == method
    kept = ("steps", "batch_size", "log_every", "evaluate_every", "sample_every")
    for key in kept:
        assert config.registration.train[key] == before.registration.train[key]
    assert config.registration.augmentation == before.registration.augmentation
    assert {**config.to_dict(), "registration": 0} == {**before.to_dict(), "registration": 0}

    # stored and read back it is the same, typed and locked
    restored = config_from_json(json.loads(json.dumps(config.to_dict())))
    assert restored.to_dict() == config.to_dict()
    for one in (config, restored):
        with pytest.raises((AttributeError, KeyError), match="fusionn"):
            one.registration.model.fusionn = "none"
        with pytest.raises(TypeError):
            one.registration.smoothness_weight = "0.1"
        with pytest.raises(TypeError):
            one.data.source = 1


def test_an_anatomy_run_of_before_gets_the_keys_it_lacks():
    config = experiment("anatomy", "acdc")
    stored = json.loads(json.dumps(config.to_dict()))
    del stored["anatomy"]["start"]
    assert config_from_json(stored).to_dict() == config.to_dict()


def test_with_unknown_method_or_size_is_refused():
    with pytest.raises(ValueError, match="'voxelmoprh', expected one of .*ldm_morph, .*voxelmorph"):
        with_method(paper_config(), "voxelmoprh")
    with pytest.raises(ValueError, match="size is 'large', expected 'paper' or 'small'"):
        with_method(paper_config(), "voxelmorph", "large")


def test_baseline_has_the_size_of_the_experiment_it_repeats():
    path = ROOT / "configs/baselines/transmorph.py"
    widths = {
        like: experiment(path, like).registration.model.embed_dim
        for like in ("quickstart", "camus_2ch", "camus_2ch:small", "sunnybrook_small")
    }
    assert widths == {
        "quickstart": 32,
        "camus_2ch": 96,
        "camus_2ch:small": 32,
        "sunnybrook_small": 32,
    }
    with pytest.raises(
        ValueError, match="the experiment is 'nothing', expected .* sunnybrook_small"
    ):
        experiment(path, "nothing")


def test_compute_options_are_refused_where_they_do_nothing():
    config = with_method(paper_config(), "voxelmorph")
    config.compute.dtype = "bfloat16"
    with pytest.raises(ValueError, match=r"compute\.dtype .* registration.method is 'voxelmorph'"):
        build_method(config)


# -- what the command line sets


@pytest.mark.parametrize(
    "flag, message",
    [
        (
            "--config.registration.train.stesp=3",
            r"no key .*stesp: .*mean registration.train.s",
        ),
        (
            "--config.optimiser.lr=1",
            "no key --config.optimiser.lr: the configuration has",
        ),
        ("--config.data.options.foo=1", "data.options has look, n_test"),
        ("--config.seed.x=1", "no key --config.seed.x: seed has no keys"),
        ("--config.registration.train.log_every=often", "log_every is 'often', expected .* int"),
        ("--config.registration.train.log_every=2.5", "log_every is '2.5', expected .* int"),
        ("--config.features.cache=maybe", "cache is 'maybe', expected .* bool"),
        ("--config.registration={'a': 1}", "'a': 1}\", a section, expected one of its keys"),
        ("--config.registration=3", "registration is '3', a section, expected one of its keys"),
        (
            "--config.autoencoder.model.channel_multipliers=x",
            "is 'x', expected .*tuple",
        ),
    ],
)
def test_flags_that_do_not_fit_the_configuration(flag, message):
    with pytest.raises(ValueError, match=message):
        overridden(experiment("quickstart"), ["--config.seed=1", flag])


def test_a_section_after_one_of_its_keys_is_refused():
    flags = ["--config.registration.train.steps=2", "--config.registration={'train': {}}"]
    with pytest.raises(ValueError, match="will overwrite the value provided"):
        overridden(experiment("quickstart"), flags)


def test_flags_set_keys():
    flags = ["seed=1", "data.name=squares", "data.options={'a': 1}", "features.cache=False"]
    flags += ["autoencoder.model.channel_multipliers=(1, 2)", "registration.train.learning_rate=1"]
    config = overridden(experiment("quickstart"), [f"--config.{flag}" for flag in flags])
    assert (config.seed, config.data.name, config.features.cache) == (1, "squares", False)
    assert config.data.options.to_dict() == {"a": 1} and config.is_locked
    assert config.autoencoder.model.channel_multipliers == (1, 2)
    assert config.registration.train.learning_rate == 1.0


@pytest.mark.parametrize(
    "name, message",
    [
        ("quikstart", "'quikstart', expected .*did you mean quickstart"),
        ("quickstart:small", "experiment quickstart has no variants, found 'small'"),
        ("acdc:smal", "'smal', expected nothing or 'paper' .*did you mean small"),
        ("method:voxlmorph", "'voxlmorph', expected .*did you mean voxelmorph"),
        ("none.py", "none.py is not an experiment file"),
    ],
)
def test_experiments_that_do_not_exist(name, message):
    with pytest.raises(ValueError, match=message):
        experiment(*name.split(":"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config(:\n", "SyntaxError: invalid syntax"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("config = 1\n", "has no get_config, expected a function"),
        ("def get_config():\n    return {}\n", "get_config returns dict, expected ConfigDict"),
    ],
)
def test_files_that_are_no_experiments(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        experiment(path)
