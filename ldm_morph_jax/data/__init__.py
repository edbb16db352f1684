"""Datasets of image pairs: `load_dataset(name, ...)` prepares one if needed and opens it.

A dataset is one class in one file (`base.py`). `store.py` documents the stored format,
`pipeline.py` the batches of arrays.
"""

from ldm_morph_jax.data.base import DATASETS, dataset_class, dataset_names
from ldm_morph_jax.data.dataset import Dataset, ImageSource, PairSource, load_dataset
from ldm_morph_jax.data.orientation import ORIENTATIONS, orient, orient_displacement
from ldm_morph_jax.data.preview import contact_sheet

__all__ = [
    "DATASETS",
    "ORIENTATIONS",
    "Dataset",
    "ImageSource",
    "PairSource",
    "contact_sheet",
    "dataset_class",
    "dataset_names",
    "load_dataset",
    "orient",
    "orient_displacement",
]
