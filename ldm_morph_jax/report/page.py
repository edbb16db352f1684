"""What every HTML page shares: its template, and pictures and curves embedded in it.

A page needs nothing else, neither a network nor files beside it. Images are embedded at their own
resolution; outlines and grids are vectors on top, so they stay sharp at any size.
"""

import base64
import io
from collections.abc import Callable, Iterable, Mapping

import jinja2
import numpy as np
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from ldm_morph_jax.report.style import (
    DIFFERENCE_MAP,
    FIXED_COLOUR,
    FOLD_COLOUR,
    JACOBIAN_MAP,
    JACOBIAN_NORM,
    MOTION_MAP,
    MOVING_COLOUR,
    png_bytes,
    series_colours,
)
from ldm_morph_jax.report.views import PairView

MOTION_CLASSES = 8  # colours of the deformed grid


def render(template: str, **values) -> str:
    """A file of report/templates filled in; values are escaped, a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ldm_morph_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def theme() -> dict:
    """What page.css asks for."""
    return {
        "light_series": series_colours(dark=False),
        "dark_series": series_colours(dark=True),
        "moving_colour": MOVING_COLOUR,
        "fixed_colour": FIXED_COLOUR,
        "fold_colour": FOLD_COLOUR,
    }


def provenance(content: Mapping) -> str:
    """Software, method and weights, from the content of metrics.json or summary.json."""
    software = content["software"]
    parts = [
        f"{software['name']} {software['version']}",
        f"made {software['date'].replace('T', ' ').replace('+00:00', ' UTC')}",
        f"method {content['method']}",
    ]
    if content.get("model"):
        parts.append(f"model {content['model']}")
    if software["weights_sha256"]:
        parts.append(f"weights sha256 {software['weights_sha256']}")
    return " · ".join(parts)


def colours() -> dict:
    """The colours that templates with pairs ask for."""
    return {
        **theme(),
        "difference_gradient": _gradient(DIFFERENCE_MAP),
        "jacobian_gradient": _gradient(JACOBIAN_MAP),
        "motion_gradient": _gradient(MOTION_MAP),
        "motion_colours": _samples(MOTION_MAP, MOTION_CLASSES),
    }


def pair_pictures(view: PairView, white: float) -> dict:
    """A pair's images, maps and curves as the templates show them.

    white: the value that is shown white; for display only.
    """
    height, width = view.moving.shape
    folded = np.ma.masked_less_equal(view.jacobian, 0)
    scale = Normalize(0, view.difference_limit)
    return {
        "width": width,
        "height": height,
        "ratio": f"{width} / {height * view.aspect:g}",
        "moving": _grey(view.moving, white),
        "fixed": _grey(view.fixed, white),
        "warped": _grey(view.warped, white),
        "backdrop": _grey(view.fixed, 1.8 * white),
        "before": _coloured(view.difference_before, DIFFERENCE_MAP, scale),
        "after": _coloured(view.difference_after, DIFFERENCE_MAP, scale),
        "difference_limit": f"{view.difference_limit:.2f}",
        "jacobian": _coloured(folded, JACOBIAN_MAP, JACOBIAN_NORM),
        "moving_path": svg_path(view.moving_lines),
        "fixed_path": svg_path(view.fixed_lines),
        "warped_path": svg_path(view.warped_lines),
        "grid_paths": _grid_paths(view),
        "largest": f"{view.magnitude.max():.1f}",
        "motion_limit": f"{view.motion_limit:.1f}",
    }


def picture_uri(picture: Image.Image, kind: str = "PNG", **options) -> str:
    """The address of a picture that is embedded as a file of that kind."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return file_uri(buffer.getvalue(), kind.lower())


def file_uri(content: bytes, kind: str = "png") -> str:
    """The address of an embedded file."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def both_themes(draw: Callable[[bool], Figure]) -> dict[str, str]:
    """A plot drawn for a light and for a dark page (`draw(dark)`); the page shows what fits."""
    return {
        theme: file_uri(png_bytes(draw(theme == "dark"), dpi=160, transparent=True))
        for theme in ("light", "dark")
    }


def _grey(image, white) -> str:
    return _pixels_uri(np.round(255 * np.clip(image / white, 0, 1)).astype(np.uint8))


def _coloured(values, cmap: Colormap, norm) -> str:
    return _pixels_uri(cmap(norm(values), bytes=True)[..., :3])


def _pixels_uri(pixels: np.ndarray) -> str:
    return picture_uri(Image.fromarray(pixels), optimize=True)


def svg_path(lines: Iterable[np.ndarray], *, digits: int = 2, closed: bool = False) -> str:
    """Polylines (row, column); pixel (r, c) has its centre at (c + 0.5, r + 0.5)."""
    return "".join(
        "M" + "L".join(f"{c + 0.5:.{digits}f} {r + 0.5:.{digits}f}" for r, c in line) + "Z" * closed
        for line in lines
    )


def _grid_paths(view: PairView) -> list[str]:
    """The deformed grid as one path per class of |u|."""
    pieces: list[list[np.ndarray]] = [[] for _ in range(MOTION_CLASSES)]
    for line in view.grid:
        share = view.magnitude_at((line[:-1] + line[1:]) / 2) / view.motion_limit
        classes = np.minimum((share * MOTION_CLASSES).astype(int), MOTION_CLASSES - 1)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(classes)) + 1, [len(classes)]])
        for first, last in zip(starts[:-1], starts[1:], strict=True):
            pieces[classes[first]].append(line[first : last + 1])
    return [svg_path(lines) for lines in pieces]


def _samples(cmap: Colormap, count: int) -> list[str]:
    samples = cmap(np.linspace(0, 1, count), bytes=True)[:, :3]
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in samples]


def _gradient(cmap: Colormap) -> str:
    return f"linear-gradient(to right, {', '.join(_samples(cmap, 11))})"
