"""Dataset `phantom`: the built-in cardiac phantom, the default dataset; nothing to download.

Splits train, validation and test by seed; pairs carry the true displacement.
"""

import dataclasses
from collections.abc import Sequence

from ldm_morph_jax.data import phantom
from ldm_morph_jax.data.base import SPLITS, DatasetBuilder, Entry, Found, Options, Pair


class Drawn:
    """Of options with n_train, n_validation, n_test, seed and image_size: hearts drawn by seed."""

    def check_drawn(self, name: str, least_size: int) -> None:
        """ValueError for no hearts in a split, a negative seed or too few pixels."""
        for split in SPLITS:
            if self.count(split) < 1:
                raise ValueError(f"{name}: n_{split} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"{name}: seed must not be negative, found {self.seed}")
        if self.image_size < least_size:
            raise ValueError(
                f"{name}: image_size must be at least {least_size}, found {self.image_size}"
            )

    def count(self, split: str) -> int:
        return getattr(self, f"n_{split}")

    def hearts(self, name: str, views: Sequence[str]) -> Found:
        """All hearts, in these views by turns; their `detail` is the seed of each."""
        return Found(
            {
                split: [
                    Entry(
                        f"{name}-{split}-{i:04d}",
                        view=views[i % len(views)],
                        detail=(self.seed, number, i),
                    )
                    for i in range(self.count(split))
                ]
                for number, split in enumerate(SPLITS)
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomOptions(Drawn, Options):
    """The kind and number of hearts."""

    look: str = "both"
    """sax (short-axis MRI), echo (apical echo), or both, alternating"""

    n_train: int = 200
    """training pairs"""

    n_validation: int = 20
    """validation pairs"""

    n_test: int = 50
    """test pairs"""

    seed: int = 0
    """of all hearts"""

    def __post_init__(self):
        super().__post_init__()
        if self.look not in (*phantom.LOOKS, "both"):
            raise ValueError(f"phantom: look must be sax, echo or both, found {self.look!r}")
        self.check_drawn("phantom", least_size=32)


class Phantom(DatasetBuilder):
    """See ldm_morph_jax/data/phantom.py; increase `version` when its images change."""

    name = "phantom"
    version = "1.0.1"
    Options = PhantomOptions
    spacing_note = f"field of view {phantom.FIELD_OF_VIEW_MM:g} mm, by definition"
    has_displacement = True
    description = "2D cardiac phantom with known motion from end-diastole to end-systole."

    @property
    def labels(self) -> dict[int, str]:
        third = {"sax": "right ventricle", "echo": "left atrium"}
        return {
            phantom.LV: "left ventricle",
            phantom.MYOCARDIUM: "myocardium",
            phantom.THIRD: third.get(self.options.look, "right ventricle or left atrium"),
        }

    def find(self) -> Found:
        looks = phantom.LOOKS if self.options.look == "both" else (self.options.look,)
        return self.options.hearts("phantom", looks)

    def pair(self, entry: Entry) -> Pair:
        size, reverse = self.options.image_size, self.options.reverse
        return phantom.phantom_pair(entry.detail, look=entry.view, image_size=size, reverse=reverse)
