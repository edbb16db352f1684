"""Published checkpoints to run directories and back, at two sets of tiny widths.

The checkpoints are fabricated: published names, random weights, everything around them that real
files hold. That the names are the published ones at full size is in tests/published/test_names.py
and, with the numbers, in tests/models/test_golden_*.py.
"""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from ldm_morph_jax import convert as command
from ldm_morph_jax.config import official_code, paper_config
from ldm_morph_jax.methods.ldm import build_schedule
from ldm_morph_jax.methods.ldm_morph import LDMMorph
from ldm_morph_jax.models.lpips import SCALE, SHIFT, STAGES, load_lpips, lpips
from ldm_morph_jax.ops.losses import smoothness
from ldm_morph_jax.published import from_torch as published
from ldm_morph_jax.published import shared
from ldm_morph_jax.published.from_torch import convert
from ldm_morph_jax.published.ldm import autoencoder_name, discriminator_name, schedule_entries
from ldm_morph_jax.published.names import CheckpointError, to_published
from ldm_morph_jax.published.registration import (
    index_tables,
    registration_name,
    registration_unread,
    unread_entries,
)
from ldm_morph_jax.published.to_torch import to_torch
from ldm_morph_jax.runs.directory import abstract_autoencoder, abstract_unet, load_config
from ldm_morph_jax.runs.trained import load_run

pytestmark = pytest.mark.integration

torch = pytest.importorskip("torch")

UNET, AUTOENCODER = "model.diffusion_model.", "first_stage_model."


@pytest.fixture(scope="module", autouse=True)
def shapes_once():
    """Every test asks for the shapes of the same few networks, and tracing them takes seconds."""
    known = {}

    def remembered(name, sections, of):
        def shapes(config):
            key = name, *(repr(config[section]) for section in sections)
            if key not in known:
                known[key] = of(config)
            return known[key]

        return shapes

    with pytest.MonkeyPatch.context() as patch:
        for name, sections in {
            "abstract_discriminator": ["autoencoder"],
            "abstract_registration": ["autoencoder", "diffusion", "registration"],
        }.items():
            patch.setattr(published, name, remembered(name, sections, getattr(published, name)))
        yield


def narrow(directory):
    c = tiny_config(directory)
    c.unlock()
    # what the published code fixes, and what the files say beside the weights
    c.autoencoder.model.norm_groups = c.diffusion.model.norm_groups = 32
    c.diffusion.latent_scale = 1.0
    return c


def other_widths(directory):
    c = narrow(directory)
    c.autoencoder.model.update(
        base_channels=8, channel_multipliers=(1, 2, 3), residual_blocks=2, attention_levels=(2,)
    )
    c.autoencoder.model.codebook_size = 24
    c.autoencoder.discriminator.layers = 2
    c.diffusion.model.update(base_channels=4, channel_multipliers=(1, 2, 3, 4), head_channels=4)
    c.diffusion.model.update(residual_blocks=2, attention_levels=(1, 2))
    c.diffusion.timesteps, c.diffusion.beta_end, c.diffusion.latent_scale = 40, 0.03, 0.5
    c.registration.model.update(embed_dim=12, depths=(1, 2, 1, 1), num_heads=(3, 2, 4, 2))
    c.registration.model.update(window_size=3, mlp_ratio=2, lgca_heads=4, lgca_depth=3)
    return c


def random_entries(abstract, name_of, rng, prefix=""):
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract)
    entries = to_published(zeros, name_of, prefix=prefix)
    return {n: 0.1 * rng.standard_normal(x.shape).astype(np.float32) for n, x in entries.items()}


