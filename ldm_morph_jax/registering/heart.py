"""Areas, volumes and strain of a tracked heart over time. Definitions: docs/tracking.md.

Strain is Green and Lagrange's, E = (F^T F - I) / 2 with F from the displacement, in the reference
frame's directions: radial and circumferential about the cavity's centroid in short-axis views;
along the endocardial contour (longitudinal) and across it (radial) in apical ones; radial,
circumferential and longitudinal about the long axis in a volume. A value of the wall or of a sector
is the mean over its pixels.

F is fitted within the wall (`strain.regional_gradient`): closely for the radial strain, which
changes within millimetres of depth, more widely for those along the wall, which change slowly.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from ldm_morph_jax.devices.batches import in_chunks
from ldm_morph_jax.files.geometry import patient_letters
from ldm_morph_jax.ops import beat, segments, strain
from ldm_morph_jax.ops.geometry import warp, within_slices
from ldm_morph_jax.ops.jacobian import jacobian_determinant
from ldm_morph_jax.registering.anatomy import Anatomy
from ldm_morph_jax.registering.grid import has_thick_slices
from ldm_morph_jax.registering.result import Tracked

_CHUNK = 8  # frames at once
_MOST_AT_ONCE = 2**21  # voxels of them
# Neighbourhoods of F in mm, chosen on development beats of the phantom (docs/tracking.md).
RADIAL_SIGMA, TANGENTIAL_SIGMA = 1.5, 5.5
MUSCLE_G_PER_ML = 1.05  # Lang et al., J Am Soc Echocardiogr 28:1, 2015, sec. 5
NO_RADIAL = "radial strain: not measured in apical views, on the phantom it is wrong by a quarter"
NO_LONGITUDINAL = "longitudinal strain: not measured in thick slices, which do not show the apex"
LEAST_IN_SLICE = 12  # voxels of the wall that tell how a slice of a volume turns
# How far a cavity may exceed that of the reference, its end-diastole, before the mask is doubted.
LARGEST_EXCESS = 0.05
# Directions in the patient, LPS: from the apex of a heart to its base, and by the main component
# from the first wall of an apical view to the second.
_BASE = np.array([-1.0, 1.0, 1.0])
_SECOND_WALL = np.array([1.0, -1.0, 1.0])
FRACTIONS = {"area": "fractional_area_change", "volume": "ejection_fraction"}  # of the cavity
APICAL_SEGMENTS = (
    "basal_first",
    "middle_first",
    "apical_first",
    "apical_second",
    "middle_second",
    "basal_second",
)


@dataclass(frozen=True)
class Curve:
    """A quantity over time.

    quantity: "area", "volume", "length", "rotation", "twist", "torsion", "strain" or "strain rate".
    region: "cavity", "wall", "endocardium", "long axis", a sector of the wall, or of rotation in a
        volume "base" or "apex".
    unit: "mm2", "ml", "mm", or in pixels where their size is unknown; "deg" of rotation and twist,
        "deg_per_mm" of torsion; of rates "1/s" or "1/frame"; "" for strain, which is a fraction.
    values: `[T]`.
    direction: of strain, "radial", "circumferential" or "longitudinal".
    """

    quantity: str
    region: str
    unit: str
    values: np.ndarray
    direction: str = ""

    @property
    def of_sector(self) -> bool:
        """Whether it is the strain of a sector."""
        return bool(self.direction) and self.region not in ("wall", "endocardium")

    @property
    def column(self) -> str:
        """Its name in curves.csv and summary.json, such as cavity_area_mm2 or radial_strain."""
        if self.direction:
            rate = "_rate" if self.quantity == "strain rate" else ""
            return strain_column(self.direction, self.region) + rate
        return f"{self.label.replace(' ', '_')}_{self.unit}"

    @property
    def label(self) -> str:
        """Its name among others of its quantity."""
        if self.of_sector:
            return self.region.replace("_", " ")
        if self.direction:
            return "endocardial " * (self.region == "endocardium") + self.direction
        if self.quantity == "length":
            return self.region
        named = ("area", "cavity"), ("area", "wall"), ("volume", "wall")
        if (self.quantity, self.region) in named or self.region in ("base", "apex"):
            return f"{self.region} {self.quantity}"
        return self.quantity


def strain_column(direction: str, region: str) -> str:
    """Column of a region's strain in curves.csv."""
    if region == "endocardium":
        return f"endocardial_{direction}_strain"
    return f"{direction}_strain" if region == "wall" else f"{direction}_strain_{region}"


