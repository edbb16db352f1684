"""No registration: the zero displacement, which is the first row of every table."""

import jax.numpy as jnp

from ldm_morph_jax.methods.base import Method


class Initial(Method):
    """Leaves the moving image where it is."""

    name = "initial"
    title = "Initial"
    trained = False
    takes_volumes = True

    def field(self, params, frozen, moving, fixed):
        return jnp.zeros((*fixed.shape[:-1], fixed.ndim - 2), jnp.float32)
