"""LDM-Morph at the paper's size on a CPU, in JAX and in PyTorch, timed in turns.

    PYTHONPATH=.:tests python tests/against_torch.py --repeats 10 \\
        --out docs/results/speed/against_torch.json

The PyTorch networks below follow the paper and the published architecture and share no code with
the package. They are called the way PyTorch is usually used on a CPU: eagerly, in float32, in
inference mode. Both sides hold the same weights, register the same pair with the same number of
threads, and their displacements are compared before anything is timed. tests/speed_tables.py makes
the table of docs/results/speed of the times.
"""

import argparse
import json
import math
import os
import statistics
import time
from pathlib import Path

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch_parity import ConvNormReLU, Swin, SwinBlock, load, random_images, random_params

from ldm_morph_jax.config import experiment
from ldm_morph_jax.methods import build_method
from ldm_morph_jax.ops.diffusion import linear_schedule
from ldm_morph_jax.runs.directory import environment

PUBLISHED = "PyTorch, as published (channels first)"

# -- the autoencoder's encoder ---------------------------------------------------------------------


class EncoderBlock(nn.Module):
    """Norm, swish, convolution twice, plus the input."""

    def __init__(self, inputs, outputs, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=1e-6)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class EncoderAttention(nn.Module):
    """One head over all positions, plus the input."""

    def __init__(self, channels, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.query, self.key, self.value, self.out = (
            nn.Conv2d(channels, channels, 1) for _ in "qkvo"
        )

    def forward(self, x):
        h = self.norm(x)
        query, key, value = (
            project(h).flatten(2) for project in (self.query, self.key, self.value)
        )
        weights = (query.transpose(1, 2) @ key / math.sqrt(x.shape[1])).softmax(-1)
        return x + self.out((value @ weights.transpose(1, 2)).reshape(x.shape))


class Middle(nn.Module):
    def __init__(self, channels, groups):
        super().__init__()
        self.block0 = EncoderBlock(channels, channels, groups)
        self.attention = EncoderAttention(channels, groups)
        self.block1 = EncoderBlock(channels, channels, groups)

    def forward(self, x):
        return self.block1(self.attention(self.block0(x)))


class ImageEncoder(nn.Module):
    """Images `[B, 1, H, W]` -> latents before quantisation `[B, 1, h, w]`."""

    def __init__(self, c):
        super().__init__()
        self.conv_in = nn.Conv2d(1, c.base_channels, 3, padding=1)
        self.body, width = [], c.base_channels
        for level, multiplier in enumerate(c.channel_multipliers):
            for block in range(c.residual_blocks):
                features = c.base_channels * multiplier
                self._add(
                    f"level{level}_block{block}", EncoderBlock(width, features, c.norm_groups)
                )
                width = features
                if level in c.attention_levels:
                    attention = EncoderAttention(width, c.norm_groups)
                    self._add(f"level{level}_attention{block}", attention)
            if level < len(c.channel_multipliers) - 1:
                self._add(f"level{level}_downsample", nn.Conv2d(width, width, 3, stride=2))
        self.middle = Middle(width, c.norm_groups)
        self.norm_out = nn.GroupNorm(c.norm_groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, 1, 3, padding=1)
        self.quant_conv = nn.Conv2d(1, 1, 1)

    def _add(self, name, module):
        self.add_module(name, module)
        self.body.append(name)

    def forward(self, x):
        x = self.conv_in(x)
        for name in self.body:
            x = F.pad(x, (0, 1, 0, 1)) if "downsample" in name else x
            x = getattr(self, name)(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.middle(x)))))


# -- the denoising U-Net ---------------------------------------------------------------------------


class TimeEmbedding(nn.Module):
    def __init__(self, channels):
        super().__init__()
        half = channels // 2
        self.frequency = torch.exp(-math.log(10000) / half * torch.arange(half))
        self.dense0 = nn.Linear(channels, 4 * channels)
        self.dense1 = nn.Linear(4 * channels, 4 * channels)

    def forward(self, t):
        angle = t[:, None] * self.frequency
        return self.dense1(F.silu(self.dense0(torch.cat([angle.cos(), angle.sin()], dim=-1))))