@dataclass(frozen=True)
class Measures:
    """What was measured.

    curves: areas, volumes, lengths, strains and strain rates.
    contours: name -> `[T, N, 2]` pixels, carried to every frame; none of volumes.
    landmarks: name -> `[T, 2]` pixels.
    end_systole: the frame of the smallest volume (apical views and volumes) or cavity area; None
        without a cavity.
    jacobian: (smallest determinant, share of pixels at or below zero).
    notes: what could not be measured, and why.
    pixels: region of the wall ("wall" and its sectors) -> how many pixels it has.
    """

    curves: tuple[Curve, ...]
    contours: dict[str, np.ndarray]
    landmarks: dict[str, np.ndarray]
    end_systole: int | None
    jacobian: tuple[float, float]
    notes: tuple[str, ...]
    pixels: dict[str, int] = field(default_factory=dict)

    @property
    def table(self) -> dict[str, np.ndarray]:
        """Column of curves.csv -> `[T]`."""
        return {curve.column: curve.values for curve in self.curves}


def main_strain(view: str) -> str:
    """The direction of a view's main strain."""
    return "circumferential" if view == "sax" else "longitudinal"


def strain_directions(tracked: Tracked, anatomy: Anatomy) -> tuple[str, ...]:
    """Names of `directions`."""
    if tracked.geometry.dimension == 3:
        return "radial", "circumferential", "longitudinal"
    return "radial", main_strain(anatomy.view)


def measure(tracked: Tracked, anatomy: Anatomy) -> Measures:
    """Measure all that the anatomy allows."""
    frames = _of_frames(tracked, anatomy)
    contours, landmarks = (  # in their order, which a compiled function loses
        {name: frames[kind][name] for name in getattr(anatomy, kind)}
        for kind in ("contours", "landmarks")
    )
    jacobian = float(frames["smallest_jacobian"].min()), float(frames["folded"].mean())
    if not anatomy.has_cavity:
        note = "no areas, volumes or strain: there is neither a mask nor a contour"
        return Measures((), contours, landmarks, None, jacobian, (note,))

    notes: list[str] = []
    of = _curves_of_volume if tracked.geometry.dimension == 3 else _curves_of_slice
    size, curves = of(tracked, anatomy, frames, contours)
    pixels: dict[str, int] = {}
    if anatomy.has_wall:
        sectors, names = wall_sectors(tracked, anatomy)
        pixels["wall"] = int(np.count_nonzero(strained(anatomy)))
        pixels |= {name: int((sectors == n).sum()) for n, name in enumerate(names, start=1)}
        found = {name: k for k, name in enumerate(strain_directions(tracked, anatomy))}
        if anatomy.view == "apical":
            del found["radial"]
            notes.append(NO_RADIAL)
        if tracked.geometry.dimension == 3 and has_thick_slices(tracked.cine.first):
            del found["longitudinal"]
            notes.append(NO_LONGITUDINAL)
        for direction, k in found.items():
            curves.append(Curve("strain", "wall", "", frames["strain"][:, k], direction))
        for direction, k in found.items():
            for n, name in enumerate(names):
                curves.append(Curve("strain", name, "", frames["sectors"][:, k, n], direction))
        notes.append(_walls(tracked, anatomy)[1])
    else:
        notes.append("no strain of the wall: there is no wall (label or contour epi)")
    end_systole, largest = int(size.values.argmin()), int(size.values.argmax())
    excess = size.values[largest] / size.values[tracked.reference] - 1
    if excess > LARGEST_EXCESS:
        notes.append(
            f"doubtful: in frame {largest} the cavity is {100 * excess:.0f} % larger than in the "
            f"reference, frame {tracked.reference}; is the mask or contour that of frame {largest}?"
        )
    rates = [_rate(curve, tracked) for curve in curves if curve.direction and not curve.of_sector]
    return Measures(
        (*curves, *rates), contours, landmarks, end_systole, jacobian, tuple(notes), pixels
    )


