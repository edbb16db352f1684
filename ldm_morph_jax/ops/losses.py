"""Training losses. All are minimised, computed in float32 and averaged over all elements.

Equation numbers are the paper's. Conventions: `ldm_morph_jax.ops`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ldm_morph_jax.ops.checks import check_shape

# --- registration ---------------------------------------------------------------------------------

Similarity = Callable[[jax.Array, jax.Array], jax.Array]  # (fixed, warped) -> to be minimised
SIMILARITIES: dict[str, Similarity] = {}  # by name: what `config.registration.similarity` may be


def similarity(name: str) -> Callable[[Similarity], Similarity]:
    """Decorator that registers a function of `[B, *space, C]` images as a training similarity."""

    def register(function):
        SIMILARITIES[name] = function
        return function

    return register


def named_similarity(name: str) -> Similarity:
    """The similarity of that name; ValueError lists the known names."""
    if name not in SIMILARITIES:
        known = ", ".join(sorted(SIMILARITIES))
        raise ValueError(f"registration.similarity is {name!r}, expected one of {known}")
    return SIMILARITIES[name]


@similarity("mse")
def pixel_similarity(fixed: jax.Array, warped: jax.Array) -> jax.Array:
    """L_pix = mean (I_f - warped)^2 of images `[B, *space, C]` (eq. 14)."""
    return _mean_squared_error("fixed", fixed, "warped", warped)


def latent_similarity(z_fixed: jax.Array, z_warped: jax.Array) -> jax.Array:
    """L_lat = mean (E(I_f) - E(warped))^2 (eq. 15) of latents `[B, *space, C]`, not quantised."""
    return _mean_squared_error("z_fixed", z_fixed, "z_warped", z_warped)


def hierarchical_similarity(pixel: jax.Array, latent: jax.Array, beta: float = 0.6) -> jax.Array:
    """L_sim = beta L_pix + (1 - beta) L_lat (eq. 13)."""
    return beta * pixel + (1 - beta) * latent


def smoothness(u: jax.Array) -> jax.Array:
    """L_smooth (eq. 16): squared forward differences of u `[B, *space, rank]` in pixels.

    Mean over pixels and components for each axis, then averaged over the axes.
    """
    rank = check_shape("u", u, "B *space rank")["rank"]
    u = u.astype(jnp.float32)
    return sum(jnp.mean(jnp.square(jnp.diff(u, axis=axis))) for axis in range(1, rank + 1)) / rank


@similarity("ncc")
def ncc(a: jax.Array, b: jax.Array, *, window: int = 9, eps: float = 1e-5) -> jax.Array:
    """Minus the mean squared local correlation coefficient of images `[B, *space, C]`.

    cross^2 / (var_a var_b + eps) in a box of `window` pixels along every axis around every pixel,
    zeros outside the image, as VoxelMorph and CycleMorph define it: between -1 and 0. `eps` is
    meant for intensities in [0, 1].

    Raises:
        ValueError: on different shapes or an even window.
    """
    rank = check_shape("b", b, "B *space C", check_shape("a", a, "B *space C"))["rank"]
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window: found {window}, expected an odd number")
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)

    def box_sum(x):
        # one axis after the other; not a convolution, which is slow with one channel on a CPU
        for axis in range(1, rank + 1):
            line = tuple(window if k == axis else 1 for k in range(rank + 2))
            x = lax.reduce_window(x, 0.0, lax.add, line, (1,) * (rank + 2), "SAME")
        return x

    pixels = window**rank
    sum_a, sum_b = box_sum(a), box_sum(b)
    cross = box_sum(a * b) - sum_a * sum_b / pixels
    # Rounding can make the variance of a flat patch negative, and the denominator zero.
    variance_a = jnp.maximum(box_sum(a * a) - sum_a * sum_a / pixels, 0)
    variance_b = jnp.maximum(box_sum(b * b) - sum_b * sum_b / pixels, 0)
    return -jnp.mean(cross * cross / (variance_a * variance_b + eps))


# --- autoencoder ----------------------------------------------------------------------------------


def hinge_discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """(mean relu(1 - real) + mean relu(1 + fake)) / 2 of patch scores of any shape."""
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))) / 2


def generator_loss(fake: jax.Array) -> jax.Array:
    """-mean of the discriminator's scores of the reconstructions."""
    return -jnp.mean(fake.astype(jnp.float32))


