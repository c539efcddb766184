"""Read the files that run code when they are read, for a user who trusts them: `--trust-code`.

Pickled modules, TorchScript archives and exported programs hold a model, not only its weights. A file that can be
read without running code is read that way here as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from rdrop_analysis.errors import CheckpointError, UnsafeFileError
from rdrop_analysis.factories import importable
from rdrop_analysis.files import printable
from rdrop_analysis.loading.archives import EXPORTED, TORCH_SCRIPT, kind_of_program
from rdrop_analysis.loading.exported import reopen
from rdrop_analysis.loading.safe_io import read_tensors
from rdrop_analysis.loading.scripted import Scripted
from rdrop_analysis.loading.state_dicts import NESTED_UNDER


def read_trusted(path: Path) -> object:
    """Return what a file holds, running the code in it if there is no other way.

    Raises:
        CheckpointError: it cannot be read all the same.
    """
    kind = kind_of_program(path)
    if kind == TORCH_SCRIPT:
        return _read(path, lambda: torch.jit.load(path, map_location="cpu"))
    if kind == EXPORTED:
        return _read(path, lambda: torch.export.load(path))
    try:
        return read_tensors(path, CheckpointError)
    except UnsafeFileError:
        return _read(path, lambda: torch.load(path, map_location="cpu", weights_only=False))


@dataclass(frozen=True)
class Own:
    """A module that came out of a file: what it is in words, and what the reader has to know of it."""

    module: nn.Module
    architecture: str
    notes: dict[str, str] = field(default_factory=dict)


def module_in(path: Path, content: object) -> Own | None:
    """Return the module that a trusted file holds, itself or under one of `NESTED_UNDER`; None if it has none.

    Raises:
        CheckpointError: its mode is fixed, so that it cannot be both the eval model and its sub-models.
    """
    if isinstance(content, Mapping):
        content = next((content[key] for key in NESTED_UNDER if isinstance(content.get(key), nn.Module)), None)
    if isinstance(content, ExportedProgram):
        note = "the program was exported in train mode: its eval model is the same with dropout turned off"
        return Own(reopen(path, content), "exported program", {"exported_program": note})
    if isinstance(content, torch.jit.ScriptModule):
        return Own(Scripted(path, content), f"{content.original_name} (TorchScript)")
    if isinstance(content, nn.DataParallel):
        return module_in(path, content.module)
    return Own(content, type(content).__name__) if isinstance(content, nn.Module) else None


def weights_in(content: object) -> object:
    """Return what a trusted file holds, with the weights of modules in place of the modules."""
    if isinstance(content, Mapping):
        return {key: weights_in(value) if isinstance(value, nn.Module) else value for key, value in content.items()}
    if isinstance(content, ExportedProgram):
        return content.state_dict
    return content.state_dict() if isinstance(content, nn.Module) else content


def _read(path: Path, load: Callable[[], Any]) -> Any:
    """Call a loader quietly, with the current directory importable, and say in one line why it failed."""
    try:
        with warnings.catch_warnings(), importable(Path.cwd()), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            return load()
    except ModuleNotFoundError as problem:
        raise CheckpointError(
            f"{path} needs the module {printable(problem.name)}: install it, or run where it can be imported"
        ) from problem
    except (Exception, SystemExit) as problem:  # code of others may raise anything
        first = printable((str(problem).splitlines() or [""])[0], 200)
        raise CheckpointError(f"{path} cannot be read: {type(problem).__name__}: {first}") from problem
