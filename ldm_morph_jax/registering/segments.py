"""Numbers of the wall's segments: a row for each, and what they say together.

Of a short-axis slice the segments are sectors; of a stack they are the 16 of the American Heart
Association, each the mean over its pixels in the slices of its level.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ldm_morph_jax.ops import beat
from ldm_morph_jax.ops.segments import NAMES, outermost
from ldm_morph_jax.registering.heart import Curve, strain_column, strain_numbers, way

MIN_PIXELS = 12  # with fewer a segment's mean is not to be trusted
WALL = "wall"
_TIMING = ("mechanical_dispersion", "earliest_to_latest", "uniformity")


@dataclass(frozen=True)
class Segments:
    """Strain of the wall by segment.

    curves: (direction, region) -> `[T]`; a region is "wall" or a segment.
    pixels: region -> how many it has, in all slices.
    times: `[T]` from the reference frame.
    end_systole: a time.
    """

    curves: Mapping[tuple[str, str], np.ndarray]
    pixels: Mapping[str, int]
    times: np.ndarray
    end_systole: float

    @property
    def regions(self) -> list[str]:
        """The segments, without the wall."""
        return [name for name in self.pixels if name != WALL]

    @property
    def directions(self) -> list[str]:
        return list(dict.fromkeys(direction for direction, _ in self.curves))

    def trusted(self, region: str) -> bool:
        return self.pixels.get(region, 0) >= MIN_PIXELS

    def rows(self, strains: Mapping[str, Mapping] = MappingProxyType({})) -> list[dict]:
        """A row per segment, the wall first; strain in percent, times as they are.

        A segment that is not trusted has its numbers, and says so.

        strains: column of curves.csv -> numbers as in summary.json, whose intervals are shown.
        """
        found = []
        for region in (WALL, *self.regions):
            name = region.replace("_", " ")
            row = {
                "segment": name,
                "number": NAMES.index(name) + 1 if name in NAMES else None,
                "pixels": self.pixels.get(region, 0),
                "trusted": self.trusted(region),
            }
            for direction in self.directions:
                curve = self.curves.get((direction, region))
                if curve is not None:
                    row |= _numbers(curve, direction, self.times, self.end_systole)
                    column = strain_column(direction, region)
                    ends = strains.get(column, {}).get("peak_interval")
                    if ends is not None:
                        names = (f"{direction}_peak_{end}_percent" for end in ("low", "high"))
                        row |= {name: 100 * end for name, end in zip(names, ends, strict=True)}
            found.append(row)
        return found

    @property
    def table(self) -> dict[str, np.ndarray]:
        """Column of curves.csv -> `[T]`."""
        return {strain_column(*key): curve for key, curve in self.curves.items()}

    def summary(self) -> dict[str, dict]:
        """Column -> its numbers, as in the summary of a slice."""
        return {
            strain_column(direction, region): {
                "direction": direction,
                "region": region,
                **strain_numbers(curve, direction, self.times, self.end_systole),
            }
            for (direction, region), curve in self.curves.items()
        }

    def timing(self) -> dict[str, dict[str, float]]:
        """Direction -> what the trusted segments say together, see `ops.beat`.

        "uniformity" is CURE or RURE of the six segments of the basal and of the middle level, or of
        a slice; it needs all six, and is NaN of apical views.
        """
        result = {}
        for direction in self.directions:
            trusted = [
                self.curves[direction, region]
                for region in self.regions
                if self.trusted(region) and (direction, region) in self.curves
            ]
            if not trusted:
                continue
            peaks = beat.peaks(
                np.stack(trusted, axis=1), self.times, self.end_systole, way(direction)
            )
            values = (
                beat.mechanical_dispersion(peaks.time),
                beat.earliest_to_latest(peaks.time),
                self._uniformity(direction),
            )
            result[direction] = dict(zip(_TIMING, values, strict=True))
        return result

    def _uniformity(self, direction) -> float:
        if direction == "longitudinal":
            return float("nan")
        names = [name for name in self.regions if (direction, name) in self.curves]
        rings = (
            [[name for name in names if name.startswith(level)] for level in ("basal_", "mid_")]
            if any(name.startswith(("basal_", "mid_")) for name in names)
            else [names]
        )
        rings = [
            np.stack([self.curves[direction, name] for name in ring], axis=1)
            for ring in rings
            if len(ring) == 6 and all(map(self.trusted, ring))
        ]
        return beat.uniformity(np.stack(rings)) if rings else float("nan")


def segments_of(
    curves: Sequence[Curve], pixels: Mapping[str, int], times: np.ndarray, end_systole: float
) -> Segments:
    """Segments of one slice; `times` and `end_systole` count from the reference frame."""
    strains = {
        (curve.direction, curve.region): curve.values
        for curve in curves
        if curve.quantity == "strain" and (curve.region == WALL or curve.of_sector)
    }
    return Segments(strains, pixels, times, end_systole)


def merged(slices: Sequence[Mapping], times: np.ndarray, end_systole: float) -> Segments:
    """Segments of a stack: means over the pixels of its slices (their summary.json)."""
    total, pixels = {}, {}
    for record in slices:
        sizes = record.get("segment_pixels") or {}
        for one in record.get("strain", {}).values():
            region = one["region"]
            if region in sizes:
                key = one["direction"], region
                curve = np.array(record["curves"][strain_column(*key)], np.float64)
                curve = sizes[region] * curve
                total[key] = total.get(key, 0.0) + curve
        for region, size in sizes.items():
            pixels[region] = pixels.get(region, 0) + size
    order = {name.replace(" ", "_"): k for k, name in enumerate(NAMES)}
    pixels = dict(sorted(pixels.items(), key=lambda one: order.get(one[0], -1)))
    curves = {key: curve / pixels[key[1]] for key, curve in total.items()}
    return Segments(curves, pixels, times, end_systole)


def twist_of(slices: Sequence[Mapping], levels: np.ndarray, places: np.ndarray) -> dict | None:
    """Twist and torsion between the outermost basal and apical slice that tell their rotation.

    places: of the slices along the long axis, mm. Returns their curves and between which slices;
    None where there are not both.
    """
    known = [k for k, one in enumerate(slices) if "rotation_deg" in one.get("curves", {})]
    ends = outermost(levels, known)
    if ends is None:
        return None
    base, apex = ends
    rotation = [np.array(slices[k]["curves"]["rotation_deg"]) for k in (base, apex)]
    twisted = beat.twist(*rotation)
    return {
        "slices": [base, apex],
        "twist_deg": twisted,
        "torsion_deg_per_mm": beat.torsion(twisted, float(abs(places[base] - places[apex]))),
    }


def _numbers(curve, direction, times, end_systole) -> dict[str, float]:
    found = strain_numbers(curve, direction, times, end_systole)
    percent = ("peak", "end_systolic", "post_systolic_index")
    return {
        f"{direction}_{name}{'_percent' * (name in percent)}": value
        * (100 if name in percent else 1)
        for name, value in found.items()
    }
