"""Take over checkpoints of the published PyTorch code, and give ours back to it.

    python -m ldm_morph_jax.convert --diffusion ldm.ckpt --registration registration.pth \\
        --config configs/X.py --out runs/converted
    python -m ldm_morph_jax.convert --to-torch runs/X --out published/
    python -m ldm_morph_jax.convert --lpips-vgg vgg16.pth --lpips-linear lpips.pth \\
        --out lpips.safetensors
    python -m ldm_morph_jax.convert --to-weights runs/X --out model.safetensors [--card card.json]

The first writes a run directory as training leaves it, for `evaluate` and `register`; the networks'
widths come from the files, everything else (dataset, image size, preset) from the configuration.
What the files must hold, and what comes back: docs/converting.md. PyTorch: the extra `torch`. The
last one writes one compact file (float16) for `register --model model.safetensors`, with a model
card of the run's data, commands and scores.
"""

import argparse
import sys
from pathlib import Path

from ldm_morph_jax import commands
from ldm_morph_jax.experiments import experiment_file


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ldm-morph convert",
        description="Convert checkpoints of the published PyTorch code, in either direction.",
        epilog="Give --diffusion and --config, or --to-torch, or --to-weights, or --lpips-vgg and "
        "--lpips-linear. "
        "Keys of the configuration are flags, too: --config.data.source=DIR",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--diffusion", type=Path, metavar="FILE", help="Lightning checkpoint of the diffusion model"
    )
    parser.add_argument(
        "--autoencoder",
        type=Path,
        metavar="FILE",
        help="Lightning checkpoint of the autoencoder (default: the one in --diffusion)",
    )
    parser.add_argument(
        "--registration",
        type=Path,
        metavar="FILE",
        help="state dict of the registration network; without it the result serves as "
        "config.ldm_from",
    )
    parser.add_argument(
        "--config", metavar="NAME|FILE[:VARIANT]", help="experiment that was trained"
    )
    parser.add_argument("--to-torch", type=Path, metavar="WORKDIR", help="run to convert back")
    parser.add_argument("--lpips-vgg", type=Path, metavar="FILE", help="torchvision's VGG16")
    parser.add_argument("--lpips-linear", type=Path, metavar="FILE", help="LPIPS' linear layers")
    parser.add_argument("--to-weights", type=Path, metavar="WORKDIR", help="run to make compact")
    parser.add_argument(
        "--card", type=Path, metavar="FILE", help="JSON to add to the model card of --to-weights"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="what to write")
    return parser


def read_config(file: str, overrides: list[str]):
    """The configuration that `--config FILE[:VARIANT] --config.key=value ...` means for `train`."""
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    arguments = ["convert", f"--config={experiment_file(file)}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        values.config.to_dict()  # a file that is missing shows on first use
    except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1].strip()  # the rest is a traceback
        raise ValueError(f"--config {file}: {reason}") from None
    return values.config


def main(arguments: list[str] | None = None) -> None:
    parser = build_parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    args, overrides = parser.parse_known_args(commands.spelled(arguments, "-"))
    unknown = [argument for argument in overrides if not argument.startswith("--config.")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    ways = (  # what each direction needs, and what it takes besides
        ({"diffusion", "config"}, {"autoencoder", "registration"}),
        ({"to_torch"}, set()),
        ({"lpips_vgg", "lpips_linear"}, set()),
        ({"to_weights"}, {"card"}),
    )
    given = {name for name, value in vars(args).items() if value is not None} - {"out"}
    if not any(needed <= given <= needed | besides for needed, besides in ways):
        parser.error(
            "expected --diffusion and --config (with --autoencoder, --registration), or "
            "--to-torch alone, or --lpips-vgg and --lpips-linear, or --to-weights (with --card)"
        )

    def run() -> None:
        # JAX is imported once the arguments are parsed
        from ldm_morph_jax.published.from_torch import convert, convert_lpips
        from ldm_morph_jax.published.to_torch import to_torch

        if args.to_weights:
            from ldm_morph_jax.runs.export import export_weights

            digest = export_weights(args.to_weights, args.out, args.card)
            print(f"converted: {args.out} ({args.out.stat().st_size / 2**20:.1f} MiB)")
            print(f"sha256: {digest}")
            return
        if args.to_torch:
            names = to_torch(args.to_torch, args.out)
            print(f"converted: {', '.join(str(args.out / name) for name in names)}")
            return
        if args.lpips_vgg:
            convert_lpips(args.lpips_vgg, args.lpips_linear, args.out)
        else:
            convert(
                read_config(args.config, overrides),
                args.out,
                diffusion=args.diffusion,
                autoencoder=args.autoencoder,
                registration=args.registration,
            )
        print(f"converted: {args.out}")

    commands.run(run)


if __name__ == "__main__":
    main()
