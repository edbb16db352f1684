"""Every method on real hearts: Sunnybrook, 100/25/128 pairs, with small networks.

    ldm-morph benchmark --config benchmark/sunnybrook_small \\
        --config.datasets.sunnybrook.data.source=DIR --config.unseen.acdc.data.source=DIR \\
        --out results/sunnybrook_small

Data and LDM-Morph are those of configs/sunnybrook_small.py, antisymmetric in the two images.
VoxelMorph, TransMorph and TransMatch each have a second row with LDM-Morph's head, similarity and
smoothness weight (docs/benchmark.md lists what is equal for all). LDM-Morph, its variants,
VoxelMorph and TransMorph with its head are trained with three seeds. SyN needs the extra `ants`.
Without the ACDC data, `--datasets sunnybrook` leaves out Table 2.

    table 1, 4, 5   all methods           table 3, figure 7   LDM-Morph's variants
    table 2, figure 6   trained on Sunnybrook, tested on ACDC
"""

from ldm_morph_jax.config import experiment
from ldm_morph_jax.paper.plan import SMALL_PLAN, benchmark_config, small_experiment


def get_config():
    own = experiment("sunnybrook_small")
    small_experiment(own)
    unseen = experiment("acdc", "small")
    unseen.data.intensity = own.data.intensity  # scaled as the methods were trained
    return benchmark_config(
        title="Sunnybrook, small",
        datasets={"sunnybrook": own},
        unseen={"acdc": unseen},
        transfer=(("sunnybrook", "acdc"),),
        **SMALL_PLAN,
    )
