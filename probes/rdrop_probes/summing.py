"""The sub-models of one batch, summed for every probe: eval model and sub-models become rows, terms and sums.

Sums are taken for as many rows at a time as memory allows, and everything in between for so few that it stays in the
processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rdrop_probes.batch import Batch, LayoutError
from rdrop_probes.block_sums import BlockSums, rows_that_fit
from rdrop_probes.distributions import Distributions, EvalBatch
from rdrop_probes.families import Family
from rdrop_probes.memory import Space, is_out_of_memory
from rdrop_probes.probe import Probe
from rdrop_probes.sites import SitePlan
from rdrop_probes.submodels import Chunk, SubModels
from rdrop_probes.terms import vote

IN_CACHE = 2**16  # numbers in a tensor that a processor works on
ON_DEVICE = 2**24  # numbers in a tensor that another device works on


class NotFiniteError(ValueError):
    """The model's logits are NaN or +infinity."""


class Summing:
    """Sums terms over the sub-models of one batch and lets every probe take them.

    Args:
        memory: bytes that may be used for everything; by default what the machine has.
        space: where sums are kept, to be given to one batch after the other.
    """

    def __init__(
        self,
        batch: Batch,
        plan: SitePlan,
        sub_models: SubModels,
        probes: Sequence[Probe],
        family: Family,
        *,
        memory: int | None = None,
        space: Space | None = None,
    ) -> None:
        self._batch = batch
        self._plan = plan
        self._sub_models = sub_models
        self._probes = probes
        self._family = family
        self._memory = memory
        self._space = space or Space()
        self._places = batch.places.nonzero() if batch.places is not None and plan.stochastic else None
        self.terms = dict.fromkeys(t for p in probes for t in p.terms_for(labels=batch.labels is not None))

    def run(self, outputs: Tensor) -> Iterator[tuple[EvalBatch, Tensor | None]]:
        """For some of the eval model's rows [P, C] at a time: what it says of them, and the sub-models' votes if asked.

        Votes are [P, C], how many sub-models vote for each class.
        """
        whole = self._seen(outputs)
        if self._places is not None:
            self._there = self._places.to(outputs.device)
        if not self.terms:
            yield whole, None
            return
        for rows, sums in self._groups(whole):
            for part in _slices(rows.stop - rows.start, outputs.shape[-1], outputs.device):
                seen, found = _rows_of(whole, _within(rows, part)), sums.rows(part)
                for probe in self._probes:
                    probe.update(seen, found)
                yield seen, self._votes(seen, found)

    def _seen(self, outputs: Tensor) -> EvalBatch:
        """What the eval model says of the batch's rows."""
        batch, family = self._batch, self._family
        owners, labels = batch.owners, batch.row_labels
        expected = outputs.shape if family.name == "gaussian" else outputs.shape[:1]
        if labels is not None and labels.shape != expected:
            raise LayoutError(f"labels are {list(labels.shape)} where the model's outputs need {list(expected)}")
        owners = None if owners is None else owners.to(outputs.device)
        labels = None if labels is None else labels.to(outputs.device)
        n = None if owners is None else batch.n
        seen = EvalBatch(batch.start, batch.inputs, outputs, labels, owners, n, True, family)
        return replace(seen, ruled_out=self._check_eval(seen))

    def _check_eval(self, seen: EvalBatch) -> bool:
        """Refuse logits that are not finite; whether there are classes that are ruled out."""
        parts = _slices(len(seen.logits), seen.logits.shape[-1], seen.logits.device)
        extremes = [(seen.logits[part].amax(-1), seen.logits[part].amin(-1)) for part in parts]
        highest, lowest = (torch.cat(values) for values in zip(*extremes, strict=True))
        self._refuse(~torch.isfinite(highest)[None], seen, "the eval model")
        return bool(torch.isneginf(lowest).any())

    def _refuse(self, bad: Tensor, seen: EvalBatch, *who: str) -> None:
        """Name the example and the model of the first of the rows [k, P] whose logits are bad."""
        if bad.any():
            k, row = bad.nonzero()[0].tolist()
            example = seen.start + (row if seen.owners is None else int(seen.owners[row]))
            raise NotFiniteError(f"the logits of example {example} are not finite under {who[k]}")

    def _groups(self, whole: EvalBatch) -> Iterator[tuple[slice, BlockSums]]:
        """Sums over all sub-models, for groups of rows that fit into memory; smaller groups where they do not."""
        total, classes = whole.logits.shape
        size, first = rows_that_fit(classes, self._memory, whole.logits.device), 0
        while first < max(total, 1):
            rows = slice(first, min(first + size, total))
            try:
                sums = self._summed(whole, rows)
            except Exception as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                self._space.clear()
                size = max(1, min(size, total) // 2)
                continue
            yield rows, sums
            first += size

    def _summed(self, whole: EvalBatch, rows: slice) -> BlockSums:
        """Sums for some rows: fast, and again with infinities followed through if there are any."""
        sums, check = self._sum(whole, rows, exact=False)
        if not torch.isfinite(check).all():  # looked at once, when all is summed
            sums, highest = self._sum(whole, rows, exact=True)
            who = (f"sub-model {k}" for k in range(len(highest)))
            self._refuse(~torch.isfinite(highest), _rows_of(whole, rows), *who)
        return sums

    def _sum(self, whole: EvalBatch, rows: slice, *, exact: bool) -> tuple[BlockSums, Tensor]:
        """Sums for some rows, and [K, P] what has to be finite: the highest logits if `exact`."""
        count, (_, classes), device = rows.stop - rows.start, whole.logits.shape, whole.logits.device
        sums = BlockSums(self.terms, self._sub_models.count, count, classes, exact=exact, space=self._space)
        check = torch.zeros(self._sub_models.count, count, dtype=torch.float64, device=device)
        parts = [(part, _rows_of(whole, _within(rows, part))) for part in _slices(count, classes, device)]
        for chunk in self._chunks(whole):
            for part, seen in parts:
                for some in _slices(chunk.logits.shape[0], (part.stop - part.start) * classes, device):
                    logits = self._logits(chunk.logits[some], _within(rows, part))
                    found = Distributions(seen, logits, exact=exact)
                    start, stop = chunk.start + some.start, chunk.start + some.stop
                    sums.add(start, found, part)
                    check[start:stop, part] = found.highest if exact else found.check
        return sums, check

    def _chunks(self, whole: EvalBatch) -> Iterator[Chunk]:
        """Logits of all sub-models; without any site they are the eval model's."""
        if not self._plan.stochastic:
            return iter([Chunk(0, whole.logits.expand(self._sub_models.count, -1, -1))])
        return self._sub_models.logits(self._batch.inputs, self._batch.n, self._batch.start)

    def _logits(self, outputs: Tensor, rows: slice) -> Tensor:
        """Some rows [k, P, C] of outputs [k, N, ..., C] of sub-models."""
        if self._places is None:
            return outputs[:, rows]
        if rows.stop - rows.start != 1:
            index: list[slice | Tensor] = [slice(None), *self._there[rows].unbind(1)]
            return outputs[tuple(index)]
        for place in self._places[rows][0].tolist():
            outputs = outputs.select(1, place)  # a view
        return outputs.unsqueeze(1)

    def _votes(self, seen: EvalBatch, sums: BlockSums) -> Tensor | None:
        if vote not in self.terms or seen.owners is not None:
            return None
        kept = sums.kept(vote).T.long()
        votes = torch.zeros(seen.logits.shape, dtype=torch.int32, device=kept.device)
        return votes.scatter_add_(1, kept, torch.ones_like(kept, dtype=torch.int32)).cpu()


def _rows_of(seen: EvalBatch, rows: slice) -> EvalBatch:
    """Some of the rows."""
    labels, owners = (None if t is None else t[rows] for t in (seen.labels, seen.owners))
    last = seen.last and rows.stop >= len(seen.logits)
    return replace(seen, logits=seen.logits[rows], labels=labels, owners=owners, last=last)


def _within(outer: slice, inner: slice) -> slice:
    """Where a part of some rows is among all rows."""
    return slice(outer.start + inner.start, outer.start + inner.stop)


def _slices(count: int, numbers: int, device: torch.device) -> Iterator[slice]:
    """Of `count` things with so many numbers each, as many at a time as are worked on at once; none as one slice."""
    size = max(1, (IN_CACHE if device.type == "cpu" else ON_DEVICE) // max(numbers, 1))
    for first in range(0, max(count, 1), size):
        yield slice(first, min(first + size, count))