class UNetBlock(nn.Module):
    """Two convolutions with the time added in between, plus the input."""

    def __init__(self, inputs, outputs, embedding, groups):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-5)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(embedding, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=1e-5)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, embedding):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(embedding))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class UNetAttention(nn.Module):
    """Heads of `head_channels`, plus the input; channels of qkv are [head][q | k | v]."""

    def __init__(self, channels, head_channels, groups):
        super().__init__()
        self.head_channels = head_channels
        self.norm = nn.GroupNorm(groups, channels, eps=1e-5)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        batch, channels, height, width = x.shape
        h = self.qkv(self.norm(x).flatten(2))
        query, key, value = h.reshape(-1, 3 * self.head_channels, height * width).chunk(3, dim=1)
        scale = self.head_channels**-0.25
        weights = ((query * scale).transpose(1, 2) @ (key * scale)).softmax(-1)
        h = (value @ weights.transpose(1, 2)).reshape(batch, channels, height * width)
        return x + self.out(h).reshape(x.shape)


class UNetHalf(nn.Module):
    def add_block(self, name, level, number, inputs, outputs, c):
        """A residual block and, at the levels that have it, attention; returns their names."""
        embedding = 4 * c.base_channels
        names = [name]
        self.add_module(name, UNetBlock(inputs, outputs, embedding, c.norm_groups))
        if level in c.attention_levels:
            names.append(f"level{level}_attention{number}")
            self.add_module(names[1], UNetAttention(outputs, c.head_channels, c.norm_groups))
        return names

    def run(self, names, x, embedding):
        x = getattr(self, names[0])(x, embedding)
        for name in names[1:]:
            x = getattr(self, name)(x)
        return x


class UNetEncoder(UNetHalf):
    """Latents `[B, 1, h, w]` -> per level its features: stem or downsampling, then the blocks."""

    def __init__(self, c):
        super().__init__()
        self.levels, self.widths, width = [], [], c.base_channels
        for level, multiplier in enumerate(c.channel_multipliers):
            if level == 0:
                first, conv = "level0_stem", nn.Conv2d(1, width, 3, padding=1)
            else:
                first = f"level{level}_downsample"
                conv = nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.add_module(first, conv)
            self.widths.append(width)
            blocks = []
            for number in range(c.residual_blocks):
                outputs = c.base_channels * multiplier
                name = f"level{level}_block{number}"
                blocks.append(self.add_block(name, level, number, width, outputs, c))
                width = outputs
                self.widths.append(width)
            self.levels.append((first, blocks))

    def forward(self, x, embedding):
        levels = []
        for first, blocks in self.levels:
            x = getattr(self, first)(x)
            features = [x]
            for names in blocks:
                x = self.run(names, x, embedding)
                features.append(x)
            levels.append(features)
        return levels


