"""Sample images from a run's diffusion model: `python -m ldm_morph_jax.sample --workdir runs/X`.

Shows what the diffusion model, whose features guide the registration, has learnt. Writes OUT
(default: `samples` in the run's directory)/samples.png, a sheet of all images, and samples.npz,
`images` [N, H, W, 1] float32 and the `seed`.
"""

from pathlib import Path

from absl import app, flags

from ldm_morph_jax import commands

WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
OUT = flags.DEFINE_string("out", None, "Folder to write; default: samples/ in the run's directory.")
COUNT = flags.DEFINE_integer("count", 16, "How many images.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise: the same seed gives the same images.")


def sample() -> None:
    import numpy as np

    from ldm_morph_jax.files.images import atomic
    from ldm_morph_jax.report.figures import image_grid
    from ldm_morph_jax.training.sampling import sample_images

    commands.use_compilation_cache()
    images = sample_images(WORKDIR.value, count=COUNT.value, seed=SEED.value)
    out = Path(OUT.value or Path(WORKDIR.value) / "samples")
    out.mkdir(parents=True, exist_ok=True)
    with atomic(out / "samples.npz") as path:
        np.savez_compressed(path, images=images, seed=SEED.value)
    sheet = image_grid(images, title=f"samples of the diffusion model, seed {SEED.value}")
    with atomic(out / "samples.png") as path:
        sheet.savefig(path)
    print(f"{len(images)} samples: {out / 'samples.png'}")


def main(arguments):
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected arguments {arguments[1:]}")
    commands.run(sample)


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    app.run(main)
