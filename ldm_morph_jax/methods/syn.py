"""SyN from ANTs (Avants et al., Medical Image Analysis 2008), through ANTsPy."""

import tempfile

import numpy as np

from ldm_morph_jax.methods.base import Method


class SyN(Method):
    """SyN with the paper's settings (Sec. 4.4), one pair after the other.

    Cross-correlation of radius 2, step 0.25, Gaussian variances 3 and 0.25, 160x80x40 iterations,
    no affine stage; in volumes the same numbers, in voxels. Raises ValueError if ANTsPy, the extra
    `ants`, is not installed.
    """

    name = "syn"
    title = "SyN"
    trained = False
    takes_volumes = True
    on_host = True

    def __init__(self):
        try:
            import ants  # noqa: F401
        except ImportError:
            raise ValueError(
                "SyN needs ANTsPy: pip install 'ldm_morph_jax[ants]' (package antspyx)"
            ) from None

    def field(self, params, frozen, moving, fixed) -> np.ndarray:
        fields = []
        for pair in zip(np.asarray(moving)[..., 0], np.asarray(fixed)[..., 0], strict=True):
            # ANTs writes its transforms to files and leaves them behind
            with tempfile.TemporaryDirectory() as folder:
                fields.append(self._one_pair(*pair, folder))
        return np.stack(fields).astype(np.float32)

    def _one_pair(self, moving, fixed, folder) -> np.ndarray:
        import ants

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
        # with unit spacing and identity direction, components follow the array's axes, in pixels
        return ants.image_read(result["fwdtransforms"][0]).numpy()