def _curves_of_slice(tracked, anatomy, frames, contours) -> tuple[Curve, list[Curve]]:
    """(The size of the cavity, all curves but those of the wall's strain) of a slice."""
    known = tracked.cine.first.spacing_known
    length, area = ("mm", "mm2") if known else ("px", "px2")
    size = Curve("area", "cavity", area, frames["cavity_size"])
    curves = [size]
    if anatomy.has_wall:
        curves.append(Curve("area", "wall", area, frames["wall_size"]))
    if anatomy.view == "apical":
        volume, axis = _volumes(tracked, anatomy, contours["endo"])
        unit, factor = ("ml", 1e-3) if known else ("px3", 1.0)
        size = Curve("volume", "cavity", unit, factor * volume)
        curves += [size, Curve("length", "long axis", length, axis)]
    endo = jnp.asarray(contours["endo"])
    lengths = np.asarray(strain.contour_length(endo, tracked.spacing, closed=anatomy.closed))
    shortening = lengths / lengths[tracked.reference] - 1
    curves.append(Curve("strain", "endocardium", "", shortening, main_strain(anatomy.view)))
    if anatomy.view == "sax":
        outlines = np.concatenate(list(contours.values()), axis=1)
        turned = _turned(tracked, anatomy, outlines)
        curves.append(Curve("rotation", "wall", "deg", turned))
    return size, curves


def _curves_of_volume(tracked, anatomy, frames, _) -> tuple[Curve, list[Curve]]:
    """As `_curves_of_slice`; rotation is that of the wall in the outermost slices."""
    known = tracked.cine.first.spacing_known
    unit, factor = ("ml", 1e-3) if known else ("px3", 1.0)
    size = Curve("volume", "cavity", unit, factor * frames["cavity_size"])
    curves = [size]
    if anatomy.has_wall:
        curves.append(Curve("volume", "wall", unit, factor * frames["wall_size"]))
    if ends := _ends(anatomy):
        base, apex = (
            _turned(tracked, anatomy, frames["ends"][name][..., 1:]) for name in ("base", "apex")
        )
        twist, distance = beat.twist(base, apex), tracked.spacing[0] * abs(ends[0] - ends[1])
        curves += [
            Curve("rotation", "base", "deg", base),
            Curve("rotation", "apex", "deg", apex),
            Curve("twist", "wall", "deg", twist),
            Curve("torsion", "wall", f"deg_per_{'mm' if known else 'px'}", twist / distance),
        ]
    return size, curves


def _turned(tracked, anatomy, points) -> np.ndarray:
    """Rotation over time of points `[T, N, 2]` of a short-axis slice, see `beat.rotation`."""
    turned = beat.rotation(points[tracked.reference], points, tracked.spacing[-2:])
    return -turned if _walls(tracked, anatomy)[0] else turned  # mirrored


def _ends(anatomy) -> tuple[int, int] | None:
    """The outermost slices of a volume between which it twists; None where there are not both."""
    if not (anatomy.levels and anatomy.has_wall):
        return None
    sizes = anatomy.wall.sum(axis=(1, 2))
    return segments.outermost(anatomy.levels, np.flatnonzero(sizes >= LEAST_IN_SLICE).tolist())


def strained(anatomy) -> np.ndarray:
    """The part of the wall whose strain is measured; of a volume, in slices that show the cavity.

    In the cap of the apex, directions about the long axis mean nothing.
    """
    if not anatomy.levels:
        return anatomy.wall
    inside = [level not in (0, segments.CAP) for level in anatomy.levels]
    return anatomy.wall & np.reshape(inside, (-1, 1, 1))


def _rate(curve: Curve, tracked: Tracked) -> Curve:
    """The strain rate of a strain."""
    values = np.asarray(strain.strain_rate(curve.values, jnp.asarray(tracked.times)))
    unit = "1/frame" if tracked.cine.times is None else "1/s"
    return replace(curve, quantity="strain rate", unit=unit, values=values)


