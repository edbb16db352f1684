import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax.models.swin import (
    PatchMerging,
    SwinBlock,
    SwinEncoder,
    WindowAttention,
    relative_position_index,
    shifted_window_mask,
    window_partition,
    window_reverse,
)

TINY = {"embed_dim": 8, "depths": (1, 2), "num_heads": (2, 2), "window_size": 3, "mlp_ratio": 2}


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_windows_are_cut_row_by_row_and_put_back():
    x = np.arange(2 * 6 * 9 * 5).reshape(2, 6, 9, 5)
    windows = window_partition(x, 3)
    assert windows.shape == (2, 6, 9, 5)
    # window 4 is in the second row of windows, second column
    np.testing.assert_array_equal(windows[1, 4], x[1, 3:6, 3:6].reshape(9, 5))
    np.testing.assert_array_equal(window_reverse(windows, 3, (6, 9)), x)


def test_relative_position_index_is_query_minus_key():
    index = relative_position_index(7)
    assert index.shape == (49, 49) and len(np.unique(index)) == 13 * 13
    query, key = 2 * 7 + 5, 4 * 7 + 1  # (2, 5) and (4, 1)
    assert index[query, key] == (2 - 4 + 6) * 13 + (5 - 1 + 6)
    assert np.all(np.diagonal(index) == 6 * 13 + 6)


@pytest.mark.parametrize("size", [7, 14, 21])
def test_shift_mask_separates_what_the_roll_brought_together(size):
    """Two positions of a window may see each other iff the roll kept their distance."""
    mask = shifted_window_mask((size, size), 7, 3)
    rolled = np.roll(np.stack(np.mgrid[:size, :size], -1), (-3, -3), axis=(0, 1))
    original = window_partition(rolled[None], 7)[0]  # [windows, 49, 2]
    place = window_partition(np.stack(np.mgrid[:size, :size], -1)[None], 7)[0]
    before = original[:, :, None] - original[:, None, :]
    after = place[:, :, None] - place[:, None, :]
    together = np.all(before == after, axis=-1)
    np.testing.assert_array_equal(mask, np.where(together, 0, -100))


def naive_attention(params, x, y, *, heads, window, shift):
    """Attention of one unbatched map, position by position: queries from y."""
    height, width, channels = x.shape
    padding = ((0, -height % window), (0, -width % window), (0, 0))
    x, y = np.pad(x, padding), np.pad(y, padding)
    kernel = params["qkv"]["kernel"].reshape(channels, 3, heads, -1)
    depth = channels // heads
    query = np.einsum("hwc,cnd->hwnd", y, kernel[:, 0]) / np.sqrt(depth)
    key = np.einsum("hwc,cnd->hwnd", x, kernel[:, 1])
    value = np.einsum("hwc,cnd->hwnd", x, kernel[:, 2])
    table = params["relative_position_bias_table"].reshape(2 * window - 1, 2 * window - 1, heads)

    def window_of(i, size):  # windows start at shift - window, shift, shift + window, ...
        # the cells before the first full window and after the last one stay apart
        return (i - shift) // window if shift else i // window

    out = np.zeros((*x.shape[:2], heads, depth))
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            positions = [
                (k, m)
                for k in range(x.shape[0])
                for m in range(x.shape[1])
                if window_of(i, x.shape[0]) == window_of(k, x.shape[0])
                and window_of(j, x.shape[1]) == window_of(m, x.shape[1])
            ]
            rows, columns = np.array(positions).T
            bias = table[i - rows + window - 1, j - columns + window - 1]
            scores = np.einsum("nd,pnd->pn", query[i, j], key[rows, columns]) + bias
            weights = np.exp(scores - scores.max(axis=0))
            weights /= weights.sum(axis=0)
            out[i, j] = np.einsum("pn,pnd->nd", weights, value[rows, columns])
    out = out[:height, :width].reshape(height, width, channels)
    return out @ params["proj"]["kernel"] + params["proj"]["bias"]


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(7, 9), (4, 5), (3, 2)])
@pytest.mark.parametrize("cross", [False, True])
def test_window_attention_against_a_loop_over_positions(shift, size, cross):
    x, y = random(2, *size, 6), random(2, *size, 6, seed=1)
    module = WindowAttention(num_heads=3, window_size=5, shift=shift)
    params = module.init(jax.random.key(0), x)["params"]
    params["relative_position_bias_table"] = random(81, 3, seed=2)
    actual = module.apply({"params": params}, x, y if cross else None)
    params = jax.tree.map(np.asarray, params)
    for b in range(2):
        expected = naive_attention(
            params, x[b], y[b] if cross else x[b], heads=3, window=5, shift=shift
        )
        np.testing.assert_allclose(actual[b], expected, rtol=1e-4, atol=2e-5)


