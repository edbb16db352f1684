"""DiffuseMorph's denoising U-Net against the same network in PyTorch.

Its deformation network is held against PyTorch in test_parity_cyclemorph.py.
"""

import math

import jax
import jax.numpy as jnp
import torch
from torch import nn
from torch.nn import functional as F
from torch_parity import assert_same_output, load, random_images, random_params

from ldm_morph_jax.models.diffusemorph import DenoisingUNet

BASE, GROUPS, TIMES = 8, 4, [0, 1234]
WIDTHS = (8, 16, 16)


class ResidualBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, inputs), nn.GroupNorm(GROUPS, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(BASE, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x, embedding):
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(embedding))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))

    def layers(self, path):
        names = ("norm1", "conv1", "time", "norm2", "conv2")
        names += () if self.shortcut is None else ("shortcut",)
        return {f"{path}/{name}": getattr(self, name) for name in names}


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        query, key, value = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)  # [B, C, H W]
        scores = torch.einsum("bcq,bck->bqk", query, key) / math.sqrt(x.shape[1])
        out = torch.einsum("bqk,bck->bcq", scores.softmax(-1), value)
        return x + self.out(out.view(x.shape))


class Denoiser(nn.Module):
    """SR3's U-Net: three levels, one residual block each on the way down, two on the way up."""

    def __init__(self):
        super().__init__()
        a, b, c = WIDTHS
        self.time0, self.time1 = nn.Linear(BASE, 4 * BASE), nn.Linear(4 * BASE, BASE)
        self.stem = nn.Conv2d(3, BASE, 3, padding=1)
        self.encoder = nn.ModuleList(
            ResidualBlock(inputs, outputs) for inputs, outputs in ((BASE, a), (a, b), (b, c))
        )
        self.down = nn.ModuleList(nn.Conv2d(n, n, 3, stride=2, padding=1) for n in (a, b))
        self.middle = nn.ModuleList(ResidualBlock(c, c) for _ in range(2))
        self.attention = Attention(c)
        # on top of what comes from below: the maps on the way down, the last first
        seen = ((c + c, c), (c + b, c)), ((c + b, b), (b + a, b)), ((b + a, a), (a + BASE, a))
        self.decoder = nn.ModuleList(
            nn.ModuleList(ResidualBlock(*widths) for widths in level) for level in seen
        )
        self.up = nn.ModuleList(nn.Conv2d(n, n, 3, padding=1) for n in (c, b))
        self.norm_out, self.conv_out = nn.GroupNorm(GROUPS, a), nn.Conv2d(a, 1, 3, padding=1)

    def forward(self, moving, fixed, noisy):
        half = BASE // 2
        angle = torch.tensor(TIMES)[:, None] * 10000 ** (-torch.arange(half) / half)
        embedding = self.time0(torch.cat([angle.sin(), angle.cos()], dim=1))
        embedding = self.time1(F.silu(embedding))

        x = self.stem(torch.cat([moving, fixed, noisy], dim=1))
        skips = [x]
        for level, block in enumerate(self.encoder):
            if level:
                x = self.down[level - 1](x)
                skips.append(x)
            x = block(x, embedding)
            skips.append(x)
        x = self.attention(self.middle[0](x, embedding))
        x = self.middle[1](x, embedding)
        for level, blocks in enumerate(self.decoder):
            for block in blocks:
                x = block(torch.cat([x, skips.pop()], dim=1), embedding)
            if level < len(self.up):
                x = self.up[level](F.interpolate(x, scale_factor=2, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))

    def layers(self):
        layers = {
            name: getattr(self, name) for name in ("time0", "time1", "stem", "norm_out", "conv_out")
        }
        layers |= {
            f"middle_attention/{n}": getattr(self.attention, n) for n in ("norm", "qkv", "out")
        }
        for number, block in enumerate(self.middle):
            layers |= block.layers(f"middle_block{number}")
        for level, block in enumerate(self.encoder):
            layers |= block.layers(f"encoder{level}_block0")
        for level, down in enumerate(self.down, start=1):
            layers[f"down{level}"] = down
        for level, (blocks, up) in enumerate(zip(self.decoder, (*self.up, None), strict=True)):
            for number, block in enumerate(blocks):
                layers |= block.layers(f"decoder{2 - level}_block{number}")
            if up is not None:
                layers[f"up{2 - level}"] = up
        return layers


def test_denoiser():
    images = [2 * image - 1 for image in random_images(3, 2, 16, 24)]
    ours, t = DenoisingUNet(BASE, (1, 2, 2), norm_groups=GROUPS), jnp.array(TIMES)
    params = random_params(lambda: ours.init(jax.random.key(0), *images, t)["params"])
    theirs = Denoiser()
    load(theirs, theirs.layers(), params)
    found = jax.jit(ours.apply)({"params": params}, *images, t)
    assert_same_output(theirs, images, found)
