"""The learned methods on the paper's echo pairs once more, with a GPU's budget and augmentation.

    ldm-morph benchmark --config benchmark/camus_4ch_gpu \\
        --config.datasets.camus_4ch.data.source=DIR \\
        --config.datasets.camus_4ch.autoencoder.lpips_weights=FILE --out results/camus_4ch_gpu

As benchmark/camus_4ch_small, whose 800 steps of 4 pairs no method has converged in, but 1500 steps
of 8 augmented pairs, a cosine decay of the learning rate, and local correlation, which `register`
refines by. The autoencoder has what the paper's has besides L1: LPIPS (docs/fidelity.md says how to
make FILE), and the discriminator for the second half of its training.

The data are licensed under CC BY-NC-SA 4.0, and so is what is derived from them: weights and
pictures of pairs.
"""

from ldm_morph_jax.config import experiment
from ldm_morph_jax.paper.plan import SMALL_PLAN, benchmark_config, small_experiment


def get_config():
    own = experiment("camus_4ch", "small")
    own.data.options.allow_partial = True  # public copies lack one or two patients
    small_experiment(own)
    own.autoencoder.adversarial_start = 751
    own.registration.train.update(
        steps=1500, batch_size=8, evaluate_every=150, patience=0, schedule="cosine"
    )
    own.registration.update(similarity="ncc", smoothness_weight=0.05)
    own.registration.augmentation.update(rotation_degrees=10.0, scale=0.1, gamma=0.3, contrast=0.15)
    return benchmark_config(
        title="CAMUS-4CH, small networks, a GPU's budget",
        datasets={"camus_4ch": own},
        **SMALL_PLAN | {"weights": (1.0,), "seeds": (0,), "seeded": (), "betas": (1.0,)},
        methods=("initial", "voxelmorph", "transmorph", "transmatch", "ldm_morph"),
    )
