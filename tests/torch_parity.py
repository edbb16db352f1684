"""Networks written down a second time, in PyTorch, and held against ours with the same weights.

The layers here and the networks in tests/models/test_parity_*.py follow the papers' descriptions
and PyTorch's conventions (channel-first, `[B, C, H, W]`), and share no code with the package.
"""

import functools

import jax
import numpy as np
import torch
from flax import traverse_util
from torch import nn
from torch.nn import functional as F


def random_images(number, batch, height, width, seed=0):
    """`number` float32 image batches `[batch, height, width, 1]` in [0, 1]."""
    rng = np.random.default_rng(seed)
    return list(rng.uniform(size=(number, batch, height, width, 1)).astype(np.float32))


def random_params(init, seed=0):
    """Random parameters of the shapes that `init()` gives, so large that every one shows.

    Initial weights would hide much: heads start near zero, biases and norms at 0 and 1.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape)
        if path[-1].key == "kernel":
            normal *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        elif path[-1].key == "scale":
            normal = 1 + 0.2 * normal
        else:
            normal *= 0.5
        return normal.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init))


def load(network, layers, params):
    """Copy our parameters to the layers of a PyTorch network, none left over on either side.

    Args:
      layers: our path of every layer, such as "swin/merging0/norm" -> the PyTorch layer.
      params: our parameter tree.
    """
    ours = traverse_util.flatten_dict(params, sep="/")
    theirs = {id(parameter) for parameter in network.parameters()}
    for path, layer in layers.items():
        for name, parameter in layer.named_parameters(recurse=False):
            array = torch.from_numpy(_arranged(layer, name, ours, path).copy())
            assert array.shape == parameter.shape, f"{path}/{name}"
            parameter.data = array
            theirs.remove(id(parameter))
    assert not ours, f"PyTorch has no place for {sorted(ours)}"
    assert not theirs, f"{len(theirs)} PyTorch parameters have no counterpart"


def _arranged(layer, name, ours, path):
    """Our leaf in PyTorch's layout; it is taken out of `ours`."""
    if name == "bias_table":
        return ours.pop(f"{path}/relative_position_bias_table")
    if name == "bias":
        return ours.pop(f"{path}/bias")
    if isinstance(layer, nn.PReLU):
        return ours.pop(f"{path}/slope")
    if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
        return ours.pop(f"{path}/scale")
    axes = {
        nn.Conv1d: (2, 1, 0),
        nn.Conv2d: (3, 2, 0, 1),
        nn.ConvTranspose2d: (2, 3, 0, 1),
        nn.Linear: (1, 0),
    }
    return ours.pop(f"{path}/kernel").transpose(axes[type(layer)])


def assert_same_output(network, images, found, *, tolerance=1e-5):
    """`found` `[B, H, W, C]` is what the PyTorch network makes of the same images `[B, H, W, C]`.

    The largest difference is compared with the largest value of the output.
    """
    with torch.no_grad():
        expected = network(*(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in images))
    expected = expected.numpy().transpose(0, 2, 3, 1)
    found = np.asarray(found)
    assert found.shape == expected.shape
    assert expected.std(axis=(1, 2)).min() > 0.05 * np.abs(expected).max()  # something to compare
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"relative error {error:.1e}"


# -- Swin transformers (Liu et al. 2021), as TransMorph and TransMatch use them --------------------


