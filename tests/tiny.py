"""The smallest configuration that runs every stage: 32 x 32 phantoms, a few channels."""

from ldm_morph_jax.config import paper_config, stage_config


def tiny_config(directory):
    """A configuration whose prepared data go to `directory`."""
    c = paper_config()
    c.data.name = "phantom"
    c.data.directory = str(directory)
    c.data.image_size = 32
    c.data.options = {"look": "sax", "n_train": 8, "n_validation": 2, "n_test": 2}
    c.autoencoder.model.base_channels = 4
    c.autoencoder.model.channel_multipliers = (1, 1, 2)
    c.autoencoder.model.residual_blocks = 1
    c.autoencoder.model.attention_levels = ()
    c.autoencoder.model.codebook_size = 16
    c.autoencoder.model.norm_groups = 2
    c.autoencoder.discriminator.base_channels = 4
    c.autoencoder.discriminator.layers = 1
    c.autoencoder.adversarial_start = 2
    c.diffusion.model.base_channels = 8
    c.diffusion.model.channel_multipliers = (1, 1, 1, 1)
    c.diffusion.model.residual_blocks = 1
    c.diffusion.model.attention_levels = (3,)
    c.diffusion.model.head_channels = 8
    c.diffusion.model.norm_groups = 4
    c.diffusion.timesteps = 50
    c.diffusion.latent_scale = 0.0
    c.registration.model.embed_dim = 8
    c.registration.model.depths = (1, 2, 1, 1)  # one shifted block
    c.registration.model.num_heads = (2, 2, 2, 2)
    c.registration.model.window_size = 4
    c.registration.model.lgca_heads = 2
    c.registration.model.lgca_depth = 1
    for stage in (c.autoencoder, c.diffusion, c.registration):
        stage.train = stage_config(
            steps=4, batch_size=2, learning_rate=1e-3, log_every=2, evaluate_every=2
        )
        stage.augmentation.orientations = (0, 1, 4)
    return c.lock()
