"""Self-describing checkpoints: plain data that says which of this package's own architectures the weights belong to.

Beside the weights such a file holds the architecture's name and arguments, the name of a built-in data set and the
training settings. None of it is believed before it is checked, and nothing it names is called.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdrop_analysis.data.builtin import BUILT_IN
from rdrop_analysis.errors import CheckpointError
from rdrop_analysis.files import printable, write_whole
from rdrop_analysis.loading.state_dicts import check_fit, find_state_dict, fit
from rdrop_analysis.models import build

FORMAT = "rdrop-analysis/checkpoint"
VERSION = 1

Scalar = str | int | float | bool | None


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    *,
    architecture: str,
    arguments: Mapping[str, Any],
    data: str | None = None,
    training: Mapping[str, Scalar] | None = None,
) -> Path:
    """Write a self-describing checkpoint, whole or not at all, and return its path.

    `architecture` and `arguments` are those of `rdrop_analysis.models.build`, `data` the name of a built-in
    data set, `training` plain scalars. Equal contents give equal bytes.

    Raises `CheckpointError` if the model is not of that architecture, `training` or `data` is not plain, or
    the file cannot be written.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": architecture,
        "arguments": dict(arguments),
        "state_dict": state,
        "data": data,
        "training": dict(training or {}),
    }
    path = Path(path)
    checked_description(path, content)
    check_fit(path, _skeleton(path, content), state)
    buffer = io.BytesIO()  # torch.save puts a file's own name into it; a buffer has none
    torch.save(content, buffer)
    write_whole(path, buffer.getvalue(), CheckpointError)
    return path


def read_description(path: Path, content: object) -> dict[str, str] | None:
    """Return what a self-describing file says of itself, in words; None for other files.

    Raises `CheckpointError` if the description is malformed.
    """
    description = checked_description(path, content)
    if description is None:
        return None
    training = {f"training {name}": str(value) for name, value in description["training"].items()}
    return {"architecture": in_words(description), "data": str(description["data"]), **training}


def build_described(path: Path, description: Mapping[str, Any]) -> nn.Module:
    """Build the model that a self-describing file describes around the file's own tensors."""
    model = _skeleton(path, description)
    fit(path, model, find_state_dict(path, description), assign=True)
    return model


def _skeleton(path: Path, description: Mapping[str, Any]) -> nn.Module:
    """Build a model that holds no memory and draws no random numbers, however large the file says it is."""
    try:
        with torch.device("meta"):
            return build(description["architecture"], description["arguments"])
    except CheckpointError as problem:
        raise CheckpointError(f"{path}: {problem}") from problem


def in_words(description: Mapping[str, Any]) -> str:
    """Return the call that builds the model, such as `mlp(in_features=64, hidden=[32], ...)`."""
    arguments = ", ".join(f"{name}={value}" for name, value in description["arguments"].items())
    return f"{description['architecture']}({arguments})"


def checked_description(path: Path, content: object) -> Mapping[str, Any] | None:
    """Return the content of a self-describing file once it is known to be plain, None for other files."""
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        return None
    if content.get("version") != VERSION:
        version = printable(content.get("version"))
        raise CheckpointError(f"{path} has format version {version}, this program reads {VERSION}: update it")
    for key, kind in (
        ("architecture", str),
        ("arguments", dict),
        ("state_dict", Mapping),
        ("training", dict),
    ):
        if not isinstance(content.get(key), kind):
            raise CheckpointError(f"{path} is not a whole checkpoint: its {key} is missing or malformed")
    _check_training(path, content["training"])
    if content.get("data") not in (None, *BUILT_IN):
        named = printable(content.get("data"))
        raise CheckpointError(f"{path}: data must be one of {', '.join(BUILT_IN)}, not {named}")
    return content


def _check_training(path: Path, training: Mapping[Any, Any]) -> None:
    """Check that the training settings are plain scalars under plain names."""
    for name, value in training.items():
        if not isinstance(name, str) or not isinstance(value, Scalar):
            raise CheckpointError(f"{path}: the training setting {printable(name)} is not a plain scalar")
