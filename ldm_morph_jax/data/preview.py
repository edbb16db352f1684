"""Draws a contact sheet of a dataset."""

from pathlib import Path

import numpy as np


def contact_sheet(dataset, split: str, path: str | Path, n: int = 6) -> None:
    """Writes a PNG with n pairs, evenly spread over the split: moving above, fixed below.

    Of volumes it shows the plane with most of the fixed image's structures.
    Contours of the masks: one colour per label of `dataset.labels`.
    """
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    source = dataset.split(split)
    ids = dataset.ids(split)
    n = min(n, len(source))
    figure = Figure(figsize=(1.6 * n, 3.5), dpi=150, layout="constrained")
    axes = figure.subplots(2, n, squeeze=False)
    colours = ["tab:red", "tab:olive", "tab:cyan", "tab:purple"]
    for column, index in enumerate(np.linspace(0, len(source) - 1, n).round().astype(int)):
        example = _plane(source[index])
        for row, role in enumerate(("moving", "fixed")):
            axis = axes[row, column]
            axis.imshow(example[role][..., 0], cmap="gray", vmin=0, vmax=1)
            # In reverse, so that where outlines coincide the cavity's (first label) is on top.
            for label, colour in reversed(list(zip(dataset.labels, colours, strict=False))):
                inside = example[f"{role}_mask"][..., 0] == label
                if inside.any() and not inside.all():
                    axis.contour(inside, [0.5], colors=colour, linewidths=0.7)
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(role, fontsize=7)
        axes[0, column].set_title(ids[index], fontsize=5)
    figure.savefig(path)


def _plane(example: dict) -> dict:
    """An example's images and masks `[H, W, 1]`."""
    if example["fixed"].ndim == 3:
        return example
    widest = np.count_nonzero(example["fixed_mask"], axis=(1, 2, 3)).argmax()
    return {key: example[key][widest] for key in ("moving", "fixed", "moving_mask", "fixed_mask")}
