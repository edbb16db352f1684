"""Ejection fraction of whole stacks of ACDC without a mask, as `track --mask auto` finds it.

    PYTHONPATH=. python tests/stack_volumes.py --data DIR --patients 101-150 --out volumes.csv

DIR holds `*/patientXXX/patientXXX_frameYY.nii.gz` with their masks `_gt`. End-diastole and
end-systole are a cine of two frames, in which the network finds the heart (`finding.find_heart`). A
row is a patient and a network: volumes of the cavity in ml and ejection fractions in %, by the mask
and by the network, and whether the network took the frames for what they are. Rows that OUT has are
kept. At the end: bias, mean absolute error and 95 % limits of agreement of the ejection fraction.
"""

from pathlib import Path

import acdc_stacks
import numpy as np
import pandas as pd

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.images import VOLUME, read_image, read_mask
from ldm_morph_jax.registering.finding import find_heart, look
from ldm_morph_jax.runs.anatomy import anatomy_network

CAVITY = 3  # of ACDC's masks


def main() -> None:
    parser = acdc_stacks.parser(__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["anatomy", "anatomy-mri"])
    args = parser.parse_args()
    print(table(acdc_stacks.keep_rows(args, "network", args.networks, measured)))


def measured(files: list[Path], masks: list[Path], name: str) -> dict[str, str]:
    """Volumes and ejection fractions of one patient; empty where no heart is found."""
    images = [read_image(file, VOLUME) for file in files]
    voxel = 1e-3 * float(np.prod(images[0].geometry.spacing))
    true = [
        voxel * np.count_nonzero(read_mask(mask, image, VOLUME).array == CAVITY)
        for mask, image in zip(masks, images, strict=True)
    ]
    model = anatomy_network(name)
    seen = look(model, np.stack([image.array for image in images]), images[0].spacing)
    try:
        found = find_heart(model, seen, str(files[0]))
    except ImageError:
        volumes, ends = None, ""
    else:
        volumes, ends = voxel * found.areas, int(found.end_diastole == int(np.argmax(true)))
    row = {}
    for who, of_frames in (("mask", true), ("network", volumes)):
        texts = [""] * 3
        if of_frames is not None:
            change = 100 * (1 - min(of_frames) / max(of_frames))
            texts = [f"{max(of_frames):.1f}", f"{min(of_frames):.1f}", f"{change:.2f}"]
        names = ("ed_ml", "es_ml", "ejection_fraction")
        row |= {f"{who}_{key}": text for key, text in zip(names, texts, strict=True)}
    return row | {"same_frames": ends}


def table(rows: pd.DataFrame) -> str:
    """Errors of the ejection fraction of every network, in points, in Markdown."""
    lines = [
        "| weights | patients | bias | mean absolute error | limits of agreement |",
        "|---|---|---|---|---|",
    ]
    for name, group in rows.groupby("network"):
        off = (group["network_ejection_fraction"] - group["mask_ejection_fraction"]).dropna()
        lines.append(f"| `{name}` | {len(off)} of {len(group)} | {acdc_stacks.agreement(off)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
