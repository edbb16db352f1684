"""Names, widths and files of the published checkpoints; the numbers are tests/models/test_golden_*.

At full size shapes are enough: the entries are views of one zero, nothing is allocated.
"""

import argparse
import pickle

import numpy as np
import pytest
from published_weights import description

from ldm_morph_jax.config import paper_config
from ldm_morph_jax.ops.diffusion import linear_schedule
from ldm_morph_jax.published.ldm import (
    autoencoder_widths,
    discriminator_widths,
    ema_name,
    schedule_entries,
    unet_widths,
)
from ldm_morph_jax.published.names import CheckpointError, Entries, from_published, to_published
from ldm_morph_jax.published.registration import (
    index_tables,
    registration_unread,
    registration_widths,
    unread_entries,
)
from ldm_morph_jax.published.torch_files import read_checkpoint, write_checkpoint

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def full_size():
    """Every published parameter at full size, without memory of its own."""
    return {
        name: np.broadcast_to(np.float32(0), shape)
        for name, shape in description()["parameters"].items()
        if not isinstance(shape, dict)
    }


# -- widths, unread entries, buffers ---------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix, widths, section",
    [
        ("first_stage_model.", autoencoder_widths, "autoencoder.model"),
        (
            "first_stage_model.loss.discriminator.",
            discriminator_widths,
            "autoencoder.discriminator",
        ),
        ("model.diffusion_model.", unet_widths, "diffusion.model"),
        ("registration.", registration_widths, "registration.model"),
    ],
)
def test_widths_at_full_size_are_the_papers(full_size, prefix, widths, section):
    expected = paper_config()
    for key in section.split("."):
        expected = expected[key]
    found = widths(Entries(full_size, prefix))
    assert found == {name: expected[name] for name in found}
    # what no shape shows
    assert set(expected) - set(found) <= {
        "norm_groups",
        "head_channels",
        "drop_path_rate",
        "fusion",
    }


def test_a_state_dict_is_completed_by_what_is_never_read(full_size):
    published = {
        name.removeprefix("registration."): array
        for name, array in full_size.items()
        if name.startswith("registration.")
    }
    read = {name: array for name, array in published.items() if not registration_unread(name)}
    unread = unread_entries(read)
    assert len(unread) == 30
    assert {name: a.shape for name, a in (read | unread).items()} == {
        name: a.shape for name, a in published.items()
    }
    tables = index_tables(read)
    assert {f"registration.{name}" for name in tables} == {
        name for name, shape in description()["parameters"].items() if isinstance(shape, dict)
    }
    table = tables["lwca1.transformer.layers.0.blocks.1.attn.relative_position_index"]
    assert table.shape == (49, 49) and table.dtype == np.int64
    assert table[0, 0] == 84 and table[0, 48] == 0 and table[48, 0] == 168


def test_names_of_the_moving_average():
    assert ema_name("input_blocks.0.0.weight") == "diffusion_modelinput_blocks00weight"


def test_buffers_of_the_noise_schedule():
    """Against the conditional of two Gaussians, whatever its closed form: q(z_t-1 | z_t, z_0)."""
    schedule = linear_schedule()
    entries = schedule_entries(schedule)
    assert all(x.dtype == np.float32 and np.isfinite(x).all() for x in entries.values())
    t = 10
    beta, before = (np.float64(entries[n][t]) for n in ("betas", "alphas_cumprod_prev"))
    assert entries["alphas_cumprod_prev"][0] == 1 and before == entries["alphas_cumprod"][t - 1]
    precision = (1 - beta) / beta + 1 / (1 - before)
    assert entries["posterior_variance"][t] == pytest.approx(1 / precision, rel=1e-5)
    of_z0 = np.sqrt(before) / (1 - before) / precision
    of_zt = np.sqrt(1 - beta) / beta / precision
    assert entries["posterior_mean_coef1"][t] == pytest.approx(of_z0, rel=1e-5)
    assert entries["posterior_mean_coef2"][t] == pytest.approx(of_zt, rel=1e-5)
    # z_0 = z_t sqrt(1/abar) - eps sqrt(1/abar - 1)
    abar = entries["alphas_cumprod"].astype(np.float64)
    np.testing.assert_allclose(entries["sqrt_recip_alphas_cumprod"] ** 2, 1 / abar, rtol=1e-5)
    np.testing.assert_allclose(entries["sqrt_recipm1_alphas_cumprod"] ** 2, 1 / abar - 1, rtol=1e-3)


