"""VoxelMorph's U-Net against the same network in PyTorch (tests/torch_parity.py)."""

import jax
import torch
from torch import nn
from torch.nn import functional as F
from torch_parity import assert_same_output, load, random_images, random_params

from ldm_morph_jax.models.voxelmorph import VoxelMorphUNet

ENCODER, DECODER, HEAD = (4, 6, 8), (8, 6, 6), (6, 4)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        widths = (2, *ENCODER)
        self.encoder = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, ENCODER, strict=False)
        )
        # what a decoder convolution sees: the one below it, and the skip of the size above
        seen = [ENCODER[-1]] + [d + e for d, e in zip(DECODER, ENCODER[::-1], strict=True)]
        self.decoder = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(seen, DECODER, strict=False)
        )
        self.full = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip((seen[-1], *HEAD), HEAD, strict=False)
        )
        self.flow = nn.Conv2d(HEAD[-1], 2, 3, padding=1)

    def forward(self, moving, fixed):
        x, skips = torch.cat([moving, fixed], dim=1), []
        for conv in self.encoder:
            x = F.leaky_relu(conv(x), 0.2)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        for conv, skip in zip(self.decoder, reversed(skips), strict=True):
            x = F.leaky_relu(conv(x), 0.2)
            x = torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1)
        for conv in self.full:
            x = F.leaky_relu(conv(x), 0.2)
        return self.flow(x)


def test_unet():
    images = random_images(2, 2, 32, 24)
    ours = VoxelMorphUNet(ENCODER, DECODER, HEAD)
    params = random_params(lambda: ours.init(jax.random.key(0), *images)["params"])
    theirs = UNet()
    layers = {"head": theirs.flow}
    for path, convolutions in (
        ("encoder", theirs.encoder),
        ("decoder", theirs.decoder),
        ("full", theirs.full),
    ):
        layers |= {f"{path}{number}": conv for number, conv in enumerate(convolutions)}
    load(theirs, layers, params)
    assert_same_output(theirs, images, jax.jit(ours.apply)({"params": params}, *images))
