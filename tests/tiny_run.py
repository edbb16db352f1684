"""tests/tiny.py as an experiment for the commands, eight examples per step.

python -m ldm_morph_jax.train --config tests/tiny_run.py --config.data.directory=DIR ...
"""

from tiny import tiny_config


def get_config(variant=""):
    """`variant` "quick": the registration network alone, without LDM, which compiles sooner."""
    c = tiny_config("data").unlock()
    if variant == "quick":
        c.registration.model.fusion = "none"
        c.registration.model.depths = c.registration.model.num_heads = (1, 1)
        c.registration.pixel_weight = 1.0
    c.data.options.n_train = 16
    for stage in (c.autoencoder, c.diffusion, c.registration):
        stage.train.batch_size = 8
    return c.lock()
