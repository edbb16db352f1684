"""PyTorch checkpoint files <-> NumPy arrays by name, without running code that a file may contain.

Only this module needs PyTorch (`pip install "ldm_morph_jax[torch]"`). A checkpoint is a pickle, and
a pickle can run any code. PyTorch's restricted reader (`weights_only=True`) accepts only tensors
and plain Python values. What it refuses is also refused here, with a message saying what to do.
"""

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldm_morph_jax.files.writing import atomic
from ldm_morph_jax.published.names import CheckpointError

RESAVE = """\
If you trust the file, save only its tensors, where the code that wrote it is installed:
    import torch; checkpoint = torch.load("{path}", map_location="cpu", weights_only=False)
    torch.save({{"state_dict": checkpoint["state_dict"]}}, "{plain}")
and convert {plain} (if a whole module was saved: checkpoint.state_dict())"""


SETTINGS = "ldm_morph_jax"  # key of our settings beside a state dict, numbers that no shape reveals


class Checkpoint(NamedTuple):
    """The contents of a checkpoint.

    entries: arrays by name, floating point as float32
    step: of training, 0 if the file does not contain it
    settings: network -> {setting: whole number}, if we wrote the checkpoint
    """

    entries: dict[str, np.ndarray]
    step: int
    settings: dict[str, dict[str, int]]


def _torch():
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            "PyTorch is needed to read and write its checkpoints: "
            'pip install "ldm_morph_jax[torch]"'
        ) from None
    return torch


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """A state dict, or the "state_dict" of a (Lightning) checkpoint, whose other parts are ignored.

    Raises FileNotFoundError, or CheckpointError for a file that is not a checkpoint, needs classes
    to be unpickled, or contains something other than tensors in their place.
    """
    torch = _torch()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols; errors are enough
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes PyTorch raise
        raise CheckpointError(_explain(path, error)) from None

    state_dict = content
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        state_dict = content["state_dict"]
    if not isinstance(state_dict, Mapping):
        kind = type(state_dict).__name__
        raise CheckpointError(f"{path} contains a {kind}, expected tensors by name")
    if not state_dict:
        raise CheckpointError(f"{path} contains an empty state dict, expected tensors by name")

    entries, problems = {}, []
    for name, value in state_dict.items():
        if not isinstance(value, torch.Tensor):
            problems.append(f"{name} is a {type(value).__name__}")
        elif value.layout is not torch.strided or value.is_quantized or value.is_meta:
            problems.append(f"{name} is a sparse, quantised or empty tensor")
        else:
            if value.is_floating_point():  # NumPy has no bfloat16
                value = value.to(torch.float32)
            entries[str(name)] = value.detach().numpy()
    if problems:
        raise CheckpointError(
            f"{path} is not a state dict of dense tensors: {'; '.join(problems[:10])}"
            + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        )
    step = content.get("global_step")
    step = step if isinstance(step, int) and step >= 0 else 0
    return Checkpoint(entries, step, _settings(path, content.get(SETTINGS, {})))


def _settings(path: Path, noted) -> dict[str, dict[str, int]]:
    of_networks = list(noted.values()) if isinstance(noted, Mapping) else [noted]
    for settings in of_networks:
        values = settings.values() if isinstance(settings, Mapping) else [settings]
        if not all(isinstance(value, int) and value > 0 for value in values):
            raise CheckpointError(f"{path}: {SETTINGS} is {noted!r}, expected positive integers")
    return dict(noted)


def _explain(path: Path, error: Exception) -> str:
    """Explains why PyTorch's restricted reader refuses a file, and what to do."""
    plain = path.with_name(f"{path.stem}-plain{path.suffix}")
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign:
        # a whole module was pickled, or a checkpoint with a class among its settings
        return (
            f"{path} is refused: unpickling it needs the class or function {foreign[1]} and could "
            "run any code. " + RESAVE.format(path=path, plain=plain)
        )
    reason = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())
    reason = re.sub(r"^Weights only load failed.*?(WeightsUnpickler error: |$)", "", reason)
    reason = re.sub(r"\s*Check the documentation of torch.load.*", "", reason)
    return (
        f"{path} is not a PyTorch checkpoint (torch.save of a state dict): "
        f"{(reason or 'not readable')[:200]} ({type(error).__name__})"
    )


def write_checkpoint(path: str | os.PathLike, content: Mapping) -> None:
    """Save nested dicts with torch.save, arrays as tensors."""
    torch = _torch()

    def tensors(value):
        if isinstance(value, Mapping):
            return {name: tensors(v) for name, v in value.items()}
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value.copy())  # JAX arrays are read-only
        return value

    with atomic(path) as part:
        torch.save(tensors(content), part)
