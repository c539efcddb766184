"""Save and load checkpoints: self-describing files of this package, and anybody's state dicts.

A self-describing file holds plain data only: which of this package's own architectures, with which arguments,
the weights, the name of a built-in data set and the training settings. Everything else needs a factory from
the user.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rdrop_analysis.builtin_data import BUILT_IN
from rdrop_analysis.errors import CheckpointError, UsageError
from rdrop_analysis.files import printable, sha256_of, write_whole
from rdrop_analysis.models import build
from rdrop_analysis.safe_io import read_tensors
from rdrop_analysis.state_dicts import check_fit, find_state_dict, fit

FORMAT = "rdrop-analysis/checkpoint"
VERSION = 1

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model read from a file, ready to be analysed.

    `model` is on the CPU, in eval mode, with the dtypes of the file; `sha256` is of the file's bytes;
    `architecture` describes the model in words; `data` is the name of a built-in data set, if the file has
    one; `training` holds the settings it was trained with, if known.
    """

    model: nn.Module
    path: Path
    sha256: str
    architecture: str
    data: str | None = None
    training: Mapping[str, Scalar] = field(default_factory=dict)


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
    _description(path, content)
    check_fit(path, _skeleton(path, content), state)
    buffer = io.BytesIO()  # torch.save puts a file's own name into it; a buffer has none
    torch.save(content, buffer)
    write_whole(path, buffer.getvalue(), CheckpointError)
    return path


def load_checkpoint(path: str | Path, factory: Callable[[], nn.Module] | None = None) -> LoadedCheckpoint:
    """Read a checkpoint without running code from it.

    The file is a self-describing checkpoint, or a state dict as `.pt`, `.pth`, `.bin`, `.ckpt` or
    `.safetensors`, alone or under a usual key (`state_dict`, `model_state_dict`, `model`, `ema`, ...),
    possibly with the prefixes of wrapped models (`module.`, `_orig_mod.`). `factory` builds the model to load
    it into, strictly; it takes the place of what a self-describing file says. The global random state is left
    as it was.

    Raises `CheckpointError` if the file cannot be read or does not fit, `UnsafeFileError` if reading it would
    run code, and `UsageError` if a state dict comes without a factory or the factory fails.
    """
    path = Path(path)
    content = read_tensors(path, CheckpointError)
    description = _description(path, content)
    if factory is not None:
        model = _made_by(factory)
        fit(path, model, find_state_dict(path, content))
        architecture = type(model).__name__
    elif description is not None:
        model = _described(path, description)
        architecture = _in_words(description)
    else:
        find_state_dict(path, content)  # a file without weights is the first thing to complain about
        raise UsageError(
            f"{path} holds weights, not their model: pass --model pkg.mod:callable or path/file.py:callable"
        )
    data, training = (description["data"], description["training"]) if description else (None, {})
    return LoadedCheckpoint(model.eval(), path, sha256_of(path), architecture, data, training)


def read_description(path: Path, content: object) -> dict[str, str] | None:
    """Return what a self-describing file says of itself, in words; None for other files.

    Raises `CheckpointError` if the description is malformed.
    """
    description = _description(path, content)
    if description is None:
        return None
    training = {f"training {name}": str(value) for name, value in description["training"].items()}
    return {"architecture": _in_words(description), "data": str(description["data"]), **training}


def _made_by(factory: Callable[[], nn.Module]) -> nn.Module:
    """Call the user's factory, keeping the global random state."""
    name = getattr(factory, "__qualname__", repr(factory))
    try:
        with torch.random.fork_rng(devices=[]):
            model = factory()
    except (Exception, SystemExit) as problem:  # the user's own code may raise anything
        raise UsageError(
            f"the model factory {name} failed: {type(problem).__name__}: {printable(problem)}"
        ) from problem
    if not isinstance(model, nn.Module):
        raise UsageError(f"the model factory {name} returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _described(path: Path, description: Mapping[str, Any]) -> nn.Module:
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


def _in_words(description: Mapping[str, Any]) -> str:
    """Return the call that builds the model, such as `mlp(in_features=64, hidden=[32], ...)`."""
    arguments = ", ".join(f"{name}={value}" for name, value in description["arguments"].items())
    return f"{description['architecture']}({arguments})"


def _description(path: Path, content: object) -> Mapping[str, Any] | None:
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
