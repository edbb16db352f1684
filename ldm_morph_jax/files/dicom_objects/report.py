"""Measurements as a DICOM structured report (TID 1500, Comprehensive SR).

A group for the whole ventricle and one for every segment of the wall. Quantities have codes of
DICOM, SNOMED CT or LOINC where there is one that means the same; what has none has a code of ours,
in the scheme 99LDMMORPH. Units are UCUM's.

An interval goes into the properties of its measurement (TID 310): how far it reaches above and
below the value, as the ranges of upper and lower measurement uncertainty of CID 225, in the unit of
the value. DICOM has no code for how often such a range holds, nor for what it was calibrated on.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm_morph_jax.files.dicom_objects.source import (
    MAKER,
    MODEL,
    Series,
    Source,
    need_highdicom,
    save,
)

SCHEME = "99LDMMORPH"
# name -> (code, scheme, meaning)
QUANTITIES = {
    "circumferential_strain": ("130677", "DCM", "Circumferential Lagrangian Strain"),
    "radial_strain": ("130675", "DCM", "Radial Lagrangian Strain"),
    "longitudinal_strain": ("130670", "DCM", "Longitudinal Lagrangian Strain"),
    "circumferential_strain_rate": ("130678", "DCM", "Circumferential Lagrangian Strain Rate"),
    "radial_strain_rate": ("130676", "DCM", "Radial Lagrangian Strain Rate"),
    "longitudinal_strain_rate": ("130674", "DCM", "Longitudinal Lagrangian Strain Rate"),
    "mechanical_dispersion": ("130673", "DCM", "Mechanical Dispersion"),
    "time_to_peak": ("113069", "DCM", "Time To Peak"),
    "end_diastolic_volume": ("18026-5", "LN", "Left Ventricular End Diastolic Volume"),
    "end_systolic_volume": ("18148-7", "LN", "Left Ventricular End Systolic Volume"),
    "ejection_fraction": ("70822001", "SCT", "Cardiac ejection fraction"),
    "end_diastolic_area": ("399109006", "SCT", "Left Ventricular Diastolic Area"),
    "end_systolic_area": ("399030000", "SCT", "Left Ventricular Systolic Area"),
    "fractional_area_change": ("399287000", "SCT", "Left Ventricular Fractional Area Change"),
    "post_systolic_index": ("PSI", SCHEME, "Post-systolic Index"),
    "circumferential_uniformity": ("CURE", SCHEME, "Circumferential Uniformity Ratio Estimate"),
    "radial_uniformity": ("RURE", SCHEME, "Radial Uniformity Ratio Estimate"),
    "earliest_to_latest": ("DELAY", SCHEME, "Delay from Earliest to Latest Peak"),
    "twist": ("TWIST", SCHEME, "Left Ventricular Twist"),
    "torsion": ("TORSION", SCHEME, "Left Ventricular Torsion"),
}
METHODS = {
    "endocardial": ("130683", "DCM", "Endocardial Method"),
    "wall": ("GREEN", SCHEME, "Green-Lagrange strain, mean over the wall"),
    "discs": ("125208", "DCM", "Method of Disks, Single Plane"),
    "slices": ("122562", "DCM", "Multiple Slices"),
}
UNITS = {
    "%": "Percent",
    "ml": "Milliliter",
    "mm2": "Square millimeter",
    "s": "Seconds",
    "ms": "Milliseconds",
    "/s": "Per second",
    "deg": "Degrees of plane angle",
    "deg/mm": "Degrees per millimeter",
    "1": "no units",
}
# of the American Heart Association's segments, 1 to 17, as in CID 3717
SEGMENTS = {
    1: ("264850008", "left ventricle basal anterior segment"),
    2: ("396482007", "left ventricle basal anteroseptal segment"),
    3: ("396646008", "left ventricle basal inferoseptal segment"),
    4: ("264846001", "left ventricle basal inferior segment"),
    5: ("396652009", "left ventricle basal inferolateral segment"),
    6: ("396654005", "left ventricle basal anterolateral segment"),
    7: ("264848000", "left ventricle mid anterior segment"),
    8: ("396647004", "left ventricle mid anteroseptal segment"),
    9: ("396649001", "left ventricle mid inferoseptal segment"),
    10: ("264847005", "left ventricle mid inferior segment"),
    11: ("396655006", "left ventricle mid inferolateral segment"),
    12: ("396656007", "left ventricle mid anterolateral segment"),
    13: ("264844003", "left ventricle apical anterior segment"),
    14: ("264845002", "left ventricle apical septal segment"),
    15: ("264849008", "left ventricle apical inferior segment"),
    16: ("264853005", "left ventricle apical lateral segment"),
    17: ("128564006", "Apex of left ventricle"),
}
_VENTRICLE = ("87878005", "Left ventricle")
ABOVE = ("371886008", "SCT", "+, range of upper measurement uncertainty")
BELOW = ("371885007", "SCT", "-, range of lower measurement uncertainty")
COVERAGE = ("COVERAGE", SCHEME, "Nominal coverage of the range of measurement uncertainty")
CALIBRATION = ("CALIBRATION", SCHEME, "Calibration of the range of measurement uncertainty")


@dataclass(frozen=True)
class Interval:
    """Where the true value lies.

    low, high: in the unit of the measurement; the value is between them.
    coverage: how often it does, a fraction.
    calibration: what that rests on, for people.
    """

    low: float
    high: float
    coverage: float
    calibration: str


@dataclass(frozen=True)
class Measurement:
    """A number.

    quantity: in `QUANTITIES`.
    value, unit: the unit one of `UNITS`; strain and fractions in percent.
    label: what it is among others of its quantity, such as "peak" or "end-systolic".
    method: in `METHODS`, or None.
    frames: (from 0) of the source that it was taken from; none: of all.
    interval: None where there is none.
    """

    quantity: str
    value: float
    unit: str
    label: str = ""
    method: str | None = None
    frames: tuple[int, ...] = ()
    interval: Interval | None = None


@dataclass(frozen=True)
class Group:
    """Measurements of one place.

    name: for people.
    segment: of the wall, 1 to 17; None: the left ventricle.
    """

    name: str
    measurements: tuple[Measurement, ...]
    segment: int | None = None


def write_report(path: str | Path, groups: Sequence[Group], source: Source, series: Series) -> None:
    """Write the measurements; those that are not finite are left out, and groups without any.

    Raises FileError where highdicom is missing, ValueError where no measurement is left.
    """
    need_highdicom(path)
    from highdicom import sr
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    from ldm_morph_jax import __version__

    algorithm = sr.AlgorithmIdentification(MODEL, __version__, manufacturer=MAKER)

    def measurement(one: Measurement):
        images = [
            sr.SourceImageForMeasurement(
                frame.header.SOPClassUID,
                frame.header.SOPInstanceUID,
                None if frame.number is None else [frame.number],
            )
            for t in one.frames
            for frame in source.frames[t]
        ]
        return sr.Measurement(
            name=Code(*QUANTITIES[one.quantity]),
            value=round(float(one.value), 6),
            unit=Code(one.unit, "UCUM", UNITS[one.unit]),
            tracking_identifier=sr.TrackingIdentifier(
                generate_uid(), f"{one.label} {one.quantity.replace('_', ' ')}".strip()
            ),
            algorithm_id=algorithm,
            method=None if one.method is None else Code(*METHODS[one.method]),
            properties=None if one.interval is None else _properties(one),
            referenced_images=images or None,
        )

    content = []
    for group in groups:
        finite = [one for one in group.measurements if math.isfinite(one.value)]
        if not finite:
            continue
        code, meaning = _VENTRICLE if group.segment is None else SEGMENTS[group.segment]
        content.append(
            sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(generate_uid(), group.name),
                finding_sites=[sr.FindingSite(Code(code, "SCT", meaning))],
                measurements=[measurement(one) for one in finite],
            )
        )
    if not content:
        raise ValueError(f"{path}: no measurement to report")
    device = sr.ObserverContext(
        codes.DCM.Device,
        sr.DeviceObserverIdentifyingAttributes(
            generate_uid(), name=MODEL, manufacturer_name=MAKER, model_name=__version__
        ),
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=content,
        title=codes.DCM.ImagingMeasurementReport,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the source's values, such as a name without a caret
        new = sr.ComprehensiveSR(
            evidence=source.headers(),
            content=report,
            series_instance_uid=series.uid,
            series_number=series.number,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MODEL,
            software_versions=__version__,
            series_description=series.description,
            coding_schemes=[
                CodingSchemeIdentificationItem(SCHEME, name=MODEL, responsible_organization=MAKER)
            ],
        )
    save(path, new)


def _properties(one: Measurement):
    """The interval of a measurement, as its properties (TID 310).

    Those of highdicom give the ranges of uncertainty no unit, which is not that of the value.
    """
    from highdicom import sr
    from pydicom.sr.coding import Code

    value, interval = round(float(one.value), 6), one.interval
    if not interval.low <= value <= interval.high:
        raise ValueError(
            f"{one.quantity}: the interval {interval.low:g} to {interval.high:g} is without its "
            f"value, {value:g}"
        )
    relation = sr.RelationshipTypeValues.HAS_PROPERTIES
    properties = sr.MeasurementProperties()
    for name, number, unit in (
        (ABOVE, interval.high - value, one.unit),
        (BELOW, value - interval.low, one.unit),
        (COVERAGE, 100 * interval.coverage, "%"),
    ):
        code = Code(unit, "UCUM", UNITS[unit])
        properties.append(sr.NumContentItem(Code(*name), round(number, 6), code, None, relation))
    text = sr.TextContentItem(Code(*CALIBRATION), interval.calibration, relation)
    properties.append(text)
    return properties
