"""TransMatch's network against the same network in PyTorch (tests/torch_parity.py)."""

import jax
import torch
from torch import nn
from torch.nn import functional as F
from torch_parity import (
    ConvNormReLU,
    DecoderBlock,
    Swin,
    SwinBlock,
    assert_same_output,
    load,
    random_images,
    random_params,
    upsample,
)

from ldm_morph_jax.models.transmatch import TransMatchNetwork

EMBED, DEPTHS, HEADS, CROSS_HEADS, WINDOW = 8, (2, 1, 2), (2, 2, 4), 2, 3


class CrossAttention(nn.Module):
    """Local window cross attention: two blocks and a norm; x changes, y gives the queries."""

    def __init__(self, channels):
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(channels, CROSS_HEADS, WINDOW, shift, mlp_ratio=2)
            for shift in (0, WINDOW // 2)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, x, y):
        x, y = x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x, y)
        return self.norm(x).permute(0, 3, 1, 2)


class TransMatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.swin = Swin(1, EMBED, DEPTHS, HEADS, WINDOW, mlp_ratio=2)
        self.cross = nn.ModuleList(CrossAttention(EMBED * 2**k) for k in range(3))
        self.up = nn.ModuleList(
            [
                DecoderBlock(4 * EMBED, 4 * EMBED, 2 * EMBED),
                DecoderBlock(2 * EMBED, 2 * EMBED, EMBED),
                DecoderBlock(EMBED, EMBED // 2, EMBED // 2),
            ]
        )
        self.skip_half = ConvNormReLU(2, EMBED // 2)
        self.flow = nn.Conv2d(EMBED // 2, 2, 3, padding=1)

    def forward(self, moving, fixed):
        of_moving, of_fixed = self.swin(moving), self.swin(fixed)
        there = [cross(m, f) for cross, m, f in zip(self.cross, of_moving, of_fixed, strict=True)]
        back = [cross(f, m) for cross, m, f in zip(self.cross, of_moving, of_fixed, strict=True)]
        half = F.avg_pool2d(torch.cat([moving, fixed], dim=1), 3, stride=2, padding=1)
        x = self.up[0](there[2], torch.cat([there[1], back[1]], dim=1))
        x = self.up[1](x, torch.cat([there[0], back[0]], dim=1))
        x = self.up[2](x, self.skip_half(half))
        return self.flow(upsample(x))

    def layers(self):
        layers = {"half": self.skip_half.conv, "head": self.flow} | self.swin.layers()
        for level, cross in enumerate(self.cross):
            for number, block in enumerate(cross.blocks):
                layers |= block.layers(f"cross{level}/block{number}")
            layers[f"cross{level}/norm"] = cross.norm
        for number, up in enumerate(self.up):
            layers |= up.layers(f"decoder{number}")
        return layers


def test_network():
    """Maps of 8 x 12, 4 x 6 and 2 x 3: windows are padded, and larger than the last map."""
    images = random_images(2, 2, 32, 48)
    ours = TransMatchNetwork(
        EMBED, DEPTHS, HEADS, WINDOW, mlp_ratio=2, cross_heads=CROSS_HEADS, cross_depth=2
    )
    params = random_params(lambda: ours.init(jax.random.key(0), *images)["params"])
    theirs = TransMatch()
    load(theirs, theirs.layers(), params)
    assert_same_output(theirs, images, jax.jit(ours.apply)({"params": params}, *images))
