"""The training step of every stage: its direction, its average, the autoencoder's two losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from ldm_morph_jax.config import with_method
from ldm_morph_jax.data.phantom import phantom_pair
from ldm_morph_jax.methods.ldm import build_autoencoder
from ldm_morph_jax.models.discriminator import PatchDiscriminator
from ldm_morph_jax.models.lpips import STAGES as VGG_STAGES
from ldm_morph_jax.models.lpips import load_lpips, lpips, save_lpips
from ldm_morph_jax.training.stages import STAGES, stage_program
from ldm_morph_jax.training.stages.autoencoder import load_frozen

pytestmark = pytest.mark.integration

KEY = jax.random.key(1)  # of every step: the same draws
STEPS = 6


def random_like(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: (0.1 * rng.normal(size=a.shape)).astype(a.dtype), tree)


def small_config(lpips_file):
    """Every part of every stage, and nothing larger than that needs."""
    config = with_method(tiny_config("nowhere"), "voxelmorph", "small").unlock()
    config.data.image_size = 16
    config.autoencoder.model.channel_multipliers = (1, 2)
    config.autoencoder.update(lpips_weights=str(lpips_file), perceptual_weight=0.5)
    config.autoencoder.update(adversarial_weight=0.7, adversarial_start=2)
    config.diffusion.model.update(channel_multipliers=(1, 1), attention_levels=(1,))
    config.registration.model.update(encoder_channels=(4, 4), decoder_channels=(4, 4))
    for name in STAGES:
        config[name].train.learning_rate = 2e-3
    return config


class Trained:
    """A stage's compiled step, its first state, and a batch that stays the same."""

    def __init__(self, config, name):
        program = stage_program(config, name, cached=True)
        self.config = config
        self.state = jax.jit(program.init)(jax.random.key(0))
        if name == "registration":
            # away from no motion at all, where the derivative of the interpolation jumps and both
            # directions may lead downwards
            params = self.state["params"]
            self.state |= {"params": jax.tree.map(np.add, params, random_like(params))}
        # the autoencoder's are the weights of LPIPS, from their file
        frozen = load_frozen(config) if name == "autoencoder" else random_like(program.frozen)
        self.batch = random_like(program.batch)
        pairs = [phantom_pair(seed, image_size=32) for seed in (1, 2)]
        for key, side in (("image", "fixed"), ("moving", "moving"), ("fixed", "fixed")):
            if key in self.batch:
                images = np.stack([getattr(pair, side) for pair in pairs])[..., None]
                self.batch[key] = images[:, 8:24, 8:24]
        step_fn = jax.jit(program.step)
        self.step = lambda state, step=10: step_fn(state, frozen, self.batch, KEY, np.int32(step))


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory):
    """A narrow random LPIPS."""
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    rng, params, channels = np.random.default_rng(0), {}, 3
    for stage, convolutions in enumerate(VGG_STAGES):
        for number in convolutions:
            params[f"features.{number}.weight"] = rng.normal(size=(3, 3, channels, 4)) / 5
            params[f"features.{number}.bias"] = 0.1 * rng.normal(size=4)
            channels = 4
        params[f"linear.{stage}.weight"] = rng.uniform(size=4)
    save_lpips({name: x.astype(np.float32) for name, x in params.items()}, path)
    return path


@pytest.fixture(scope="module")
def stages(lpips_file):
    """name -> its `Trained`, compiled once."""
    return functools.cache(lambda name: Trained(small_config(lpips_file), name))


def uphill(before, after):
    """Where a step of the same length against its direction would have led."""
    return jax.tree.map(lambda a, b: 2 * a - b, before, after)


def losses(trained, part, term, *, flip):
    """A loss before each of some steps on one batch, the updates of `part` flipped or not."""
    state, found = trained.state, []
    for _ in range(STEPS):
        new, terms = trained.step(state)
        found.append(float(terms[term]))
        if flip and part == "discriminator":  # parameters, statistics and optimiser of its own
            params = uphill(state[part]["params"], new[part]["params"])
            new = new | {part: new[part] | {"params": params}}
        elif flip:
            new = new | {part: uphill(state[part], new[part])}
        state = new
    return found


@pytest.mark.parametrize(
    ("name", "part", "term"),
    [
        ("autoencoder", "params", "loss"),
        ("autoencoder", "discriminator", "discriminator"),
        ("diffusion", "params", "loss"),
        ("registration", "params", "loss"),
    ],
)
def test_steps_lower_their_own_loss(stages, name, part, term):
    """And raise it when their sign is flipped, so that this test would see a wrong sign."""
    down, up = (losses(stages(name), part, term, flip=flip) for flip in (False, True))
    assert down[0] == up[0]
    assert down[-1] < down[0] < up[-1], (down, up)


def with_masks(config, weight):
    config = config.copy_and_resolve_references().unlock()
    config.registration.mask_weight = weight
    return stage_program(config, "registration", cached=False)


