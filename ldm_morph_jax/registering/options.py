"""The options of the commands that register: each is a documented field, on the command line and in
Python.

An instance of `PairOptions` or `CineOptions` is one job: what is read, how it is registered, where
results go. A row of a table of many is such a job, too, with the row's files in it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from cyclopts import Group, Parameter

from ldm_morph_jax.ops.beat import check_valves
from ldm_morph_jax.parameters import WHOLE, WHOLE_FEW, WHOLE_PAIR, whole_number
from ldm_morph_jax.runs.weights import DEFAULT_ANATOMY, DEFAULT_MODEL

_FILE = Parameter(metavar="FILE")
_CSV = Parameter(metavar="CSV")
_DIR = Parameter(metavar="DIR")
_PIXEL = Parameter(metavar="ROW COLUMN")
_PART = Parameter(group=Group("which part of an image file", sort_key=2))
_MANY = Parameter(group=Group("many at once", sort_key=3))


def parse_slice(text: str) -> int | str | tuple[int, ...]:
    """ "3", "2-5", "0,2,4-6", "all" or "volume"; ValueError otherwise."""
    if text in ("all", "volume"):
        return text
    numbers = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise ValueError(
                f"found {text!r}, expected a number, several as in 2-5 or 0,2,4, 'all' or 'volume'"
            )
        numbers += range(first, last + 1)
    return numbers[0] if len(numbers) == 1 else tuple(dict.fromkeys(numbers))


def parse_frames(text: str) -> tuple[int, ...]:
    """ "3" or "0 9", of the moving and the fixed file; ValueError otherwise."""
    return tuple(map(whole_number, text.split()))


def parse_period(text: str) -> float | str:
    """ "0.8" or "whole"; ValueError otherwise."""
    try:
        return text if text == "whole" else float(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither seconds nor 'whole'") from None


def parse_valves(text: str) -> dict[str, float]:
    """ "AVC=350,MVO=420" -> their times in ms; ValueError otherwise."""
    valves = {}
    for part in re.split(r"[,;\s]+", text.strip()):
        match = re.fullmatch(r"([A-Za-z]+)=(\d+(?:\.\d*)?)", part)
        if not match or match[1].upper() in valves:
            raise ValueError(f"found {text!r}, expected times in ms as in AVC=350,MVO=420")
        valves[match[1].upper()] = float(match[2])
    return valves


def _read_by(parse: Callable[[str], Any], metavar: str, **more) -> Parameter:
    """An option of one word, as `parse` reads it."""

    def converter(_, tokens):
        return parse(tokens[0].value)

    return Parameter(converter=converter, n_tokens=1, metavar=metavar, **more)


AUTO = Path("auto")  # in place of a mask: the anatomy network finds the heart


@dataclass(frozen=True, kw_only=True)
class SliceOption:
    """Chooses a slice."""

    slice: Annotated[
        int | str | tuple[int, ...] | None,
        _PART,
        _read_by(parse_slice, "K|K-L|K,L|all|volume"),
    ] = None
    """which slice of a 3-D file (from 0); several, as in 2-5 or 0,2,4, or all: one by one; volume
    (register, track): in three dimensions, the default for stacks of four slices or more"""


@dataclass(frozen=True, kw_only=True)
class FrameOption:
    """Chooses a frame."""

    frame: Annotated[int | None, WHOLE, _PART, Parameter(metavar="K")] = None
    """which frame of a file with several in time (from 0)"""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions(SliceOption):
    """What every command that reads images of any kind takes."""

    spacing: Annotated[tuple[float, ...] | None, _PART, Parameter(metavar="MM")] = None
    """pixel spacing in mm, one number or row and column, for files that do not tell it; refused
    where a file says otherwise"""

    oblique: Annotated[bool, _PART] = False
    """accept slices that are tilted against the x-y plane; work in their own plane"""

    @property
    def reading(self) -> dict[str, Any]:
        """Arguments of `files.images.read_image`, but for slice and frame."""
        return {"spacing": self.spacing, "oblique": self.oblique}


@dataclass(frozen=True, kw_only=True)
class JobOptions(ReadingOptions):
    """What a job has that can be a row of a table.

    NOUN: what it registers, in the plural.
    INPUTS: the fields that name files or folders to read.
    REQUIRED: the columns that a table of jobs must have.
    COLUMNS: those it may have besides, and how the text of a cell is read; None: a path.
    RECORD: the file that says that a result is complete, and of what.
    """

    NOUN: ClassVar[str]
    INPUTS: ClassVar[Sequence[str]]
    REQUIRED: ClassVar[Sequence[str]]
    COLUMNS: ClassVar[dict[str, Callable[[str], Any] | None]]
    RECORD: ClassVar[str]

    out: Annotated[Path, _DIR]
    """where results go"""

    batch: Annotated[Path | None, _CSV, _MANY] = None
    """a table, one job per row; paths relative to it; results in DIR/<id>/ and DIR/summary.csv;
    rows that the same files and options have finished are kept"""

    shard: Annotated[str | None, _MANY, Parameter(metavar="I/N")] = None
    """only the I-th of N parts of the batch, from 1"""

    overwrite: bool = False
    """replace earlier results"""

    def __post_init__(self):
        if self.shard is not None and self.batch is None:
            raise ValueError("`shard` needs `batch`")


@dataclass(frozen=True, kw_only=True)
class PairOptions(JobOptions):
    """A pair of images to register."""

    NOUN = "pairs"
    INPUTS = ("moving", "fixed", "moving_mask", "fixed_mask")
    REQUIRED = ("moving", "fixed")
    COLUMNS = {
        "moving_mask": None,
        "fixed_mask": None,
        "slice": parse_slice,
        "frame": parse_frames,
    }
    RECORD = "metrics.json"

    moving: Annotated[Path | None, _FILE] = None
    """image to be warped, e.g. ED"""

    fixed: Annotated[Path | None, _FILE] = None
    """image to be matched, e.g. ES"""

    example: bool = False
    """register two images that come with the package"""

    model: Annotated[str, Parameter(metavar="NAME|DIR|FILE")] = DEFAULT_MODEL
    """name of shipped weights or of an iterative method (lddmm, syn), run directory or weights
    file"""

    moving_mask: Annotated[Path | None, _FILE] = None
    """labels of the moving image"""

    fixed_mask: Annotated[Path | None, _FILE] = None
    """labels of the fixed image"""

    frame: Annotated[tuple[int, ...] | None, WHOLE_FEW, _PART, Parameter(metavar="K")] = None
    """which frame of a file with several in time (from 0); two numbers: of the moving and of the
    fixed file"""

    align: Literal["auto", "world", "centre"] = "auto"
    """how the images lie on each other before registration: as their files say (world), or centre
    on centre; auto: world where both files tell"""

    centre: Annotated[tuple[float, float] | None, _PIXEL] = None
    """pixel of the fixed image to centre the model's grid on, e.g. the heart (default: the image's
    centre)"""

    affine: Literal["none", "rigid", "affine"] = "none"
    """before anything deforms, shift and turn the moving image onto the fixed one (rigid), or also
    scale and shear it (affine); stacks of slices in three dimensions"""

    refine: Annotated[int | None, WHOLE, Parameter(metavar="N")] = None
    """steps of refinement on the whole image, from what the network predicts (default: 82; 0: the
    network alone; iterative methods are not refined)"""

    anatomy: Annotated[str, Parameter(metavar="auto|none|NAME|DIR|FILE")] = "auto"
    """network that finds the heart in both images and guides the search by it: auto: anatomy, in
    volumes of thick slices; anatomy-mri or anatomy-echo (both under CC BY-NC-SA 4.0), a run
    directory or weights file; none"""

    inverse: bool = False
    """write the inverse transform, too"""

    report: Annotated[bool, Parameter(negative="--no-report")] = True
    """draw overview.png and report.html"""

    dicom: bool = False
    """write DICOM objects, too: registrations, warped labels; both images must be DICOM"""

    def __post_init__(self):
        super().__post_init__()
        if self.refine is not None and self.refine < 0:
            raise ValueError(f"`refine` is {self.refine}, expected 0 or more steps")
        if self.frame is not None and len(self.frame) not in (1, 2):
            raise ValueError(f"frame: found {len(self.frame)} numbers, expected one or two")
        if self.dicom and self.example:
            raise ValueError("`example` does not go with `dicom`: it is not DICOM")
        given = [
            name for name in (*self.INPUTS, "slice", "frame") if getattr(self, name) is not None
        ]
        if self.batch and self.example:
            raise ValueError("`batch` and `example`: expected one of them")
        if (self.batch or self.example) and given:
            option, source = ("batch", "its CSV") if self.batch else ("example", "the package")
            raise ValueError(f"`{option}` takes {', '.join(given)} from {source}; drop the option")
        missing = [f"`{name}`" for name in self.REQUIRED if name not in given]
        if missing and not (self.batch or self.example):
            raise ValueError(f"{' and '.join(missing)} missing (or use `batch` or `example`)")

    @property
    def frames(self) -> tuple[int | None, int | None]:
        """Of the moving and of the fixed file."""
        return (None, None) if self.frame is None else (self.frame[0], self.frame[-1])


@dataclass(frozen=True, kw_only=True)
class CineOptions(JobOptions):
    """A cine to track."""

    NOUN = "cines"
    INPUTS = ("cine", "mask", "contours", "landmarks", "frame_times")
    REQUIRED = ("cine",)
    COLUMNS = {
        "mask": None,
        "contours": None,
        "landmarks": None,
        "slice": parse_slice,
        "reference": whole_number,
        "valves": parse_valves,
    }
    RECORD = "summary.json"

    cine: Annotated[Path | None, Parameter(metavar="FILE|FOLDER")] = None
    """4-D volume, multi-frame DICOM, stack, video, or a folder of single frames"""

    example: bool = False
    """track the built-in phantom (--view says which)"""

    model: Annotated[str | None, Parameter(metavar="NAME|DIR|FILE")] = None
    """where the search starts: name of shipped weights, run directory or weights file; or an
    iterative method (lddmm, syn) in its place. Default: the search from no motion, in volumes of
    thick slices from sunnybrook-symmetric"""

    reference: Annotated[int | None, WHOLE, Parameter(metavar="K")] = None
    """frame whose tissue is followed, usually end-diastole (from 0; default: 0, or end-diastole as
    the anatomy network finds it)"""

    mask: Annotated[Path | None, _FILE] = None
    """labels of the reference frame; auto: the network of --anatomy finds the heart"""

    anatomy: Annotated[str | None, Parameter(metavar="NAME|DIR|FILE")] = None
    """in place of a mask: the network that finds the heart, its contours and end-diastole, by name
    (anatomy for short-axis MRI; anatomy-mri and anatomy-echo are under CC BY-NC-SA 4.0), run
    directory or weights file"""

    contours: Annotated[Path | None, _CSV] = None
    """in place of a mask: columns contour (endo, epi), row, column"""

    landmarks: Annotated[Path | None, _CSV] = None
    """points of the reference frame to carry along: columns row, column, optionally name"""

    labels: Annotated[tuple[int, int] | None, WHOLE_PAIR, Parameter(metavar="CAVITY WALL")] = None
    """of the mask (default: wall 2, cavity what it encloses)"""

    view: Literal["sax", "apical"] | None = None
    """short-axis (radial, circumferential strain) or apical (longitudinal, volume); default: as the
    mask's wall or the anatomy network shows it, else short-axis, with a note"""

    septum: Annotated[tuple[float, float] | None, _PIXEL] = None
    """pixel in the direction of the middle of the septum, for sectors (default: the mask's right
    ventricle)"""

    levels: Annotated[str | None, Parameter(metavar="LETTERS")] = None
    """short-axis: the level of each slice, a letter for each: b (basal), m (middle), a (apical),
    c (cap), - (none); by default, of a stack with a mask, thirds of the ventricle's length"""

    period: Annotated[float | str | None, _read_by(parse_period, "whole|SECONDS")] = None
    """of the beat: whole, if the last frame shows what the first one does; its length, if that is
    known; by default the motion need not repeat"""

    frame_times: Annotated[Path | None, _CSV] = None
    """column time: seconds, a row per frame"""

    fps: Annotated[float | None, Parameter(metavar="N")] = None
    """frames per second"""

    valves: Annotated[
        dict[str, float] | None,
        _read_by(parse_valves, "AVC=MS,MVO=MS", accepts_keys=False),
    ] = None
    """when valves close and open (MVC, AVO, AVC, MVO), ms from the reference frame, as Doppler or
    M-mode shows it; strain at end-systole is then that of AVC, else that of the smallest cavity"""

    report: Annotated[bool, Parameter(negative="--no-report")] = True
    """draw curves.png, beat.gif and report.html"""

    dicom: bool = False
    """write DICOM objects, too: segmentation over time, registrations, measurements, page; the cine
    must be DICOM"""

    def __post_init__(self):
        super().__post_init__()
        sources = [name for name in ("cine", "batch", "example") if getattr(self, name)]
        if len(sources) != 1:
            found = " and ".join(f"`{name}`" for name in sources) or "none"
            raise ValueError(f"found {found}, expected one of `cine`, `batch` and `example`")
        [source] = sources
        of_a_cine = "mask contours landmarks slice septum levels reference valves".split()
        of_files = "labels frame_times fps spacing oblique period dicom".split()
        refused = {"cine": [], "batch": of_a_cine, "example": [*of_a_cine, *of_files]}[source]
        given = [f"`{name}`" for name in refused if getattr(self, name) not in (None, False, 0)]
        if given:
            raise ValueError(f"`{source}` does not go with {', '.join(given)}")
        if self.mask == AUTO:
            if self.view == "apical" and self.anatomy is None:
                raise ValueError(
                    "`mask` auto knows short-axis views; for apical ones name a network, "
                    "`anatomy` anatomy-echo (CC BY-NC-SA 4.0)"
                )
            object.__setattr__(self, "mask", None)
            object.__setattr__(self, "anatomy", self.anatomy or DEFAULT_ANATOMY)
        kinds = {"mask": "a mask", "contours": "contours", "anatomy": "an anatomy network"}
        known = [text for name, text in kinds.items() if getattr(self, name)]
        if len(known) > 1:
            raise ValueError(f"{' and '.join(known)} given, expected one of them")
        if self.reference is None and self.anatomy is None and self.batch is None:
            object.__setattr__(self, "reference", 0)
        if self.slice == "volume":
            of_slices = ("contours", "landmarks", "dicom")
            given = [f"`{name}`" for name in of_slices if getattr(self, name)]
            if given or self.view == "apical":
                raise ValueError(
                    f"`slice` volume does not go with {', '.join(given) or '`view` apical'}, which "
                    "is for slices; name a `slice`, or all"
                )
        check_valves(self.valves or {})
        if self.levels and (self.view == "apical" or set(self.levels) - set("bmac-")):
            raise ValueError(
                f"`levels` is {self.levels!r}, expected b, m, a, c or - of short-axis slices"
            )


