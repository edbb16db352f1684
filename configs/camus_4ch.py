"""LDM-Morph at the paper's size on CAMUS, apical four-chamber view (400/20/80 pairs), for GPUs.

    python -m ldm_morph_jax.train --config configs/camus_4ch.py \\
        --config.data.source=DIR --workdir runs/camus_4ch
    python -m ldm_morph_jax.evaluate --workdir runs/camus_4ch --split test

DIR is the folder that contains database_nifti/ (docs/datasets.md); the data are prepared at the
first run, or before it by `python -m ldm_morph_jax.prepare --dataset camus_4ch --source DIR`.
`--config configs/camus_4ch.py:small` is the same experiment with networks and training for a
laptop.

The row to reach, "Ours" of Table 1: DSC 0.889 (0.055), 0.441 (0.351) % of pixels with J <= 0,
scored on the left ventricle; without registration DSC 0.764 (0.071). Everything is as in the paper;
it does not say how long its latent diffusion model was trained, so its two stages keep the
durations of ldm_morph_jax/config.py. No result is claimed: these data need a registration of one's
own, and this configuration has been compiled and checked by tests on made-up archives, not trained.
"""

from ldm_morph_jax.config import paper_config, preset


def get_config(variant: str = ""):
    """`variant`: "" or "paper", "small", or "official_code" (docs/fidelity.md)."""
    c = paper_config()
    c.data.name = "camus_4ch"
    c.data.options = {"allow_partial": False}  # True: with only some of the patients
    return preset(c, variant)
