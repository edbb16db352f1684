"""tests/tiny.py on volumes of the 3-D phantom, as an experiment for the commands."""

from tiny import tiny_config

from ldm_morph_jax.config import with_method

SPACE = (8, 16, 16)


def volume_config(directory):
    """As tests/tiny.py, on volumes, with two levels."""
    c = tiny_config(directory).unlock()
    c.data.name, (c.data.depth, c.data.image_size, _) = "phantom_3d", SPACE
    c.data.options = {"n_train": 2, "n_validation": 2, "n_test": 1}
    c.autoencoder.update(adversarial_start=10)
    c.autoencoder.model.channel_multipliers = (1, 1, 1)
    c.diffusion.model.update(channel_multipliers=(1, 1), attention_levels=())
    c.registration.model.update(depths=(1, 1), num_heads=(2, 2), window_size=2)
    for stage in (c.autoencoder, c.diffusion, c.registration):
        stage.augmentation.orientations = (0, 5)
    return c.lock()


def voxelmorph_config(directory):
    c = with_method(volume_config(directory), "voxelmorph", "small").unlock()
    c.registration.model.update(
        encoder_channels=(4, 4), decoder_channels=(4, 4), head_channels=(4,)
    )
    c.registration.update(integration_steps=3, velocity_sigma=1.0, symmetric=True)
    c.registration.augmentation.orientations = (0,)
    c.registration.train.update(
        steps=60, learning_rate=1e-2, log_every=1, evaluate_every=30, warmup_steps=0
    )
    return c.lock()


def get_config(variant=""):
    """`variant` "voxelmorph": that method."""
    return (voxelmorph_config if variant == "voxelmorph" else volume_config)("data")
