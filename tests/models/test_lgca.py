import jax
import numpy as np
import pytest

from ldm_morph_jax.models.lgca import LGCA
from ldm_morph_jax.models.swin import SwinBlock


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def lgca():
    module = LGCA(num_heads=2, window_size=3, drop_path_rate=0.5)
    x, y = random(2, 5, 4, 8), random(2, 5, 4, 8, seed=1)
    return module, module.init(jax.random.key(0), x, y, train=False), x, y


def test_one_set_of_weights_serves_both_branches(lgca):
    module, variables, x, y = lgca
    branch = module.apply(variables, x, y, train=False)
    other = module.apply(variables, y, x, train=False)
    assert branch.shape == other.shape == x.shape
    assert not np.allclose(branch, other)


def test_of_one_map_it_is_self_attention(lgca):
    """A block of LGCA is then a Swin block; the LayerNorm after it starts as the plain one."""
    _, variables, x, _ = lgca
    params = {name: variables["params"][name] for name in ("block0", "norm")}
    found = LGCA(num_heads=2, window_size=3, depth=1).apply({"params": params}, x, x, train=False)
    swin = np.asarray(SwinBlock(num_heads=2, window_size=3).apply({"params": params["block0"]}, x))
    swin = swin - swin.mean(-1, keepdims=True)
    expected = swin / np.sqrt(np.mean(swin**2, axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_queries_come_from_y_and_nothing_else_does(lgca):
    """With zero query weights y cannot matter; with zero value weights only x's residual stays."""
    module, variables, x, y = lgca
    channels = x.shape[-1]

    def apply(variables, x, y):
        return np.asarray(module.apply(variables, x, y, train=False))

    def without(columns):
        def edit(path, leaf):
            if path[-2].key == "qkv":
                leaf = leaf.at[:, columns].set(0)
            return leaf

        return jax.tree_util.tree_map_with_path(edit, variables)

    assert not np.allclose(apply(variables, x, y), apply(variables, x, 2 * y + y**2))
    no_query = without(slice(0, channels))
    np.testing.assert_array_equal(apply(no_query, x, y), apply(no_query, x, y**2))
    no_value = without(slice(2 * channels, None))
    np.testing.assert_array_equal(apply(no_value, x, y), apply(no_value, x, y**2))


def test_y_is_normalised_by_the_same_layer_norm(lgca):
    """A scale and an offset of y's channels disappear in the LayerNorm (up to its eps)."""
    module, variables, x, y = lgca
    np.testing.assert_allclose(
        module.apply(variables, x, y, train=False),
        module.apply(variables, x, 100 * y + 5, train=False),
        atol=1e-3,
    )


def test_only_the_later_blocks_have_stochastic_depth(lgca):
    module, variables, x, y = lgca
    still = module.apply(variables, x, y, train=False)
    outputs = [
        module.apply(variables, x, y, train=True, rngs={"dropout": jax.random.key(k)})
        for k in range(4)
    ]
    assert not all(np.allclose(out, still) for out in outputs)
    first_only = LGCA(num_heads=2, window_size=3, depth=1, drop_path_rate=0.5)
    params = {k: v for k, v in variables["params"].items() if k != "block1"}
    np.testing.assert_array_equal(
        first_only.apply({"params": params}, x, y, train=True),  # needs no key
        first_only.apply({"params": params}, x, y, train=False),
    )


def test_maps_of_different_shapes_are_refused(lgca):
    module, variables, x, y = lgca
    with pytest.raises(ValueError, match="expected equal ones"):
        module.apply(variables, x, y[:, :4], train=False)
