"""Small archives in the formats of the paper's datasets, with motion that is known.

A scene is a function of real coordinates (x, y) in mm; ES shows at x what ED shows at x + u(x), so
a reader's pixels can be compared with the scene itself, whatever grid and orientation it uses.
"""

import csv
from pathlib import Path

import nibabel
import numpy as np

FRAME_COLUMNS = "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split".split(",")


class Scene:
    """A bright ring (myocardium) around a dark cavity with a blob beside it, in a width x height
    field (mm); ES is ED contracted about the centre of the ring."""

    def __init__(self, width: float, height: float, shift: float = 0.0):
        self.centre = np.array([0.45 * width + shift, 0.55 * height])  # (x, y)
        self.radius = 0.2 * min(width, height)
        self.size = np.array([width, height])

    def displacement(self, points: np.ndarray) -> np.ndarray:
        """u [..., 2] in mm at points [..., 2] (x, y): outwards, fading away from the heart."""
        away = points - self.centre
        r2 = (away**2).sum(-1, keepdims=True)
        return 0.35 * away * np.exp(-r2 / (2 * (1.6 * self.radius) ** 2))

    def moved(self, points: np.ndarray, phase: str) -> np.ndarray:
        return points if phase == "ED" else points + self.displacement(points)

    def image(self, points: np.ndarray, phase: str) -> np.ndarray:
        """Grey values 0 to 200; not symmetric in x or y."""
        points = self.moved(points, phase)
        r = np.linalg.norm(points - self.centre, axis=-1) / self.radius
        ring = 120 * np.exp(-(((r - 1.25) / 0.35) ** 2))
        x, y = np.moveaxis(points / self.size, -1, 0)
        texture = 30 * (1 + np.sin(9 * x + 2 * y) * np.cos(7 * y))
        blob = 60 * np.exp(-((x - 0.8) ** 2 + (y - 0.25) ** 2) / 0.01)
        return ring + texture + blob

    def mask(self, points: np.ndarray, phase: str, cavity=1, wall=2, third=3) -> np.ndarray:
        points = self.moved(points, phase)
        r = np.linalg.norm(points - self.centre, axis=-1) / self.radius
        x, y = np.moveaxis(points / self.size, -1, 0)
        mask = np.where(r < 1, cavity, np.where(r < 1.5, wall, 0))
        return np.where((r >= 1.5) & (np.hypot(x - 0.8, y - 0.25) < 0.1), third, mask)


def grid(shape: tuple[int, int], spacing: tuple[float, float]) -> np.ndarray:
    """Positions [X, Y, 2] in mm of the samples of an array in axes (x, y)."""
    return np.moveaxis(np.indices(shape), 0, -1) * np.array(spacing)


def save_nifti(file: Path, array: np.ndarray, spacing) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.diag([*spacing, *[1.0] * (4 - len(spacing))]))
    image.header.set_zooms(spacing)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, file)


def save_acdc(file: Path, array: np.ndarray, spacing) -> None:
    """With the headers of the real archive: the spacing in pixdim alone, sform 2 says 1 mm."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, None)
    image.set_qform(None, 0)
    image.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), 2)
    image.header.set_zooms(spacing)
    nibabel.save(image, file)


def damage_gzip(file: Path) -> None:
    """Keeps the head of a gzip file and ruins the rest."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_bit(file: Path) -> None:
    """Changes one bit of the checksum of a gzip file; its content still unpacks."""
    content = bytearray(file.read_bytes())
    content[-8] ^= 1
    file.write_bytes(content)


def replace_array(file: Path, change) -> None:
    """Rewrites a NIfTI file with change(array)."""
    old = nibabel.load(file)
    array = change(np.asarray(old.dataobj).copy())
    save_nifti(file, array, (*old.header.get_zooms(), 1.0)[: array.ndim])


# CAMUS ------------------------------------------------------------------------------------------

# patient -> (shape (x, y), spacing (x, y) mm)
CAMUS = {
    1: ((300, 410), (0.5, 0.4)),
    2: ((250, 250), (0.6, 0.6)),
    401: ((323, 271), (0.3, 0.45)),
    421: ((200, 333), (0.7, 0.35)),
}


