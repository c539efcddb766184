"""Look into a checkpoint without measuring it: what the file holds, and where its model draws randomness."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from rdrop_analysis.audit import Audit
from rdrop_analysis.calling import call, find_scores
from rdrop_analysis.data.made_up import made_up_examples
from rdrop_analysis.errors import DataError
from rdrop_analysis.loading.contents import Contents, inspect_checkpoint
from rdrop_analysis.reading import with_decoder_inputs
from rdrop_analysis.sources import Source
from rdrop_analysis.subjects import Entry
from rdrop_probes.batch import take
from rdrop_probes.discovery import find_sites
from rdrop_probes.sites import SilentSiteError
from rdrop_probes.state import preserved

__all__ = ["Contents", "find_checkpoint_sites", "inspect_checkpoint"]


def find_checkpoint_sites(
    path: Path, factory: Callable[..., nn.Module] | None, data: str | None, *, trust_code: bool = False
) -> Audit:
    """The sites of a checkpoint's model, found by running it on a few examples, made up where nobody names any.

    Raises:
        UsageError: neither the file nor the caller names data.
        CheckpointError, DataError, UnsafeFileError: as for an analysis.
    """
    subject, checkpoint = Entry(path.stem, path).load(factory, trust_code=trust_code)
    source = Source(data, limit=3)
    source.open()
    made_up = made_up_examples(subject.model) if data is None else None
    examples = made_up or source.data_for(str(path), checkpoint)
    batch = next(examples.batches(3))
    forced = source.task_of(checkpoint) == "seq2seq"
    inputs = with_decoder_inputs(subject.model, batch) if forced else batch.inputs

    def run(n: int) -> Tensor:
        return find_scores(call(subject.model, take(inputs, torch.arange(n) % len(batch))))

    with preserved(subject.model):
        try:
            plan = find_sites(subject.model, run)
        except SilentSiteError as problem:
            raise DataError(f"{path}: {problem}") from problem
    records = [site.record() for site in plan.sites.values()]
    return Audit(checkpoint=str(path), sites=records, outside_torch=plan.foreign, uncontrolled=plan.uncontrolled)
