"""Losses against hand values, independent formulas and the published networks."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_morph_jax.ops import geometry, losses

GOLDEN = Path(__file__).parent.parent / "golden" / "ldm_morph_128.npz"


def test_registration_losses_equal_the_published_networks():
    golden = np.load(GOLDEN)
    pixel, latent, smooth, total = golden["losses"]
    last = lambda array: np.moveaxis(array, 0, -1)[None]  # noqa: E731
    our_pixel = losses.pixel_similarity(golden["fixed"][None, ..., None], last(golden["warped"]))
    our_latent = losses.latent_similarity(
        last(golden["latent_fixed"]), last(golden["latent_warped"])
    )
    # H/2 is the scale of the published code, see NOTES
    our_smooth = losses.smoothness(last(golden["flow"]) * 128 / 2)
    np.testing.assert_allclose(
        [our_pixel, our_latent, our_smooth], [pixel, latent, smooth], rtol=1e-5
    )
    similarity = losses.hierarchical_similarity(our_pixel, our_latent)
    np.testing.assert_allclose(similarity + 0.01 * our_smooth, total, rtol=1e-5)
    np.testing.assert_allclose(losses.smoothness(last(golden["flow"]) * 127 / 2), 61.983, rtol=1e-5)


def test_latent_gradient_flows():
    z_fixed, z_warped = jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))
    gradient = jax.grad(losses.latent_similarity, argnums=1)(z_fixed, z_warped)
    np.testing.assert_allclose(gradient, 0.5)


def test_smoothness_by_hand():
    rows, columns = np.indices((4, 6)).astype(np.float32)
    u = np.stack([2 * rows, 3 * columns], -1)[None]
    # by row: differences (2, 0), mean square 2; by column: (0, 3), mean square 4.5
    np.testing.assert_allclose(losses.smoothness(u), (2 + 4.5) / 2)
    assert losses.smoothness(np.full((1, 4, 6, 2), 7.0, np.float32)) == 0
    # by slice (6, 0, 0), by row (0, 2, 0), by column (0, 0, 3): mean squares 12, 4/3, 3
    volume = np.moveaxis(np.indices((3, 4, 6)), 0, -1)[None] * np.array([6, 2, 3.0])
    np.testing.assert_allclose(losses.smoothness(volume), (12 + 4 / 3 + 3) / 3, rtol=1e-6)


def naive_ncc(a, b, window, eps):
    """Box sums by explicit loops over a zero-padded image or volume, float64."""
    space, total = a.shape, 0.0
    a, b = (np.pad(np.asarray(x, np.float64), window // 2) for x in (a, b))
    for at in np.ndindex(space):
        box = tuple(slice(i, i + window) for i in at)
        p, q = a[box], b[box]
        cross = np.sum((p - p.mean()) * (q - q.mean()))
        total += cross**2 / (np.sum((p - p.mean()) ** 2) * np.sum((q - q.mean()) ** 2) + eps)
    return -total / np.prod(space)


def test_ncc_equals_the_naive_formula():
    rng = np.random.default_rng(0)
    a = rng.random((2, 14, 12, 1)).astype(np.float32)
    b = (0.5 * a + 0.5 * rng.random(a.shape)).astype(np.float32)
    expected = np.mean([naive_ncc(a[k, ..., 0], b[k, ..., 0], 9, 1e-5) for k in range(2)])
    np.testing.assert_allclose(losses.ncc(a, b), expected, rtol=1e-4)
    np.testing.assert_allclose(
        losses.ncc(a[:1], b[:1], window=3),
        naive_ncc(a[0, ..., 0], b[0, ..., 0], 3, 1e-5),
        rtol=1e-4,
    )


def test_ncc_of_volumes_equals_the_naive_formula():
    rng = np.random.default_rng(3)
    a = rng.random((1, 5, 7, 6, 1)).astype(np.float32)
    b = (0.5 * a + 0.5 * rng.random(a.shape)).astype(np.float32)
    expected = naive_ncc(a[0, ..., 0], b[0, ..., 0], 3, 1e-5)
    np.testing.assert_allclose(losses.ncc(a, b, window=3), expected, rtol=1e-4)


def test_ncc_laws():
    a = np.random.default_rng(1).random((1, 20, 20, 1)).astype(np.float32)
    np.testing.assert_allclose(losses.ncc(a, a), -1, atol=1e-3)
    inner = np.pad(a[:, 6:-6, 6:-6], ((0, 0), (6, 6), (6, 6), (0, 0)))
    np.testing.assert_allclose(losses.ncc(a, inner), losses.ncc(inner, a), rtol=1e-6)


def test_ncc_of_flat_patches_does_not_divide_by_a_rounding_error():
    """Without clamped variances the largest of these gradients are 88 and 4."""
    gradient = jax.jit(jax.value_and_grad(losses.ncc))
    for seed in (36, 168, 232):
        rng = np.random.default_rng(seed)
        flat = np.full((1, 32, 32, 1), rng.random(), np.float32)
        value, by_flat = gradient(flat, rng.random(flat.shape).astype(np.float32) / 2 + 0.2)
        assert -1 <= value <= 0 and np.abs(by_flat).max() < 1
    assert np.isfinite(jax.grad(losses.ncc)(flat, flat)).all()


def test_ncc_drives_a_shift():
    rows, columns = np.indices((32, 32))
    blob = lambda r: np.exp(-((rows - r) ** 2 + (columns - 16) ** 2) / 18)[None, ..., None]  # noqa: E731
    moving, fixed = (jnp.asarray(blob(r), jnp.float32) for r in (18, 16))
    loss = lambda shift: losses.ncc(  # noqa: E731
        fixed, geometry.warp(moving, jnp.broadcast_to(shift, (1, 32, 32, 2)))
    )
    gradient = jax.grad(loss)(jnp.array([0.6, 0.1]))
    assert gradient[0] < 0 and abs(gradient[0]) > 3 * abs(gradient[1])
    assert loss(jnp.array([2.0, 0.0])) < loss(jnp.array([0.0, 0.0]))


def test_adversarial_losses_by_hand():
    real, fake = jnp.array([2.0, 0.5, -1.0, 1.0]), jnp.array([-2.0, 0.0, 1.0, -0.5])
    np.testing.assert_allclose(
        losses.hinge_discriminator_loss(real, fake), ((0.5 + 2) / 4 + (1 + 2 + 0.5) / 4) / 2
    )
    np.testing.assert_allclose(losses.generator_loss(fake), 0.375)


def test_adaptive_weight():
    reconstruction, generator = jnp.full((3, 3), 2.0), jnp.full((3, 3), 0.5)
    np.testing.assert_allclose(
        losses.adaptive_weight(reconstruction, generator), 6 / (1.5 + 1e-4), rtol=1e-6
    )
    assert losses.adaptive_weight(reconstruction, jnp.zeros((3, 3))) == 1e4  # 6e4, clipped
    assert losses.adaptive_weight(jnp.zeros((3, 3)), jnp.zeros((3, 3))) == 0
    # a constant for differentiation, also where the norm itself has no gradient
    gradients = jax.grad(losses.adaptive_weight, argnums=(0, 1))(reconstruction, jnp.zeros((3, 3)))
    assert all((np.asarray(g) == 0).all() for g in gradients)


def test_vq_loss_orders():
    codebook, commitment = jnp.float32(2.0), jnp.float32(3.0)
    assert losses.vq_loss(codebook, commitment) == 2.75
    assert losses.vq_loss(codebook, commitment, order="published") == 3.5
    assert losses.vq_loss(codebook, commitment, 1.0, order="published") == 5
    with pytest.raises(ValueError, match="order: found 'code'"):
        losses.vq_loss(codebook, commitment, order="code")


def test_diffusion_loss():
    noise = jnp.zeros((2, 4, 4, 1))
    np.testing.assert_allclose(losses.diffusion_loss(noise, noise + 3), 9)


def test_losses_are_float32_for_bfloat16_input():
    a = jnp.asarray(np.random.default_rng(2).random((1, 16, 16, 1)), jnp.bfloat16)
    b = a[:, ::-1]
    u = jnp.concatenate([a, b], -1)
    for loss in (losses.pixel_similarity(a, b), losses.ncc(a, b), losses.smoothness(u)):
        assert loss.dtype == jnp.float32
    np.testing.assert_allclose(
        losses.pixel_similarity(a, b), np.mean((np.float64(a) - np.float64(b)) ** 2), rtol=1e-5
    )


def test_shapes_that_would_broadcast_are_refused():
    a = jnp.zeros((2, 8, 8, 1))
    for loss in (
        losses.pixel_similarity,
        losses.latent_similarity,
        losses.ncc,
        losses.diffusion_loss,
    ):
        with pytest.raises(
            ValueError, match=r"found shape \(1, 8, 8, 1\), expected \[2, 8, 8, 1\]"
        ):
            loss(a, a[:1])
        with pytest.raises(ValueError, match="found shape"):
            loss(a[..., 0], a[..., 0])
    with pytest.raises(ValueError, match="u: found shape"):
        losses.smoothness(a)
    with pytest.raises(ValueError, match="window: found 8"):
        losses.ncc(a, a, window=8)


def test_segmentation_loss_by_hand():
    labels = jnp.array([[[0, 1], [1, 0]]])
    logits = jnp.log(jnp.array([[[[0.8, 0.2], [0.4, 0.6]], [[0.1, 0.9], [1.0, 1e-9]]]]))
    entropy, overlap = losses.segmentation_loss(logits, labels)
    assert float(entropy) == pytest.approx(-np.log([0.8, 0.6, 0.9, 1.0]).mean(), abs=1e-5)
    both, sizes = 0.6 + 0.9, 0.2 + 0.6 + 0.9 + 2
    assert float(overlap) == pytest.approx(1 - (2 * both + 1) / (sizes + 1), abs=1e-5)
    certain = 50.0 * jax.nn.one_hot(labels, 2)
    assert sum(map(float, losses.segmentation_loss(certain, labels))) == pytest.approx(0, abs=1e-5)


def test_overlap_is_the_dice_of_the_structures_that_are_there():
    fixed = np.zeros((2, 4, 4, 3), np.float32)
    warped = np.zeros_like(fixed)
    fixed[0, :2, :, 0], warped[0, 1:3, :, 0] = 1, 1  # Dice 0.5
    fixed[0, :, :, 1], warped[0, :, :, 1] = 1, 1  # 1
    fixed[1, 0, 0, 1] = 1  # 0; structure 2 is nowhere
    assert losses.overlap_loss(warped, fixed) == pytest.approx((0.5 + 0 + 1) / 3)
    nothing = np.zeros_like(fixed)
    assert losses.overlap_loss(nothing, nothing) == 0
    gradient = jax.grad(lambda w: losses.overlap_loss(w, fixed))(jnp.asarray(nothing))
    assert np.isfinite(gradient).all()
