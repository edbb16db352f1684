"""Ejection fraction of whole stacks of ACDC, as `track` finds it with and without a mask.

    PYTHONPATH=. python tests/stack_ejection.py --data DIR --patients 101-150 --out ejection.csv

DIR holds `*/patientXXX/patientXXX_frameYY.nii.gz` with their masks `_gt`. End-diastole and
end-systole are a cine of two frames. A row is a patient and a mode, with the mask of end-diastole:
`volume`, the default; `all`, slice by slice; `still`, a volume searched from no motion; without a
mask, by the networks of their names: `anatomy`, `anatomy-mri`. It has the DSC of the mask carried
to end-systole (right ventricle, myocardium, left ventricle) and ejection fractions in %: by the
masks, by the carried mask, and as `track` gives it, empty where no heart is found; without a mask
the last alone. `left_too_much` and `kept_too_much` are how much too large the carried cavity is at
end-systole, in % of end-diastole's, in slices that show no cavity at end-systole (any more), and in
the others. Rows that OUT has are kept. At the end: means, and
bias, mean absolute error and 95 % limits of agreement of the ejection fractions, in points.
"""

import contextlib
import json
import tempfile
from pathlib import Path
from unittest.mock import patch

import acdc_stacks
import numpy as np
import pandas as pd
import SimpleITK
from volume_cine import LABELS, NAMES, of_frame

from ldm_morph_jax import track
from ldm_morph_jax.ops.metrics import dice
from ldm_morph_jax.registering import grid

NETWORKS = ("anatomy", "anatomy-mri")
TITLES = NAMES | {
    "still": "`track --slice volume`, searched from no motion",
    "anatomy": "`track --mask auto`",
    "anatomy-mri": "`track --anatomy anatomy-mri`",
}


def main() -> None:
    parser = acdc_stacks.parser(__doc__.splitlines()[0])
    parser.add_argument("--modes", nargs="+", default=["volume", "all"])
    args = parser.parse_args()
    print(table(acdc_stacks.keep_rows(args, "mode", args.modes, tracked)))


def tracked(files: list[Path], masks: list[Path], mode: str) -> dict[str, str]:
    """What `track` finds of one patient, and the truth."""
    masks = [SimpleITK.ReadImage(mask) for mask in masks]
    true = [SimpleITK.GetArrayFromImage(mask) for mask in masks]
    with tempfile.TemporaryDirectory() as temporary:
        cine, mask, out = (Path(temporary) / name for name in ("cine.nii.gz", "mask.nii.gz", "out"))
        SimpleITK.WriteImage(SimpleITK.JoinSeries(list(map(SimpleITK.ReadImage, files))), cine)
        SimpleITK.WriteImage(masks[0], mask)
        thick = np.inf if mode == "still" else grid.THICK_MM
        heart = ("--anatomy", mode) if mode in NETWORKS else ("--mask", str(mask))
        with patch.object(grid, "THICK_MM", thick), contextlib.suppress(SystemExit):
            track.main(
                [
                    *("--cine", str(cine), *heart, "--out", str(out), "--no-report"),
                    *("--slice", "all" if mode == "all" else "volume"),
                ]
            )
        carried = None if mode in NETWORKS else of_frame(out, 1, true[0].shape)
        summary = out / "summary.json"
        found = json.loads(summary.read_text())["ejection_fraction"] if summary.exists() else None
    ends = [np.count_nonzero(labels == 3) for labels in true]
    row = dict.fromkeys([f"dice_{k}" for k in LABELS], "")
    row |= {"ef_of_masks": f"{100 * (1 - ends[1] / ends[0]):.2f}", "ef_of_carried_mask": ""}
    row |= {"left_too_much": "", "kept_too_much": ""}
    if carried is not None:
        overlap = dice(carried, true[1], LABELS)
        row |= {f"dice_{k}": f"{overlap[k]:.4f}" for k in LABELS}
        change = 1 - np.count_nonzero(carried == 3) / ends[0]
        row["ef_of_carried_mask"] = f"{100 * change:.2f}"
        areas, true_areas = ((m == 3).sum(axis=(1, 2)) for m in (carried, true[1]))
        excess, left = 100 * (areas - true_areas) / ends[0], true_areas == 0
        row["left_too_much"] = f"{excess[left].sum():.2f}"
        row["kept_too_much"] = f"{excess[~left].sum():.2f}"
    return row | {"ef_of_track": "" if found is None else f"{100 * found:.2f}"}


def table(rows: pd.DataFrame) -> str:
    """Means over patients, and the errors of the ejection fractions, in Markdown."""
    lines = [
        "| | patients | DSC | ejection fraction by | bias | mean absolute error "
        "| limits of agreement |",
        "|---|---|---|---|---|---|---|",
    ]
    for mode, group in rows.groupby("mode", sort=False):
        overlap = group[[f"dice_{k}" for k in LABELS]].to_numpy().mean()
        overlap = "–" if np.isnan(overlap) else f"{overlap:.3f}"
        for name in ("carried_mask", "track"):
            error = (group[f"ef_of_{name}"] - group.ef_of_masks).dropna()
            if error.empty:
                continue
            lines.append(
                f"| {TITLES[mode]} | {len(error)} of {len(group)} | {overlap} "
                f"| {name.replace('_', ' ')} | {acdc_stacks.agreement(error)}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
