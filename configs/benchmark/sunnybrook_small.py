"""Every method on real hearts, on a laptop: Sunnybrook, 100/25/128 pairs, small networks.

    python -m ldm_morph_jax.benchmark --config configs/benchmark/sunnybrook_small.py \\
        --config.datasets.sunnybrook.data.source=DIR --out results/sunnybrook_small

Data, seed and the training of LDM-Morph are those of configs/sunnybrook_small.py. All learned
methods get its budget, steps x pairs per step, and its augmentation; their networks are the
":small" ones of configs/baselines/. SyN needs the extra `ants`. Table 1, Table 3 and Figs. 4, 5, 7.
"""

from ldm_morph_jax.config import experiment
from ldm_morph_jax.paper.plan import benchmark_config


def get_config():
    return benchmark_config(
        title="Sunnybrook, small",
        datasets={"sunnybrook": experiment("sunnybrook_small")},
        baseline_size="small",
    )