def fabricate(config, *, with_ema=True):
    """NumPy state dicts of the three published checkpoints, as `config` would train them."""
    rng = np.random.default_rng(1)
    autoencoder = random_entries(abstract_autoencoder(config), autoencoder_name, rng)
    discriminator = shared.abstract_discriminator(config)
    for collection in discriminator.values():
        autoencoder |= random_entries(collection, discriminator_name, rng, "loss.discriminator.")
    autoencoder |= {
        name.replace("running_mean", "num_batches_tracked"): np.array(9)
        for name in autoencoder
        if name.endswith("running_mean")
    }
    autoencoder["loss.perceptual_loss.lin0.model.1.weight"] = np.ones((1, 4, 1, 1), np.float32)
    name_of = shared.unet_name_of(config)
    diffusion = schedule_entries(build_schedule(config))
    diffusion |= {AUTOENCODER + name: x for name, x in autoencoder.items()}
    unet = random_entries(abstract_unet(config), name_of, rng)
    diffusion |= {UNET + name: x for name, x in unet.items()}
    if with_ema:  # the published EMA removes the dots of the wrapping module's parameter names
        for name, x in unet.items():
            name = "model_ema." + f"diffusion_model.{name}".replace(".", "")
            diffusion[name] = 2 * x
        diffusion["model_ema.decay"] = np.float32(0.9999)
        diffusion["model_ema.num_updates"] = np.int32(123)
    if config.diffusion.latent_scale != 1:
        diffusion["scale_factor"] = np.float32(config.diffusion.latent_scale)
    registration = random_entries(shared.abstract_registration(config), registration_name, rng)
    registration |= unread_entries(registration) | index_tables(registration)
    return {"autoencoder": autoencoder, "diffusion": diffusion, "registration": registration}


def save(entries, path, *, lightning=True):
    state = {name: torch.tensor(x) for name, x in entries.items()}
    hyper_parameters = {"unet_config": {"target": "a.b", "params": {"channel_mult": [1, 2]}}}
    wrapped = {
        "state_dict": state,
        "epoch": 3,
        "global_step": 1234,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "hyper_parameters": hyper_parameters,
    }
    torch.save(wrapped if lightning else state, path)
    return path


def save_all(checkpoints, folder):
    return {
        "autoencoder": save(checkpoints["autoencoder"], folder / "vq.ckpt"),
        "diffusion": save(checkpoints["diffusion"], folder / "ldm.ckpt"),
        "registration": save(checkpoints["registration"], folder / "reg.pth", lightning=False),
    }


def blank(config):
    """The configuration that a user brings: this dataset, everything else the paper's."""
    c = paper_config()
    c.data = config.data
    c.diffusion.model.head_channels = config.diffusion.model.head_channels  # in no shape
    return c


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module", params=[narrow, other_widths])
def converted(request, data, tmp_path_factory):
    """(configuration, fabricated entries, run directory)"""
    config = request.param(data)
    folder = tmp_path_factory.mktemp("published")
    checkpoints = fabricate(config)
    out = folder / "runs" / "converted"
    convert(blank(config), out, **save_all(checkpoints, folder))
    return config, checkpoints, out


def networks(config):
    return {
        "autoencoder": config.autoencoder.model.to_dict(),
        "discriminator": config.autoencoder.discriminator.to_dict(),
        "unet": config.diffusion.model.to_dict(),
        "registration": {
            name: value
            for name, value in config.registration.model.to_dict().items()
            if name != "drop_path_rate"
        },
        "schedule": [
            pytest.approx(config.diffusion[name], rel=1e-5)
            for name in ("timesteps", "beta_start", "beta_end", "latent_scale")
        ],
    }


def test_the_run_directory_is_what_training_leaves(converted):
    config, _, out = converted
    found = load_config(out)
    assert networks(found) == networks(config)
    assert found.features.weights == "ema" and found.ldm_from is None
    assert {p.name for p in out.iterdir()} == {
        *("config.json", "environment.json", "dataset.json"),
        *("autoencoder", "diffusion", "registration"),
    }
    steps = {
        stage: json.loads((out / stage / "complete.json").read_text())["best_step"]
        for stage in ("autoencoder", "diffusion", "registration")
    }
    assert steps == {"autoencoder": 1234, "diffusion": 1234, "registration": 0}
    origin = json.loads((out / "environment.json").read_text())["converted_from"]
    assert origin["diffusion"]["file"] == "ldm.ckpt" and len(origin["diffusion"]["sha256"]) == 64
    assert json.loads((out / "dataset.json").read_text())["name"] == "phantom"
    assert not list(out.parent.glob(".writing-*"))


def test_a_converted_run_registers(converted):
    config, checkpoints, out = converted
    trained = load_run(out)
    unet = to_published(trained.frozen["unet"], shared.unet_name_of(config))
    for name, x in unet.items():  # the averaged weights
        np.testing.assert_array_equal(x, 2 * checkpoints["diffusion"][UNET + name])
    assert trained.frozen["latent_scale"] == np.float32(config.diffusion.latent_scale)
    if config.registration.model.embed_dim != 8:
        return  # compiled once
    images = np.random.default_rng(0).uniform(size=(2, 1, 32, 32, 1)).astype(np.float32)
    displacement = trained.displacement(*images)
    assert displacement.shape == (1, 32, 32, 2) and np.isfinite(displacement).all()


