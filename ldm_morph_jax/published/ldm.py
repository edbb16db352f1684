"""Names of the latent diffusion model's parameters in the published checkpoints.

Each function maps the path of a leaf of our tree to the published name, without the checkpoint's
prefix (`first_stage_model.`, `first_stage_model.loss.discriminator.`, `model.diffusion_model.`).
"""

import re

import numpy as np

from ldm_morph_jax.ops.diffusion import Schedule
from ldm_morph_jax.published.names import Entries

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}

RESIDUAL_BLOCK = {"shortcut": "nin_shortcut"}
ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "proj_out"}

UNET_RESIDUAL_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
UNET_ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}


def autoencoder_name(path: tuple[str, ...]) -> str:
    """Published name of a leaf of an `Autoencoder` of any widths and depths.

    `("encoder", "level0_block1", "conv1", "kernel") -> "encoder.down.0.block.1.conv1.weight"`
    """
    if path == ("codebook",):
        return "quantize.embedding.weight"
    half, module, *inner, leaf = path
    if module in ("quant_conv", "post_quant_conv"):  # outside the two halves when published
        return f"{module}.{LEAVES[leaf]}"
    if module == "middle":
        block, layer = inner
        name = {"block0": "block_1", "attention": "attn_1", "block1": "block_2"}[block]
        renamed = (ATTENTION if block == "attention" else RESIDUAL_BLOCK).get(layer, layer)
        return f"{half}.mid.{name}.{renamed}.{LEAVES[leaf]}"
    if not module.startswith("level"):  # conv_in, norm_out, conv_out
        return f"{half}.{module}.{LEAVES[leaf]}"
    level, kind, number = re.fullmatch(r"level(\d+)_([a-z]+)(\d*)", module).groups()
    level_name = f"{half}.{'down' if half == 'encoder' else 'up'}.{level}"
    if kind == "block":
        name = f"block.{number}.{RESIDUAL_BLOCK.get(inner[0], inner[0])}"
    elif kind == "attention":
        name = f"attn.{number}.{ATTENTION.get(inner[0], inner[0])}"
    else:  # downsample, upsample
        name = f"{kind}.conv"
    return f"{level_name}.{name}.{LEAVES[leaf]}"


def discriminator_name(path: tuple[str, ...]) -> str:
    """Published name of a leaf of `PatchDiscriminator` (parameters or running statistics).

    The published network is one sequence: conv0, activation, then conv, norm, activation repeated.
    """
    module, leaf = path[-2:]
    kind, number = re.fullmatch(r"(conv|norm)(\d+)", module).groups()
    position = 3 * int(number) if kind == "norm" else max(0, 3 * int(number) - 1)
    return f"main.{position}.{(LEAVES | {'mean': 'running_mean', 'var': 'running_var'})[leaf]}"


def unet_name(
    path: tuple[str, ...],
    *,
    levels: int = 4,
    residual_blocks: int = 2,
    attention_levels: tuple[int, ...] = (1, 2, 3),
) -> str:
    """Published name of a leaf of `UNet` with these depths (bind them with functools.partial).

    The published network numbers its encoder features and decoder blocks through all levels:
    `("encoder", "level1_attention0", "qkv", "kernel") -> "input_blocks.4.1.qkv.weight"`
    """
    half, *modules, leaf = path
    leaf = LEAVES[leaf]
    if half == "time_embedding":  # linear, activation, linear
        return f"time_embed.{ {'dense0': 0, 'dense1': 2}[modules[0]] }.{leaf}"
    module, *inner = modules
    if module in ("norm_out", "conv_out"):  # norm, activation, conv
        return f"out.{ {'norm_out': 0, 'conv_out': 2}[module] }.{leaf}"
    if module.startswith("middle"):
        position = {"middle_block0": 0, "middle_attention": 1, "middle_block1": 2}[module]
        layers = UNET_ATTENTION if module == "middle_attention" else UNET_RESIDUAL_BLOCK
        return f"middle_block.{position}.{layers[inner[0]]}.{leaf}"
    level, kind, number = re.fullmatch(r"level(\d+)_([a-z]+)(\d*)", module).groups()
    level = int(level)
    if half == "encoder":
        blocks = "input_blocks"
        # every level: its stem or downsampling convolution, then its residual blocks
        index = level * (residual_blocks + 1) + (int(number) + 1 if number else 0)
    else:
        blocks = "output_blocks"
        # from the deepest level up, with one more residual block; upsampling comes last in a level
        index = (levels - 1 - level) * (residual_blocks + 1)
        index += int(number) if number else residual_blocks
    if kind == "block":
        return f"{blocks}.{index}.0.{UNET_RESIDUAL_BLOCK[inner[0]]}.{leaf}"
    if kind == "attention":
        return f"{blocks}.{index}.1.{UNET_ATTENTION[inner[0]]}.{leaf}"
    if kind == "stem":
        return f"{blocks}.{index}.0.{leaf}"
    if kind == "downsample":
        return f"{blocks}.{index}.0.op.{leaf}"
    # upsample: follows the residual block and, if the level has it, the attention
    return f"{blocks}.{index}.{2 if level in attention_levels else 1}.conv.{leaf}"


