"""The learned methods on the paper's echo pairs once more, with a GPU's budget and augmentation.

    ldm-morph benchmark --config benchmark/camus_4ch_gpu \\
        --config.datasets.camus_4ch.data.source=DIR \\
        --config.datasets.camus_4ch.autoencoder.lpips_weights=FILE --out results/camus_4ch_gpu

As benchmark/camus_4ch_small, whose 800 steps of 4 pairs no method has converged in, but 1500 steps
of 8 augmented pairs, a cosine decay of the learning rate, and local correlation, which `register`
refines by. The autoencoder has what the paper's has besides L1: LPIPS (docs/converting.md says how
to make FILE), and the discriminator for the second half of its training.

The data are licensed under CC BY-NC-SA 4.0, and so is what is derived from them: weights and
pictures of pairs.
"""

from ldm_morph_jax.config import ECHO_AUGMENTATION, experiment
from ldm_morph_jax.paper.plan import benchmark_config


def get_config():
    small = experiment("benchmark/camus_4ch_small")
    own = small.datasets.camus_4ch
    own.autoencoder.adversarial_start = 751
    own.registration.update(similarity="ncc", smoothness_weight=0.05)
    own.registration.augmentation.update(ECHO_AUGMENTATION)
    own.registration.train.update(
        steps=1500, batch_size=8, evaluate_every=150, patience=0, schedule="cosine"
    )
    return benchmark_config(
        title="CAMUS-4CH, small networks, a GPU's budget",
        datasets={"camus_4ch": own},
        methods=("initial", *small.our_head, "ldm_morph"),
        our_head=small.our_head,
        baseline_size=small.baseline_size,
        refine=small.refine,
        betas=(1.0,),
    )
