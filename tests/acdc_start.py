"""What the initial DSC on ACDC depends on; the table of docs/results/acdc_start.

    python tests/acdc_start.py DIR

DIR is the archive that `ldm-morph prepare --dataset acdc --source DIR` takes. The paper's Table 1
has 0.555 (0.207). Every row changes one thing of our preparation, whose row is the first.
"""

import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

from ldm_morph_jax.data import preprocessing
from ldm_morph_jax.data.acdc import SHAPE, SPACING_MM, Acdc, read_volume, resample
from ldm_morph_jax.ops.metrics import dice

TEST = range(101, 151)
SCORED = (3, 2)  # left ventricle, myocardium
MIDDLE = SHAPE[2] // 2


class Patient:
    """Masks [X, Y, Z] at ED and ES, as they are and resampled to 1.5 x 1.5 x 3.15 mm."""

    def __init__(self, entry):
        volumes = [read_volume(*entry.files[i : i + 2]) for i in (0, 2)]
        self.images = [image for image, _, _ in volumes]
        self.masks = [mask for _, mask, _ in volumes]
        self.spacing = volumes[0][2]
        self.resampled = [self._resample(mask, nearest=True) for mask in self.masks]

    def _resample(self, mask, **how):
        return preprocessing.centre(resample(mask, self.spacing, SPACING_MM, **how), SHAPE)

    @property
    def slices(self) -> int:
        return self.masks[0].shape[2]

    def prepared(self, k=MIDDLE, shift=0):
        """Resampled slice k of ED, k + shift of ES, as `prepare` scales them."""
        return [_scaled(mask[..., z]) for mask, z in zip(self.resampled, (k, k + shift))]  # noqa: B905

    def original(self, k, shift=0):
        """Slice k of ED and k + shift of ES, not resampled."""
        return [mask[..., z] for mask, z in zip(self.masks, (k, k + shift))]  # noqa: B905

    def largest(self, phase):
        """The slice in which the left ventricle of ED (0) or ES (1) is largest."""
        return self.original(int((self.masks[phase] == 3).sum((0, 1)).argmax()))

    def extent_middle(self):
        """The middle of the slices with a left ventricle at ED; None where slices are missing."""
        if not self.images[0].any(axis=(0, 1)).all():
            return None
        inside = np.flatnonzero((self.masks[0] == 3).any(axis=(0, 1)))
        return self.original(int(inside.mean()))

    def interpolated(self, k=MIDDLE):
        """Labels resampled linearly and cut off to integers, as a forgotten flag would."""
        volumes = [self._resample(mask.astype(np.float64)) for mask in self.masks]
        return [_scaled((volume[..., k] + 1e-6).astype(np.uint8)) for volume in volumes]

    def cubic(self):
        """Resampled labels scaled by a cubic spline instead of nearest, then rounded."""
        planes = [volume[..., MIDDLE].astype(float) for volume in self.resampled]
        return [np.round(ndimage.zoom(plane, 112 / 128, order=3)).astype(int) for plane in planes]


def _scaled(mask):
    return preprocessing.resize(mask, (112, 112), nearest=True)


def row(title: str, pairs, structures=SCORED) -> str:
    """One line of the table; a structure that neither mask has is left out."""
    scores = [dice(ed, es, structures) for ed, es in pairs]
    scores = np.array([[score[label] for label in structures] for score in scores])
    means = np.nanmean(scores, axis=1)
    return (
        f"| {title} | {len(scores)} | {means.mean():.3f} ({means.std():.3f}) | "
        f"{np.nanstd(scores):.3f} |"
    )


def table(patients: dict[int, Patient]) -> list[str]:
    """The rows, in the groups of docs/results/acdc_start."""
    test = [patients[n] for n in TEST]
    rows = [row("**as prepared**", [p.prepared() for p in test])]
    for k in (MIDDLE - 2, MIDDLE - 1, MIDDLE + 1, MIDDLE + 2):
        rows.append(row(f"resampled slice {k}, not {MIDDLE}", [p.prepared(k) for p in test]))
    for text, choose in {
        "n // 2 - 1": lambda p: p.slices // 2 - 1,
        "(n - 1) // 2": lambda p: (p.slices - 1) // 2,
        "n // 2": lambda p: p.slices // 2,
        "n // 2 + 1": lambda p: p.slices // 2 + 1,
    }.items():
        rows.append(row(f"original slice {text}", [p.original(choose(p)) for p in test]))
    for phase, name in enumerate(("ED", "ES")):
        rows.append(
            row(f"slice with the largest LV area at {name}", [p.largest(phase) for p in test])
        )
    whole = [p for p in patients.values() if p.extent_middle()]
    rows.append(row("as prepared, whole volumes", [p.prepared() for p in whole]))
    rows.append(row("middle of the LV's slices, the same", [p.extent_middle() for p in whole]))
    for shift in (-1, 1):
        pairs = [p.original(p.slices // 2, shift) for p in test]
        rows.append(row(f"ES one original slice {'lower' if shift < 0 else 'higher'}", pairs))
    for name, structures in {
        "LV": (3,),
        "myocardium": (2,),
        "RV": (1,),
        "LV and RV": (3, 1),
        "LV, myocardium and RV": (1, 2, 3),
    }.items():
        rows.append(row(name, [p.prepared() for p in test], structures))
    pairs = [[np.isin(mask, SCORED).astype(int) for mask in p.prepared()] for p in test]
    rows.append(row("LV with myocardium as one structure", pairs, (1,)))
    for first in (1, 51, 96):
        some = [patients[n].prepared() for n in range(first, first + 50)]
        rows.append(row(f"patients {first} to {first + 49}", some))
    rows.append(row("all patients", [p.prepared() for p in patients.values()]))
    rows.append(row("labels resampled linearly, cut off", [p.interpolated() for p in test]))
    pairs = [p.interpolated(MIDDLE + 1) for p in test]
    rows.append(row(f"the same, resampled slice {MIDDLE + 1}", pairs))
    rows.append(row("labels scaled by a cubic spline", [p.cubic() for p in test]))
    return rows


def random_fifty(patients: dict[int, Patient], draws: int = 20_000) -> str:
    """How often 50 patients drawn from all have a mean as low, or a spread as high."""
    scores = [dice(*p.prepared(), SCORED) for p in patients.values()]
    means = np.array([np.mean(list(score.values())) for score in scores])
    rng = np.random.default_rng(0)
    drawn = means[rng.permuted(np.tile(np.arange(len(means)), (draws, 1)), axis=1)[:, :50]]
    low, wide = (drawn.mean(1) < 0.5555).mean(), (drawn.std(1) > 0.2065).mean()
    return (
        f"50 patients at random: mean below 0.5555 in {low:.2%}, spread over 0.2065 in {wide:.2%}"
    )


def main(source: str) -> None:
    entries = Acdc(Acdc.Options(), Path(source)).find().pairs
    patients = {e.detail: Patient(e) for found in entries.values() for e in found}
    print("| change | pairs | mean (spread over pairs) | spread over pairs and structures |")
    print("|---|---|---|---|")
    print("\n".join(table(patients)))
    print(random_fifty(patients))


if __name__ == "__main__":
    main(*sys.argv[1:])