def camus_scene(patient: int) -> Scene:
    shape, spacing = CAMUS[patient]
    return Scene(*(np.array(shape) - 1) * spacing)


def write_camus(root: Path, patients=tuple(CAMUS), views=("2CH", "4CH")) -> Path:
    """In the files x runs from right to left; the scene's x runs from left to right."""
    for patient in patients:
        shape, spacing = CAMUS[patient]
        scene, name = camus_scene(patient), f"patient{patient:04d}"
        points = grid(shape, spacing)
        for view in views:
            for phase in ("ED", "ES"):
                stem = root / "database_nifti" / name / f"{name}_{view}_{phase}"
                image = scene.image(points, phase)[::-1]
                save_nifti(stem.with_suffix(".nii.gz"), image.astype(np.float32), spacing)
                mask = scene.mask(points, phase)[::-1].astype(np.uint8)
                save_nifti(Path(f"{stem}_gt.nii.gz"), mask, spacing)
            (stem.parent / f"Info_{view}.cfg").write_text("ED: 1\nES: 18\n")
    return root


# EchoNet-Dynamic --------------------------------------------------------------------------------

ECHONET = {  # video -> (split, traced frames in the order of the table, ED first or not)
    "0X1A": ("TRAIN", (3, 7)),
    "0X2B": ("TRAIN", (9, 2)),
    "0X3C": ("VAL", (0, 5)),
    "0X4D": ("TEST", (4, 8)),
    "0X5E": ("TRAIN", ()),
    "0X6F": ("TEST", (5,)),
}
FRAMES = 10


def echonet_scene(video: str) -> Scene:
    return Scene(111, 111, shift=list(ECHONET).index(video))


def echonet_frame(video: str, number: int) -> np.ndarray:
    """[112, 112] uint8; the first traced frame is ED, the second ES, the others are in between."""
    traced = ECHONET[video][1]
    points = grid((112, 112), (1, 1))
    ed, es = (echonet_scene(video).image(points, phase).T for phase in ("ED", "ES"))
    share = {**dict.fromkeys(range(FRAMES), 0.5), **dict(zip(traced, (0.0, 1.0), strict=False))}
    return np.round(ed + share[number] * (es - ed)).clip(0, 255).astype(np.uint8)


def echonet_chords(video: str, phase: str, n: int = 20) -> np.ndarray:
    """[1 + n, 4]: the long axis (vertical), then n horizontal chords of the cavity."""
    scene = echonet_scene(video)
    radius = scene.radius
    if phase == "ES":  # the radius r with r (1 + 0.35 exp(-r^2 / ...)) = scene.radius
        radii = np.linspace(0, scene.radius, 100001)
        moved = radii * (1 + 0.35 * np.exp(-(radii**2) / (2 * (1.6 * scene.radius) ** 2)))
        radius = radii[np.argmin(np.abs(moved - scene.radius))]
    x, y = scene.centre
    heights = radius * np.cos(np.pi * (np.arange(n) + 0.5) / n)
    half = np.sqrt(radius**2 - heights**2)
    chords = np.stack([x - half, y - heights, x + half, y - heights], axis=-1)
    return np.concatenate([[[x, y - radius, x, y + radius]], chords])


def write_avi(file: Path, frames: list[np.ndarray]) -> None:
    import av

    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mjpeg", rate=50, options={"qmin": "1", "qmax": "1"})
        stream.height, stream.width = frames[0].shape
        stream.pix_fmt = "yuvj420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode(None))