@pytest.mark.parametrize(
    "prefix, widths, name, shape, message",
    [
        ("first_stage_model.", autoencoder_widths, "encoder.conv_in.bias", None, "missing {}"),
        ("first_stage_model.", autoencoder_widths, "encoder.conv_in.bias", (2, 2), "{} has shape"),
        (
            "first_stage_model.",
            autoencoder_widths,
            "encoder.down.1.block.0.conv2.bias",
            (130,),
            "{} has shape .130,., expected a multiple of 128",
        ),
        ("model.diffusion_model.", unet_widths, "input_blocks.0.0.bias", None, "missing {}"),
        (
            "registration.",
            registration_widths,
            "lwsa.transformer.layers.0.blocks.0.attn.relative_position_bias_table",
            (4, 169),
            "{} has shape .4, 169., expected",
        ),
        (
            "registration.",
            registration_widths,
            "lwsa.transformer.patch_embed.proj.bias",
            None,
            "missing {}",
        ),
    ],
)
def test_entries_that_show_no_width(full_size, prefix, widths, name, shape, message):
    entries = {n: a for n, a in full_size.items() if n != prefix + name}
    if shape is not None:
        entries[prefix + name] = np.broadcast_to(np.float32(0), shape)
    with pytest.raises(CheckpointError, match="a.ckpt .*" + message.format(prefix + name)):
        widths(Entries(entries, prefix, "a.ckpt"))


@pytest.mark.parametrize("widths", [autoencoder_widths, unet_widths, registration_widths])
def test_files_of_something_else_show_no_width(widths):
    with pytest.raises(CheckpointError, match="a.ckpt .*missing p.*"):
        widths(Entries({"q.weight": np.zeros(3)}, "p.", "a.ckpt"))


# -- strict filling of a tree ----------------------------------------------------------------------

ABSTRACT = {
    "conv": {"kernel": np.zeros((3, 3, 2, 4), np.float32)},
    "dense": {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)},
}


def name_of(path):
    return ".".join(path)


