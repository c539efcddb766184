"""From what a user names (paths, modules) to models with names of their own, each loaded when its turn comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rdrop_analysis.checkpoints import LoadedCheckpoint, load_checkpoint
from rdrop_analysis.errors import CheckpointError, UsageError
from rdrop_analysis.files import check_name
from rdrop_analysis.measuring import Subject

Model = str | Path | nn.Module
Models = Model | Sequence[Model] | Mapping[str, Model]


@dataclass(frozen=True)
class Entry:
    """A model that was named, not loaded yet."""

    name: str
    model: Model

    def load(
        self, factory: Callable[..., nn.Module] | None, *, trust_code: bool = False
    ) -> tuple[Subject, LoadedCheckpoint | None]:
        """The model itself, and the checkpoint it came from, if any."""
        if isinstance(self.model, nn.Module):
            return Subject(self.name, self.model, type(self.model).__name__), None
        found = load_checkpoint(self.model, factory, trust_code=trust_code)
        return (
            Subject(
                self.name,
                found.model,
                found.architecture,
                str(found.path),
                found.sha256,
                found.training,
                found.notes,
            ),
            found,
        )


def entries(models: Models) -> list[Entry]:
    """Every model with a name: its key, else its file's stem, lengthened until names differ.

    Raises:
        UsageError: there is none, or one is given twice.
        CheckpointError: a file's name is no text.
    """
    if isinstance(models, Mapping):
        named = [Entry(str(name), model) for name, model in models.items()]
    else:
        listed: list[Any] = list(models) if isinstance(models, list | tuple) else [models]
        paths = [Path(m) if isinstance(m, str | Path) else Path(f"model-{i}") for i, m in enumerate(listed, 1)]
        named = [Entry(name, model) for name, model in zip(names_of(paths), listed, strict=True)]
    for entry in named:
        if not isinstance(entry.model, str | Path | nn.Module):
            kind = type(entry.model).__name__
            raise UsageError(
                f"a {kind} is not a model: give a checkpoint's path or a module (an instance of its class)"
            )
        if not isinstance(entry.model, nn.Module):
            check_name(entry.model, CheckpointError)
    if not named:
        raise UsageError("no checkpoint given: name at least one file")
    if twice := [name for name, count in Counter(entry.name for entry in named).items() if count > 1]:
        raise UsageError(f"{twice[0]} is given twice")
    return named


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each path: its stem, lengthened until names differ."""
    return list(_distinct([_naming(path) for path in paths]))


def _distinct(paths: Sequence[Path]) -> Iterator[str]:
    """Stems; where they clash, with as many parent folders as tell them apart; at last the file's own name."""
    for path in paths:
        rivals = [other for other in paths if other != path]
        candidates = ["/".join([*path.parent.parts[len(path.parent.parts) - n :], _stem(path)]) for n in range(5)]
        taken = [_tails(other) for other in rivals]
        yield next((c for c in candidates if not any(c in tails for tails in taken)), str(path))


def _tails(path: Path) -> set[str]:
    parts = path.parent.parts
    return {"/".join([*parts[len(parts) - n :], _stem(path)]) for n in range(min(5, len(parts) + 1))}


def _naming(path: Path) -> Path:
    """What a checkpoint is called after: weights beside a config.json after their directory, as is a directory."""
    if path.is_file() and (path.parent / "config.json").is_file():
        path = path.parent
    return path.resolve() if path.is_dir() else path


def _stem(path: Path) -> str:
    """Name of a file without its suffix; what looks like one in a directory's name is part of it."""
    return path.name if path.is_dir() else path.stem
