"""TFDS builder `phantom`: the built-in cardiac phantom, the default dataset; nothing to download.

Splits train, validation and test by seed; pairs carry the true displacement.
"""

import dataclasses

import tensorflow_datasets as tfds

from ldm_morph_jax.data import phantom
from ldm_morph_jax.data.builder import PairBuilder, PairConfig, make_example

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(eq=False, kw_only=True)
class PhantomConfig(PairConfig):
    """`look`: "sax", "echo" or "both" (alternating); `n_*`: pairs per split; `seed`."""

    look: str = "both"
    n_train: int = 200
    n_validation: int = 20
    n_test: int = 50
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.look not in (*phantom.LOOKS, "both"):
            raise ValueError(f"phantom: look must be sax, echo or both, found {self.look!r}")
        for split in SPLITS:
            if getattr(self, f"n_{split}") < 1:
                raise ValueError(f"phantom: n_{split} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"phantom: seed must not be negative, found {self.seed}")
        if self.image_size < 32:
            raise ValueError(f"phantom: image_size must be at least 32, found {self.image_size}")

    @property
    def labels(self) -> dict[int, str]:
        third = {"sax": "right ventricle", "echo": "left atrium"}
        return {
            phantom.LV: "left ventricle",
            phantom.MYOCARDIUM: "myocardium",
            phantom.THIRD: third.get(self.look, "right ventricle or left atrium"),
        }

    @property
    def spacing_note(self) -> str:
        return f"field of view {phantom.FIELD_OF_VIEW_MM:g} mm, by definition"

    def source_digest(self) -> str:
        return "generated"


class Phantom(PairBuilder):
    """See ldm_morph_jax/data/phantom.py. Raise VERSION when its pictures change."""

    VERSION = tfds.core.Version("1.0.1")
    CONFIG = PhantomConfig
    NEEDS_SOURCE = False
    HAS_DISPLACEMENT = True
    DESCRIPTION = "2D cardiac phantom with known motion from end-diastole to end-systole."

    def _split_generators(self, dl_manager):
        return {
            name: self._generate_examples(self._pairs(number, name), name)
            for number, name in enumerate(SPLITS)
        }

    def _pairs(self, split_number: int, split: str):
        config = self.builder_config
        spacing = phantom.FIELD_OF_VIEW_MM / config.image_size
        for i in range(getattr(config, f"n_{split}")):
            look = phantom.LOOKS[i % 2] if config.look == "both" else config.look
            pair = phantom.phantom_pair(
                (config.seed, split_number, i),
                look=look,
                image_size=config.image_size,
                reverse=config.reverse,
            )
            yield make_example(
                id=f"phantom-{split}-{i:04d}",
                patient=f"phantom-{split}-{i:04d}",
                view=look,
                phase="ES-ED" if config.reverse else "ED-ES",
                spacing=(spacing, spacing),
                intensity=config.intensity,
                **pair._asdict(),
            )