def strain_maps(tracked: Tracked, anatomy: Anatomy) -> Iterator[np.ndarray | None]:
    """Strain of the wall where it is in frame t, `[*space]` float32, NaN elsewhere; frame by frame.

    Circumferential in short-axis views and volumes, longitudinal in apical views. None without a
    wall.
    """
    if not (anatomy.has_wall and anatomy.has_cavity):
        yield from (None for _ in tracked.times)
        return
    tangent = directions(tracked, anatomy)[1]
    wall = jnp.asarray(anatomy.wall, jnp.float32)

    @jax.jit
    def there(u, inverse, wall, tangent):
        value = wall_strain(u, wall > 0, tangent, TANGENTIAL_SIGMA, tracked.spacing)
        both = jnp.stack([jnp.where(wall > 0, value, 0), jnp.broadcast_to(wall, value.shape)], -1)
        value, share = jnp.moveaxis(warp(both, inverse), -1, 0)
        return jnp.where(share > 0.5, value / jnp.maximum(share, 0.5), jnp.nan)

    chunk = _chunk(tracked)
    for first in range(0, len(tracked.times), chunk):
        rows = slice(first, first + chunk)
        yield from in_chunks(
            lambda u, inverse: there(u, inverse, wall, tangent),
            chunk,
            tracked.displacement[rows],
            tracked.inverse[rows],
        )


def summary(
    tracked: Tracked,
    anatomy: Anatomy,
    measures: Measures,
    valves: Mapping[str, float] = MappingProxyType({}),
) -> dict:
    """Numbers of the curves: at the reference and end-systole, fractions, peaks and their times.

    valves: times of `beat.VALVES` in ms from the reference frame, where they are known.
    """
    result: dict = {"reference": tracked.reference, "end_systole": measures.end_systole}
    if valves:
        result["valves_ms"] = dict(valves)
    if tracked.period is not None and tracked.cine.times is not None:
        result["heart_rate_per_min"] = 60 / tracked.period
    at = tracked.times - tracked.times[tracked.reference]
    if measures.end_systole is not None:  # else nothing is measured
        systole_ends = end_of_systole(at, measures.end_systole, valves)
    ends = {"reference": tracked.reference, "end_systole": measures.end_systole}
    strains = {}
    for curve in measures.curves:
        if curve.quantity == "strain":
            strains[curve.column] = {
                "direction": curve.direction,
                "region": curve.region,
                **strain_numbers(curve.values, curve.direction, at, systole_ends),
            }
        elif curve.quantity == "strain rate":  # of the whole cine: its phases need not be known
            strains[strain_column(curve.direction, curve.region)] |= {
                "lowest_rate": float(curve.values.min()),
                "highest_rate": float(curve.values.max()),
            }
        else:
            values = {when: float(curve.values[t]) for when, t in ends.items()}
            result[curve.column] = values
            if curve.region == "cavity":
                change = strain.fractional_change(*values.values())
                result[FRACTIONS[curve.quantity]] = float(change)
    if tracked.geometry.dimension == 3:
        result |= _of_ventricle(measures, tracked.reference)
    result["strain"] = strains
    result["segment_pixels"] = measures.pixels
    region = anatomy.wall if anatomy.has_wall else np.ones(tracked.geometry.shape, bool)
    if tracked.whole_beat and tracked.unconstrained_last is not None:
        first, last = tracked.displacement[0], tracked.displacement[-1]
        result["drift_px"] = {
            "registered_alone": _mean_length(tracked.unconstrained_last - first, region),
            "tracked": _mean_length(last - first, region),
        }
    if anatomy.has_cavity and anatomy.has_wall:
        result["mask_contrast"] = _contrast(tracked.cine.frames, anatomy).tolist()
    smallest, folded = measures.jacobian
    result["jacobian"] = {"smallest": smallest, "nonpositive_percent": 100 * folded}
    return result


def _of_ventricle(measures: Measures, reference: int) -> dict:
    """Numbers that only a volume gives: stroke volume, mass, the largest twist."""
    curves, es = measures.table, measures.end_systole
    found: dict = {}
    for unit in ("ml", "px3"):
        if f"volume_{unit}" in curves:
            volume = curves[f"volume_{unit}"]
            found[f"stroke_volume_{unit}"] = float(volume[reference] - volume[es])
    if "wall_volume_ml" in curves:
        found["mass_g"] = float(MUSCLE_G_PER_ML * curves["wall_volume_ml"][reference])
    if "twist_deg" in curves:
        [torsion] = [c for c in measures.curves if c.quantity == "torsion"]
        found["twist"] = twist_numbers(curves["twist_deg"], torsion.values, torsion.unit, es)
    return found


