"""Datasets of image pairs: `load_dataset(name, ...)` prepares one if needed and opens it.

A dataset is one class in one file (`base.py`). `store.py` documents the stored format,
`pipeline.py` the batches of arrays.
"""

from ldm_morph_jax.data.base import dataset_class
from ldm_morph_jax.data.dataset import Dataset, load_dataset
from ldm_morph_jax.data.orientation import orient, orient_displacement
from ldm_morph_jax.data.preview import contact_sheet

__all__ = [
    "Dataset",
    "contact_sheet",
    "dataset_class",
    "load_dataset",
    "orient",
    "orient_displacement",
]
