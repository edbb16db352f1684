"""LPIPS with a narrow random VGG16: the distance against NumPy, its gradient, its file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ldm_morph_jax.models.lpips import (
    SCALE,
    SHIFT,
    STAGES,
    load_lpips,
    lpips,
    lpips_params_from_torch,
    save_lpips,
)

WIDTHS = (3, 4, 5, 6, 7)


@pytest.fixture(scope="module")
def torch_states():
    """State dicts with PyTorch's names and layouts of a narrow random VGG16 and linear layers."""
    rng = np.random.default_rng(0)
    vgg, linear, channels = {"classifier.0.weight": np.zeros((2, 2), np.float32)}, {}, 3
    for k, (width, convolutions) in enumerate(zip(WIDTHS, STAGES, strict=True)):
        for number in convolutions:
            kernel = rng.normal(size=(width, channels, 3, 3)) / np.sqrt(4 * channels)
            vgg[f"features.{number}.weight"] = kernel.astype(np.float32)
            vgg[f"features.{number}.bias"] = rng.normal(size=width).astype(np.float32)
            channels = width
        linear[f"lin{k}.model.1.weight"] = rng.uniform(size=(1, width, 1, 1)).astype(np.float32)
    return vgg, linear


@pytest.fixture(scope="module")
def params(torch_states):
    return lpips_params_from_torch(*torch_states)


@pytest.fixture(scope="module")
def pair():
    x, y = np.random.default_rng(1).uniform(size=(2, 3, 32, 32, 1)).astype(np.float32)
    y[2] = x[2]
    return x, y


def by_hand(vgg, linear, x, y):
    """The distance of two images `[H, W]` in float64, channel-first, one tap at a time."""

    def convolved(h, kernel, bias):
        h = np.pad(h, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(h, (3, 3), axis=(1, 2))
        return np.einsum("ihwab,oiab->ohw", windows, kernel) + bias[:, None, None]

    def features(image):
        h = (image[None] - SHIFT[:, None, None].astype(float)) / SCALE[:, None, None]
        for stage, convolutions in enumerate(STAGES):
            if stage:
                c, height, width = h.shape
                h = h[:, : height // 2 * 2, : width // 2 * 2]
                h = h.reshape(c, height // 2, 2, width // 2, 2).max((2, 4))
            for number in convolutions:
                kernel, bias = (vgg[f"features.{number}.{leaf}"] for leaf in ("weight", "bias"))
                h = np.maximum(convolved(h, kernel, bias), 0)
            yield h / (np.sqrt(np.sum(h**2, axis=0)) + 1e-10)

    total = 0
    for k, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        weights = linear[f"lin{k}.model.1.weight"][0]
        total += np.mean(np.sum(weights * (a - b) ** 2, axis=0))
    return total


def test_against_numpy(torch_states, params, pair):
    x, y = pair
    expected = [by_hand(*torch_states, a[..., 0], b[..., 0]) for a, b in zip(x, y, strict=True)]
    found = jax.jit(lpips)(params, x, y)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_zero_for_equal_images_and_positive_otherwise(params, pair):
    distance = np.asarray(jax.jit(lpips)(params, *pair))
    assert distance.shape == (3,) and distance.dtype == np.float32
    assert distance[2] < 1e-12 and np.all(distance[:2] > 0.01)
    np.testing.assert_allclose(jax.jit(lpips)(params, *pair[::-1]), distance, rtol=1e-4, atol=1e-12)


def test_gradient_is_finite_where_features_vanish(params, pair):
    # biases that silence the deepest layer: all its channels are zero there
    silent = dict(params) | {"features.28.bias": np.full(WIDTHS[-1], -100, np.float32)}
    gradient = jax.jit(jax.grad(lambda y: jnp.sum(lpips(silent, pair[0], y))))(pair[1])
    assert np.all(np.isfinite(gradient)) and np.any(gradient[0] != 0)


@pytest.mark.parametrize("shapes", [((1, 32, 32, 1), (1, 32, 16, 1)), ((1, 32, 32, 3),) * 2])
def test_images_that_do_not_fit(params, shapes):
    with pytest.raises(ValueError, match="lpips: images have shapes"):
        lpips(params, *(jnp.zeros(shape) for shape in shapes))


def test_odd_sizes_pool_like_pytorch(torch_states, params, pair):
    x, y = (image[:, :17, :19] for image in pair)
    expected = by_hand(*torch_states, x[0, ..., 0], y[0, ..., 0])
    np.testing.assert_allclose(jax.jit(lpips)(params, x, y)[0], expected, rtol=1e-4)


def test_file_round_trip(tmp_path, torch_states, params):
    path = tmp_path / "lpips.safetensors"
    save_lpips(lpips_params_from_torch(*torch_states), path)
    loaded = load_lpips(path)
    assert loaded.keys() == params.keys() and len(loaded) == 2 * 13 + 5
    for name, expected in params.items():
        np.testing.assert_array_equal(loaded[name], expected)
    again = tmp_path / "again.safetensors"
    save_lpips(loaded, again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("features.5.weight", lambda x: None, "missing features.5.weight"),
        ("linear.2.weight", lambda x: None, "missing linear.2.weight"),
        ("features.7.weight", lambda x: x[:2], r"features.7.weight is float32 \(2, 3, 4, 4\)"),
        ("features.7.bias", lambda x: x[:-1], r"features.7.bias .* expected float32 \(4\)"),
        ("features.0.bias", lambda x: x.astype(np.float64), "features.0.bias is float64"),
        ("features.0.bias", lambda x: x * np.nan, "features.0.bias holds NaN or Inf"),
        ("linear.0.weight", lambda x: -x, "linear.0.weight holds negative weights"),
    ],
)
def test_files_that_do_not_fit(tmp_path, params, name, change, message):
    path = tmp_path / "broken.safetensors"
    changed = change(params[name])
    broken = {key: np.ascontiguousarray(x) for key, x in params.items() if key != name}
    if changed is not None:
        broken[name] = np.ascontiguousarray(changed)
    save_file(broken, path)
    with pytest.raises(ValueError, match=f"broken.safetensors .*{message}"):
        load_lpips(path)


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        load_lpips(tmp_path / "none.safetensors")
    path = tmp_path / "text.safetensors"
    path.write_text("not tensors")
    with pytest.raises(ValueError, match="text.safetensors is not a safetensors file"):
        load_lpips(path)


def test_conversion_lists_what_is_missing(torch_states):
    vgg, linear = torch_states
    with pytest.raises(ValueError, match="missing features.0.weight.*missing linear.4.weight"):
        lpips_params_from_torch(
            {name: x for name, x in vgg.items() if name != "features.0.weight"},
            {name: x for name, x in linear.items() if not name.startswith("lin4")},
        )
