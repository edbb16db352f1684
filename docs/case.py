"""The picture of case.md, from the files that `ldm-morph track --example --out beat/` writes.

python docs/case.py beat/
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from ldm_morph_jax.data.phantom_cine import phantom_cine

COLOURS = {"endo": "#ffb000", "epi": "#33c9f0"}
STRAINS = {
    "radial": "#d95f02",
    "circumferential": "#5e3c99",
    "endocardial_circumferential": "#1b7a8c",
}


def main(beat: Path) -> None:
    summary = json.loads((beat / "summary.json").read_text())
    curves = pd.read_csv(beat / "curves.csv", comment="#")
    contours = pd.read_csv(beat / "contours.csv", comment="#")
    frames = phantom_cine(3).frames  # what --example tracks
    centre = contours[contours.frame == summary["reference"]][["column", "row"]].mean()
    (left, top), (right, bottom) = centre - 45, centre + 45
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    for ax, (name, frame) in zip(
        axes,
        {"End-diastole": summary["reference"], "End-systole": summary["end_systole"]}.items(),
        strict=False,
    ):
        ax.imshow(frames[frame], cmap="gray")
        for contour, points in contours[contours.frame == frame].groupby("contour"):
            ax.plot(points.column, points.row, ".", ms=1.5, color=COLOURS[contour])
        ax.set(title=f"{name}, frame {frame}", xlim=(left, right), ylim=(bottom, top))
        ax.set(xticks=[], yticks=[])
    for region, colour in {"cavity": "#1b7a8c", "wall": "#d95f02"}.items():
        axes[2].plot(curves.time_s, curves[f"{region}_area_mm2"] / 100, color=colour, label=region)
    axes[2].set(title="Area, cm²", xlabel="time, s")
    for name, colour in STRAINS.items():
        label = name.replace("_", "\n")
        axes[3].plot(curves.time_s, 100 * curves[f"{name}_strain"], color=colour, label=label)
    axes[3].set(title="Strain, %", xlabel="time, s")
    for ax in axes[2:]:
        ax.axvline(curves.time_s[summary["end_systole"]], color="grey", lw=1, ls=":")
        ax.legend(frameon=False, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).parent / "images/case.png", dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
