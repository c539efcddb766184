"""The sub-models of one batch, summed for every probe: eval model and sub-models become rows, terms and sums."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from rdrop_probes.batch import Batch, LayoutError
from rdrop_probes.families import Family
from rdrop_probes.probe import Probe
from rdrop_probes.sites import SitePlan
from rdrop_probes.submodels import Chunk, SubModels
from rdrop_probes.terms import BlockSums, EvalBatch, rows_that_fit, vote


class NotFiniteError(ValueError):
    """The model's logits are NaN or +infinity."""


class Summing:
    """Sums terms over the sub-models of one batch (work item `item`) and lets every probe take them."""

    def __init__(
        self, batch: Batch, item: int, plan: SitePlan, sub_models: SubModels, probes: Sequence[Probe], family: Family
    ) -> None:
        self._batch = batch
        self._item = item
        self._plan = plan
        self._sub_models = sub_models
        self._probes = probes
        self._family = family
        self.terms = dict.fromkeys(t for p in probes for t in p.terms_for(labels=batch.labels is not None))

    def run(self, outputs: Tensor) -> Iterator[tuple[EvalBatch, Tensor | None]]:
        """For each group of the eval model's rows [P, C]: what it says of them, and the sub-models' votes if asked."""
        for group in _groups(len(outputs), outputs.shape[-1]):
            seen = self._seen(outputs, group)
            yield seen, self._sum(seen, self._chunks(seen, group)) if self.terms else None

    def _seen(self, outputs: Tensor, group: slice) -> EvalBatch:
        """What the eval model says of some of the batch's rows."""
        batch, family = self._batch, self._family
        logits = outputs[group].double()
        owners, labels = batch.owners, batch.row_labels
        expected = outputs.shape if family.name == "gaussian" else outputs.shape[:1]
        if labels is not None and labels.shape != expected:
            raise LayoutError(f"labels are {list(labels.shape)} where the model's outputs need {list(expected)}")
        owners = None if owners is None else owners[group].to(logits.device)
        labels = None if labels is None else labels[group].to(logits.device)
        _check_finite(logits, batch.start, "the eval model", owners)
        last = group.stop >= len(outputs)
        n = None if owners is None else batch.n
        normalised = family.normalised(logits)
        return EvalBatch(self._item, batch.start, batch.inputs, logits, normalised, labels, owners, n, last, family)

    def _sum(self, seen: EvalBatch, chunks: Iterable[Chunk]) -> Tensor | None:
        """Sum the terms over the sub-models and let every probe take the sums; the votes [P, C] if they are counted."""
        sums = BlockSums(self.terms, self._sub_models.count, seen.logits.shape[-1])
        for chunk in chunks:
            sums.add(seen, chunk.start, chunk.logits, self._family.normalised(chunk.logits))
        for probe in self._probes:
            probe.update(seen, sums)
        if vote in self.terms and seen.owners is None:
            return sums.total()[vote].to("cpu", torch.int32)
        return None

    def _chunks(self, seen: EvalBatch, group: slice) -> Iterable[Chunk]:
        """Checked logits [k, P, C] of all sub-models; without any site they are the eval model's."""
        batch = self._batch
        if not self._plan.stochastic:
            yield Chunk(0, seen.logits.expand(self._sub_models.count, -1, -1))
            return
        for chunk in self._sub_models.logits(batch.inputs, batch.n, seen.item):
            for k, part in enumerate(batch.rows(chunk.logits), chunk.start):
                logits = part[group].double()
                _check_finite(logits, batch.start, f"sub-model {k}", seen.owners)
                yield Chunk(k, logits[None])


def _groups(rows: int, classes: int) -> Iterator[slice]:
    """Rows in groups whose sums fit into memory; one empty group where there are none."""
    size = rows_that_fit(classes)
    for first in range(0, max(rows, 1), size):
        yield slice(first, min(first + size, rows))


def _check_finite(logits: Tensor, start: int, who: str, owners: Tensor | None) -> None:
    """Minus infinity is a class ruled out; NaN and plus infinity are errors, as is a row of minus infinities."""
    bad = (torch.isnan(logits) | torch.isposinf(logits)).any(-1) | torch.isneginf(logits).all(-1)
    if bad.any():
        row = int(bad.nonzero()[0])
        example = start + (row if owners is None else int(owners[row]))
        raise NotFiniteError(f"the logits of example {example} are not finite under {who}")
