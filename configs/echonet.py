"""LDM-Morph at the paper's size on EchoNet-Dynamic (7460/1288/1276 pairs), for GPUs.

    # reading the videos needs PyAV: pip install "ldm_morph_jax[video]"
    python -m ldm_morph_jax.train --config configs/echonet.py \\
        --config.data.source=DIR --workdir runs/echonet
    python -m ldm_morph_jax.evaluate --workdir runs/echonet --split test

DIR is the folder that contains FileList.csv (docs/datasets.md); the data are prepared at the first
run, or before it by `python -m ldm_morph_jax.prepare --dataset echonet --source DIR`. `--config
configs/echonet.py:small` is the same experiment with networks and training for a laptop.

The row to reach, "Ours" of Table 1: DSC 0.883 (0.056), 0.400 (0.419) % of pixels with J <= 0,
scored on the left ventricle; without registration DSC 0.738 (0.076). Everything is as in the paper;
it does not say how long its latent diffusion model was trained, so its two stages keep the
durations of ldm_morph_jax/config.py. No result is claimed: these data need a registration of one's
own, and this configuration has been compiled and checked by tests on made-up archives, not trained.
"""

from ldm_morph_jax.config import paper_config, preset


def get_config(variant: str = ""):
    """`variant`: "" or "paper", "small", or "official_code" (docs/fidelity.md)."""
    c = paper_config()
    c.data.name = "echonet"
    c.data.options = {"allow_partial": False}  # True: with only some of the patients
    return preset(c, variant)