def twist_numbers(twist: np.ndarray, torsion: np.ndarray, unit: str, end_systole: int) -> dict:
    """Peak and end-systolic values of twist in degrees and torsion in `unit`, `[T]` each."""
    peak = int(np.abs(twist).argmax())
    return {
        "peak_deg": float(twist[peak]),
        f"peak_{unit}": float(torsion[peak]),
        "end_systolic_deg": float(twist[end_systole]),
    }


def way(direction: str) -> int:
    """The sign of a strain in systole, as in `ops.beat`."""
    return beat.THICKENING if direction == "radial" else beat.SHORTENING


def end_of_systole(times: np.ndarray, end_systole: int, valves: Mapping[str, float]) -> float:
    """The time of end-systole: that of aortic valve closure where it is given, else of the frame.

    Valves are in ms (Voigt 2015, sec. 3.1). All times count from the reference frame.
    """
    if "AVC" in valves:
        return valves["AVC"] / 1000
    return float(times[end_systole])


def strain_numbers(
    curve: np.ndarray, direction: str, times: np.ndarray, end_systole: float
) -> dict[str, float]:
    """Peak, timing and rates of a strain curve `[T]`; `times` count from the reference frame."""
    peak = beat.peaks(curve, times, end_systole, way(direction))
    rates = beat.peak_rates(curve, times, end_systole, way(direction))
    names = ("peak", "time_to_peak", "end_systolic", "post_systolic_index")
    numbers = dict(zip(names, peak, strict=True))
    numbers |= {f"{name}_rate": value for name, value in rates._asdict().items()}
    return {name: float(value) for name, value in numbers.items()}


# ---------------------------------------------------------------------------- helpers


def _contrast(frames: np.ndarray, anatomy: Anatomy) -> np.ndarray:
    """Contrast of cavity and wall under the reference frame's mask, in every frame, `[T]`.

    The difference of their mean grey values over their mean standard deviation.
    """
    cavity, wall = (
        frames[:, region].astype(np.float64) for region in (anatomy.cavity, anatomy.wall)
    )
    spread = np.sqrt((cavity.var(axis=1) + wall.var(axis=1)) / 2)
    return np.abs(cavity.mean(axis=1) - wall.mean(axis=1)) / np.maximum(spread, 1e-9)


def wall_strain(u, wall, direction, sigma, spacing):
    """Strain along unit vectors `[*space, n]`, `[..., *space]`; to be used in the wall alone."""
    gradient = strain.regional_gradient(u, wall, sigma, spacing)
    return strain.normal_strain(strain.green_lagrange(gradient), direction)


def wall_strains(u, wall, normals, spacing) -> list[jax.Array]:
    """`wall_strain` along each of `directions`."""
    sigmas = (RADIAL_SIGMA, *[TANGENTIAL_SIGMA] * (len(normals) - 1))
    return [
        wall_strain(u, wall, normal, sigma, spacing)
        for normal, sigma in zip(normals, sigmas, strict=True)
    ]


def _mean_length(u, region) -> float:
    return float(np.linalg.norm(u, axis=-1)[region].mean())


def _volumes(tracked, anatomy, endo) -> tuple[np.ndarray, np.ndarray]:
    """(volumes, lengths of the long axis) in the unit of the spacing, `[T]` each."""
    cavity = jnp.asarray(anatomy.cavity, jnp.float32)[..., None]
    bases = (endo[:, 0] + endo[:, -1]) / 2  # where the wall ends on either side

    def of_frame(ventricle, base):
        apex, _ = strain.long_axis(ventricle > 0.5, base, tracked.spacing)
        length = jnp.linalg.norm((apex - base) * jnp.asarray(tracked.spacing))
        return strain.disc_volume(ventricle, apex, base, tracked.spacing), length

    @jax.jit
    def volumes(inverse, base):
        carried = warp(jnp.broadcast_to(cavity, (*inverse.shape[:3], 1)), inverse)[..., 0]
        return jax.vmap(of_frame)(carried, base)

    return in_chunks(volumes, _CHUNK, tracked.inverse, bases.astype(np.float32))


