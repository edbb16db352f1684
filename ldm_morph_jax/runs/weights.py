"""Weights by name: float16 safetensors, a model card, a checksum.

They ship with the package, but for those in `FETCHED`, which are downloaded when first used.

A weights file holds the flattened parameter tree ("registration/decoder/kernel": float16) and, in
its header, the configuration and the model card as JSON. Its sha256 is listed in `SHA256` for named
weights, otherwise in `<file>.sha256` next to the file. A file that does not match is not opened.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ldm_morph_jax.files.writing import atomic, sha256

FOLDER = Path(__file__).parent.parent / "weights"
ADDRESS = "LDM_MORPH_WEIGHTS_URL"  # the variable that says where `FETCHED` are
DEFAULT_MODEL = "sunnybrook-symmetric"
DEFAULT_ANATOMY = "anatomy"  # finds the heart, see `runs.anatomy`
FILE_NAME = "model.safetensors"

# name -> sha256 of weights/<name>/model.safetensors
SHA256: dict[str, str] = {
    "sunnybrook-small": "e183e4ec8762efb10e2bf8c474f6f57e0f43014966f65f6c5b3c0126b53e782a",
    "sunnybrook-symmetric": "9bea2e3deae5f311a82d968084bbfedbf789c41bdc286edaeab5919c4b6789e1",
    # not under the package's licence, see LICENSE.md beside them
    "camus-4ch-small": "4e548f01af986af6491725943a1502cc62431e9852dd39b098218355e84732a4",
    "acdc-small": "fed4f9d277312d304afe7e1acab684bab9a31c4dbbd806efc852403ddb031f28",
}

# In the repository, but not in the wheel (setup.py): more than half of all, and not the default.
FETCHED = frozenset({"sunnybrook-small"})


class WeightsError(ValueError):
    """The weights cannot be used or trusted."""


def named_weights(name: str) -> tuple[Path, str]:
    """(file, sha256) of weights by name; downloads those that are neither here nor in the wheel.

    Raises:
        WeightsError: an unknown name, with the known ones; a download that is not possible.
    """
    if name not in SHA256:
        known = ", ".join(sorted(SHA256))
        raise WeightsError(f"unknown model {name!r}: not a directory, nor one of: {known}")
    path = FOLDER / name / FILE_NAME
    if name in FETCHED and not path.is_file():  # a checkout has it in place
        path = _fetch(name)
    return path, SHA256[name]


def _fetch(name: str) -> Path:
    """The downloaded file with the right checksum; downloads it where it is missing or damaged."""
    cache = Path(os.environ.get("LDM_MORPH_CACHE") or Path.home() / ".cache" / "ldm_morph_jax")
    path = cache / "weights" / f"{name}.safetensors"
    if path.is_file() and sha256(path) == SHA256[name]:
        return path
    by_hand = (
        f"or put the file there by hand: it is ldm_morph_jax/weights/{name}/{FILE_NAME} of the "
        "repository"
    )
    address = os.environ.get(ADDRESS)
    if not address:
        raise WeightsError(
            f"{path}: {name} is not in the wheel, and {ADDRESS} is not set; set it to an http(s) "
            f"address that has {path.name}, {by_hand}"
        )
    import pooch  # here, because it takes a quarter of a second to import

    url = f"{address.rstrip('/')}/{path.name}"
    try:
        pooch.retrieve(url, f"sha256:{SHA256[name]}", fname=path.name, path=path.parent)
    except (OSError, ValueError) as error:  # no connection, not found; another checksum
        raise WeightsError(
            f"{path}: cannot be fetched from {url} ({error}); check {ADDRESS}, {by_hand}"
        ) from None
    return path


@functools.cache
def shipped() -> dict[str, Mapping]:
    """Name -> training images (`ops.appearance.describe`) of all weights that are in the wheel."""
    names = [name for name in SHA256 if name not in FETCHED]
    return {name: load_compact(*named_weights(name))[2]["training_images"] for name in names}


def save_compact(params: Mapping, path: str | os.PathLike, config: Mapping, card: Mapping) -> str:
    """Write a nested dict of arrays as float16 and return the file's sha256.

    The checksum is also written to `<path>.sha256` (in the format of `sha256sum -c`). Integers and
    scalars keep their dtype. Raises WeightsError for values that float16 cannot represent.
    """
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save

    tensors = {}
    for path_of, array in flatten_dict(params).items():
        if slashed := [key for key in path_of if "/" in key]:
            raise WeightsError(f"parameter name {slashed[0]!r} contains a slash")
        name, array = "/".join(path_of), np.asarray(array)
        if np.issubdtype(array.dtype, np.integer) or array.ndim == 0:
            tensors[name] = np.ascontiguousarray(array)
            continue
        with np.errstate(over="ignore"):
            small = array.astype(np.float16)
        if not np.isfinite(small).all():
            raise WeightsError(f"{name}: has values that float16 cannot hold (NaN, or above 65504)")
        tensors[name] = np.ascontiguousarray(small)
    metadata = {"config": json.dumps(config, sort_keys=True), "card": json.dumps(card)}
    path = Path(path)
    with atomic(path) as part:
        part.write_bytes(save(tensors, metadata))  # `save_file` lets nobody but the owner read it
    digest = sha256(path)
    with atomic(path.with_name(path.name + ".sha256")) as part:
        part.write_text(f"{digest}  {path.name}\n")
    return digest


def save_weights(method, path: str | os.PathLike, card: Mapping) -> str:
    """Write a `runs.trained.TrainedMethod` as one compact file that `load` reads; its sha256."""
    params = {"params": method.params, "frozen": method.frozen}
    distances = {"spacing_mm": method.spacing_mm, "slice_mm": method.slice_mm}
    stored = {"config": portable(method.config.to_dict()), **distances}
    return save_compact(params, path, stored, card)


def portable(config: dict) -> dict:
    """A configuration without the paths of the machine on which it was trained."""
    data = config["data"] | {"source": None, "directory": "data"}
    return config | {"ldm_from": None, "data": data}


def load_compact(
    path: str | os.PathLike, expected_sha256: str | None = None
) -> tuple[dict, dict, dict]:
    """(params as float32, config, card) of a weights file with the right checksum.

    Without `expected_sha256`, the checksum in the file next to it is used.

    Raises:
        WeightsError: the file is missing, has no checksum, does not match it, or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    if expected_sha256 is None:
        beside = path.with_name(path.name + ".sha256")
        if not beside.is_file():
            raise WeightsError(f"{path}: has no checksum; expected {beside.name} next to it")
        expected_sha256 = (beside.read_text().split() or [""])[0]
    data = path.read_bytes()  # read once, so that the bytes checked are the bytes loaded
    found = hashlib.sha256(data).hexdigest()
    if found != expected_sha256:
        raise WeightsError(
            f"{path}: sha256 is {found}, expected {expected_sha256}: damaged or tampered with"
        )
    try:
        tensors = load(data)
        # safetensors: 8 bytes of header length, then the header as JSON
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        config, card = json.loads(metadata["config"]), json.loads(metadata["card"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(f"{path}: not a weights file ({error})") from None
    params: dict = {}
    for name, array in tensors.items():
        *folders, leaf = name.split("/")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = array.astype(np.float32) if array.dtype == np.float16 else array
    return params, config, card
