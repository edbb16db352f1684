"""The paper's tables and figures at the paper's size, for a GPU: four datasets, all methods.

    ldm-morph benchmark --config benchmark/paper --out results/paper \\
        --config.datasets.camus_2ch.data.source=DIR --config.datasets.camus_4ch.data.source=DIR \\
        --config.datasets.echonet.data.source=DIR --config.datasets.acdc.data.source=DIR

Data, seed and LDM-Morph are those of configs/{camus_2ch,camus_4ch,echonet,acdc}.py. Every learned
method is trained for the paper's 24,000 steps of one pair. SyN needs the extra `ants`. If the
datasets are on different machines, or you have only some of them, select them with `--datasets`. No
result is claimed, because obtaining the data needs a registration.

    table 1, 4, 5   all methods on all four       table 3, figure 7   LDM-Morph's variants
    table 2, figure 6   trained on EchoNet-Dynamic, tested on both views of CAMUS
"""

from ldm_morph_jax.config import experiment
from ldm_morph_jax.paper.plan import benchmark_config

DATASETS = ("camus_2ch", "camus_4ch", "echonet", "acdc")


def get_config():
    return benchmark_config(
        title="The paper's tables and figures",
        datasets={name: experiment(name) for name in DATASETS},
        transfer=(("echonet", "camus_2ch"), ("echonet", "camus_4ch")),
    )
