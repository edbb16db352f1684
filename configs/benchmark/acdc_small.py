"""Every method on the paper's ACDC pairs, 95/5/50, with small networks.

    ldm-morph benchmark --config benchmark/acdc_small \\
        --config.datasets.acdc.data.source=DIR --config.unseen.sunnybrook.data.source=DIR \\
        --out results/acdc_small

The test patients are the paper's, and its numbers are shown next to ours. LDM-Morph has the small
networks of configs/acdc.py with a smoothed velocity (`config.smoothed_velocity` explains why).
VoxelMorph, TransMorph and TransMatch each have a second row with LDM-Morph's head, similarity and
smoothness weight (docs/benchmark.md lists what is equal for all). LDM-Morph, its variants,
VoxelMorph and TransMorph with its head are trained with three seeds. SyN needs the extra `ants`.
Without the Sunnybrook data, `--datasets acdc` leaves out Table 2.

    table 1, 4, 5   all methods           table 3, figure 7   LDM-Morph's variants
    table 2, figure 6   trained on ACDC, tested on Sunnybrook

ACDC is licensed under CC BY-NC-SA 4.0, and so is what is derived from it: weights and pictures of
pairs.
"""

from ldm_morph_jax.config import experiment
from ldm_morph_jax.paper.plan import SMALL_PLAN, benchmark_config, small_experiment


def get_config():
    own = experiment("acdc", "small")
    own.data.options.allow_partial = True
    for stage in (own.autoencoder, own.diffusion, own.registration):
        stage.augmentation.orientations = tuple(range(8))  # flips and quarter turns
    small_experiment(own)
    unseen = experiment("sunnybrook_small")
    unseen.data.intensity = own.data.intensity  # scaled as the methods were trained
    return benchmark_config(
        title="ACDC, small",
        datasets={"acdc": own},
        unseen={"sunnybrook": unseen},
        transfer=(("acdc", "sunnybrook"),),
        **SMALL_PLAN,
    )
