"""Convert checkpoints of the published code, in either direction, and export weights.

    ldm-morph convert --diffusion ldm.ckpt --registration registration.pth --config NAME \\
        --out runs/converted
    ldm-morph convert --to-torch runs/X --out published/
    ldm-morph convert --lpips-vgg vgg16.pth --lpips-linear lpips.pth --out lpips.safetensors
    ldm-morph convert --to-weights runs/X --out model.safetensors [--card card.json]

The first writes a run directory as training leaves it, for `evaluate` and `register`; the networks'
widths come from the files, everything else (dataset, image size, preset) from the configuration.
What the files must hold, and what comes back: docs/converting.md. PyTorch: the extra `torch`. The
last one writes one compact file (float16) for `register --model model.safetensors`, with a model
card of the run's data, commands and scores.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ldm_morph_jax import commands

_FILE = Parameter(metavar="FILE")
_RUN = Parameter(metavar="WORKDIR")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(commands.OptionalConfig):
    """What `convert` takes."""

    diffusion: Annotated[Path | None, _FILE] = None
    """Lightning checkpoint of the diffusion model"""

    autoencoder: Annotated[Path | None, _FILE] = None
    """Lightning checkpoint of the autoencoder; by default the one in --diffusion"""

    registration: Annotated[Path | None, _FILE] = None
    """state dict of the registration network; without it the result serves as config.ldm_from"""

    to_torch: Annotated[Path | None, _RUN] = None
    """run to convert back"""

    lpips_vgg: Annotated[Path | None, _FILE] = None
    """torchvision's VGG16"""

    lpips_linear: Annotated[Path | None, _FILE] = None
    """LPIPS' linear layers"""

    to_weights: Annotated[Path | None, _RUN] = None
    """run to make compact"""

    card: Annotated[Path | None, _FILE] = None
    """JSON to add to the model card of --to-weights"""

    out: Path
    """what to write"""

    def __post_init__(self):
        ways = (  # what each direction needs, and what it takes besides
            ({"diffusion", "config"}, {"autoencoder", "registration"}),
            ({"to_torch"}, set()),
            ({"lpips_vgg", "lpips_linear"}, set()),
            ({"to_weights"}, {"card"}),
        )
        given = {name for name, value in vars(self).items() if value} - {"out", "overrides"}
        if not any(needed <= given <= needed | besides for needed, besides in ways):
            raise ValueError(
                "expected --diffusion and --config (with --autoencoder, --registration), or "
                "--to-torch alone, or --lpips-vgg and --lpips-linear, or --to-weights (with --card)"
            )


def run(options: Options) -> None:
    """Do what the command line says."""
    # JAX is imported once the options are read
    from ldm_morph_jax.published.from_torch import convert, convert_lpips
    from ldm_morph_jax.published.shared import refuse_existing
    from ldm_morph_jax.published.to_torch import to_torch

    out = options.out
    if options.to_weights:
        from ldm_morph_jax.runs.export import export_weights

        refuse_existing(out)
        digest = export_weights(options.to_weights, out, options.card)
        print(f"converted: {out} ({out.stat().st_size / 2**20:.1f} MiB)")
        print(f"sha256: {digest}")
        return
    if options.to_torch:
        names = to_torch(options.to_torch, out)
        print(f"converted: {', '.join(str(out / name) for name in names)}")
        return
    if options.lpips_vgg:
        convert_lpips(options.lpips_vgg, options.lpips_linear, out)
    else:
        convert(
            options.read_config(),
            out,
            diffusion=options.diffusion,
            autoencoder=options.autoencoder,
            registration=options.registration,
        )
    print(f"converted: {out}")


def main(argv: list[str] | None = None) -> None:
    commands.main("convert", Options, run, argv, __doc__)


if __name__ == "__main__":
    main()