def test_round_trip(converted, tmp_path):
    config, checkpoints, workdir = converted
    out = tmp_path / "torch"
    assert to_torch(workdir, out) == ["autoencoder.ckpt", "diffusion.ckpt", "registration.pth"]
    derived = schedule_entries(build_schedule(config))
    for stage, file in zip(checkpoints, sorted(out.iterdir()), strict=True):
        content = torch.load(file, weights_only=True)
        state = content["state_dict"] if file.suffix == ".ckpt" else content
        expected = checkpoints[stage]
        known = {n for n in expected if "perceptual_loss" in n}
        assert state.keys() == expected.keys() - known
        for entry, x in state.items():
            x = x.numpy()
            assert x.shape == expected[entry].shape, entry
            assert x.dtype.kind == np.asarray(expected[entry]).dtype.kind, entry
            if entry.endswith(("num_updates", "num_batches_tracked")):
                continue  # counters of training, read by no network
            if entry in derived:  # from the first and last beta, which are float32 here
                np.testing.assert_allclose(x, expected[entry], rtol=2e-5, err_msg=entry)
            else:
                np.testing.assert_array_equal(x, expected[entry], err_msg=entry)


def as_module(entries):
    """A PyTorch module whose parameters have these names, as the published networks' do."""
    root = torch.nn.Module()
    for name, x in entries.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, torch.nn.Module())
            module = getattr(module, parent)
        x = torch.zeros(np.shape(x))
        if leaf in ("weight", "bias", "relative_position_bias_table"):
            module.register_parameter(leaf, torch.nn.Parameter(x))
        else:
            module.register_buffer(leaf, x)
    return root


def test_modules_load_strictly(converted, tmp_path):
    _, checkpoints, workdir = converted
    to_torch(workdir, tmp_path / "torch")
    ema = [name for name in checkpoints["diffusion"] if name.startswith("model_ema.")]
    model = as_module({n: x for n, x in checkpoints["diffusion"].items() if n not in ema})
    # as the published module does it: buffers named like the wrapped U-Net's parameters
    model.model_ema = torch.nn.Module()
    for name, parameter in model.model.named_parameters():
        model.model_ema.register_buffer(name.replace(".", ""), parameter.detach().clone())
    for name in ("decay", "num_updates"):
        model.model_ema.register_buffer(name, torch.tensor(0))
    state = torch.load(tmp_path / "torch" / "diffusion.ckpt", weights_only=True)["state_dict"]
    # LPIPS is left as the module has made it (docs/converting.md)
    own = {name: x for name, x in model.state_dict().items() if "perceptual_loss" in name}
    model.load_state_dict(own | state, strict=True)
    network = as_module(checkpoints["registration"])
    state = torch.load(tmp_path / "torch" / "registration.pth", weights_only=True)
    network.load_state_dict(state, strict=True)
    assert all(type(x) is torch.Tensor for x in state.values())


# -- what may be absent ----------------------------------------------------------------------------


def test_without_ema_discriminator_and_registration(data, tmp_path, caplog):
    config = narrow(data)
    checkpoints = fabricate(config, with_ema=False)
    ldm = {n: x for n, x in checkpoints["diffusion"].items() if ".loss." not in n}
    out = tmp_path / "ldm"
    with caplog.at_level("INFO", "ldm_morph_jax"):
        brought = blank(config)
        brought.autoencoder.discriminator = config.autoencoder.discriminator
        convert(brought, out, diffusion=save(ldm, tmp_path / "ldm.ckpt"))
    assert "no EMA weights: features.weights is set to raw" in caplog.text
    assert load_config(out).features.weights == "raw" and not (out / "registration").exists()
    back = tmp_path / "torch"
    assert to_torch(out, back) == ["autoencoder.ckpt", "diffusion.ckpt"]
    state = torch.load(back / "diffusion.ckpt", weights_only=True)["state_dict"]
    assert not [name for name in state if name.startswith("model_ema.")]
    # the published module holds a discriminator in any case: a fresh one
    discriminator = {n for n in state if ".loss.discriminator." in n}
    assert discriminator == {n for n in checkpoints["diffusion"] if ".loss.discriminator." in n}