def _yes(text: str) -> bool:
    if text.lower() not in ("yes", "no", "true", "false", "1", "0"):
        raise ValueError(f"found {text!r}, expected yes or no")
    return text.lower() in ("yes", "true", "1")


def _interpolation(text: str) -> str:
    if text not in ("linear", "nearest"):
        raise ValueError(f"found {text!r}, expected linear or nearest")
    return text


@dataclass(frozen=True, kw_only=True)
class WarpOptions(FrameOption, JobOptions):
    """An image, labels or points to carry through a saved transform."""

    NOUN = "inputs"
    INPUTS = ("transform", "input", "moving")
    REQUIRED = ("transform", "input")
    COLUMNS = {
        "moving": None,
        "interpolation": _interpolation,
        "inverse": _yes,
        "slice": parse_slice,
        "frame": whole_number,
    }
    RECORD = "warp.json"

    out: Annotated[Path, Parameter(metavar="FILE|DIR")]
    """file to write; of a batch the folder of all files"""

    transform: Annotated[Path | None, _FILE] = None
    """displacement.npz, .nii.gz or .dcm of register, an ITK/ANTs field (.nii.gz) or any other DICOM
    deformable registration"""

    input: Annotated[Path | None, _FILE] = None
    """image, labels or points (.csv)"""

    interpolation: Literal["linear", "nearest"] = "linear"
    """of images; nearest for labels"""

    inverse: bool = False
    """from the fixed image to the moving one"""

    moving: Annotated[Path | None, _FILE] = None
    """the moving image, where the transform does not tell its grid (a .nii.gz does not) and it is
    needed: --inverse of an image, points in pixels"""

    dicom: Annotated[Path | None, _FILE] = None
    """the DICOM image on which the result lies; the labels are then written to a DICOM segmentation
    (--out FILE.dcm)"""

    def __post_init__(self):
        super().__post_init__()
        given = [name for name in self.INPUTS if getattr(self, name) is not None]
        if self.batch and given:
            raise ValueError(f"`batch` takes {', '.join(given)} from its CSV; drop the option")
        if self.dicom and (self.batch or self.interpolation != "nearest"):
            raise ValueError("`dicom` is for labels: expected `interpolation` nearest, no `batch`")
        if (self.dicom is not None) != (self.out.suffix.lower() == ".dcm"):
            raise ValueError(f"`out` is {self.out}, expected FILE.dcm with `dicom`, and only then")
        missing = [f"`{name}`" for name in self.REQUIRED if name not in given]
        if missing and not self.batch:
            raise ValueError(f"{' and '.join(missing)} missing (or use `batch`)")


