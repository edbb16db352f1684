"""LDDMM (Beg et al., IJCV 2005): registration by time-dependent velocities, computed by JAX.

Five velocity fields v_t transport the moving image I to the fixed image J. They minimise

    E = sum_x (I(phi_1^-1(x)) - J(x))^2 / (2 sigma^2) + sum_t <v_t, A v_t> dt / (2 sigma_r^2)

with A = (1 - alpha^2 Laplacian)^(2 power), by gradient descent in the metric of A. Settings and
discretisation follow torch-lddmm, whose default is five fields, as in the paper. torch-lddmm reads
zeros beyond the border of the moving image; here, as everywhere, border values continue outside.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ldm_morph_jax.methods.base import Method
from ldm_morph_jax.ops.checks import check_shape
from ldm_morph_jax.ops.geometry import compose, warp
from ldm_morph_jax.ops.jacobian import jacobian_determinant


@dataclasses.dataclass(frozen=True)
class LDDMM(Method):
    """Five velocities and 500 iterations, as in the paper (Sec. 4.4); pixels, dt = 1 / time_steps.

    Attributes:
      alpha, power: of the operator A.
      sigma: of the image noise, in units of intensities from 0 to `intensity_scale`.
      sigma_r: the larger it is, the less a deformation is penalised.
      step_size, iterations: of the gradient descent, which never stops early.
      intensity_scale: factor applied to images in [0, 1].
    """

    alpha: float = 5.0
    power: int = 2
    sigma: float = 2.0
    sigma_r: float = 1.0
    time_steps: int = 5
    step_size: float = 5e-3
    iterations: int = 500
    intensity_scale: float = 255.0

    name = "lddmm"
    title = "LDDMM"
    trained = False
    takes_volumes = True

    def field(self, params, frozen, moving, fixed) -> jax.Array:
        return self.register(moving, fixed)[0]

    @functools.partial(jax.jit, static_argnums=0)
    def register(self, moving: jax.Array, fixed: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Register images `[B, *space, 1]` in [0, 1], each pair independently.

        Returns (displacement `[B, *space, rank]` in pixels, energy `[iterations, B]` before each
        step).
        """
        sizes = check_shape("moving", moving, "B *space 1")
        check_shape("fixed", fixed, "B *space 1", sizes)
        shape = (self.time_steps, *moving.shape[:-1], moving.ndim - 2)

        def descend(momentum, _):
            energy, gradient = self.energy_and_gradient(momentum, moving, fixed)
            return momentum - self.step_size * gradient, energy

        momentum = jnp.zeros(shape, moving.dtype)
        momentum, energies = lax.scan(descend, momentum, length=self.iterations)
        displacements = self._backward_maps(self.velocity(momentum))
        return displacements[-1], energies

    def energy_and_gradient(self, momentum, moving, fixed) -> tuple[jax.Array, jax.Array]:
        """Energy `[B]` and its gradient `[T, B, *space, rank]` at a momentum of that shape.

        The unknown is the momentum m = A v, from which v = K m is obtained by smoothing. This
        avoids applying A, which amplifies rounding errors a billion times. A step against
        `gradient` = lambda_t grad I_t + m_t / sigma_r^2 moves v against
        K(lambda_t grad I_t) + v_t / sigma_r^2, the gradient in the metric of A:
        dE = sum_t dt <gradient_t, dv_t>.
        """
        v, dt = self.velocity(momentum), 1 / self.time_steps
        displacements = self._backward_maps(v)  # of phi_t^-1, t = 0 .. T
        images = _at_all_times(warp, self.intensity_scale * moving, displacements)
        error = images[-1] - self.intensity_scale * fixed
        space = tuple(range(2, momentum.ndim - 1))  # after time and rows
        energy = jnp.sum(error**2, axis=tuple(range(1, error.ndim))) / (2 * self.sigma**2)
        norms = jnp.sum(momentum * v, axis=(*space, -1)).sum(0)
        energy += dt * norms / (2 * self.sigma_r**2)

        # the adjoint lambda_1 = -(I_1 - J) / sigma^2, transported as a density to t = T-1 .. 0
        remaining = self._forward_maps(v)
        adjoint = _at_all_times(warp, -error / self.sigma**2, remaining)
        adjoint *= _at_all_times(lambda _, u: jacobian_determinant(u)[..., None], error, remaining)
        force = adjoint * jnp.concatenate(jnp.gradient(images[:-1], axis=space), axis=-1)
        return energy, force + momentum / self.sigma_r**2

    def velocity(self, momentum: jax.Array) -> jax.Array:
        """v = K m, `[T, B, *space, rank]`, K the inverse of A for periodic fields."""
        space = momentum.shape[2:-1]
        frequencies = [*map(np.fft.fftfreq, space[:-1]), np.fft.rfftfreq(space[-1])]
        laplacian = sum(np.ix_(*(2 - 2 * np.cos(2 * np.pi * f) for f in frequencies)))
        kernel = (1 + self.alpha**2 * laplacian) ** (-2 * self.power)
        axes = tuple(range(-len(space), 0))
        transformed = jnp.fft.rfftn(jnp.moveaxis(momentum, -1, 0), axes=axes)
        smooth = jnp.fft.irfftn(transformed * kernel.astype(momentum.dtype), s=space, axes=axes)
        return jnp.moveaxis(smooth, 0, -1)

    def _backward_maps(self, v):
        """Displacements of phi_t^-1 for t = 0 .. T: phi_{t+1}^-1(x) = phi_t^-1(x - dt v_t(x))."""

        def step(u, v):
            u = compose(u, -v / self.time_steps)
            return u, u

        identity = jnp.zeros_like(v[0])
        return jnp.concatenate([identity[None], lax.scan(step, identity, v)[1]])

    def _forward_maps(self, v):
        """Displacements from t to 1 for t = 0 .. T-1: phi_{t,1}(x) = phi_{t+1,1}(x + dt v_t(x))."""

        def step(w, v):
            w = compose(w, v / self.time_steps)
            return w, w

        return lax.scan(step, jnp.zeros_like(v[0]), v, reverse=True)[1]


def _at_all_times(function, image, displacements):
    """`function(image, u)` for every u of `displacements [T, B, *space, rank]`."""
    return jax.vmap(function, in_axes=(None, 0))(image, displacements)