def adaptive_weight(grad_reconstruction: jax.Array, grad_generator: jax.Array) -> jax.Array:
    """Weight of the adversarial loss that balances the two gradients (Esser et al. 2021, eq. 7).

    |grad_reconstruction| / (|grad_generator| + 1e-4), clipped to [0, 1e4], a constant for
    differentiation. Both are gradients at the kernel of the decoder's last layer, of any shape.
    """
    ratio = _norm(grad_reconstruction) / (_norm(grad_generator) + 1e-4)
    return lax.stop_gradient(jnp.clip(ratio, 0, 1e4))


def vq_loss(
    codebook_loss: jax.Array,
    commitment_loss: jax.Array,
    weight: float = 0.25,
    *,
    order: str = "paper",
) -> jax.Array:
    """The quantiser's loss from its codebook term mean (z_q - sg[z])^2 and commitment term.

    order "paper": codebook + weight * commitment (van den Oord et al. 2017, eq. 3).
    order "published": commitment + weight * codebook, the slip the published runs kept.
    """
    if order == "paper":
        return codebook_loss + weight * commitment_loss
    if order == "published":
        return commitment_loss + weight * codebook_loss
    raise ValueError(f"order: found {order!r}, expected 'paper' or 'published'")


# --- diffusion ------------------------------------------------------------------------------------


def diffusion_loss(noise: jax.Array, predicted: jax.Array) -> jax.Array:
    """mean (eps - eps_theta(z_t, t))^2 of `[B, *space, C]` (eq. 6)."""
    return _mean_squared_error("noise", noise, "predicted", predicted)


def _mean_squared_error(name_a, a, name_b, b):
    check_shape(name_b, b, "B *space C", check_shape(name_a, a, "B *space C"))
    return jnp.mean(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)))


def _norm(gradient):
    return jnp.sqrt(jnp.sum(jnp.square(gradient.astype(jnp.float32))))


# --- anatomy --------------------------------------------------------------------------------------


def segmentation_loss(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cross-entropy, 1 - soft Dice) of logits `[B, *space, K]` and labels `[B, *space]`, integers.

    Dice is that of every structure over the whole batch, so that images without it count, too;
    background, label 0, is none of them. Their sum is the loss of nnU-Net (Isensee et al., Nature
    Methods 2021).
    """
    log = jax.nn.log_softmax(logits.astype(jnp.float32))
    truth = jax.nn.one_hot(labels, logits.shape[-1])
    entropy = -jnp.mean(jnp.sum(truth * log, axis=-1))
    positions = tuple(range(labels.ndim))
    predicted = jnp.exp(log)
    both = jnp.sum(predicted * truth, positions)[1:]
    sizes = jnp.sum(predicted + truth, positions)[1:]
    return entropy, 1 - jnp.mean((2 * both + 1) / (sizes + 1))


def overlap_loss(warped: jax.Array, fixed: jax.Array) -> jax.Array:
    """1 - mean soft Dice of structures, `[B, *space, K]` in [0, 1], a channel for each.

    2 sum(warped fixed) / (sum(warped) + sum(fixed)) of every example and structure, as in
    VoxelMorph (Balakrishnan et al., IEEE TMI 2019, eq. 7); the mean is over those that are there.
    It is 0 where there is none.
    """
    rank = check_shape("fixed", fixed, "B *space K", check_shape("warped", warped, "B *space K"))[
        "rank"
    ]
    space = tuple(range(1, rank + 1))
    both, sizes = 2 * jnp.sum(warped * fixed, space), jnp.sum(warped + fixed, space)
    there = sizes > 0
    dice = both / jnp.where(there, sizes, 1)
    return jnp.sum(jnp.where(there, 1 - dice, 0)) / jnp.maximum(jnp.sum(there), 1)
