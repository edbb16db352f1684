"""Every method that registers volumes on whole stacks of ACDC, 81/9/50 patients, small networks.

    ldm-morph benchmark --config benchmark/acdc_3d_small \\
        --config.datasets.acdc_3d.data.source=DIR --out results/acdc_3d_small

Data, networks and LDM-Morph are those of `acdc_3d:small` (configs/acdc_3d.py): 64 x 64 x 16 voxels,
a smoothed velocity, antisymmetric in the two images. VoxelMorph and TransMorph each have a second
row with LDM-Morph's head, similarity and smoothness weight. SyN, which needs the extra `ants`, and
LDDMM register in voxels, as the networks do. CycleMorph, DiffuseMorph and TransMatch register
images only.

    table 1, 4, figures 4, 5   all methods        table 3, figure 7   LDM-Morph's variants

ACDC is licensed under CC BY-NC-SA 4.0, and so is what is derived from it: weights and pictures of
pairs.
"""

from ldm_morph_jax.config import experiment
from ldm_morph_jax.paper.plan import benchmark_config


def get_config():
    own = experiment("acdc_3d", "small")
    own.data.options.allow_partial = True
    own.registration.train.update(steps=800, evaluate_every=100, patience=4, schedule="constant")
    return benchmark_config(
        title="ACDC in three dimensions, small",
        datasets={"acdc_3d": own},
        methods=("initial", "syn", "lddmm", "voxelmorph", "transmorph", "ldm_morph"),
        our_head=("voxelmorph", "transmorph"),
        baseline_size="small",
        betas=(),
    )
