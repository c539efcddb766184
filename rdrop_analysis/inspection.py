"""Look into a checkpoint without measuring it: what the file holds, and where its model draws randomness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rdrop_analysis.checkpoints import read_description
from rdrop_analysis.datasets import load_data
from rdrop_analysis.errors import CheckpointError, DataError, UsageError
from rdrop_analysis.files import sha256_of
from rdrop_analysis.safe_io import read_tensors
from rdrop_analysis.state_dicts import find_state_dict
from rdrop_analysis.subjects import Entry
from rdrop_analysis.tasks import recognise
from rdrop_probes.discovery import find_sites
from rdrop_probes.measure import take
from rdrop_probes.records import SiteRecord
from rdrop_probes.sites import SilentSiteError
from rdrop_probes.state import preserved


@dataclass(frozen=True)
class Contents:
    """What a file holds: `description` is of self-describing checkpoints, None for plain state dicts."""

    path: Path
    sha256: str
    description: Mapping[str, str] | None
    tensors: Mapping[str, Tensor]

    @property
    def n_values(self) -> int:
        """Numbers in all tensors together."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def inspect_checkpoint(path: Path) -> Contents:
    """Read what a checkpoint holds, building no model and running no code from it.

    Raises:
        CheckpointError: the file cannot be read or has no weights.
        UnsafeFileError: reading it would run code.
    """
    content = read_tensors(path, CheckpointError)
    return Contents(path, sha256_of(path), read_description(path, content), find_state_dict(path, content))


def find_checkpoint_sites(path: Path, factory: Callable[[], nn.Module] | None, data: str | None) -> list[SiteRecord]:
    """The sites of a checkpoint's model, found by running it on a few examples.

    Raises:
        UsageError: neither the file nor the caller names data.
        CheckpointError, DataError, UnsafeFileError: as for an analysis.
    """
    subject, checkpoint = Entry(path.stem, path).load(factory)
    spec = data or (checkpoint.data if checkpoint else None)
    if spec is None:
        raise UsageError(f"{path} does not name its data: pass --data, a few examples are enough")
    batch = next(load_data(spec, limit=3).batches(3))
    classifier = recognise(subject.model, batch)
    with preserved(subject.model):
        try:
            plan = find_sites(subject.model, lambda n: classifier(take(batch.inputs, torch.arange(n) % len(batch))))
        except SilentSiteError as problem:
            raise DataError(f"{path}: {problem}") from problem
    return [site.record() for site in plan.sites.values()]
