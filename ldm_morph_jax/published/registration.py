"""Names of the published registration network's state dict entries (PyTorch), without a prefix."""

import math
import re
from collections.abc import Mapping

import numpy as np

from ldm_morph_jax.models.swin import relative_position_index
from ldm_morph_jax.published.names import Entries

LEVELS = 4  # of the published network, whose submodules are numbered in their names

# our leaf path, joined with "/" -> published name; LGCA and upper stream are counted from 1 there
_NAMES = [
    (r"swin/patch_embedding/(.*)", r"lwsa.transformer.patch_embed.proj.\1"),
    (r"swin/patch_norm/(.*)", r"lwsa.transformer.patch_embed.norm.\1"),
    (r"swin/stage(\d+)_block(\d+)/(.*)", r"lwsa.transformer.layers.\1.blocks.\2.\3"),
    (r"swin/merging(\d+)/(.*)", r"lwsa.transformer.layers.\1.downsample.\2"),
    (r"swin/norm(\d+)/(.*)", r"lwsa.transformer.norm\1.\2"),
    (r"upper(\d+)/conv/(.*)", r"c<\1>.0.\2"),
    (r"upper(\d+)/slope", r"c<\1>.1.weight"),
    (r"lgca(\d+)/block(\d+)/(.*)", r"lwca<\1>.transformer.layers.0.blocks.\2.\3"),
    (r"lgca(\d+)/norm/(.*)", r"lwca<\1>.transformer.norm0.\2"),
    (r"low_level/(.*)", r"ec1.0.\1"),
    # in the block on the low-level features, the first convolution has another name
    (r"decoder3/conv1/(.*)", r"up3.conv3.0.\1"),
    (r"decoder(\d+)/conv(\d)/(.*)", r"up\1.conv\2.0.\3"),
    (r"head/(.*)", r"reg_head.0.\1"),
]
_WITHIN = {
    "attention/": "attn.",
    "mlp1/": "mlp.fc1.",
    "mlp2/": "mlp.fc2.",
    "/": ".",
    "kernel": "weight",
    "scale": "weight",
}
_TABLE = "relative_position_bias_table"
_REGISTRATION_HEAD_CHANNELS = 16  # width of an unused convolution, a setting in the published code
_UNREAD = re.compile(
    r"lwsa\.c[12]\..*|up[012]\.conv3\..*|up3\.conv1\..*"
    r"|lwca\d\.transformer\.norm[123]\..*|.*\.relative_position_index"
)


def registration_name(path: tuple[str, ...]) -> str:
    """Published name of a leaf of `RegistrationNetwork`'s parameters (a path within "params").

    KeyError for a leaf that the published network does not have.
    """
    joined = "/".join(path)
    for pattern, replacement in _NAMES:
        name, matches = re.subn(f"^{pattern}$", replacement, joined)
        if matches:
            name = re.sub(r"<(\d+)>", lambda found: str(int(found[1]) + 1), name)
            for ours, published in _WITHIN.items():
                name = name.replace(ours, published)
            return name
    raise KeyError(f"the published registration network has no entry for {joined}")


def registration_unread(name: str) -> bool:
    """Whether the published network contains the entry `name` but never reads it.

    These are the index tables, which are not parameters, and 30 parameters that its forward pass
    does not use (2.4 of its 31.5 million).
    """
    return _UNREAD.fullmatch(name) is not None


def registration_widths(entries: Entries) -> dict:
    """The fields of `RegistrationNetwork`, inferred from a registration network's entries."""
    blocks = entries.numbers(r"lwsa\.transformer\.layers\.(\d+)\.blocks\.(\d+)\.")
    lgca_blocks = entries.numbers(r"lwca1\.transformer\.layers\.0\.blocks\.(\d+)\.")
    depths = [1 + max((b for s, b in blocks if s == stage), default=-1) for stage in range(LEVELS)]
    for stage, depth in enumerate(depths):
        if not depth:
            raise entries.error(f"missing {entries.prefix}lwsa.transformer.layers.{stage}.blocks.*")
    if not lgca_blocks:
        raise entries.error(f"missing {entries.prefix}lwca1.transformer.layers.0.blocks.*")

    def heads_and_window(block: str) -> tuple[int, int]:
        name = f"{block}.attn.{_TABLE}"
        rows, heads = entries.shape(name, 2)
        window = (math.isqrt(rows) + 1) // 2
        if (2 * window - 1) ** 2 != rows:
            raise entries.error(
                f"{entries.prefix}{name} has shape {(rows, heads)}, expected ((2w - 1)^2, heads)"
            )
        return heads, window

    first = [f"lwsa.transformer.layers.{stage}.blocks.0" for stage in range(LEVELS)]
    (embed_dim,) = entries.shape("lwsa.transformer.patch_embed.proj.bias")
    return {
        "embed_dim": embed_dim,
        "depths": tuple(depths),
        "num_heads": tuple(heads_and_window(block)[0] for block in first),
        "window_size": heads_and_window(first[0])[1],
        "mlp_ratio": entries.multiple(f"{first[0]}.mlp.fc1.bias", embed_dim),
        "lgca_heads": heads_and_window("lwca1.transformer.layers.0.blocks.0")[0],
        "lgca_depth": 1 + max(lgca_blocks)[0],
    }


def index_tables(entries: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The index buffers that belong to a network's entries: one for every bias table."""
    tables = {}
    for name, table in entries.items():
        if name.endswith(_TABLE):
            window = (math.isqrt(len(table)) + 1) // 2
            index = relative_position_index(window).astype(np.int64)
            tables[name.removesuffix(_TABLE) + "relative_position_index"] = index
    return tables


def unread_entries(entries: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters that the published network never reads, to complete its state dict.

    `entries` are those that it reads, from `to_published`. Kernels are zero, norms the identity.
    """
    (embed_dim,) = entries["lwsa.transformer.patch_embed.proj.bias"].shape
    unread = {
        "lwsa.c1.0.weight": np.zeros((embed_dim // 2, 2, 3, 3), np.float32),
        "lwsa.c2.0.weight": np.zeros((_REGISTRATION_HEAD_CHANNELS, 2, 3, 3), np.float32),
    }
    for level in range(LEVELS):
        for norm in (1, 2, 3):
            name, width = f"lwca{level + 1}.transformer.norm{norm}", embed_dim * 2**level
            unread[f"{name}.weight"] = np.ones(width, np.float32)
            unread[f"{name}.bias"] = np.zeros(width, np.float32)
    # every decoder block can take two skip connections (conv1) or one (conv3), each half as wide as
    # the input from below, but is used with only one of these options
    for block in range(LEVELS):
        name, skips = (f"up{block}.conv3", 1) if block < LEVELS - 1 else (f"up{block}.conv1", 2)
        width = entries[f"up{block}.conv2.0.weight"].shape[0]
        unread[f"{name}.0.weight"] = np.zeros((width, (2 + skips) * width, 3, 3), np.float32)
    return unread