def write_echonet(root: Path, videos=tuple(ECHONET)) -> Path:
    """File names carry .avi in the tracings and, for one video only, in the file list."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "FileList.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(FRAME_COLUMNS)
        for video in ECHONET:
            name = f"{video}.avi" if video == "0X2B" else video
            table.writerow([name, 60.5, 40.1, 98.2, 112, 112, 50, FRAMES, ECHONET[video][0]])
    with (root / "VolumeTracings.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["FileName", "X1", "Y1", "X2", "Y2", "Frame"])
        for video, (_, traced) in ECHONET.items():
            for number, phase in zip(traced, ("ED", "ES"), strict=False):
                for chord in echonet_chords(video, phase):
                    table.writerow([f"{video}.avi", *chord, number])
    for video in videos:
        frames = [echonet_frame(video, number) for number in range(FRAMES)]
        write_avi(root / "Videos" / f"{video}.avi", frames)
    return root


# ACDC -------------------------------------------------------------------------------------------

# patient -> (shape (x, y, z), spacing mm, ED and ES frame); 96 and 117 are wider than tall, 117 is
# among the exceptions that are not rotated; 124 is rotated though it is tall
ACDC = {
    1: ((110, 130, 9), (1.8, 1.8, 10.0), (1, 12)),
    96: ((150, 120, 10), (1.4, 1.4, 8.0), (4, 11)),
    101: ((120, 140, 3), (1.5, 1.5, 5.0), (1, 9)),
    117: ((140, 120, 8), (1.6, 1.6, 6.5), (1, 10)),
    124: ((120, 136, 7), (1.7, 1.7, 10.0), (1, 7)),
}
ACDC_LABELS = {"cavity": 3, "wall": 2, "third": 1}


def acdc_scene(patient: int) -> Scene:
    shape, spacing, _ = ACDC[patient]
    return Scene(*(np.array(shape[:2]) - 1) * spacing[:2])


def write_acdc(root: Path, patients=tuple(ACDC)) -> Path:
    """The brightness grows linearly from slice to slice, so that a slice can be told."""
    for patient in patients:
        shape, spacing, frames = ACDC[patient]
        scene, name = acdc_scene(patient), f"patient{patient:03d}"
        folder = root / "database" / ("training" if patient <= 100 else "testing") / name
        points = grid(shape[:2], spacing[:2])
        for phase, number in zip(("ED", "ES"), frames, strict=True):
            stem = f"{name}_frame{number:02d}"
            image = scene.image(points, phase)[..., None] * (1 + 0.02 * np.arange(shape[2]))
            save_acdc(folder / f"{stem}.nii.gz", image.astype(np.float32), spacing)
            mask = scene.mask(points, phase, **ACDC_LABELS)
            mask = np.repeat(mask[..., None], shape[2], axis=2).astype(np.uint8)
            save_acdc(folder / f"{stem}_gt.nii.gz", mask, spacing)
        (folder / "Info.cfg").write_text(
            f"ED: {frames[0]}\nES: {frames[1]}\nGroup: NOR\nHeight: 170.0\nNbFrame: 30\n"
        )
    return root


# Own pairs --------------------------------------------------------------------------------------


def write_folder(root: Path) -> Path:
    """A CSV file with pairs as PNG, NPZ and NIfTI of several sizes; returns its path."""
    import PIL.Image

    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (split, kind, shape) in enumerate(
        [
            ("train", "png", (128, 128)),
            ("train", "npz", (90, 120)),
            ("validation", "nii.gz", (100, 64)),
            ("test", "png", (128, 128)),
        ]
    ):
        scene, row = Scene(*(np.array(shape[::-1]) - 1), shift=number), {}
        points = np.swapaxes(grid(shape[::-1], (1, 1)), 0, 1)  # [H, W, 2]
        for role, phase in (("moving", "ED"), ("fixed", "ES")):
            image = scene.image(points, phase).astype(np.uint8)
            for key, array in ((role, image), (f"{role}_mask", scene.mask(points, phase))):
                file = root / f"{number}_{key}.{kind}"
                array = array.astype(np.uint8)
                if kind == "png":
                    PIL.Image.fromarray(array).save(file)
                elif kind == "npz":
                    np.savez(file, image=array, spacing=np.array([0.5, 0.8]))
                else:
                    save_nifti(file, array.T, (0.8, 0.5))
                row[key] = file.name
        rows.append({"id": f"heart-{number}", "split": split} | row)
    with (root / "pairs.csv").open("w", newline="") as file:
        columns = ["id", "split", "moving", "fixed", "moving_mask", "fixed_mask"]
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    return root / "pairs.csv"
