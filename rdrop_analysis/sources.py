"""The data of a run: read once, and prepared for each checkpoint that reads texts or images in a way of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rdrop_analysis.checkpoints import LoadedCheckpoint
from rdrop_analysis.data.examples import Data
from rdrop_analysis.data.tables import Table, as_data
from rdrop_analysis.datasets import load_data
from rdrop_analysis.errors import UsageError
from rdrop_analysis.tasks import AUTO


@dataclass
class Source:
    """Where a run's examples come from.

    Attributes:
        spec: what the user gave; None takes what the first checkpoint names.
        limit: use only the first examples. task: as the user named it.
        data: of the first checkpoint that was measured. differing: whether others read the examples in another way.
    """

    spec: object
    limit: int | None = None
    task: str = AUTO
    data: Data | None = None
    differing: bool = False
    _given: Data | Table | None = None
    _prepared: dict[Path | None, Data] = field(default_factory=dict)

    def open(self) -> None:
        """Read what the user gave, if anything, so that a mistake shows before any model is loaded."""
        if self.spec is not None:
            self._given = load_data(self.spec, self.limit)

    def data_for(self, name: str, checkpoint: LoadedCheckpoint | None) -> Data:
        """The examples as a checkpoint takes them.

        Raises:
            UsageError: neither the user nor the checkpoint names any, or raw ones need a tokenizer that is not there.
            DataError: they cannot be prepared for it.
        """
        if self._given is None:
            self._given = load_data(_named_by(name, checkpoint), self.limit)
        directory = checkpoint.source if checkpoint else None
        if directory not in self._prepared:
            task, names = self.task_of(checkpoint), checkpoint.class_names if checkpoint else None
            self._prepared[directory] = as_data(self._given, directory, None if task == AUTO else task, names)
        return self._prepared[directory]

    def task_of(self, checkpoint: LoadedCheckpoint | None) -> str:
        """The task that the user names, else the one that the checkpoint is for, else "auto"."""
        if self.task != AUTO or checkpoint is None:
            return self.task
        return checkpoint.task or AUTO

    def keep(self, data: Data) -> None:
        """Remember the first data that were measured, and whether later ones differ."""
        if self.data is None:
            self.data = data
        elif data is not self.data:
            self.differing |= data.inputs_fingerprint != self.data.inputs_fingerprint


def _named_by(name: str, checkpoint: LoadedCheckpoint | None) -> str:
    if checkpoint is None or checkpoint.data is None:
        raise UsageError(f"{name} does not name its data: pass --data with a built-in name, a file or file.py:callable")
    return checkpoint.data
