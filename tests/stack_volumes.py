"""Ejection fraction of whole stacks of ACDC without a mask, as `track --mask auto` finds it.

    PYTHONPATH=. python tests/stack_volumes.py --data DIR --patients 101-150 --out volumes.csv

DIR holds `*/patientXXX/patientXXX_frameYY.nii.gz` with their masks `_gt`. End-diastole and
end-systole are a cine of two frames, in which the network finds the heart (`finding.find_heart`). A
row is a patient and a network: volumes of the cavity in ml and ejection fractions in %, by the mask
and by the network, and whether the network took the frames for what they are. Rows that OUT has are
kept. At the end: bias, mean absolute error and 95 % limits of agreement of the ejection fraction.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from kept_rows import KeptRows

from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.images import VOLUME, read_image, read_mask
from ldm_morph_jax.registering.finding import find_heart, look
from ldm_morph_jax.runs.anatomy import anatomy_network

CAVITY = 3  # of ACDC's masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--patients", default="101-150", help="first-last")
    parser.add_argument("--step", type=int, default=1, help="every so many patients")
    parser.add_argument("--networks", nargs="+", default=["anatomy", "anatomy-mri"])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    first, last = map(int, args.patients.split("-"))
    rows = KeptRows(args.out, ("patient", "network"))
    for number in range(first, last + 1, args.step):
        for name in args.networks:
            if (number, name) not in rows:
                rows.add({"patient": number, "network": name, **measured(args.data, number, name)})
    print(table(pd.read_csv(args.out)))


def measured(data, number, name) -> dict[str, str]:
    """Volumes and ejection fractions of one patient; empty where no heart is found."""
    [folder] = data.glob(f"*/patient{number:03d}")
    files = sorted(folder.glob("*_frame??.nii.gz"))
    images = [read_image(file, VOLUME) for file in files]
    voxel = 1e-3 * float(np.prod(images[0].geometry.spacing))
    masks = [
        read_mask(str(file).replace(".nii.gz", "_gt.nii.gz"), image, VOLUME).array
        for file, image in zip(files, images, strict=True)
    ]
    true = [voxel * np.count_nonzero(mask == CAVITY) for mask in masks]
    model = anatomy_network(name)
    seen = look(model, np.stack([image.array for image in images]), images[0].spacing)
    try:
        found = find_heart(model, seen, str(folder))
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
        low, high = off.mean() + 1.96 * off.std() * np.array([-1, 1])
        lines.append(
            f"| `{name}` | {len(off)} of {len(group)} | {off.mean():+.1f} | "
            f"{off.abs().mean():.1f} | {low:+.1f} to {high:+.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
