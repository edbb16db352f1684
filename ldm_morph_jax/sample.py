"""Draw images from a run's diffusion model.

    ldm-morph sample --workdir runs/X --out samples/

They show what the model has learnt whose features guide the registration. Writes samples.png, a
sheet of all of them, and samples.npz: `images` [N, H, W, 1] float32 and the `seed`.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

from ldm_morph_jax import commands
from ldm_morph_jax.parameters import WHOLE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What `sample` takes."""

    workdir: Path
    """the run's directory"""

    out: Path
    """folder to write to"""

    count: Annotated[int, WHOLE] = 16
    """how many images"""

    seed: Annotated[int, WHOLE] = 0
    """of the noise: the same seed, the same images"""


def run(options: Options) -> None:
    """Do what the command line says."""
    from ldm_morph_jax.training.sampling import sample_images, write_samples

    commands.use_compilation_cache()
    images = sample_images(options.workdir, count=options.count, seed=options.seed)
    sheet = write_samples(images, options.out, seed=options.seed)
    print(f"{options.count} samples: {sheet}")


def main(argv: list[str] | None = None) -> None:
    commands.main("sample", Options, run, argv, __doc__)


if __name__ == "__main__":
    main()
