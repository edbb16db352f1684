"""What `register` shows of one pair: overview.png and an interactive report.html.

Slices are arguments of `figures.pair_figure`, one dict for a 2-D pair. The page needs nothing else,
neither a network nor files beside it; a Content-Security-Policy in it forbids both.
"""

import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np

from ldm_morph_jax.report import figures, html
from ldm_morph_jax.report.views import pair_view

_MOST_ROWS = 8  # slices of a stack in overview.png


def write_overview(path: Path, slices: Sequence[Mapping], title: str) -> None:
    """overview.png: images, differences, grid and Jacobian; of a stack, slices evenly chosen."""
    if len(slices) == 1:
        figure = figures.pair_figure(**slices[0], title=title)
    else:
        count = min(_MOST_ROWS, len(slices))
        chosen = np.unique(np.linspace(0, len(slices) - 1, count).round().astype(int))
        figure = figures.pairs_sheet(
            **{
                name: None
                if slices[0][name] is None
                else np.stack([slices[k][name] for k in chosen])
                for name in slices[0]
            },
            captions=[f"slice {k}" for k in chosen],
            title=title,
        )
    path.write_bytes(figures.png_bytes(figure))


def write_report(path: Path, slices: Sequence[Mapping], metrics: Mapping) -> None:
    """report.html: slider and checkerboard before/after, deformed grid, Jacobian map, numbers.

    `metrics` is the content of metrics.json.
    """
    source = importlib.resources.files("ldm_morph_jax.report") / "templates" / "registration.html"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.from_string(source.read_text(encoding="utf-8")).render(
        metrics=metrics,
        moving_name=Path(metrics["moving"]["file"]).name,
        fixed_name=Path(metrics["fixed"]["file"]).name,
        rows=_rows(metrics),
        facts=_facts(metrics),
        slices=[_slice_page(one) for one in slices],
        moving_colour=figures.MOVING_COLOUR,
        fixed_colour=figures.FIXED_COLOUR,
        fold_colour=figures.FOLD_COLOUR,
        jacobian_gradient=html._gradient(figures.JACOBIAN_MAP),
        motion_gradient=html._gradient(figures.MOTION_MAP),
        motion_colours=html._colours(figures.MOTION_MAP, html.MOTION_CLASSES),
    )
    path.write_text(text, encoding="utf-8")


def _slice_page(one: dict) -> dict:
    """Pictures and outlines of a slice for the template."""
    view = pair_view(**one)
    height, width = view.fixed.shape
    folded = np.ma.masked_less_equal(view.jacobian, 0)
    return {
        "width": width,
        "height": height,
        "ratio": f"{width} / {height * view.aspect:g}",
        "moving": html._grey(view.moving, 1.0),
        "fixed": html._grey(view.fixed, 1.0),
        "warped": html._grey(view.warped, 1.0),
        "backdrop": html._grey(view.fixed, 1.8),
        "jacobian": html._coloured(folded, figures.JACOBIAN_MAP, figures.JACOBIAN_NORM),
        "moving_path": html._path(view.moving_lines),
        "fixed_path": html._path(view.fixed_lines),
        "warped_path": html._path(view.warped_lines),
        "grid_paths": html._grid_paths(view),
        "largest": f"{view.magnitude.max():.1f}",
        "motion_limit": f"{max(float(view.magnitude.max()), 1.0):.1f}",
    }


def _rows(metrics) -> list[tuple[str, str, str]]:
    """Scores that have a before and an after."""
    c = metrics["correlation"]
    rows = [("Correlation", _number(c["before"], 3), _number(c["after"], 3))]
    for label, score in metrics.get("dice", {}).items():
        rows.append((f"DSC label {label}", _number(score["before"], 3), _number(score["after"], 3)))
    return rows


def _facts(metrics) -> list[tuple[str, str]]:
    """Everything else, as (name, text)."""
    j, d, grid = metrics["jacobian"], metrics["displacement_mm"], metrics["model_grid"]
    facts = [
        ("Folding, J ≤ 0", f"{j['nonpositive_percent']:.2f} % of the pixels"),
        ("J", f"{j['smallest']:.2f} to {j['largest']:.2f}; SD of log J {_number(j['sd_log'], 3)}"),
        ("Displacement", f"mean {d['mean']:.2f} mm, largest {d['largest']:.2f} mm"),
    ]
    if "refinement" in metrics:
        r, c = metrics["refinement"], metrics["correlation"]
        facts.append(
            (
                "Refinement",
                f"{r['steps']} steps; correlation {_number(c['network'], 3)} → "
                f"{_number(c['after'], 3)}; folding {r['nonpositive_percent_before']:.2f} → "
                f"{r['nonpositive_percent_after']:.2f} %",
            )
        )
    if "inverse" in metrics:
        i = metrics["inverse"]
        facts.append(
            (
                "Inverse",
                f"residual mean {_number(i['residual_mm_mean'], 4)}, "
                f"largest {_number(i['residual_mm_largest'], 4)} mm",
            )
        )
    for name in ("moving", "fixed"):
        image = metrics[name]
        size = " × ".join(str(n) for n in image["shape"])
        spacing = image["spacing_mm"]
        text = "spacing unknown" if spacing is None else f"{spacing[0]:g} × {spacing[1]:g} mm"
        facts.append((f"{name.capitalize()} image", f"{image['file']}; {size} pixels, {text}"))
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


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}f}"