@dataclass(frozen=True, kw_only=True)
class JacobianOptions(SliceOption, FrameOption):
    """The Jacobian determinant of a saved transform; slice and frame choose those of the mask."""

    transform: Annotated[Path, _FILE]
    """displacement.npz, .nii.gz or .dcm of register, an ITK/ANTs field (.nii.gz) or any other DICOM
    deformable registration"""

    out: Annotated[Path | None, _FILE] = None
    """map to write (.nii.gz, .npz, .tif)"""

    mask: Annotated[Path | None, _FILE] = None
    """count only where this mask is not 0"""

    overwrite: bool = False
    """replace an earlier result"""


@dataclass(frozen=True)
class ViewsOptions:
    """Apical views of one heart, merged."""

    out: Annotated[Path, Parameter(metavar="DIR")]
    """where results go"""

    four_chamber: Annotated[Path | None, Parameter(metavar="DIR")] = None
    """what track wrote of the four-chamber view"""

    two_chamber: Annotated[Path | None, Parameter(metavar="DIR")] = None
    """of the two-chamber view"""

    three_chamber: Annotated[Path | None, Parameter(metavar="DIR")] = None
    """of the three-chamber view (apical long axis)"""

    overwrite: bool = False
    """replace earlier results"""

    @property
    def folders(self) -> dict[str, Path | None]:
        """View -> its result, in the order of preference for the times."""
        return {"4ch": self.four_chamber, "2ch": self.two_chamber, "3ch": self.three_chamber}
