"""Other programs on beats of the phantom, from end-diastole to end-systole.

    ldm-morph prepare --dataset phantom_cine --out DIR --seed 91 --first 11 --frames 12
    python tests/phantom_peers.py register --tool greedy --beats DIR/.../beats --out RESULTS
    python tests/phantom_peers.py table --beats DIR/.../beats --results RESULTS --out CSV

`register` writes RESULTS/TOOL/BEAT/displacement/frame_005.nii.gz, which
`ldm-morph evaluate --displacements RESULTS/TOOL --beats ...` scores, and RESULTS/TOOL/seconds.csv
(of the processor, reading and writing left out); what is there already is kept. `table` scores all
tools, writes a row per beat and prints the table of docs/results/tracking.

Tools: `track` (all frames), `pair` (the search of `register`, without a network), `syn` (ANTsPy,
the paper's settings), `greedy` (pip install picsl-greedy), `elastix` (pip install itk-elastix; its
default B-splines). Settings are the programs' own or the paper's; none was chosen on these beats.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from ldm_morph_jax.beat_scores import format_scores, score_beats
from ldm_morph_jax.files.movies import Cine, read_cine
from ldm_morph_jax.files.transforms import Transform, write_transform
from ldm_morph_jax.files.writing import atomic

Found = dict[int, np.ndarray]
"""Frame -> `[H, W, 2]` pixels, from end-diastole to that frame."""


def track(cine: Cine, es: int) -> Found:
    from ldm_morph_jax.registering.tracking import track_cine

    found = np.asarray(track_cine(cine, period="whole").displacement)
    return {t: u for t, u in enumerate(found) if t}


def pair(cine: Cine, es: int) -> Found:
    from ldm_morph_jax.registering.search import refine

    return {es: np.asarray(refine(cine.frames[es][None], cine.frames[:1]).displacement)[0]}


def syn(cine: Cine, es: int) -> Found:
    from ldm_morph_jax.methods.syn import SyN

    images = (cine.frames[t][None, ..., None] for t in (es, 0))
    return {es: SyN().field(None, None, *images)[0]}


def greedy(cine: Cine, es: int) -> Found:
    import SimpleITK
    from picsl_greedy import Greedy2D

    fixed, moving = (SimpleITK.GetImageFromArray(cine.frames[t]) for t in (0, es))
    program = Greedy2D()
    command = "-i fixed moving -m WNCC 2x2 -n 100x50x20 -threads 1 -o warp"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        program.execute(command, out=printed, fixed=fixed, moving=moving, warp=None)
    return {es: SimpleITK.GetArrayFromImage(program["warp"])[..., ::-1]}


def elastix(cine: Cine, es: int) -> Found:
    import itk

    fixed, moving = (itk.image_from_array(np.ascontiguousarray(cine.frames[t])) for t in (0, es))
    settings = itk.ParameterObject.New()
    settings.AddParameterMap(settings.GetDefaultParameterMap("bspline", 3, 10.0))
    _, transform = itk.elastix_registration_method(
        fixed, moving, parameter_object=settings, number_of_threads=1, log_to_console=False
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # it writes a file
        field = itk.transformix_deformation_field(moving, transform)
    return {es: itk.array_from_image(field)[..., ::-1]}


TOOLS: dict[str, Callable[[Cine, int], Found]] = {
    function.__name__: function for function in (track, pair, syn, greedy, elastix)
}


def register(tool: str, beats: Path, out: Path, at_most: int | None) -> None:
    """The beats of each view in turn, so that a stop leaves as many of one as of the other."""
    folders = sorted(
        (path.parent for path in beats.glob("*/beat.json")),
        key=lambda folder: (int(folder.name.rpartition("-")[2]), folder.name),
    )
    log = out / tool / "seconds.csv"
    for folder in folders[: None if at_most is None else 2 * at_most]:
        result = out / tool / folder.name
        if result.exists():
            continue
        result.parent.mkdir(parents=True, exist_ok=True)
        cine = read_cine(folder / "cine.nii.gz")
        es = json.loads((folder / "beat.json").read_text())["end_systole"]
        start = time.process_time()
        found = TOOLS[tool](cine, es)
        seconds = time.process_time() - start
        grid = cine.first.geometry
        with atomic(result) as part:
            (part / "displacement").mkdir(parents=True)
            for t, u in found.items():
                transform = Transform(grid.vectors_to_physical(u), grid)
                write_transform(part / "displacement" / f"frame_{t:03}.nii.gz", transform)
        row = pd.DataFrame([{"id": folder.name, "cpu_seconds": seconds}])
        row.to_csv(log, mode="a", header=not log.exists(), index=False, float_format="%.4g")
        print(f"{tool} {folder.name}: {seconds:.1f} s", flush=True)


def table(beats: Path, results: Path, csv: Path) -> None:
    parts = []
    for tool in (name for name in TOOLS if (results / name).is_dir()):
        rows = score_beats(beats, results / tool, only_found=True)
        seconds = pd.read_csv(results / tool / "seconds.csv").drop_duplicates("id", keep="last")
        parts.append(rows.merge(seconds, on="id", how="left").assign(method=tool))
    with atomic(csv) as part:
        pd.concat(parts).to_csv(part, index=False, float_format="%.5g", lineterminator="\n")
    print(markdown(csv))


def markdown(csv: Path) -> str:
    """The table of docs/results/tracking from the rows that `table` wrote."""
    rows = pd.read_csv(csv)
    return format_scores(dict(tuple(rows.groupby("method", sort=False))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("register")
    one.add_argument("--tool", choices=TOOLS, required=True)
    one.add_argument("--at-most", type=int, help="beats of each view")
    all_ = commands.add_parser("table")
    all_.add_argument("--results", type=Path, required=True)
    for command in (one, all_):
        command.add_argument("--beats", type=Path, required=True)
        command.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "register":
        os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
        register(args.tool, args.beats, args.out, args.at_most)
    else:
        table(args.beats, args.results, args.out)


if __name__ == "__main__":
    main()
