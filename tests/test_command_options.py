"""Options from a dataclass: spelling, types, help, and what is said of bad ones."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest

from ldm_morph_jax import commands
from ldm_morph_jax.registering.options import FrameOption, ReadingOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(ReadingOptions, FrameOption, commands.OptionalConfig):
    """Of a command that does not exist."""

    out: Path
    """where results go"""

    centre: tuple[float, float] | None = None
    """row and column"""

    align: Literal["auto", "world"] = "auto"
    """how the images lie"""

    period: float | Literal["whole"] | None = None
    """of the beat"""

    no_report: bool = False
    """leave out pages"""

    seeds: Annotated[tuple[int, ...] | None, commands.COMMAS] = None
    """only these"""


def parse(*arguments) -> Options:
    return commands.parse_options(Options, arguments, prog="ldm-morph x", description="Does it.")


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        parse("--out", "o", *arguments)
    assert stop.value.code == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and told.err.count("\n") == 1 and not told.out
    return told.err


def test_values():
    given = "--out o --centre -1 2.5 --spacing 1.5 --frame 2 --seeds 0,3 --period 0.8".split()
    options = parse(*given, "--align=world", "--slice", "all")
    assert (options.out, options.centre, options.spacing) == (Path("o"), (-1.0, 2.5), (1.5,))
    assert (options.frame, options.seeds, options.period) == (2, (0, 3), 0.8)
    assert (options.align, options.slice, options.oblique) == ("world", "all", False)
    assert parse("--out", "o", "--slice", "3", "--period", "whole").slice == 3
    assert parse("--out", "o", "--slice", "2-4").slice == (2, 3, 4)
    assert parse("--out", "o", "--slice", "0,2,5-6").slice == (0, 2, 5, 6)


@pytest.mark.parametrize("flag", ["--no-report", "--no_report"])
def test_either_spelling(flag):
    assert parse("--out", "o", flag).no_report


def test_keys_of_the_configuration_are_kept_as_they_are_written():
    flags = ["--config", "quickstart", "--config.seed=1", "--config.data.source", "a_b-c"]
    options = parse("--out", "o", *flags)
    assert options.overrides == ("--config.seed=1", "--config.data.source=a_b-c")
    config = options.read_config()
    assert (config.seed, config.data.source) == (1, "a_b-c")
    assert parse("--out", "o").read_config() is None
    with pytest.raises(ValueError, match="--config is missing, but --config.seed=1 is given"):
        parse("--out", "o", "--config.seed=1").read_config()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--centr", "1", "2"], "Unknown option: --centr. Did you mean --centre?"),
        (["--centre", "1"], "--centre requires 2"),
        (["--centre", "1", "x"], "--centre is 'x', expected a number"),
        (["--align", "wrld"], "--align is 'wrld', expected 'auto' or 'world'"),
        (["--period", "x"], "--period is 'x', expected a number or 'whole'"),
        (["--frame", "1.5"], "--frame: found '1.5', expected a whole number"),
        (["--slice", "x"], "--slice"),
        (["--seeds", "0,x"], "--seeds: found '0,x', expected a whole number, or several"),
        (["stray", "words"], "unexpected arguments stray words"),
        (["--out"], "--out"),
    ],
)
def test_bad_options_get_one_line(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


def test_options_that_are_missing(capsys):
    with pytest.raises(SystemExit):
        parse()
    assert capsys.readouterr().err == "error: --out is missing\n"


def test_help_is_made_from_the_fields(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert not stop.value.code
    told = capsys.readouterr().out
    assert told.startswith("usage: ldm-morph x --out PATH [OPTIONS]\n\nDoes it.\n\noptions:\n")
    assert "--out PATH            where results go (required)" in told
    assert "how the images lie (one of: auto, world) (default: auto)" in told
    assert "--slice K|K-L|K,L|all" in told and "overrides" not in told
