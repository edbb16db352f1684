"""Numbers of the wall's segments: a row for each, and what they say together.

Of a short-axis slice the segments are sectors; of a stack they are the 16 of the American Heart
Association, each the mean over its pixels in the slices of its level.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ldm_morph_jax.ops import beat
from ldm_morph_jax.ops.segments import REGIONS, outermost
from ldm_morph_jax.registering.heart import strain_column, strain_numbers, way

MIN_PIXELS = 12  # with fewer a segment's mean is not to be trusted
WALL = "wall"
_PERCENT = ("peak", "end_systolic", "post_systolic_index")


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
            row = {
                "segment": region.replace("_", " "),
                "number": REGIONS.index(region) + 1 if region in REGIONS else None,
                "pixels": self.pixels.get(region, 0),
                "trusted": self.trusted(region),
            }
            for direction in self.directions:
                curve = self.curves.get((direction, region))
                if curve is None:
                    continue
                numbers = strain_numbers(curve, direction, self.times, self.end_systole)
                for key, value in numbers.items():
                    if key in _PERCENT:
                        row[f"{direction}_{key}_percent"] = 100 * value
                    else:
                        row[f"{direction}_{key}"] = value
                interval = strains.get(strain_column(direction, region), {}).get("peak_interval")
                if interval is not None:
                    low, high = interval
                    row[f"{direction}_peak_low_percent"] = 100 * low
                    row[f"{direction}_peak_high_percent"] = 100 * high
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
                self.curves[direction, region] for region in self.regions if self.trusted(region)
            ]
            if not trusted:
                continue
            peaks = beat.peaks(
                np.stack(trusted, axis=1), self.times, self.end_systole, way(direction)
            )
            result[direction] = {
                "mechanical_dispersion": beat.mechanical_dispersion(peaks.time),
                "earliest_to_latest": beat.earliest_to_latest(peaks.time),
                "uniformity": self._uniformity(direction),
            }
        return result

    def _uniformity(self, direction) -> float:
        if direction == "longitudinal":
            return float("nan")
        basal, middle = (
            [name for name in self.regions if name.startswith(f"{level}_")]
            for level in ("basal", "mid")
        )
        rings = [basal, middle] if basal or middle else [self.regions]
        rings = [
            np.stack([self.curves[direction, name] for name in ring], axis=1)
            for ring in rings
            if len(ring) == 6 and all(map(self.trusted, ring))
        ]
        return beat.uniformity(np.stack(rings)) if rings else float("nan")


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
                # a slice with no pixel of a segment tells nothing of it, and its curve is NaN
                part = sizes[region] * curve if sizes[region] else np.zeros_like(curve)
                total[key] = total.get(key, 0.0) + part
        for region, size in sizes.items():
            pixels[region] = pixels.get(region, 0) + size
    order = {name: k for k, name in enumerate(REGIONS)}
    pixels = dict(sorted(pixels.items(), key=lambda one: order.get(one[0], -1)))
    curves = {key: curve / (pixels[key[1]] or np.nan) for key, curve in total.items()}
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