def test_masks_in_the_loss_are_followed(lpips_file):
    """Steps raise the Dice of what the method finds, or lower it with a weight below zero."""
    config = small_config(lpips_file)
    pairs = [phantom_pair(seed, image_size=32) for seed in (1, 2)]
    batch = {
        part: np.stack([getattr(pair, part)[8:24, 8:24] for pair in pairs])[..., None]
        for part in ("moving", "fixed", "moving_mask", "fixed_mask")
    }
    assert set(stage_program(config, "registration", cached=False).batch) == {"moving", "fixed"}
    found = {}
    for weight in (10.0, -10.0):
        config.registration.mask_weight = weight
        program = stage_program(config, "registration", cached=False)
        assert set(program.batch) == set(batch)
        step, state = jax.jit(program.step), program.init(jax.random.key(0))
        # away from no motion at all, see `Trained`
        state |= {"params": jax.tree.map(np.add, state["params"], random_like(state["params"]))}
        found[weight] = []
        for number in range(STEPS):
            state, terms = step(state, {}, batch, KEY, np.int32(number))
            found[weight].append(float(terms["masks"]))
        own = float(terms["pixel"]) + config.registration.smoothness_weight * float(
            terms["smoothness"]
        )
        assert float(terms["loss"]) == pytest.approx(own + weight * found[weight][-1], rel=1e-4)
    assert found[10.0][0] == pytest.approx(found[-10.0][0], rel=1e-5)
    assert found[10.0][-1] < found[10.0][0] < found[-10.0][-1], found


@pytest.mark.parametrize(
    ("step", "decay"),
    [(0, 2 / 11), (50, 52 / 61), (10**6, 0.9999)],  # (1 + n) / (10 + n) after n steps, at most
)
def test_average_of_the_weights_by_hand(stages, step, decay):
    trained = stages("diffusion")
    assert trained.config.diffusion.ema_decay == 0.9999
    average = random_like(trained.state["params"], seed=3)
    new, _ = trained.step(trained.state | {"ema": average}, step)
    for before, after, params in zip(
        *map(jax.tree.leaves, (average, new["ema"], new["params"])), strict=True
    ):
        expected = decay * np.asarray(before, float) + (1 - decay) * np.asarray(params, float)
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-7)


# -- the autoencoder's adversarial training, composed anew ----------------------------------------


def gradient_of(optimiser_state, decay=0.5):
    """The gradient that Adam was given in its first step, from its first moment."""
    return jax.tree.map(lambda m: np.asarray(m) / (1 - decay), optimiser_state[0].mu)


def assert_same_gradient(found, expected):
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale)


def composed(trained):
    """Functions of the generator's parameters: reconstruction, quantiser and adversarial loss."""
    c, images, state = trained.config.autoencoder, trained.batch["image"], trained.state
    model = build_autoencoder(trained.config)
    discriminator = PatchDiscriminator(**c.discriminator)
    vgg = load_lpips(c.lpips_weights)

    def reconstruction(params):
        found = model.apply({"params": params}, images).reconstruction
        perceptual = jnp.mean(lpips(vgg, images, found))
        return jnp.mean(jnp.abs(images - found)) + c.perceptual_weight * perceptual

    def quantiser(params):
        output = model.apply({"params": params}, images)
        codeword, latent = params["codebook"][output.quantised.indices], output.latent
        to_codebook = jnp.mean((codeword - jax.lax.stop_gradient(latent)) ** 2)
        to_latent = jnp.mean((latent - jax.lax.stop_gradient(codeword)) ** 2)
        assert c.commitment_order == "published"
        return to_latent + c.commitment * to_codebook

    def adversary(params):
        fake = model.apply({"params": params}, images).reconstruction
        variables = {name: state["discriminator"][name] for name in ("params", "batch_stats")}
        scores, _ = discriminator.apply(variables, fake, train=True, mutable="batch_stats")
        return -jnp.mean(scores)

    return reconstruction, quantiser, adversary


def test_adversarial_gradient_is_that_of_the_composed_loss(stages):
    """The step itself never forms this loss: it reuses one pullback of the autoencoder."""
    trained = stages("autoencoder")
    reconstruction, quantiser, adversary = composed(trained)

    @jax.jit
    def expected(params, on):
        def at_last_layer(loss):
            return jnp.linalg.norm(jax.grad(loss)(params)["decoder"]["conv_out"]["kernel"])

        weight = at_last_layer(reconstruction) / (at_last_layer(adversary) + 1e-4)
        weight = trained.config.autoencoder.adversarial_weight * weight

        def loss(params):
            return reconstruction(params) + quantiser(params) + on * weight * adversary(params)

        return weight, jax.grad(loss)(params)

    kernels = []
    for step, on in ((1, 0.0), (2, 1.0)):
        new, terms = trained.step(trained.state, step)
        weight, gradient = expected(trained.state["params"], on)
        assert 0.05 < float(weight) < 1e3  # not clipped
        np.testing.assert_allclose(terms["adaptive_weight"], weight, rtol=1e-4)
        assert_same_gradient(gradient_of(new["optimiser"]), gradient)
        kernels.append(gradient["decoder"]["conv_out"]["kernel"])
    assert np.abs(kernels[1] - kernels[0]).max() > 0.1 * np.abs(kernels[0]).max()


def test_discriminator_descends_its_hinge_loss_once_it_is_on(stages):
    trained = stages("autoencoder")
    before, images = trained.state["discriminator"], trained.batch["image"]
    model = build_autoencoder(trained.config)
    discriminator = PatchDiscriminator(**trained.config.autoencoder.discriminator)
    fake = jax.jit(model.apply)({"params": trained.state["params"]}, images).reconstruction

    @jax.jit
    @jax.grad
    def gradient(params):
        variables = {"params": params, "batch_stats": before["batch_stats"]}
        real, generated = (
            discriminator.apply(variables, x, train=True, mutable="batch_stats")[0]
            for x in (images, fake)
        )
        return (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + generated))) / 2

    after = trained.step(trained.state, 2)[0]["discriminator"]
    assert_same_gradient(gradient_of(after["optimiser"]), gradient(before["params"]))
    unchanged = trained.step(trained.state, 1)[0]["discriminator"]
    jax.tree.map(np.testing.assert_array_equal, unchanged, before)