class UNetDecoder(UNetHalf):
    """The encoder's features -> the noise in the latents."""

    def __init__(self, c, skips):
        super().__init__()
        skips, width, embedding = list(skips), skips[-1], 4 * c.base_channels
        self.middle_block0 = UNetBlock(width, width, embedding, c.norm_groups)
        self.middle_attention = UNetAttention(width, c.head_channels, c.norm_groups)
        self.middle_block1 = UNetBlock(width, width, embedding, c.norm_groups)
        self.levels = []
        for level, multiplier in reversed(list(enumerate(c.channel_multipliers))):
            blocks = []
            for number in range(c.residual_blocks + 1):
                inputs, width = width + skips.pop(), c.base_channels * multiplier
                name = f"level{level}_block{number}"
                blocks.append(self.add_block(name, level, number, inputs, width, c))
            if level:
                self.add_module(f"level{level}_upsample", nn.Conv2d(width, width, 3, padding=1))
            self.levels.append((blocks, f"level{level}_upsample" if level else None))
        self.norm_out = nn.GroupNorm(c.norm_groups, width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, levels, embedding):
        skips = [features for level in levels for features in level]
        x = self.middle_block0(skips[-1], embedding)
        x = self.middle_block1(self.middle_attention(x), embedding)
        for blocks, upsample in self.levels:
            for names in blocks:
                x = self.run(names, torch.cat([x, skips.pop()], dim=1), embedding)
            if upsample:
                x = getattr(self, upsample)(F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class UNet(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.time_embedding = TimeEmbedding(c.base_channels)
        self.encoder = UNetEncoder(c)
        self.decoder = UNetDecoder(c, self.encoder.widths)

    def noise(self, z, t):
        embedding = self.time_embedding(t)
        return self.decoder(self.encoder(z, embedding), embedding)

    def taps(self, z, t):
        levels = self.encoder(z, self.time_embedding(t))
        return [torch.cat([features[0], features[-1]], dim=1) for features in levels]


# -- the registration network ----------------------------------------------------------------------


class LGCA(nn.Module):
    def __init__(self, channels, heads, window, depth, mlp_ratio):
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, (number % 2) * (window // 2), mlp_ratio)
            for number in range(depth)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, x, y):
        """`[B, H, W, C]` each; the queries come from `y`."""
        for block in self.blocks:
            x = block(x, y)
        return self.norm(x)

    def layers(self, path):
        layers = {f"{path}/norm": self.norm}
        for number, block in enumerate(self.blocks):
            layers |= block.layers(f"{path}/block{number}")
        return layers


def upsample_bicubic(x):
    return F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)


class RegistrationNetwork(nn.Module):
    """Pair `[B, 2, H, W]` and groups of taps -> displacement `[B, 2, H, W]` in pixels."""

    def __init__(self, c, group_channels):
        super().__init__()
        widths = [c.embed_dim * 2**level for level in range(len(c.depths))]
        self.swin = Swin(2, c.embed_dim, c.depths, c.num_heads, c.window_size, c.mlp_ratio)
        self.upper = nn.ModuleList(
            nn.Conv2d(group, width, 3, padding=1)
            for group, width in zip(group_channels, widths, strict=True)
        )
        self.slopes = nn.ModuleList(nn.PReLU() for _ in widths)
        self.lgca = nn.ModuleList(
            LGCA(width, c.lgca_heads, c.window_size, c.lgca_depth, c.mlp_ratio) for width in widths
        )
        self.low_level = ConvNormReLU(2, c.embed_dim // 2)
        skips = [*(2 * width for width in reversed(widths[:-1])), c.embed_dim // 2]
        self.decoder, width = nn.ModuleList(), widths[-1]
        for skip, outputs in zip(
            skips, (widths[-2] // 2**block for block in range(4)), strict=True
        ):
            self.decoder.append(
                nn.ModuleList([ConvNormReLU(width + skip, outputs), ConvNormReLU(outputs, outputs)])
            )
            width = outputs
        self.head = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, pair, groups):
        first, last = (lambda x: x.permute(0, 2, 3, 1)), (lambda x: x.permute(0, 3, 1, 2))
        swin = [first(x) for x in self.swin(pair)]
        upper = [
            first(slope(conv(group)))
            for conv, slope, group in zip(self.upper, self.slopes, groups, strict=True)
        ]
        branches = [
            last(torch.cat([lgca(x, y), lgca(y, x)], dim=-1))
            for lgca, x, y in zip(self.lgca[:-1], swin[:-1], upper[:-1], strict=True)
        ]
        x = last(self.lgca[-1](swin[-1], upper[-1]))
        half = self.low_level(F.avg_pool2d(pair, 3, stride=2, padding=1))
        for (conv1, conv2), skip in zip(self.decoder, [*reversed(branches), half], strict=True):
            x = conv2(conv1(torch.cat([upsample_bicubic(x), skip], dim=1)))
        x = F.softsign(self.head(upsample_bicubic(x)))
        height, width = pair.shape[2:]
        return x * torch.tensor([height - 1.0, width - 1.0])[:, None, None] / 2

    def layers(self):
        layers = self.swin.layers() | {"low_level": self.low_level.conv, "head": self.head}
        for level, lgca in enumerate(self.lgca):
            layers |= {f"upper{level}/conv": self.upper[level], f"upper{level}": self.slopes[level]}
            layers |= lgca.layers(f"lgca{level}")
        for number, convs in enumerate(self.decoder):
            for i, conv in enumerate(convs, start=1):
                layers[f"decoder{number}/conv{i}"] = conv.conv
        return layers


# -- the method ------------------------------------------------------------------------------------


class LDMMorph(nn.Module):
    """Pair of images `[B, 1, H, W]` -> displacement `[B, 2, H, W]` in pixels.

    Like the package, it encodes both images in one batch, inverts the latents by one DDIM step and
    does not run the U-Net's decoder for the taps.
    """

    def __init__(self, config):
        super().__init__()
        self.autoencoder = ImageEncoder(config.autoencoder.model)
        self.unet = UNet(config.diffusion.model)
        widths = self.unet.encoder.widths
        per_level = 1 + config.diffusion.model.residual_blocks
        groups = [
            2 * (widths[first] + widths[first + per_level - 1])
            for first in range(0, len(widths), per_level)
        ]
        self.network = RegistrationNetwork(config.registration.model, groups)
        schedule = linear_schedule()
        self.tap_time = config.features.tap_time
        self.signal = float(schedule.signal[self.tap_time])
        self.noise = float(schedule.noise[self.tap_time])

    def forward(self, moving, fixed):
        z = self.autoencoder(torch.cat([moving, fixed]))
        t = torch.full((len(z),), float(self.tap_time))
        z = self.signal * z + self.noise * self.unet.noise(z, t)
        groups = [torch.cat(tap.chunk(2), dim=1) for tap in self.unet.taps(z, t)]
        return self.network(torch.cat([moving, fixed], dim=1), groups)


def with_weights(config, params, frozen) -> LDMMorph:
    """The PyTorch method with our weights, every one of them used."""
    method = LDMMorph(config).eval()
    for network, weights in (
        (method.autoencoder, frozen["autoencoder"]["encoder"]),
        (method.unet, frozen["unet"]),
    ):
        named = {
            name.replace(".", "/"): layer
            for name, layer in network.named_modules()
            if list(layer.parameters(recurse=False))
        }
        load(network, named, weights)
    load(method.network, method.network.layers(), params)
    return method


def both(config, batch=1):
    """The displacements `[B, H, W, 2]` of one batch as two functions without arguments: JAX, torch.

    Random weights and images; `channels_last` of the second chooses PyTorch's other memory format.
    """
    ours, size = build_method(config), config.data.image_size
    latent = size // ours.features.autoencoder.downsampling
    images = random_images(2, batch, size, size)
    params = random_params(lambda: ours.init(jax.random.key(0), (size, size)))
    frozen = {
        "autoencoder": random_params(
            lambda: ours.features.autoencoder.init(jax.random.key(0), images[0])["params"]
        ),
        "unet": random_params(
            lambda: ours.features.unet.init(
                jax.random.key(0),
                np.zeros((1, latent, latent, 1), np.float32),
                np.zeros(1, np.int32),
            )["params"]
        ),
        "latent_scale": np.float32(1),
    }
    program = jax.jit(ours.displacement)
    arguments = jax.device_put((params, frozen, *images))
    theirs = with_weights(config, params, frozen)
    pair = [torch.from_numpy(image.transpose(0, 3, 1, 2).copy()) for image in images]

    def in_jax():
        return np.asarray(program(*arguments))

    def in_torch(channels_last=False):
        form = torch.channels_last if channels_last else torch.contiguous_format
        theirs.to(memory_format=form)
        with torch.inference_mode():
            return theirs(*(x.to(memory_format=form) for x in pair)).permute(0, 2, 3, 1).numpy()

    return in_jax, in_torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", required=True, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as XLA takes
    in_jax, in_torch = both(experiment("sunnybrook"))
    forms = {
        "JAX": in_jax,
        PUBLISHED: in_torch,
        "PyTorch, channels last": lambda: in_torch(channels_last=True),
    }
    expected = forms[PUBLISHED]()
    for form in forms.values():  # which also warms up
        np.testing.assert_allclose(form(), expected, atol=1e-4 * np.abs(expected).max())
    times = {name: [] for name in forms}
    for _ in range(args.repeats):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            times[name].append(time.perf_counter() - start)
    for name, found in times.items():
        print(f"{name}: {statistics.median(found):.3f} s ({min(found):.3f} to {max(found):.3f})")
    facts = {
        "environment": environment(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds_per_pair": times,
    }
    Path(args.out).write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
