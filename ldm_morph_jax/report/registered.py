"""What `register` shows of one pair: overview.png and an interactive report.html.

A picture is a dict, the arguments of `figures.pair_figure`. The page needs nothing else, neither a
network nor files beside it; a Content-Security-Policy in it forbids both.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ldm_morph_jax.report import page
from ldm_morph_jax.report.figures import pair_figure, pairs_sheet
from ldm_morph_jax.report.style import number, png_bytes
from ldm_morph_jax.report.viewport import viewport
from ldm_morph_jax.report.views import pair_view

_DISTANCES = {"hd95": "HD95", "mean_surface_distance": "Mean surface distance"}
_MOST_LABELS = 3  # whose DSC is among the first numbers of the page
_MOST_ROWS = 8  # slices of a stack in overview.png


def prepare() -> None:
    """Have matplotlib load its fonts and all that a first figure takes."""
    image = np.eye(16)
    mask = np.zeros((16, 16), int)
    mask[4:8, 4:8] = 1
    pair = {"moving": image, "fixed": image.T, "displacement": np.zeros((16, 16, 2))}
    pair |= {"moving_mask": mask, "fixed_mask": mask}
    png_bytes(pair_figure(**pair, title="→"))
    page.pair_pictures(pair_view(**pair), white=1.0)


def write_pages(
    folder: Path,
    slices: Sequence[Mapping],
    rows: Mapping[str, Mapping],
    metrics: Mapping,
) -> None:
    """overview.png, see `overview`, and report.html, see `write_report`."""
    names = " → ".join(Path(metrics[name]["file"]).name for name in ("moving", "fixed"))
    figure = overview(rows, f"{names}   {metrics['verdict']['level']}")
    with warnings.catch_warnings():  # the title shows a box for what the font lacks
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        (folder / "overview.png").write_bytes(png_bytes(figure))
    write_report(folder / "report.html", slices, metrics)


def overview(rows: Mapping[str, Mapping], title: str) -> Figure:
    """Images, differences, grid and Jacobian of pictures by caption; of many evenly chosen ones.

    The title may hold the names of files, any at all.
    """
    title = title.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
    captions, pictures = list(rows), list(rows.values())
    if len(rows) == 1:
        return pair_figure(**pictures[0], title=title)
    count = min(_MOST_ROWS, len(rows))
    chosen = np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))
    stacked = {
        name: None if array is None else np.stack([pictures[k][name] for k in chosen])
        for name, array in pictures[0].items()
    }
    return pairs_sheet(**stacked, captions=[captions[k] for k in chosen], title=title)


def write_report(path: Path, slices: Sequence[Mapping], metrics: Mapping) -> None:
    """report.html: slider and checkerboard before/after, deformed grid, Jacobian map, numbers.

    Args:
        path: where to.
        slices: pictures, of a 2-D pair one.
        metrics: the content of metrics.json.
    """
    text = page.render(
        "registration.html",
        metrics=metrics,
        moving_name=Path(metrics["moving"]["file"]).name,
        fixed_name=Path(metrics["fixed"]["file"]).name,
        tiles=_tiles(metrics),
        rows=_rows(metrics),
        facts=_facts(metrics),
        slices=[_pictures(plane, metrics["fixed"]) for plane in slices],
        has_masks=slices[0]["moving_mask"] is not None or slices[0]["fixed_mask"] is not None,
        provenance=page.provenance(metrics),
        **page.colours(),
    )
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _pictures(one, image) -> dict:
    """A slice as the page shows it, zoomed to what masks outline in either image."""
    view = pair_view(**one)
    port = viewport(
        view.fixed.shape,
        one["spacing"],
        [*view.fixed_lines, *view.moving_lines],
        spacing_known=image["spacing_mm"] is not None,
        axes=image["axes"],
    )
    return page.pair_pictures(view, white=1.0) | {"port": port}


def _tiles(metrics) -> list[tuple[str, str]]:
    """The numbers to be seen first."""
    j, d, c = metrics["jacobian"], metrics["displacement_mm"], metrics["correlation"]
    tiles = [("correlation", " → ".join(_both(c)))]
    for label, score in list(metrics.get("dice", {}).items())[:_MOST_LABELS]:
        tiles.append((f"DSC, label {label}", " → ".join(_both(score))))
    tiles.append(("J, change of area", f"{j['smallest']:.2f} to {j['largest']:.2f}"))
    tiles.append(("folding", f"{j['nonpositive_percent']:.2f} %"))
    tiles.append(("largest displacement", f"{d['largest']:.1f} mm"))
    return tiles


def _rows(metrics) -> list[tuple[str, str, str]]:
    """Scores that have a before and an after."""
    rows = [("Correlation", *_both(metrics["correlation"]))]
    for label, score in metrics.get("dice", {}).items():
        lacking = f", {score['lacking']} lacks it" if "lacking" in score else ""
        rows.append((f"DSC label {label}{lacking}", *_both(score)))
        for name, text in _DISTANCES.items():
            for unit in ("mm", "px"):
                if f"{name}_{unit}" in score:
                    distances = _both(score[f"{name}_{unit}"], 2)
                    rows.append((f"{text}, label {label}, {unit}", *distances))
    return rows


def _facts(metrics) -> list[tuple[str, str]]:
    """Everything else, as (name, text)."""
    j, d, grid = metrics["jacobian"], metrics["displacement_mm"], metrics["model_grid"]
    unit = "voxels" if metrics.get("in_three_dimensions") else "pixels"
    facts = [("Differences on the whole image", _difference(metrics["rms_difference"]))]
    beyond = _difference(metrics["rms_difference_beyond_grid"])
    if number(None, 3) not in beyond:  # the grid may cover the image
        facts.append(("Differences beyond the grid", beyond))
    facts += [
        ("Folding, J ≤ 0", f"{j['nonpositive_percent']:.2f} % of the {unit}"),
        ("J", f"{j['smallest']:.2f} to {j['largest']:.2f}; SD of log J {number(j['sd_log'], 3)}"),
        ("Displacement", f"mean {d['mean']:.2f} mm, largest {d['largest']:.2f} mm"),
    ]
    if "affine" in metrics:
        before = metrics["affine"]
        facts.append((f"Before, {before['kind']}", before["sentence"]))
    if "scale" in metrics:
        kept = sorted(set(metrics["scale"]))
        facts.append(("Of the motion found, kept", ", ".join(f"{100 * s:g} %" for s in kept)))
    far = metrics["verdict"]["distance_from_training"]
    if far is not None:
        facts.append(("Distance from the training images", f"{far:.1f}"))
    if "inverse" in metrics:
        i = metrics["inverse"]
        facts.append(
            (
                "Inverse",
                f"residual mean {number(i['residual_mm_mean'], 4)}, "
                f"largest {number(i['residual_mm_largest'], 4)} mm; none at "
                f"{i['missing_pixels']} pixels",
            )
        )
    for name in ("moving", "fixed"):
        image = metrics[name]
        size = " × ".join(str(n) for n in image["shape"])
        spacing = image["spacing_mm"]
        text = " × ".join(f"{s:g}" for s in spacing) + " mm" if spacing else "spacing unknown"
        facts.append((f"{name.capitalize()} image", f"{image['file']}; {size} pixels, {text}"))
    if grid is None:
        facts.append(("Registered", "in three dimensions"))
        return facts
    scale = " × ".join(f"{s:.3g}" for s in grid["fixed_pixels_per_model_pixel"])
    centre = ", ".join(f"{c:g}" for c in grid["centre_on_fixed_pixel"])
    facts.append(
        (
            "Model grid",
            f"{grid['size']} × {grid['size']}, centred on fixed pixel ({centre}); "
            f"a model pixel is {scale} fixed pixels",
        )
    )
    return facts


def _difference(rms) -> str:
    """Root of the mean squared difference as a share of the fixed image's range."""
    return f"RMS {' → '.join(_both(rms))} of the range"


def _both(score, digits: int = 3) -> tuple[str, str]:
    """Before and after."""
    return number(score["before"], digits), number(score["after"], digits)