def test_groups_of_the_norms_are_the_published_unless_noted(data, tmp_path, caplog):
    config = narrow(data)
    config.autoencoder.model.norm_groups, config.diffusion.model.norm_groups = 2, 4
    ldm = fabricate(config)["diffusion"]
    path = save(ldm, tmp_path / "ldm.ckpt")
    convert(config, tmp_path / "published", diffusion=path)
    found = load_config(tmp_path / "published")
    assert found.autoencoder.model.norm_groups == found.diffusion.model.norm_groups == 32
    # a run of ours with other groups takes them along, and says what the published code does
    run = tmp_path / "published" / "config.json"
    changed = found.to_dict()
    changed["autoencoder"]["model"]["norm_groups"] = 2
    changed["diffusion"]["model"]["norm_groups"] = 4
    run.write_text(json.dumps(changed))
    to_torch(tmp_path / "published", tmp_path / "torch")
    assert "2 (autoencoder) and 4 (U-Net) groups; the published code fixes 32" in caplog.text
    convert(config, tmp_path / "again", diffusion=tmp_path / "torch" / "diffusion.ckpt")
    found = load_config(tmp_path / "again")
    assert found.autoencoder.model.norm_groups == 2 and found.diffusion.model.norm_groups == 4


# -- refused ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fabricated(data):
    config = narrow(data)
    return config, fabricate(config)


def without(x):
    return None


BROKEN = [
    ("autoencoder", "decoder.conv_out.weight", without, "missing decoder.conv_out.weight"),
    ("autoencoder", "encoder.mid.attn_1.q.weight", lambda x: x * np.nan, "holds NaN"),
    ("autoencoder", "colour.weight", lambda x: np.zeros(1), "unexpected colour.weight"),
    ("autoencoder", "loss.discriminator.main.0.weight", without, "missing loss.discriminator.main"),
    ("diffusion", f"{UNET}out.2.weight", lambda x: x.transpose(1, 0, 2, 3), "has shape"),
    ("diffusion", f"{UNET}time_embed.0.weight", without, "missing model.diffusion_model.time_emb"),
    (
        "diffusion",
        "model_ema.diffusion_modelout2bias",
        without,
        "missing model_ema.diffusion_modelout2bias",
    ),
    ("diffusion", "model_ema.spare", lambda x: np.zeros(1), "unexpected model_ema.spare"),
    ("diffusion", "cond_stage_model.weight", lambda x: np.zeros(1), "unexpected cond_stage_model"),
    ("diffusion", "betas", lambda x: x[::-1].copy(), "betas are not linear"),
    ("diffusion", "betas", lambda x: np.zeros((2, 2)), "betas has shape"),
    ("diffusion", "scale_factor", lambda x: np.array(-1.0), "scale_factor is -1.0"),
    (
        "diffusion",
        f"{AUTOENCODER}encoder.conv_in.bias",
        lambda x: x + 1,
        "encoder.conv_in.bias differ; leave out --autoencoder",
    ),
    ("registration", "c1.0.weight", without, "missing c1.0.weight"),
    (
        "registration",
        "reg_head.0.weight",
        lambda x: x.swapaxes(0, 1),
        "reg_head.0.weight has shape",
    ),
    (
        "registration",
        "lwca4.transformer.norm0.bias",
        lambda x: x / 0,
        "norm0.bias holds NaN or Inf",
    ),
    ("registration", "lwca5.weight", lambda x: np.zeros(1), "unexpected lwca5.weight"),
    (
        "registration",
        "lwsa.transformer.layers.0.blocks.0.attn.relative_position_index",
        lambda x: x.T,
        "blocks.0.attn.relative_position_index are not the index tables",
    ),
]


@pytest.mark.parametrize("stage, name, change, message", BROKEN)
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value)")
def test_wrong_entries_are_named(fabricated, tmp_path, stage, name, change, message):
    config, checkpoints = fabricated
    broken = dict(checkpoints[stage])
    changed = change(broken.pop(name, None))
    if changed is not None:
        broken[name] = np.array(changed)
    files = save_all(checkpoints | {stage: broken}, tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(blank(config), tmp_path / "out", **files)
    assert str(files[stage]) in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"vq.ckpt", "ldm.ckpt", "reg.pth"}