def directions(tracked: Tracked, anatomy: Anatomy) -> tuple[jax.Array, ...]:
    """(radial, circumferential or longitudinal) unit vectors `[*space, n]`; of volumes all 3."""
    points = jnp.stack(jnp.indices(tracked.geometry.shape), axis=-1).astype(jnp.float32)
    if tracked.geometry.dimension == 3:
        centre, axis = strain.slice_axis(anatomy.cavity, tracked.spacing)
        return strain.cylinder_directions(points, centre + 1e-3, axis, tracked.spacing)
    if anatomy.view == "sax":
        return strain.polar_directions(points, anatomy.centre + 1e-3, tracked.spacing)
    endo = jnp.asarray(anatomy.contours["endo"], jnp.float32)
    return strain.contour_directions(points, endo, tracked.spacing)


def wall_sectors(tracked: Tracked, anatomy: Anatomy) -> tuple[np.ndarray, tuple[str, ...]]:
    """(numbers from 1 of sectors within the wall `[*space]`, their names); no name, no sectors."""
    numbers = np.zeros(tracked.geometry.shape, np.int32)
    if anatomy.view == "sax" and anatomy.septum is None:
        return numbers, ()
    reverse, _ = _walls(tracked, anatomy)
    if tracked.geometry.dimension == 3:
        return _segments_of_volume(tracked, anatomy, reverse)
    if anatomy.view == "sax":
        points = np.stack(np.indices(tracked.geometry.shape), axis=-1)
        level = anatomy.level or segments.BASAL
        numbers = segments.segments(
            points, anatomy.centre, anatomy.septum, level, tracked.spacing, mirrored=reverse
        )
        first, count = segments.NUMBERS[level]
        names = segments.REGIONS[first - 1 : first - 1 + count]
        if not anatomy.level:
            names = tuple(name.removeprefix("basal_") for name in names)
        return np.where(anatomy.wall, numbers - first + 1, 0), names
    from scipy.spatial import KDTree

    endo = anatomy.contours["endo"]
    along = np.asarray(strain.contour_segments(jnp.asarray(endo), 6, tracked.spacing))
    pixels = np.argwhere(anatomy.wall)
    nearest = KDTree(endo * tracked.spacing).query(pixels * tracked.spacing)[1]
    numbers[tuple(pixels.T)] = along[nearest]
    if reverse:
        numbers = np.where(numbers, len(APICAL_SEGMENTS) + 1 - numbers, 0)
    return numbers, APICAL_SEGMENTS


def _segments_of_volume(tracked, anatomy, mirrored) -> tuple[np.ndarray, tuple[str, ...]]:
    """As `wall_sectors`: those of the 16 segments that a volume shows, about its long axis.

    The septum lies in one direction in all slices.
    """
    numbers = np.zeros(tracked.geometry.shape, np.int32)
    centre, axis = strain.slice_axis(anatomy.cavity, tracked.spacing)
    slope = axis[1:] / tracked.spacing[1:] / (axis[0] / tracked.spacing[0])  # pixels per slice
    points = np.stack(np.indices(numbers.shape[1:]), axis=-1)
    for k in np.flatnonzero(strained(anatomy).any(axis=(1, 2))):
        middle = centre[1:] + slope * (k - centre[0])
        septum = middle + anatomy.septum - centre[1:]
        level, spacing = anatomy.levels[k], tracked.spacing[1:]
        found = segments.segments(points, middle, septum, level, spacing, mirrored=mirrored)
        numbers[k] = np.where(anatomy.wall[k], found, 0)
    shown = np.unique(numbers[numbers > 0])
    names = tuple(segments.REGIONS[n - 1] for n in shown)
    return np.searchsorted(shown, numbers) + 1 - (numbers == 0), names