def entries():
    rng = np.random.default_rng(0)
    shapes = {"conv.kernel": (4, 2, 3, 3), "dense.kernel": (3, 2), "dense.bias": (3,)}
    return {"p." + n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def test_layouts_there_and_back():
    tree = from_published(entries() | {"other": np.zeros(1)}, ABSTRACT, name_of, prefix="p.")
    assert tree["conv"]["kernel"][2, 1, 0, 3] == entries()["p.conv.kernel"][3, 0, 2, 1]
    back = to_published(tree, name_of, prefix="p.")
    assert back.keys() == entries().keys()
    assert all(np.array_equal(back[name], x) for name, x in entries().items())


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("p.dense.bias", lambda x: None, "missing p.dense.bias"),
        ("p.dense.kernel", lambda x: x.T, r"p.dense.kernel has shape \(2, 3\), expected \(3, 2\)"),
        ("p.conv.kernel", lambda x: x.transpose(2, 3, 1, 0), r"p.conv.kernel .* \(4, 2, 3, 3\)"),
        ("p.dense.bias", lambda x: x[:, None], r"p.dense.bias has shape \(3, 1\), expected \(3,\)"),
        ("p.conv.kernel", lambda x: x * np.nan, "p.conv.kernel holds NaN or Inf"),
        ("p.dense.bias", lambda x: x / 0, "p.dense.bias holds NaN or Inf"),
        ("p.dense.bias", lambda x: x.astype(int), "p.dense.bias is int64, expected floating point"),
        ("p.extra", lambda x: np.zeros(3), "unexpected p.extra"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_entries_that_do_not_fit_are_named(name, change, message):
    broken = entries()
    changed = change(broken.pop(name, None))
    if changed is not None:
        broken[name] = changed
    with pytest.raises(CheckpointError, match=f"a.ckpt does not fit the network: {message}$"):
        from_published(broken, ABSTRACT, name_of, prefix="p.", source="a.ckpt")


def test_everything_that_is_wrong_is_listed_at_once():
    with pytest.raises(CheckpointError, match="missing p.conv.kernel; .*; unexpected p.x"):
        from_published({"p.x": np.zeros(1)}, ABSTRACT, name_of, prefix="p.")


# -- PyTorch files ---------------------------------------------------------------------------------


def test_state_dicts_and_lightning_checkpoints(tmp_path):
    state = {"a": torch.arange(3.0), "half": torch.ones(2, dtype=torch.bfloat16)}
    state |= {"double": torch.ones(1, dtype=torch.float64), "n": torch.tensor(3)}
    torch.save(state, tmp_path / "bare.pth")
    lightning = {
        "state_dict": torch.nn.Module().state_dict() | state,
        "global_step": 7,
        "hyper_parameters": {"unet_config": {"channels": [1, 2]}, "name": None},
        "callbacks": {"ModelCheckpoint": {"best": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
    }
    torch.save(lightning, tmp_path / "lightning.ckpt")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name, step in (("bare.pth", 0), ("lightning.ckpt", 7), ("old.pth", 0)):
        read = read_checkpoint(tmp_path / name)
        assert read.step == step and read.settings == {}
        assert read.entries.keys() == state.keys()
        assert read.entries["a"].tolist() == [0, 1, 2] and read.entries["n"].dtype == np.int64
        assert all(read.entries[n].dtype == np.float32 for n in ("a", "half", "double"))


def test_written_files_hold_plain_tensors(tmp_path):
    path = tmp_path / "a.ckpt"
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    array.flags.writeable = False  # as arrays of JAX are
    write_checkpoint(path, {"state_dict": {"a": array}, "ldm_morph_jax": {"unet": {"heads": 2}}})
    loaded = torch.load(path, weights_only=True)["state_dict"]["a"]
    assert type(loaded) is torch.Tensor and np.array_equal(loaded.numpy(), array)
    assert read_checkpoint(path).settings == {"unet": {"heads": 2}}
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def saved(content):
    return lambda path: torch.save(content, path)


UNREADABLE = {
    "text": (lambda path: path.write_text("not a checkpoint"), "not a PyTorch checkpoint"),
    "empty": (lambda path: path.write_bytes(b""), "not a PyTorch checkpoint"),
    "pickle": (
        lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=4)),
        "not a PyTorch checkpoint",
    ),
    "list": (saved([1, 2]), "contains a list, expected tensors"),
    "tensor": (saved(torch.zeros(2)), "contains a Tensor, expected tensors"),
    "nothing": (saved({}), "contains an empty state dict"),
    "string": (
        saved({"a": torch.zeros(1), "b": "x"}),
        "not a state dict of dense tensors: b is a str",
    ),
    "sparse": (saved({"a": torch.eye(2).to_sparse()}), "a is a sparse"),
    "settings": (
        saved({"state_dict": {"a": torch.zeros(1)}, "ldm_morph_jax": {"unet": {"heads": "x"}}}),
        "expected positive integers",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_files_that_are_no_checkpoints(tmp_path, kind):
    write, message = UNREADABLE[kind]
    path = tmp_path / "wrong.ckpt"
    write(path)
    with pytest.raises(CheckpointError, match=f"wrong.ckpt.*{message}"):
        read_checkpoint(path)


def test_damaged_and_missing_files(tmp_path):
    path = tmp_path / "cut.ckpt"
    torch.save({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(CheckpointError, match="cut.ckpt is not a PyTorch checkpoint"):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="none.ckpt"):
        read_checkpoint(tmp_path / "none.ckpt")


@pytest.mark.parametrize(
    "content, named",
    [
        ({"state_dict": {}, "hparams": argparse.Namespace(a=1)}, "argparse.Namespace"),
        ({"callbacks": {argparse.Namespace: {}}}, "argparse.Namespace"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        ({"a": np.zeros(3)}, "numpy"),
    ],
)
def test_foreign_classes_are_refused_with_the_way_out(tmp_path, content, named):
    path = tmp_path / "ldm.ckpt"
    torch.save(content, path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert f"ldm.ckpt is refused: unpickling it needs the class or function {named}" in message
    assert "weights_only=False" in message and "ldm-plain.ckpt" in message


def test_the_advice_in_the_error_works(tmp_path):
    path = tmp_path / "ldm.ckpt"
    tensors = {"a": torch.arange(3.0)}
    torch.save({"state_dict": tensors, "hparams": argparse.Namespace(a=1)}, path)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    snippet = [line.strip() for line in str(caught.value).splitlines() if line.startswith("    ")]
    assert len(snippet) == 2
    exec("\n".join(snippet), {})
    assert read_checkpoint(tmp_path / "ldm-plain.ckpt").entries["a"].tolist() == [0, 1, 2]


class Evil:
    def __reduce__(self):
        return pytest.fail, ("code of a checkpoint was run",)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "hparams": Evil()}, path)
    with pytest.raises(
        CheckpointError, match="evil.ckpt is refused: unpickling it needs the class or function"
    ):
        read_checkpoint(path)


def test_without_pytorch(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(CheckpointError, match="ldm_morph_jax.torch"):
        read_checkpoint(tmp_path / "a.ckpt")
