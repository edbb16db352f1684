"""A hook of mkdocs: commands.md gets the help of every command, as the parsers print it."""

import os
import subprocess
import sys

from ldm_morph_jax.cli import COMMANDS

PLAIN = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "JAX_PLATFORMS": "cpu"}


def on_page_markdown(markdown, *, page, **_):
    if page.file.src_uri != "commands.md":
        return markdown
    return markdown + "".join(f"\n## {n}\n\n```text\n{help_of(n)}\n```\n" for n in COMMANDS)


def help_of(name):
    """What `ldm-morph NAME --help` prints."""
    command = [sys.executable, "-m", "ldm_morph_jax.cli", name, "--help"]
    printed = subprocess.run(command, env=os.environ | PLAIN, capture_output=True, text=True).stdout
    if not printed:
        raise RuntimeError(f"ldm-morph {name} --help printed nothing")
    return printed.strip()
