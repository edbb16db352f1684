"""Every method on the paper's echo pairs (CAMUS-4CH, 400/20/80), with small networks.

    ldm-morph benchmark --config benchmark/camus_4ch_small \\
        --config.datasets.camus_4ch.data.source=DIR --config.unseen.acdc.data.source=DIR \\
        --out results/camus_4ch_small

The test pairs are the paper's, so its numbers can be compared with ours one by one. LDM-Morph has
the small networks of configs/camus_4ch.py with a smoothed velocity (`config.smoothed_velocity`
explains why). VoxelMorph, TransMorph and TransMatch each have a second row with LDM-Morph's head,
similarity and smoothness weight (docs/benchmark.md lists what is equal for all). LDM-Morph, its
variants, VoxelMorph and TransMorph with its head are trained with three seeds. SyN needs the extra
`ants`. Without the ACDC data, `--datasets camus_4ch` leaves out Table 2.

    table 1, 4, 5   all methods           table 3, figure 7   LDM-Morph's variants
    table 2, figure 6   trained on CAMUS-4CH, tested on ACDC

The data are licensed under CC BY-NC-SA 4.0, and so is what is derived from them: weights and
pictures of pairs.
"""

from ldm_morph_jax.config import experiment
from ldm_morph_jax.paper.plan import SMALL_PLAN, benchmark_config, small_experiment


def get_config():
    own = experiment("camus_4ch", "small")
    own.data.options.allow_partial = True  # public copies lack one or two patients
    small_experiment(own)
    unseen = experiment("acdc", "small")
    unseen.data.options.allow_partial = True
    return benchmark_config(
        title="CAMUS-4CH, small",
        datasets={"camus_4ch": own},
        unseen={"acdc": unseen},
        transfer=(("camus_4ch", "acdc"),),
        **SMALL_PLAN,
    )
