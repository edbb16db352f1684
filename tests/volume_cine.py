"""Follow the whole cine of a patient of ACDC in three dimensions and slice by slice.

    PYTHONPATH=. python tests/volume_cine.py --cine patient090_4d.nii.gz --info Info.cfg \\
        --masks patient090_frame04_gt.nii.gz patient090_frame11_gt.nii.gz --out cine.csv

The masks are those of end-diastole and end-systole, with all slices; they may be cropped in plane.
End-diastole's mask is carried to end-systole and compared with the mask of that frame: DSC of right
ventricle (1), myocardium (2) and left ventricle (3) in the volume, volumes of the cavity by the
carried mask, ejection fraction as `track` gives it. A row is one mode: `none` (the mask of
end-diastole as it is), `all` (slice by slice), `volume`.
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK

from ldm_morph_jax import track
from ldm_morph_jax.ops.metrics import dice

LABELS = (1, 2, 3)
STRAINS = ("radial", "circumferential", "longitudinal")
NAMES = {
    "none": "not moved",
    "volume": "`track --slice volume`",
    "all": "`track --slice all`, slice by slice",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cine", type=Path, required=True)
    parser.add_argument("--info", type=Path, required=True)
    parser.add_argument("--masks", type=Path, nargs=2, required=True, metavar=("ED", "ES"))
    parser.add_argument("--modes", nargs="+", default=["none", "volume", "all"])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    phases = dict(re.findall(r"(ED|ES): *(\d+)", args.info.read_text()))
    ed, es = (int(phases[name]) - 1 for name in ("ED", "ES"))
    cine = SimpleITK.ReadImage(args.cine)
    masks = [whole(mask, cine) for mask in args.masks]
    true = [SimpleITK.GetArrayFromImage(mask) for mask in masks]
    voxel = np.prod(cine.GetSpacing()[:3]) / 1000
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        SimpleITK.WriteImage(masks[0], f"{folder}/mask.nii.gz")
        for mode in args.modes:
            begin, carried, content = time.perf_counter(), true[0], {}
            if mode != "none":
                out = Path(folder) / mode
                track.main(
                    [
                        *("--cine", str(args.cine), "--mask", f"{folder}/mask.nii.gz"),
                        *("--reference", str(ed), "--slice", mode, "--no-report"),
                        *("--out", str(out)),
                    ]
                )
                carried = of_frame(out, es, true[0].shape)
                content = json.loads((out / "summary.json").read_text())
            overlap = dice(carried, true[1], LABELS)
            ends = [voxel * (labels == 3).sum() for labels in (true[0], carried)]
            strain = content.get("strain", {})
            rows.append(
                {
                    "mode": mode,
                    **{f"dice_{k}": f"{overlap[k]:.4f}" for k in LABELS},
                    "ed_ml": f"{ends[0]:.1f}",
                    "es_ml": f"{ends[1]:.1f}",
                    "ef_percent": f"{100 * (1 - ends[1] / ends[0]):.1f}",
                    "ef_of_track_percent": f"{100 * content.get('ejection_fraction', np.nan):.1f}",
                    **{
                        name: f"{100 * strain.get(f'{name}_strain', {}).get('peak', np.nan):.1f}"
                        for name in STRAINS
                    },
                    "verdict": (content.get("verdict") or {}).get("level", ""),
                    "seconds": f"{time.perf_counter() - begin:.0f}",
                }
            )
            pd.DataFrame(rows).to_csv(args.out, index=False)
    es_ml = voxel * (true[1] == 3).sum()
    by_masks = 100 * (1 - es_ml / float(rows[0]["ed_ml"]))
    print(table(pd.read_csv(args.out)))
    print(f"masks: end-systole {es_ml:.1f} ml, ejection fraction {by_masks:.1f} %")


def table(rows: pd.DataFrame) -> str:
    """A row per mode in Markdown."""
    lines = [
        "| | DSC right ventricle | myocardium | left ventricle "
        "| end-systole by the carried mask, ml "
        "| ejection fraction by it, % | ejection fraction of `track`, % | peak strain radial, % "
        "| circumferential, % | longitudinal, % | verdict |",
        "|---" * 11 + "|",
    ]
    for row in rows.to_dict("records"):
        cells = [NAMES[row["mode"]], *(f"{row[f'dice_{k}']:.3f}" for k in LABELS)]
        names = ("es_ml", "ef_percent", "ef_of_track_percent", *STRAINS)
        cells += ["–" if np.isnan(row[name]) else f"{row[name]:.1f}" for name in names]
        cells.append(row["verdict"] if isinstance(row["verdict"], str) else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def whole(path: Path, cine) -> SimpleITK.Image:
    """A mask on the grid of the cine; a cropped one lies where its origin, in pixels, says."""
    mask = SimpleITK.ReadImage(path)
    labels = SimpleITK.GetArrayFromImage(mask)
    left, top, first = (round(x) for x in mask.GetOrigin())
    frame = np.zeros(cine.GetSize()[2::-1], np.uint8)
    place = (slice(first, None), slice(top, None), slice(left, None))
    inside = frame[place][tuple(map(slice, labels.shape))]
    inside[...] = labels
    image = SimpleITK.GetImageFromArray(frame)
    image.SetSpacing(cine.GetSpacing()[:3])
    return image


def of_frame(out: Path, frame: int, shape) -> np.ndarray:
    """What the mask was carried to in a frame; slices that were left out have none."""
    name = f"masks/frame_{frame:03d}.nii.gz"
    if (out / name).exists():
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(out / name))
    carried = np.zeros(shape, np.uint8)
    for path in out.glob("slice-*"):
        labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path / name))
        carried[int(path.name.removeprefix("slice-"))] = labels.reshape(shape[1:])
    return carried


if __name__ == "__main__":
    main()
