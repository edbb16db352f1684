"""A registration method without weights, for tests: a smooth known displacement."""

import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.registering.method import Registrar


class AnalyticMethod(Registrar):
    """Displaces by a swirl and a shift of some pixels, whatever the images show.

    `amplitude` 0 predicts nothing: what refinement finds is then its own.
    """

    name = "analytic"
    intensity = "minmax"
    calls = "often"
    depth, slice_mm = 0, None
    predicts_velocity = False
    params: dict = {}
    frozen: dict = {}

    def __init__(self, image_size=64, spacing_mm=2.0, amplitude=3.0):
        self.image_size, self.spacing_mm, self.amplitude = image_size, spacing_mm, amplitude
        self.iterative, self.card = image_size is None, {}

    def displacement(self, moving, fixed):
        n = self.image_size
        assert moving.shape == fixed.shape == (len(moving), n, n, 1), moving.shape
        assert 0 <= float(moving.min()) and float(moving.max()) <= 1
        y, x = np.meshgrid(*[np.linspace(-1, 1, n)] * 2, indexing="ij")
        bump = np.exp(-2 * (x**2 + y**2))
        u = self.amplitude * np.stack([bump * (0.6 + x), bump * (0.3 - y)], axis=-1)
        return jnp.broadcast_to(jnp.asarray(u, jnp.float32), (len(moving), n, n, 2))

    def velocity(self, moving, fixed):
        return self.displacement(moving, fixed)


def searching():
    """As `load()`, whose weights tracking does not use."""
    registrar = AnalyticMethod()
    registrar.by_default = True
    return registrar


def heart(shape, *, radius=0.5, centre=(0.0, 0.0), seed=0):
    """A ring on a smooth background, `[H, W]` float32 of about -200 to 900; pixels of any shape.

    radius and centre in half widths of the image.
    """
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    r = np.hypot(y - centre[0], x - centre[1])
    ring = 1 / (1 + np.exp((np.abs(r - radius) - 0.12) / 0.03))
    phase = rng.uniform(0, 6, 2)
    background = 0.3 * np.sin(3 * x + phase[0]) * np.cos(4 * y + phase[1])
    return (800 * ring + 300 * background).astype(np.float32)