def _walls(tracked, anatomy) -> tuple[bool, str]:
    """(Whether sectors are numbered the other way round than on an unmirrored image, what to note).

    A short-axis array is mirrored where its columns and rows, whose cross product points to the
    base of the heart on an image seen from the apex, have it point to the apex: to the left, the
    front and the feet. The slices of a volume say where the base is. The first wall of an apical
    view is the one on the patient's right or, where the walls lie above or in front of each other,
    the lower or the rear one: septal in four-chamber and inferior in two-chamber views.
    """
    directions = tracked.cine.first.axis_directions
    if anatomy.view == "sax":
        if anatomy.septum is None:
            return (
                False,
                "no sectors: neither a given septum nor a right ventricle tells where it is",
            )
        if directions is None:
            return False, (
                "names of sectors assume an image as usually shown, seen from the apex and not "
                "mirrored: the file does not tell its orientation"
            )
        base = _BASE / np.linalg.norm(_BASE)
        if ends := _ends(anatomy):
            base = directions[0] * np.sign(ends[0] - ends[1])
        to_base = np.cross(directions[-1], directions[-2]) @ base
        if abs(to_base) < 0.3:
            return bool(to_base < 0), (
                "names of sectors are doubtful: this plane does not lie across the left ventricle "
                "of a heart in the usual place; is it a short-axis view?"
            )
        return bool(to_base < 0), "names of sectors follow the patient's directions in the file"
    endo = anatomy.contours["endo"]
    across = (endo[-1] - endo[0]) * tracked.spacing  # from the first wall to the second, mm
    if directions is None:
        side = "left" if across[1] > 0 else "right"
        return False, f"the first wall is the {side} one on the image as it is stored"
    in_patient = across @ directions
    main = np.argmax(np.abs(in_patient))
    reverse = in_patient[main] * _SECOND_WALL[main] < 0
    towards = patient_letters(in_patient if reverse else -in_patient, at_most=1)
    return bool(reverse), f"the first wall is the one towards {towards} in the patient"


def _of_frames(tracked, anatomy) -> dict:
    """All that is measured of displacements, `[T, ...]` each, in one pass over the frames."""
    with_strain, normals = anatomy.has_wall and anatomy.has_cavity, ()
    space = tuple(range(1, tracked.geometry.dimension + 1))
    regions = {"cavity": anatomy.cavity, "wall": anatomy.wall}
    ends = {
        name: np.insert(np.argwhere(anatomy.wall[k]), 0, k, axis=1)
        for name, k in zip(("base", "apex"), _ends(anatomy) or (), strict=False)
    }
    if with_strain:
        normals = directions(tracked, anatomy)
        regions["strained"] = strained(anatomy)
        regions["sector"], names = wall_sectors(tracked, anatomy)
        count = max(1, len(names))
    regions = {k: jnp.asarray(mask, jnp.int32) for k, mask in regions.items() if mask is not None}

    def cavity_size(u, inverse, cavity):
        if inverse is None:
            return strain.region_size(u, cavity, tracked.spacing)
        # of a volume as contours in the slices of the frame have it: its base leaves the slices
        cavity = cavity[None, ..., None].astype(jnp.float32)
        carried = warp(jnp.broadcast_to(cavity, (*u.shape[:-1], 1)), inverse)[..., 0]
        return (carried * within_slices(inverse)).sum(space) * math.prod(tracked.spacing)

    # regions and directions are arguments: what follows from constants the compiler computes
    @jax.jit
    def of_chunk(u, inverse, regions, normals):
        def move(points):
            return strain.move_points(jnp.asarray(points, jnp.float32), u)

        determinant = jacobian_determinant(u)
        measured = {
            "contours": {name: move(points) for name, points in anatomy.contours.items()},
            "landmarks": {name: move(point) for name, point in anatomy.landmarks.items()},
            "ends": {name: move(points) for name, points in ends.items()},
            "smallest_jacobian": determinant.min(axis=space),
            "folded": (determinant <= 0).mean(axis=space),
        }
        if "cavity" in regions:
            measured["wall_size"] = strain.region_size(u, regions["wall"], tracked.spacing)
            measured["cavity_size"] = cavity_size(u, inverse, regions["cavity"])
        if with_strain:
            values = wall_strains(u, regions["wall"], normals, tracked.spacing)
            values = jnp.stack(values, axis=1)
            measured["strain"] = strain.regional_mean(values, regions["strained"], 1)[..., 0]
            measured["sectors"] = strain.regional_mean(values, regions["sector"], count)
        return measured

    inverse = tracked.inverse if tracked.geometry.dimension == 3 else None
    return in_chunks(
        lambda u, inverse: of_chunk(u, inverse, regions, normals),
        _chunk(tracked),
        tracked.displacement,
        inverse,
    )


def _chunk(tracked) -> int:
    """Frames at once; volumes bound the memory."""
    return max(1, min(_CHUNK, _MOST_AT_ONCE // math.prod(tracked.geometry.shape)))
