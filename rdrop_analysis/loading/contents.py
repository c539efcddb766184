"""What a checkpoint holds, in words and tensors, without building a model or running code from it.

What cannot be read that way is told as far as it can be: the code that it asks for, the files that are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rdrop_analysis.errors import CheckpointError, RDropAnalysisError
from rdrop_analysis.files import check_name, printable
from rdrop_analysis.loading.architectures import class_names, task_of, uncovered
from rdrop_analysis.loading.descriptions import read_description
from rdrop_analysis.loading.json_files import read_json
from rdrop_analysis.loading.lightning import hyper_parameters, is_lightning
from rdrop_analysis.loading.state_dicts import find_state_dict, ignored_average
from rdrop_analysis.loading.stored import Stored, digest, find_weights, read_stored
from rdrop_analysis.loading.unread import look_over

_FROM_CONFIG = ("model_type", "problem_type", "dtype", "torch_dtype", "transformers_version")
_SHOWN = 5


@dataclass(frozen=True)
class Contents:
    """What a file or a directory holds.

    Attributes:
        path: what was named.
        sha256: of the file, or of the names and hashes of all files that were read.
        kind: what it is, in words.
        description: what it says of itself; None for plain state dicts.
        tensors: the weights that would be measured; none where reading them needs code.
        code: what it holds or needs that would be run, by name.
        problem: why it cannot be read further.
    """

    path: Path
    sha256: str
    kind: str
    description: Mapping[str, str] | None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    code: Sequence[str] = ()
    problem: RDropAnalysisError | None = None

    @property
    def n_values(self) -> int:
        """Numbers in all tensors together."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def inspect_checkpoint(path: Path) -> Contents:
    """Read what a checkpoint holds, building no model and running no code from it.

    Raises:
        CheckpointError: it cannot be read or has no weights.
    """
    check_name(path, CheckpointError)
    found = look_over(find_weights(path) if path.is_dir() else path)
    if found is not None:
        return Contents(path, digest(found.files), found.kind, found.description, {}, found.code, found.problem)
    stored = read_stored(path)
    tensors = find_state_dict(path, stored.content)
    kind, description = _told(stored)
    if stored.n_shards > 1:
        description |= {"files": str(stored.n_shards)}
    if average := ignored_average(stored.content):
        description |= {"moving average": f"under {average}, not shown"}
    return Contents(path, digest(_files(stored, kind)), kind, description or None, tensors)


def _told(stored: Stored) -> tuple[str, dict[str, str]]:
    """What a checkpoint is, and what it says of itself."""
    own = read_description(stored.path, stored.content)
    if own is not None:
        return "self-describing checkpoint", own
    if is_lightning(stored.content):
        return "Lightning checkpoint", _of_lightning(stored.content)
    if stored.config is not None:
        return "Hugging Face model", _of_config(stored.config)
    return ("state dict in several files" if stored.n_shards > 1 else "state dict"), {}


def _files(stored: Stored, kind: str) -> tuple[Path, ...]:
    """The files that make the model, as an analysis takes their hash."""
    return (*stored.files, stored.config) if kind == "Hugging Face model" and stored.config else stored.files


def _of_lightning(content: Any) -> dict[str, str]:
    """Where training stood, and with which hyper-parameters."""
    plain = {key: content.get(key) for key in ("pytorch-lightning_version", "epoch", "global_step")}
    told = {key: printable(value) for key, value in plain.items() if isinstance(value, str | int)}
    given = hyper_parameters(content)
    return told | {f"hyper-parameter {printable(name)}": printable(value) for name, value in given.items()}


def _of_config(config: Path) -> dict[str, str]:
    """Class, task and classes of a Hugging Face model; transformers is not needed for them."""
    described = read_json(config)
    named = described.get("architectures")
    architecture = printable(named[0]) if isinstance(named, list) and named else "not named"
    told = {"architecture": architecture}
    told |= {key: printable(described[key]) for key in _FROM_CONFIG if isinstance(described.get(key), str)}
    if task := task_of(architecture, described):
        told["task"] = task
    elif use := uncovered(architecture, described):
        told["task"] = f"none: a model {use}"
    if names := class_names(architecture, described):
        more = ", ..." if len(names) > _SHOWN else ""
        told["classes"] = f"{len(names)}: {', '.join(printable(name, 30) for name in names[:_SHOWN])}{more}"
    if "auto_map" in described:
        told["code of its own"] = "yes, never run"
    return told