def ema_name(name: str) -> str:
    """The published EMA's entry for the average of the U-Net's entry `name`.

    It is a buffer of the module around the U-Net, named like the parameter but without dots.
    """
    return ("diffusion_model." + name).replace(".", "")


def autoencoder_widths(entries: Entries) -> dict:
    """The fields of `Autoencoder`, inferred from an autoencoder's entries."""
    blocks = entries.numbers(r"encoder\.down\.(\d+)\.block\.(\d+)\.")
    if not blocks:
        raise entries.error(f"missing {entries.prefix}encoder.down.*")
    levels = 1 + max(level for level, _ in blocks)
    (base,) = entries.shape("encoder.conv_in.bias")
    attention = entries.numbers(r"encoder\.down\.(\d+)\.attn\.")
    return {
        "base_channels": base,
        "channel_multipliers": tuple(
            entries.multiple(f"encoder.down.{level}.block.0.conv2.bias", base)
            for level in range(levels)
        ),
        "residual_blocks": 1 + max(block for _, block in blocks),
        "attention_levels": tuple(sorted(level for (level,) in attention)),
        "codebook_size": entries.shape("quantize.embedding.weight", 2)[0],
    }


def discriminator_widths(entries: Entries) -> dict:
    """The fields of `PatchDiscriminator`, inferred from a discriminator's entries."""
    last = max(entries.numbers(r"main\.(\d+)\."), default=(0,))[0]
    return {"base_channels": entries.shape("main.0.bias")[0], "layers": (last - 2) // 3}


def unet_widths(entries: Entries) -> dict:
    """The fields of `UNet`, inferred from a U-Net's entries; no shape reveals head_channels."""
    features = [index for (index,) in entries.numbers(r"input_blocks\.(\d+)\.")]
    if not features:
        raise entries.error(f"missing {entries.prefix}input_blocks.*")
    levels = 1 + len(entries.numbers(r"input_blocks\.(\d+)\.0\.op\."))
    per_level, rest = divmod(1 + max(features), levels)
    if rest or per_level < 2:
        raise entries.error(
            f"{1 + max(features)} {entries.prefix}input_blocks, expected equally many on each of "
            f"the {levels} levels"
        )
    (base,) = entries.shape("input_blocks.0.0.bias")
    attention = entries.numbers(r"input_blocks\.(\d+)\.1\.")
    return {
        "base_channels": base,
        "channel_multipliers": tuple(
            entries.multiple(f"input_blocks.{level * per_level + 1}.0.out_layers.3.bias", base)
            for level in range(levels)
        ),
        "residual_blocks": per_level - 1,
        "attention_levels": tuple(sorted({index // per_level for (index,) in attention})),
    }


def schedule_entries(schedule: Schedule) -> dict[str, np.ndarray]:
    """The buffers that the published diffusion model derives from its betas, float32.

    Its checkpoints contain them; ours need only the betas. q(z_{t-1} | z_t, z_0) has the variance
    beta_t (1 - abar_{t-1}) / (1 - abar_t), which is 0 at t = 0 (clipped at 1e-20 in its logarithm).
    """
    betas = np.asarray(schedule.betas, np.float64)
    abar = np.cumprod(1 - betas)
    before = np.append(1.0, abar[:-1])
    variance = betas * (1 - before) / (1 - abar)
    entries = {
        "betas": betas,
        "alphas_cumprod": schedule.alphas_cumprod,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": schedule.signal,
        "sqrt_one_minus_alphas_cumprod": schedule.noise,
        "log_one_minus_alphas_cumprod": np.log(1 - abar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / abar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / abar - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - abar),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - abar),
    }
    return {name: x.astype(np.float32) for name, x in entries.items()}