def test_other_architectures_are_refused(fabricated, converted, tmp_path):
    config, checkpoints = fabricated
    files = save_all(checkpoints, tmp_path)
    no_lgca = blank(config)
    no_lgca.registration.model.fusion = "concat"
    with pytest.raises(ValueError, match="fusion 'concat' and 4 levels; the published"):
        convert(no_lgca, tmp_path / "out", **files)
    with pytest.raises(ValueError, match="exists; choose a new name"):
        convert(blank(config), converted[2], **files)
    with pytest.raises(ValueError, match="is not a run directory"):
        to_torch(tmp_path / "none", tmp_path / "out")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(blank(config).to_dict()))
    with pytest.raises(ValueError, match="no stage of this run is complete"):
        to_torch(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_behind_when_writing_fails(fabricated, tmp_path, monkeypatch):
    config, checkpoints = fabricated

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    files = save_all(checkpoints, tmp_path)
    monkeypatch.setattr(published, "_write_stage", full_disk)
    with pytest.raises(OSError, match="No space"):
        convert(blank(config), tmp_path / "out", **files)
    assert {p.name for p in tmp_path.iterdir()} == {"vq.ckpt", "ldm.ckpt", "reg.pth"}


# -- the command -----------------------------------------------------------------------------------

CONFIG = """
from ldm_morph_jax.config import official_code, paper_config

def get_config(variant=""):
    c = paper_config()
    c.data.name = "phantom"
    c.data.image_size = 32
    c.data.options = {"look": "sax", "n_train": 8, "n_validation": 2, "n_test": 2}
    return official_code(c) if variant == "official_code" else c
"""


def test_command(fabricated, data, tmp_path, capsys):
    config, checkpoints = fabricated
    files = save_all(checkpoints, tmp_path)
    (tmp_path / "x.py").write_text(CONFIG)
    command.main(
        [
            *(f"--{stage}={path}" for stage, path in files.items()),
            f"--config={tmp_path / 'x.py'}:official_code",
            f"--config.data.directory={data}",
            f"--config.diffusion.model.head_channels={config.diffusion.model.head_channels}",
            f"--out={tmp_path / 'run'}",
        ]
    )
    assert capsys.readouterr().out == f"converted: {tmp_path / 'run'}\n"
    found = load_config(tmp_path / "run")
    assert found.features.noising == "q_sample" and found.registration.model.embed_dim == 8
    command.main(["--to-torch", str(tmp_path / "run"), "--out", str(tmp_path / "back")])
    assert "registration.pth" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--diffusion", "a.ckpt"],
        ["--to-torch", "run", "--config", "x.py"],
        ["--lpips-vgg", "vgg.pth"],
        ["--to-torch", "run", "--unknown", "1"],
    ],
)
def test_command_lines_that_are_no_request(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([*arguments, "--out", "out"])
    assert stop.value.code == 2 and "error: " in capsys.readouterr().err


def test_a_text_file_is_an_error_in_one_line(tmp_path):
    (tmp_path / "x.py").write_text(CONFIG)
    (tmp_path / "a.ckpt").write_text("no checkpoint")
    done = subprocess.run(
        [sys.executable, "-m", "ldm_morph_jax.convert", "--diffusion", tmp_path / "a.ckpt"]
        + ["--config", tmp_path / "x.py", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {tmp_path / 'a.ckpt'} is not a PyTorch checkpoint")


# -- LPIPS -----------------------------------------------------------------------------------------


def lpips_states(widths=(4, 4, 6, 8, 8)):
    """torchvision's and LPIPS' names at narrow widths, random."""
    generator = torch.Generator().manual_seed(0)
    vgg, linear, channels = {}, {}, 3
    for stage, (convolutions, width) in enumerate(zip(STAGES, widths, strict=True)):
        for number in convolutions:
            vgg[f"features.{number}.weight"] = 0.3 * torch.randn(
                width, channels, 3, 3, generator=generator
            )
            vgg[f"features.{number}.bias"] = 0.3 * torch.randn(width, generator=generator)
            channels = width
        linear[f"lin{stage}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    vgg["classifier.0.weight"] = torch.zeros(2, 2)
    return vgg, linear


def torch_lpips(vgg, linear, x, y):
    """The formula of NOTES in PyTorch: `[B, 1, H, W]` twice -> `[B]`."""
    functional = torch.nn.functional

    def features(images):
        h = (images - torch.tensor(SHIFT)[:, None, None]) / torch.tensor(SCALE)[:, None, None]
        for stage, convolutions in enumerate(STAGES):
            if stage:
                h = functional.max_pool2d(h, 2)
            for n in convolutions:
                weight, bias = vgg[f"features.{n}.weight"], vgg[f"features.{n}.bias"]
                h = functional.relu(functional.conv2d(h, weight, bias, padding=1))
            yield h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10)

    return sum(
        functional.conv2d((a - b) ** 2, linear[f"lin{k}.model.1.weight"]).mean((1, 2, 3))
        for k, (a, b) in enumerate(zip(features(x), features(y), strict=True))
    )


@pytest.fixture
def lpips_files(tmp_path):
    states = lpips_states()
    paths = tmp_path / "vgg16.pth", tmp_path / "lpips.pth"
    for state, path in zip(states, paths, strict=True):
        torch.save(state, path)
    return states, paths


def test_lpips_equals_pytorch(lpips_files, tmp_path, capsys):
    states, (vgg, linear) = lpips_files
    out = tmp_path / "weights" / "lpips.safetensors"
    command.main(["--lpips-vgg", str(vgg), "--lpips-linear", str(linear), "--out", str(out)])
    assert capsys.readouterr().out == f"converted: {out}\n"
    x, y = np.random.default_rng(0).uniform(size=(2, 3, 32, 48, 1)).astype(np.float32)
    found = lpips(load_lpips(out), x, y)
    expected = torch_lpips(*states, *(torch.tensor(a.transpose(0, 3, 1, 2)) for a in (x, y)))
    assert expected.min() > 0.01
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-5)


def test_lpips_files_that_do_not_fit(lpips_files, tmp_path):
    (vgg_state, _), (vgg, linear) = lpips_files
    out = tmp_path / "lpips.safetensors"
    del vgg_state["features.5.bias"]
    vgg_state["features.7.weight"] = vgg_state["features.7.weight"].permute(2, 3, 0, 1)
    torch.save(vgg_state, vgg)
    message = "vgg16.pth, .*missing features.5.bias; features.7.weight is"
    with pytest.raises(CheckpointError, match=message):
        published.convert_lpips(vgg, linear, out)
    assert {p.name for p in tmp_path.iterdir()} == {"vgg16.pth", "lpips.pth"}


# -- the preset ------------------------------------------------------------------------------------


def test_official_code_switches_every_departure():
    config, paper = official_code(paper_config()), paper_config()
    changed = {
        name: value
        for section in ("data", "features", "registration")
        for name, value in config[section].to_dict().items()
        if value != paper[section].to_dict()[name]
    }
    assert changed == {
        "reverse": True,
        "noising": "q_sample",
        "weights": "raw",
        "latent_gradient": False,
        "stochastic_depth_steps": 400,
        "smoothness_scale": "half_size",
    }
    config.registration.train.evaluate_every = 30  # a flag that comes later
    assert config.registration.stochastic_depth_steps == 30
    assert config.to_dict()["registration"]["stochastic_depth_steps"] == 30


def test_official_smoothness_has_half_the_size_per_unit():
    """The warp has (size - 1) / 2 pixels per unit of the network's output, this term size / 2."""
    rng = np.random.default_rng(0)
    moving, fixed = rng.uniform(size=(2, 1, 8, 16, 1)).astype(np.float32)
    normalised = jnp.asarray(rng.uniform(-1, 1, size=(1, 8, 16, 2)), jnp.float32)
    u = normalised * np.array([7, 15]) / 2
    terms = {
        scale: LDMMorph(None, None, pixel_weight=1.0, smoothness_scale=scale).objective(
            {}, moving, fixed, u
        )
        for scale in ("pixels", "half_size")
    }
    assert terms["half_size"]["smoothness"] == pytest.approx(
        float(smoothness(normalised * np.array([8, 16]) / 2)), rel=1e-6
    )
    assert terms["pixels"]["smoothness"] == pytest.approx(float(smoothness(u)), rel=1e-6)
    assert terms["pixels"]["pixel"] == terms["half_size"]["pixel"]  # one warp for both
    with pytest.raises(ValueError, match="smoothness_scale is 'pixel', expected"):
        LDMMorph(None, None, smoothness_scale="pixel")


def test_unread_entries_may_be_absent(fabricated, tmp_path):
    config, checkpoints = fabricated
    read = {n: x for n, x in checkpoints["registration"].items() if not registration_unread(n)}
    convert(
        blank(config), tmp_path / "out", **save_all(checkpoints | {"registration": read}, tmp_path)
    )
    found = to_published(load_run(tmp_path / "out").params, registration_name)
    assert found.keys() == read.keys() < checkpoints["registration"].keys()
    for name, x in read.items():
        np.testing.assert_array_equal(found[name], x)