class WindowAttention(nn.Module):
    """Attention among the `window`^2 tokens of every window, `[windows, window^2, C]`.

    Queries of `y`, keys and values of `x`.
    """

    def __init__(self, channels, heads, window):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        axis = torch.arange(window)
        place = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
        offset = (place[:, :, None] - place[:, None, :]).permute(1, 2, 0) + window - 1
        self.index = offset[..., 0] * (2 * window - 1) + offset[..., 1]

    def forward(self, x, y, mask):
        windows, tokens, channels = x.shape

        def projected(maps):
            qkv = self.qkv(maps).reshape(windows, tokens, 3, self.heads, channels // self.heads)
            return qkv.permute(2, 0, 3, 1, 4)

        query, key, value = projected(x)
        if y is not x:
            query = projected(y)[0]
        scores = query @ key.transpose(-2, -1) / (channels // self.heads) ** 0.5
        scores = scores + self.bias_table[self.index].permute(2, 0, 1)
        if mask is not None:
            scores = scores.view(-1, len(mask), self.heads, tokens, tokens) + mask[:, None]
            scores = scores.view(-1, self.heads, tokens, tokens)
        out = (scores.softmax(-1) @ value).transpose(1, 2).reshape(x.shape)
        return self.proj(out)


def partition(x, window):
    """`[B, H, W, C] -> [B * windows, window^2, C]`."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def unpartition(windows, window, height, width):
    x = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


@functools.cache
def shift_mask(height, width, window, shift):
    """-100 between tokens of a window that are neighbours by the roll alone."""
    part = torch.zeros(1, height, width, 1)
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((r, c) for r in slices for c in slices):
        part[:, rows, columns] = number
    part = partition(part, window)[..., 0]
    return torch.where(part[:, :, None] == part[:, None, :], 0.0, -100.0)


class SwinBlock(nn.Module):
    """`[B, H, W, C] -> [B, H, W, C]`; `y` gives the queries where it is not x itself."""

    def __init__(self, channels, heads, window, shift, mlp_ratio):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window)
        self.mlp1 = nn.Linear(channels, mlp_ratio * channels)
        self.mlp2 = nn.Linear(mlp_ratio * channels, channels)

    def forward(self, x, y):
        height, width = x.shape[1:3]
        window, shift = self.window, self.shift

        def windows(maps):
            maps = F.pad(self.norm1(maps), (0, 0, 0, -width % window, 0, -height % window))
            return partition(torch.roll(maps, (-shift, -shift), (1, 2)), window), maps.shape[1:3]

        of_x, padded = windows(x)
        of_y = of_x if y is x else windows(y)[0]
        mask = shift_mask(*padded, window, shift) if shift else None
        out = unpartition(self.attention(of_x, of_y, mask), window, *padded)
        x = x + torch.roll(out, (shift, shift), (1, 2))[:, :height, :width]
        return x + self.mlp2(F.gelu(self.mlp1(self.norm2(x))))

    def layers(self, path):
        return {
            f"{path}/norm1": self.norm1,
            f"{path}/attention": self.attention,
            f"{path}/attention/qkv": self.attention.qkv,
            f"{path}/attention/proj": self.attention.proj,
            f"{path}/norm2": self.norm2,
            f"{path}/mlp1": self.mlp1,
            f"{path}/mlp2": self.mlp2,
        }


class PatchMerging(nn.Module):
    """`[B, H, W, C] -> [B, H / 2, W / 2, 2 C]`."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x):
        rows, columns = (0, 1, 0, 1), (0, 0, 1, 1)
        x = torch.cat([x[:, r::2, c::2] for r, c in zip(rows, columns, strict=True)], dim=-1)
        return self.reduction(self.norm(x))


class Swin(nn.Module):
    """Images `[B, C, H, W]` -> the normalised map of every stage, `[B, C', H', W']`."""

    def __init__(self, inputs, embed, depths, heads, window, mlp_ratio):
        super().__init__()
        self.patches = nn.Conv2d(inputs, embed, 4, stride=4)
        self.patch_norm = nn.LayerNorm(embed)
        widths = [embed * 2**stage for stage in range(len(depths))]
        self.stages = nn.ModuleList(
            nn.ModuleList(
                SwinBlock(width, heads[stage], window, (number % 2) * (window // 2), mlp_ratio)
                for number in range(depths[stage])
            )
            for stage, width in enumerate(widths)
        )
        self.merging = nn.ModuleList(PatchMerging(width) for width in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)

    def forward(self, images):
        x = self.patch_norm(self.patches(images).permute(0, 2, 3, 1))
        maps = []
        for stage, blocks in enumerate(self.stages):
            for block in blocks:
                x = block(x, x)
            maps.append(self.norms[stage](x).permute(0, 3, 1, 2))
            if stage < len(self.merging):
                x = self.merging[stage](x)
        return maps

    def layers(self):
        layers = {"swin/patch_embedding": self.patches, "swin/patch_norm": self.patch_norm}
        for stage, blocks in enumerate(self.stages):
            for number, block in enumerate(blocks):
                layers |= block.layers(f"swin/stage{stage}_block{number}")
            layers[f"swin/norm{stage}"] = self.norms[stage]
        for stage, merging in enumerate(self.merging):
            layers[f"swin/merging{stage}/norm"] = merging.norm
            layers[f"swin/merging{stage}/reduction"] = merging.reduction
        return layers


# -- their convolutional decoder -------------------------------------------------------------------


class ConvNormReLU(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x):
        return F.leaky_relu(F.instance_norm(self.conv(x)), 0.01)


upsample = functools.partial(F.interpolate, scale_factor=2, mode="bilinear", align_corners=False)


class DecoderBlock(nn.Module):
    def __init__(self, inputs, skip, outputs):
        super().__init__()
        self.first, self.second = (
            ConvNormReLU(inputs + skip, outputs),
            ConvNormReLU(outputs, outputs),
        )

    def forward(self, x, skip):
        return self.second(self.first(torch.cat([upsample(x), skip], dim=1)))

    def layers(self, path):
        return {f"{path}/conv1": self.first.conv, f"{path}/conv2": self.second.conv}
