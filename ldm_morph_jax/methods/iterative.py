"""Methods without weights: (moving, fixed) -> displacement, optimised for every pair."""

import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.methods.lddmm import LDDMM

Register = Callable[[np.ndarray, np.ndarray], np.ndarray | jax.Array]


def initial() -> Register:
    """No registration: the zero displacement, the row that every table starts with."""

    def register(moving, fixed):
        return np.zeros((*np.shape(moving)[:3], 2), np.float32)

    return register


def syn() -> Register:
    """SyN of ANTs (Avants et al. 2008) with the paper's settings (Sec. 4.4), by ANTsPy.

    Cross-correlation of radius 2, step 0.25, Gaussian variances 3 and 0.25, 160x80x40 iterations,
    no affine stage. Raises ValueError when the extra `ants` is not installed.
    """
    try:
        import ants
    except ImportError:
        raise ValueError(
            "SyN needs ANTsPy: pip install 'ldm_morph_jax[ants]' (package antspyx)"
        ) from None

    def one_pair(moving, fixed, folder):
        result = ants.registration(
            fixed=ants.from_numpy(fixed.astype(np.float32)),
            moving=ants.from_numpy(moving.astype(np.float32)),
            type_of_transform="SyNOnly",
            initial_transform="Identity",
            outprefix=f"{folder}/",
            syn_metric="CC",
            syn_sampling=2,
            grad_step=0.25,
            flow_sigma=3,
            total_sigma=0.25,
            reg_iterations=(160, 80, 40),
        )
        # for unit spacing and identity direction components follow the array's axes, in pixels
        return ants.image_read(result["fwdtransforms"][0]).numpy()

    def register(moving, fixed):
        fields = []
        for pair in zip(np.asarray(moving)[..., 0], np.asarray(fixed)[..., 0], strict=True):
            # ANTs leaves its transforms behind in files
            with tempfile.TemporaryDirectory() as folder:
                fields.append(one_pair(*pair, folder))
        return np.stack(fields).astype(np.float32)

    return register


def lddmm() -> Register:
    """LDDMM with the paper's five velocities and 500 iterations (Sec. 4.4), all pairs at once."""

    def register(moving, fixed):
        images = (jnp.asarray(image, jnp.float32) for image in (moving, fixed))
        displacement, _ = LDDMM().register(*images)
        return displacement

    return register


ITERATIVE_METHODS = {"initial": initial, "syn": syn, "lddmm": lddmm}
