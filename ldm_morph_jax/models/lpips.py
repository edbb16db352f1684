"""LPIPS, the learned perceptual distance of two images (Zhang et al. 2018), with VGG16 features.

The weights are a safetensors file of float32 arrays: `features.N.weight` `[3, 3, in, out]` and
`features.N.bias` `[out]` for the 13 convolutions of VGG16 (N as in torchvision), and
`linear.K.weight` `[channels]`, non-negative, for the five compared layers K = 0..4. The numbers of
channels are taken from the file.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save

# torchvision's numbers of the convolutions in each stage. Stages are separated by 2x2 max pooling.
# The last (rectified) output of each is compared: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))

SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)

Params = Mapping[str, jax.Array]


def _features(params: Params, images: jax.Array) -> list[jax.Array]:
    """The five compared VGG16 layers of images `[B, H, W, 3]`, each `[B, h, w, C]`."""
    x, taps = images, []
    for stage, convolutions in enumerate(STAGES):
        if stage > 0:
            batch, height, width, channels = x.shape
            x = x[:, : height // 2 * 2, : width // 2 * 2]  # drop an odd last row or column
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max((2, 4))
        for number in convolutions:
            x = jax.lax.conv_general_dilated(
                x,
                params[f"features.{number}.weight"],
                window_strides=(1, 1),
                padding="SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jax.nn.relu(x + params[f"features.{number}.bias"])
        taps.append(x)
    return taps


def _normalise(x: jax.Array) -> jax.Array:
    """Normalises the channels to unit length; zero, with zero gradient, where all are zero."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    positive = square > 0
    # the inner `where` keeps the infinite derivative of sqrt at 0 out of the gradient
    length = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
    return x / (length + 1e-10)


def lpips(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Perceptual distance of grey images `[B, H, W, 1]` in [0, 1] -> `[B]`, zero for equal ones.

    Images are repeated to three channels, then shifted and scaled without mapping them to [-1, 1]
    first, as in the published training. Both sides must be at least 16 pixels.
    """
    if x.shape != y.shape or x.ndim != 4 or x.shape[-1] != 1 or min(x.shape[1:3]) < 16:
        raise ValueError(
            f"lpips: images have shapes {x.shape} and {y.shape}, expected two equal [B, H, W, 1] "
            "of at least 16x16 pixels"
        )
    images = (jnp.concatenate([x, y]) - SHIFT) / SCALE  # [2B, H, W, 3]
    distance = jnp.zeros(x.shape[0], jnp.float32)
    for k, features in enumerate(_features(params, images)):
        first, second = jnp.split(_normalise(features), 2)
        weighted = jnp.sum((first - second) ** 2 * params[f"linear.{k}.weight"], axis=-1)
        distance += jnp.mean(weighted, axis=(1, 2))
    return distance


def _checked(params: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The entries that LPIPS reads, or one ValueError that lists everything wrong with them."""
    problems, checked = [], {}

    def take(name: str, shape: tuple[int | None, ...]) -> np.ndarray | None:
        """Entry `name` if it has this shape (None: any size of at least one)."""
        if name not in params:
            problems.append(f"missing {name}")
            return None
        array = np.asarray(params[name])
        fits = array.ndim == len(shape) and all(
            found > 0 if expected is None else found == expected
            for found, expected in zip(array.shape, shape, strict=True)
        )
        if not fits or array.dtype != np.float32:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            problems.append(f"{name} is {array.dtype} {array.shape}, expected float32 ({wanted})")
            return None
        if not np.all(np.isfinite(array)):
            problems.append(f"{name} holds NaN or Inf")
        checked[name] = array
        return array

    channels = 3
    for k, convolutions in enumerate(STAGES):
        for number in convolutions:
            kernel = take(f"features.{number}.weight", (3, 3, channels, None))
            channels = None if kernel is None else kernel.shape[-1]
            take(f"features.{number}.bias", (channels,))
        linear = take(f"linear.{k}.weight", (channels,))
        if linear is not None and np.any(linear < 0):
            problems.append(f"linear.{k}.weight holds negative weights")
    if problems:
        raise ValueError(f"{source} does not hold LPIPS weights: " + "; ".join(problems))
    return checked


def load_lpips(path: str | os.PathLike) -> dict[str, jax.Array]:
    """Weights from a safetensors file (see above).

    Raises FileNotFoundError, or a ValueError that names the file and every entry that is missing,
    misshapen, not float32 or not finite. Other entries are ignored.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{os.fspath(path)}: no such file of LPIPS weights")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            params = {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} is not a safetensors file: {error}") from error
    return {name: jnp.asarray(x) for name, x in _checked(params, os.fspath(path)).items()}


def save_lpips(params: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """Write weights in the format of `load_lpips`; ValueError if they are inconsistent."""
    checked = _checked({name: np.asarray(x) for name, x in params.items()}, "params")
    # safetensors writes the buffer in memory order
    Path(path).write_bytes(save({name: np.ascontiguousarray(x) for name, x in checked.items()}))


def lpips_params_from_torch(
    vgg_state: Mapping[str, np.ndarray], lin_state: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Weights from the published PyTorch ones, as NumPy arrays.

    vgg_state: torchvision's VGG16, `features.N.weight` (out, in, 3, 3) and `features.N.bias`
    lin_state: LPIPS' linear layers, `linK.model.1.weight` (1, channels, 1, 1)

    Other entries (the VGG16 classifier) are ignored; raises ValueError listing what does not fit.
    """
    params = {}
    for number in (n for convolutions in STAGES for n in convolutions):
        for leaf in ("weight", "bias"):
            name = f"features.{number}.{leaf}"
            if name in vgg_state:
                array = np.asarray(vgg_state[name], np.float32)
                params[name] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    for k in range(len(STAGES)):
        if f"lin{k}.model.1.weight" in lin_state:
            array = np.asarray(lin_state[f"lin{k}.model.1.weight"], np.float32)
            params[f"linear.{k}.weight"] = array.reshape(-1)
    return _checked(params, "PyTorch's VGG16 and LPIPS state dicts (after conversion)")
