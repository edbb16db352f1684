"""Dataset `phantom_3d`: hearts of `data.ventricle` with known motion in space; nothing to download.

Splits train, validation and test by seed. The stacks cover 192 x 192 x 100.8 mm, as `acdc_3d` does.
"""

import dataclasses

from ldm_morph_jax.data.base import DatasetBuilder, Entry, Found, Pair, VolumeOptions
from ldm_morph_jax.data.phantom_dataset import Drawn
from ldm_morph_jax.data.ventricle import LEFT_VENTRICLE, MYOCARDIUM, RIGHT_VENTRICLE, ventricle

FIELD_MM = (100.8, 192.0, 192.0)  # (slice, row, column)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phantom3dOptions(Drawn, VolumeOptions):
    """Size and number of the hearts."""

    n_train: int = 100
    """training pairs"""

    n_validation: int = 10
    """validation pairs"""

    n_test: int = 20
    """test pairs"""

    seed: int = 0
    """of all hearts"""

    def __post_init__(self):
        super().__post_init__()
        self.check_drawn("phantom_3d", least_size=16)


class Phantom3d(DatasetBuilder):
    """See `data.ventricle`; increase `version` when its images change."""

    name = "phantom_3d"
    Options = Phantom3dOptions
    labels = {
        RIGHT_VENTRICLE: "right ventricle",
        MYOCARDIUM: "myocardium",
        LEFT_VENTRICLE: "left ventricle",
    }
    spacing_note = "field of view 100.8 x 192 x 192 mm, by definition"
    has_displacement = True
    description = "3D cardiac phantom with known motion from end-diastole to end-systole."

    def find(self) -> Found:
        return self.options.hearts("ventricle", ["sax"])

    def pair(self, entry: Entry) -> Pair:
        shape = self.options.shape
        spacing = tuple(field / n for field, n in zip(FIELD_MM, shape, strict=True))
        heart = ventricle(entry.detail, shape, spacing)
        # the heart's own moving volume is ES
        pair = Pair(heart.moving, heart.fixed, heart.moving_mask, heart.fixed_mask, spacing)
        if self.options.reverse:
            return pair._replace(displacement=heart.displacement)
        return pair.exchanged()._replace(displacement=heart.inverse)
