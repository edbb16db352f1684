"""Every experiment file: it loads, its networks fit each other, and the paper's sizes are right."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from ldm_morph_jax.config import config_from_json, paper_config
from ldm_morph_jax.data.pipeline import Augmentation
from ldm_morph_jax.methods.build import build_autoencoder, build_method, build_unet
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
    "folder": ("", "small"),
}
CASES = [
    (path, variant)
    for path in sorted(ROOT.glob("configs/*.py"))
    for variant in VARIANTS.get(path.stem, ("",))
]


def load(path: Path, variant: str = "") -> ConfigDict:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def parameters(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def shapes_of(networks: str):
    """Shapes of a displacement, the loss and its terms, without computing anything.

    `networks` is a configuration's JSON without what does not change them, so that experiments
    which differ in their data only are traced once.
    """
    config = config_from_json(json.loads(networks))
    size = config.data.image_size
    images, key, method = jnp.zeros((2, size, size, 1)), jax.random.key(0), build_method(config)

    def everything():
        autoencoder, unet = build_autoencoder(config), build_unet(config)
        variables = autoencoder.init(key, images)
        latent = autoencoder.apply(variables, images, method="encode")
        frozen = {
            "autoencoder": variables["params"],
            "unet": unet.init(key, latent, jnp.zeros(2, jnp.int32))["params"],
            "latent_scale": 1.0,
        }
        params = method.init(key, size)
        loss, terms = method.loss(params, frozen, {"moving": images, "fixed": images}, key, 0)
        return method.displacement(params, frozen, images, images), loss, terms

    return jax.eval_shape(everything)


@pytest.mark.parametrize(("path", "variant"), CASES, ids=lambda v: getattr(v, "stem", v))
def test_config_builds(path, variant):
    config = load(path, variant).lock()
    assert f"--config configs/{path.name}" in path.read_text()  # the card names its command
    parts = config.to_dict()
    networks = {name: parts[name] for name in ("features", "registration")}
    networks["data"] = {"image_size": config.data.image_size}
    networks["autoencoder"] = {"model": parts["autoencoder"]["model"]}
    networks["diffusion"] = {"model": parts["diffusion"]["model"]}
    for name in ("train", "augmentation"):
        del networks["registration"][name]
    displacement, loss, terms = shapes_of(json.dumps(networks, sort_keys=True))
    assert displacement.shape == (2, config.data.image_size, config.data.image_size, 2)
    assert loss.shape == () and {"pixel", "latent", "smoothness"} <= terms.keys()
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
    assert parameters(jax.eval_shape(lambda: method.init(key, 128))) == 29_144_934
    discriminator = PatchDiscriminator(**config.autoencoder.discriminator)
    shapes = jax.eval_shape(lambda: discriminator.init(key, images, train=True)["params"])
    assert parameters(shapes) == 2_763_585


def test_unknown_argument_is_refused():
    with pytest.raises(ValueError, match="'paper_code', expected nothing or 'official_code'"):
        load(ROOT / "configs/sunnybrook.py", "paper_code")


def test_unknown_key_is_refused():
    with pytest.raises((AttributeError, KeyError), match="learning"):
        load(ROOT / "configs/quickstart.py").lock().registration.learning = 1


def test_unknown_method_is_refused():
    config = paper_config()
    config.registration.method = "voxelmoprh"
    with pytest.raises(ValueError, match=r"'voxelmoprh', expected one of .*ldm_morph"):
        build_method(config)
