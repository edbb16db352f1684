"""The one console command: `ldm-morph NAME ...` is `python -m ldm_morph_jax.NAME ...`."""

import importlib
import sys
from collections.abc import Sequence

from ldm_morph_jax import __version__
from ldm_morph_jax.names import unknown

# The module of that name is imported when it is chosen, so that help is there at once.
COMMANDS = {
    "register": "register two images, or a table of pairs",
    "track": "follow the tissue of a cine: motion, contours, strain",
    "views": "merge tracked apical views in one bull's-eye",
    "warp": "carry an image, labels or points through a saved transform",
    "jacobian": "map and statistics of the Jacobian determinant of a transform",
    "prepare": "read a dataset's original files and write pairs ready for training",
    "train": "train a method",
    "evaluate": "score a trained run, or a method without weights, on a split",
    "sample": "draw images from a trained diffusion model",
    "benchmark": "train and score every method; the paper's tables and figures",
    "convert": "take over checkpoints of the published code, give ours back, export weights",
    "plan": "parameters, FLOPs and duration of training, without training",
    "speed": "time training steps and registration on this machine",
}

SHELLS = ("bash", "zsh", "fish", "powershell")


def help_text() -> str:
    """What `ldm-morph --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    return "\n".join(
        [
            "usage: ldm-morph COMMAND ...",
            "",
            "Deformable registration and tracking of cardiac images; LDM-Morph and its baselines.",
            "",
            "commands:",
            *(f"  {name:<{width}}{what}" for name, what in COMMANDS.items()),
            "",
            "ldm-morph COMMAND --help lists a command's options; ldm-morph --version the version.",
            f"ldm-morph --completion {'|'.join(SHELLS)} prints what makes a shell complete them.",
        ]
    )


def completion(shell: str) -> str:
    """A script for one of `SHELLS`: after it, commands, options and their choices are completed."""
    from cyclopts import App

    from ldm_morph_jax.commands import application

    whole = App(name="ldm-morph", version=__version__)
    for name, what in COMMANDS.items():
        options = importlib.import_module(f"ldm_morph_jax.{name}").Options
        whole.command(application(options, f"ldm-morph {name}", what), name=name)
    return whole.generate_completion(shell=shell)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(help_text(), file=sys.stderr)
        sys.exit(2)
    name, *rest = arguments
    if name in ("--help", "-h"):
        print(help_text())
    elif name == "--version":
        print(f"ldm-morph {__version__}")
    elif name == "--completion":
        if len(rest) != 1 or rest[0] not in SHELLS:
            found = " ".join(rest) or "nothing"
            print(
                f"error: --completion: found {found}, expected {', '.join(SHELLS)}", file=sys.stderr
            )
            sys.exit(2)
        print(completion(rest[0]))
    elif name not in COMMANDS:
        print(f"error: {unknown('the command', name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [f"ldm-morph {name}", *rest]  # what a run records as its command
        importlib.import_module(f"ldm_morph_jax.{name}").main(rest)


if __name__ == "__main__":
    main()