def test_shifted_windows_do_not_leak_across_regions():
    """A change on one side of the map must not reach what the roll put beside it."""
    x = random(1, 14, 14, 4)
    module = WindowAttention(num_heads=2, window_size=7, shift=3)
    variables = module.init(jax.random.key(0), x)
    changed = x.copy()
    changed[0, 12, 12] += 10  # region of rows 10..13 and columns 10..13
    difference = np.abs(module.apply(variables, changed) - module.apply(variables, x)).max(-1)[0]
    assert np.all(difference[10:, 10:] > 0)
    difference[10:, 10:] = 0
    assert np.all(difference == 0)


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="6 channels do not split into 4"):
        WindowAttention(num_heads=4).init(jax.random.key(0), random(1, 7, 7, 6))


def test_stochastic_depth_drops_whole_samples_and_rescales():
    x = random(32, 3, 3, 4)
    block = SwinBlock(num_heads=2, window_size=3, drop_path_rate=0.5)
    variables = block.init(jax.random.key(0), x, train=False)
    variables["params"]["mlp2"] = jax.tree.map(jnp.zeros_like, variables["params"]["mlp2"])
    change = block.apply(variables, x, train=False) - x  # of the attention branch alone
    drawn = block.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})
    dropped = np.all(np.asarray(drawn) == x, axis=(1, 2, 3))
    assert 8 <= dropped.sum() <= 24
    np.testing.assert_allclose((drawn - x)[~dropped], 2 * change[~dropped], atol=1e-5)


def test_both_residual_branches_are_dropped():
    x = random(32, 3, 3, 4)
    block = SwinBlock(num_heads=2, window_size=3, drop_path_rate=0.5)
    variables = block.init(jax.random.key(0), x, train=False)
    drawn = block.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})
    unchanged = np.all(np.asarray(drawn) == x, axis=(1, 2, 3))
    assert 1 <= unchanged.sum() <= 20  # independent draws: about a quarter of 32


def test_patch_merging_order():
    x = random(1, 4, 6, 3)
    module = PatchMerging()
    variables = module.init(jax.random.key(0), x)
    params = jax.tree.map(np.asarray, variables["params"])
    cell = np.concatenate([x[0, 2, 4], x[0, 3, 4], x[0, 2, 5], x[0, 3, 5]])
    cell = (cell - cell.mean()) / np.sqrt(cell.var() + 1e-5)
    np.testing.assert_allclose(
        module.apply(variables, x)[0, 1, 2], cell @ params["reduction"]["kernel"], atol=1e-5
    )


def test_encoder_shapes_and_modes():
    x = random(2, 32, 16, 2)
    encoder = SwinEncoder(**TINY, drop_path_rate=0.9)
    variables = encoder.init(jax.random.key(0), x, train=False)
    apply = jax.jit(encoder.apply, static_argnames="train")
    maps = apply(variables, x, train=False)
    assert [m.shape for m in maps] == [(2, 8, 4, 8), (2, 4, 2, 16)]

    drawn = apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(drawn[-1], maps[-1])
    # where nothing is dropped training is inference
    kept = SwinEncoder(**TINY, drop_path_rate=0.0).apply(variables, x, train=True)
    for a, b in zip(kept, maps, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    with pytest.raises(Exception, match="dropout"):
        encoder.apply(variables, x, train=True)


def test_encoder_in_bfloat16_keeps_float32_parameters():
    x = random(1, 16, 16, 2)
    encoder = SwinEncoder(**TINY, dtype=jnp.bfloat16)
    variables = encoder.init(jax.random.key(0), x, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert {m.dtype for m in encoder.apply(variables, x, train=False)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("shape", [(1, 36, 32, 2), (1, 32, 100, 2), (32, 32, 2)])
def test_sizes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="multiples of 8"):
        SwinEncoder(**TINY).init(jax.random.key(0), np.zeros(shape, np.float32), train=False)
