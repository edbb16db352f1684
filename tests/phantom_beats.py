"""End-diastole and end-systole of 40 beats of the phantom, as `track --mask auto` finds them.

python tests/phantom_beats.py > rows.csv

20 short-axis beats by `anatomy`, 20 apical ones by `anatomy-echo`; neither was trained on the
phantom. A beat of 24 different frames begins anywhere in the cycle. "drawn" are the frames of the
true motion, "area" those in which the true cavity is largest and smallest.
"""

import csv
import sys

import numpy as np

from ldm_morph_jax.data.phantom import FIELD_OF_VIEW_MM, LV
from ldm_morph_jax.data.phantom_cine import phantom_cine
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.registering.finding import find_heart, look
from ldm_morph_jax.runs.anatomy import load_anatomy

FRAMES, BEATS = 24, 20
NETWORKS = {"sax": "anatomy", "echo": "anatomy-echo"}


def main() -> None:
    table = csv.writer(sys.stdout)
    columns = "look seed begins ed_drawn es_drawn ed_area es_area ed es whole_beat area_change_true"
    table.writerow([*columns.split(), "area_change", "doubts"])
    for kind, name in NETWORKS.items():
        model = load_anatomy(name)
        for seed in range(2000, 2000 + BEATS):
            beat = phantom_cine(seed, look=kind, frames=FRAMES + 1)
            begins = int(np.random.default_rng(seed).integers(FRAMES))
            order = (begins + np.arange(FRAMES)) % FRAMES
            areas = (beat.masks[order] == LV).sum(axis=(1, 2))
            drawn = -begins % FRAMES, (beat.end_systole - begins) % FRAMES
            true = int(areas.argmax()), int(areas.argmin())
            spacing = (FIELD_OF_VIEW_MM / beat.frames.shape[1],) * 2
            try:
                found = find_heart(model, look(model, beat.frames[order], spacing), "beat")
            except ImageError as error:
                table.writerow([kind, seed, begins, *drawn, *true, "", "", "", "", "", error])
                continue
            ends = found.end_diastole, found.end_systole
            change = found.summary(None)["fractional_area_change"]
            row = [*drawn, *true, *ends, int(found.whole_beat), 1 - areas.min() / areas.max()]
            row = [kind, seed, begins, *row[:-1], f"{row[-1]:.4f}", change]
            table.writerow([*row, "; ".join(found.doubts)])
            sys.stdout.flush()


if __name__ == "__main__":
    main()
