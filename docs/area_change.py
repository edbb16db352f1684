"""Area change of the cavity, network against mask, as Bland-Altman plots, from committed rows.

python docs/area_change.py

Reads docs/results/anatomy/runs/*/patients.csv (a row per test patient, phase and structure), writes
docs/images/area_change.png and prints bias and limits of agreement (Bland and Altman, Lancet 327,
1986).
"""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

ROOT = Path(__file__).parent
NETWORKS = {"anatomy-mri": "ACDC", "anatomy-echo": "CAMUS, four chambers"}


def area_change(run: str) -> pd.DataFrame:
    """Per cent of the end-diastolic area, a row per patient, columns mask and network."""
    rows = pd.read_csv(ROOT / "results" / "anatomy" / "runs" / run / "patients.csv")
    cavity = rows[rows["structure"] == "left ventricle"].set_index(["patient", "phase"])
    areas = cavity[["mask_mm2", "network_mm2"]].unstack("phase")
    return pd.DataFrame(
        {
            who: 100 * (1 - areas[f"{who}_mm2", "ES"] / areas[f"{who}_mm2", "ED"])
            for who in ("mask", "network")
        }
    ).dropna()


def main() -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
    for axis, (run, name) in zip(axes, NETWORKS.items(), strict=True):
        change = area_change(run)
        difference, mean = change["network"] - change["mask"], change.mean(axis=1)
        bias, spread = difference.mean(), 1.96 * difference.std(ddof=1)
        axis.scatter(mean, difference, s=9, color="#33688a", linewidth=0)
        for value, style in ((bias, "-"), (bias - spread, "--"), (bias + spread, "--")):
            axis.axhline(value, color="#d95f02", linestyle=style, linewidth=1)
            axis.annotate(
                f"{value:+.1f}",
                (1, value),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=8,
            )
        axis.axhline(0, color="0.7", linewidth=0.6, zorder=0)
        axis.set_title(f"{run}, {name} ({len(change)} patients)", fontsize=9)
        axis.set_xlabel("mean of both, %")
        print(
            f"{run}: bias {bias:+.1f} points, limits of agreement {bias - spread:+.1f} to "
            f"{bias + spread:+.1f}, {len(change)} patients"
        )
    axes[0].set_ylabel("area change, network - mask, points")
    figure.savefig(ROOT / "images" / "area_change.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
