"""TransMorph's network against the same network in PyTorch (tests/torch_parity.py)."""

import jax
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_parity import (
    ConvNormReLU,
    DecoderBlock,
    Swin,
    assert_same_output,
    load,
    random_images,
    random_params,
)

from ldm_morph_jax.models.transmorph import TransMorphNetwork

EMBED, DEPTHS, HEADS, FULL = 8, (2, 1, 2), (2, 2, 4), 6


class TransMorph(nn.Module):
    def __init__(self, window):
        super().__init__()
        self.swin = Swin(2, EMBED, DEPTHS, HEADS, window, mlp_ratio=2)
        self.up = nn.ModuleList(
            [
                DecoderBlock(4 * EMBED, 2 * EMBED, 2 * EMBED),
                DecoderBlock(2 * EMBED, EMBED, EMBED),
                DecoderBlock(EMBED, EMBED // 2, EMBED // 2),
                DecoderBlock(EMBED // 2, FULL, FULL),
            ]
        )
        self.skip_half, self.skip_full = ConvNormReLU(2, EMBED // 2), ConvNormReLU(2, FULL)
        self.flow = nn.Conv2d(FULL, 2, 3, padding=1)

    def forward(self, moving, fixed):
        pair = torch.cat([moving, fixed], dim=1)
        fine, middle, x = self.swin(pair)
        half = self.skip_half(F.avg_pool2d(pair, 3, stride=2, padding=1))
        for up, skip in zip(self.up, (middle, fine, half, self.skip_full(pair)), strict=True):
            x = up(x, skip)
        return self.flow(x)

    def layers(self):
        layers = {"half": self.skip_half.conv, "full": self.skip_full.conv, "head": self.flow}
        for number, up in enumerate(self.up):
            layers |= up.layers(f"decoder{number}")
        return layers | self.swin.layers()


@pytest.mark.parametrize("window", [4, 3])
def test_network(window):
    """Maps of 8 x 12, 4 x 6 and 2 x 3: windows fit, are padded, or are larger than the map."""
    images = random_images(2, 2, 32, 48)
    ours = TransMorphNetwork(EMBED, DEPTHS, HEADS, window, mlp_ratio=2, head_channels=FULL)
    params = random_params(lambda: ours.init(jax.random.key(0), *images)["params"])
    theirs = TransMorph(window)
    load(theirs, theirs.layers(), params)
    assert_same_output(theirs, images, jax.jit(ours.apply)({"params": params}, *images))
