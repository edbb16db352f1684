"""Images drawn from a run's diffusion model.

    ldm-morph sample --workdir runs/X --out samples/

They show what the model has learnt whose features guide the registration. Writes samples.png, a
sheet of all of them, and samples.npz: `images` [N, H, W, 1] float32 and the `seed`.
"""

import argparse
from pathlib import Path

from ldm_morph_jax import commands


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ldm-morph sample", description="Draw images from the diffusion model of a run."
    )
    parser.add_argument(
        "--workdir", type=Path, required=True, metavar="DIR", help="the run's directory"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--count", type=int, default=16, metavar="N", help="how many (16)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the noise: the same seed, the same images (0)"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    from ldm_morph_jax.training.sampling import sample_images, write_samples

    commands.use_compilation_cache()
    images = sample_images(args.workdir, count=args.count, seed=args.seed)
    sheet = write_samples(images, args.out, seed=args.seed)
    print(f"{args.count} samples: {sheet}")


def main(argv: list[str] | None = None) -> None:
    args = commands.parse(build_parser(), argv)
    commands.run(lambda: run(args))


if __name__ == "__main__":
    main()
