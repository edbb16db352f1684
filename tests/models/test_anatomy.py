"""The anatomy network's shapes, in the plane and in space, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax.models.anatomy import AnatomyUNet, blocks_of_two, joined_blocks


@pytest.mark.parametrize("space", [(8, 16), (8, 4, 12)])
def test_blocks_are_put_together_again(space):
    x = np.random.default_rng(0).normal(size=(2, *space, 3)).astype("f4")
    blocks = blocks_of_two(jnp.asarray(x))
    half = tuple(n // 2 for n in space)
    assert blocks.shape == (2, *half, 2 ** len(space), 3)
    first = x[(slice(None), *(slice(0, 2),) * len(space))].reshape(2, -1, 3)
    np.testing.assert_array_equal(blocks[(slice(None), *(0,) * len(space))], first)
    np.testing.assert_array_equal(joined_blocks(blocks), x)


@pytest.mark.parametrize("space", [(16, 8), (8, 8, 4)])
def test_logits_of_images_and_volumes(space):
    network = AnatomyUNet(classes=3, channels=(4, 8), norm_groups=2)
    image = jnp.ones((1, *space, 1))
    logits, params = network.init_with_output(jax.random.key(0), image)
    assert logits.shape == (1, *space, 3)
    assert logits.dtype == jnp.float32
    assert {p.ndim for p in jax.tree.leaves(params)} == {1, len(space) + 2}


def test_a_size_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match=r"found an image of \(6, 8\), expected multiples of 4"):
        AnatomyUNet(classes=2, channels=(4, 8)).init(jax.random.key(0), jnp.ones((1, 6, 8, 1)))
