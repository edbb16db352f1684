"""Every table and figure on the built-in phantom, small: a first look, or a functional check.

    ldm-morph benchmark --config benchmark/phantom --out results/phantom

Short-axis pairs of 64 x 64 pixels as in configs/quickstart.py. Training is so short that the whole
plan takes less than an hour on two cores; the ranking of the methods is therefore meaningless. For
Table 2, methods trained on short-axis pairs are tested on apical (echo-like) ones. SyN needs the
extra `ants`.
"""

from ldm_morph_jax.config import experiment
from ldm_morph_jax.paper.plan import benchmark_config


def get_config():
    sax = experiment("quickstart")
    sax.data.options.n_test = 20
    sax.registration.train.steps = 100
    sax.registration.train.batch_size = 4
    sax.registration.train.evaluate_every = 100
    sax.registration.train.log_every = 25
    apical = experiment("quickstart")
    apical.data.options.look = "echo"
    apical.data.options.n_test = 20
    return benchmark_config(
        title="Phantom, small",
        datasets={"sax": sax},
        unseen={"apical": apical},
        transfer=(("sax", "apical"),),
        baseline_size="small",
    )
