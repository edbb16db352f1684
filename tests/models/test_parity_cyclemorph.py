"""The U-Net of CycleMorph and DiffuseMorph against the same network in PyTorch."""

import jax
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_parity import assert_same_output, load, random_images, random_params

from ldm_morph_jax.models.cyclemorph import DeformationUNet

ENCODER, DECODER = (4, 6, 8, 8), (8, 6, 6, 4)


class Block(nn.Module):
    """Convolutions with LeakyReLU 0.2, the first of stride `stride`."""

    def __init__(self, inputs, outputs, convolutions, stride=1):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(outputs if k else inputs, outputs, 3, 1 if k else stride, padding=1)
            for k in range(convolutions)
        )

    def forward(self, x):
        for conv in self.convolutions:
            x = F.leaky_relu(conv(x), 0.2)
        return x

    def layers(self, path):
        return {f"{path}_conv{k}": conv for k, conv in enumerate(self.convolutions)}


def doubling(channels):
    return nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1, output_padding=1)


class UNet(nn.Module):
    """Four levels: three doublings, a block that keeps the size before the last of them."""

    def __init__(self, convolutions):
        super().__init__()
        e, d = ENCODER, DECODER
        self.down = nn.ModuleList(
            Block(inputs, outputs, convolutions, stride=2 if level else 1)
            for level, (inputs, outputs) in enumerate(zip((2, *e), e, strict=False))
        )
        self.up1, self.block1 = doubling(e[3]), Block(e[3] + e[2], d[0], convolutions)
        self.up2, self.block2 = doubling(d[0]), Block(d[0] + e[1], d[1], convolutions)
        self.keep = Block(d[1], d[2], convolutions)
        self.up3, self.block3 = doubling(d[2]), Block(d[2] + e[0], d[3], convolutions)
        self.flow = nn.Conv2d(d[3], 2, 3, padding=1)

    def forward(self, source, target):
        full = self.down[0](torch.cat([source, target], dim=1))
        half = self.down[1](full)
        quarter = self.down[2](half)
        x = self.down[3](quarter)
        x = self.block1(torch.cat([quarter, self.up1(x)], dim=1))
        x = self.keep(self.block2(torch.cat([half, self.up2(x)], dim=1)))
        x = self.block3(torch.cat([full, self.up3(x)], dim=1))
        return self.flow(x)

    def layers(self):
        layers = {"head": self.flow} | self.keep.layers("before_last")
        for level, block in enumerate(self.down):
            layers |= block.layers(f"encoder{level}")
        for number, (up, block) in enumerate(
            ((self.up1, self.block1), (self.up2, self.block2), (self.up3, self.block3))
        ):
            layers |= {f"decoder{number}_up": up} | block.layers(f"decoder{number}")
        return layers


@pytest.mark.parametrize("convolutions", [1, 2], ids=["cyclemorph", "diffusemorph"])
def test_unet(convolutions):
    images = random_images(2, 2, 16, 24)
    ours = DeformationUNet(ENCODER, DECODER, convolutions)
    params = random_params(lambda: ours.init(jax.random.key(0), *images)["params"])
    theirs = UNet(convolutions)
    load(theirs, theirs.layers(), params)
    assert_same_output(theirs, images, jax.jit(ours.apply)({"params": params}, *images))
