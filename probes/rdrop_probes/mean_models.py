"""Scores of the mean of m sub-models, for m = 1, 2, 4, ..., from the block sums of one pass: no further passes.

The mean of m sub-models is what somebody gets who runs m passes and averages probabilities. Disjoint groups of blocks
are so many draws of it, over which its scores are averaged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import log, sqrt

import torch
from torch import Tensor

from rdrop_probes.block_sums import BlockSums, Totals
from rdrop_probes.distributions import EvalBatch
from rdrop_probes.divergences import brier, hits, nll
from rdrop_probes.terms import (
    brier_term,
    confidence,
    correct,
    log_likelihood,
    negative_log_likelihood,
    probability,
    vote,
)

SCORES = ("nll", "accuracy", "brier")
TERMS = (probability, brier_term, vote, confidence, negative_log_likelihood, correct, log_likelihood)


@dataclass(frozen=True)
class MeanModel:
    """Scores of the mean of so many sub-models; of the eval model where `passes` is 0.

    Attributes:
        scores: [S, P], NLL, hits and Brier score, averaged over groups.
        without: [G, S, P], the same with one block of sub-models left out; None where it is not asked for.
        confidence, prediction: [J, P], the highest probability under each group, and its class.
    """

    passes: int
    scores: Tensor
    without: Tensor | None
    confidence: Tensor
    prediction: Tensor

    def where_finite(self, values: Tensor) -> MeanModel:
        """With the scores of rows where `values` [S, P] are finite, and `values` in place of the others."""
        kept = torch.isfinite(values)
        without = None if self.without is None else torch.where(kept, self.without, values)
        return replace(self, scores=torch.where(kept, self.scores, values), without=without)


@dataclass(frozen=True)
class Groups:
    """Disjoint groups of `blocks` consecutive blocks that hold `passes` sub-models each; `starts` are their firsts."""

    passes: int
    blocks: int
    starts: Sequence[int]


def mean_models(batch: EvalBatch, sums: BlockSums, *, leave_out: bool) -> Iterator[MeanModel]:
    """The eval model, one sub-model on average, and the means of 2, 4, ... and all of them.

    All of them score the same rows: one whose score is not finite under the eval model or under a sub-model (the NLL of
    a label that it rules out) has none under any of them. Where each sub-model's is finite, so is that of their means.
    """
    highest = batch.p.max(-1)
    own = torch.stack([nll(batch.log_p, batch.labels), hits(batch.log_p, batch.labels), brier(batch.p, batch.labels)])
    single = _single(sums.total())
    either = own + single  # infinite where one of them is, NaN where there is no label
    still = own.expand(sums.blocks, *own.shape) if leave_out else None
    yield MeanModel(0, own, still, highest.values[None], highest.indices[None]).where_finite(either)
    without = _single(sums.leave_one_out()) if leave_out else None
    yield MeanModel(1, single, without, sums.kept(confidence), sums.kept(vote)).where_finite(either)
    for groups in grouped(sums.sizes.tolist()):
        yield _MeanOf(batch, sums, groups).model(leave_out=leave_out).where_finite(either)


def grouped(sizes: Sequence[int]) -> list[Groups]:
    """Groups of 1, 2, 4, ... and all blocks of these sizes, each with the number of sub-models that is most usual."""
    found: dict[int, Groups] = {}
    for blocks in _doubling(len(sizes)):
        usual = Counter(sum(sizes[i : i + blocks]) for i in range(len(sizes) - blocks + 1))
        passes = usual.most_common(1)[0][0]
        if passes > 1:
            found.setdefault(passes, Groups(passes, blocks, _disjoint(sizes, blocks, passes)))
    return list(found.values())


def _doubling(last: int) -> list[int]:
    """1, 2, 4, ... and the last."""
    return [*(2**i for i in range(last.bit_length()) if 2**i < last), last]


def _disjoint(sizes: Sequence[int], blocks: int, passes: int) -> list[int]:
    """Firsts of as many disjoint runs of so many blocks with so many sub-models as can be had from the left."""
    starts: list[int] = []
    for i in range(len(sizes) - blocks + 1):
        free = not starts or i >= starts[-1] + blocks
        if free and sum(sizes[i : i + blocks]) == passes:
            starts.append(i)
    return starts


def _single(totals: Totals) -> Tensor:
    """Mean scores of single sub-models [S, P] or [G, S, P]."""
    return torch.stack([totals.mean(term) for term in (negative_log_likelihood, correct, brier_term)], -2)


class _MeanOf:
    """The mean of the sub-models of some blocks, for several groups of blocks."""

    def __init__(self, batch: EvalBatch, sums: BlockSums, groups: Groups) -> None:
        self._batch = batch
        self._p = sums.block_sums(probability, sums.blocks)
        self._likelihoods = sums.block_sums(log_likelihood, sums.blocks)
        self._sizes = sums.sizes.tolist()
        self._groups = groups

    def model(self, *, leave_out: bool) -> MeanModel:
        """Scores averaged over the groups."""
        runs = [list(range(i, i + self._groups.blocks)) for i in self._groups.starts]
        found = [self._scored(run) for run in runs]
        by_group = torch.stack([scores for scores, _, _ in found])
        scores = by_group.mean(0)
        return MeanModel(
            self._groups.passes,
            scores,
            self._without(runs, by_group, scores) if leave_out else None,
            torch.stack([confidence for _, confidence, _ in found]),
            torch.stack([prediction for _, _, prediction in found]),
        )

    def _scored(self, blocks: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [S, P] of the mean of some blocks, its confidence and its prediction [P]."""
        count, labels = sum(self._sizes[b] for b in blocks), self._batch.labels
        p = self._p[blocks[0]].double()
        for block in blocks[1:]:
            p = p + self._p[block]
        p = p / count
        log_p = self._likelihoods[blocks].logsumexp(0) - log(count)
        return torch.stack([-log_p, hits(p, labels), brier(p, labels)]), *p.max(-1)

    def _without(self, runs: list[list[int]], by_group: Tensor, scores: Tensor) -> Tensor:
        """Scores with one block left out [G, S, P], so that their jackknife is the spread of the mean over groups.

        What a block adds is what its group loses without it, (n - 1) (f_j - f_j without b), and by how much its group
        stands out, f_j - mean f. For a single group that is the jackknife; for groups of one block as well, and for
        scores linear in p whatever the groups. Blocks in no group add nothing.
        """
        n, g = self._groups.blocks, len(self._sizes)
        used = n * len(runs)
        scale = sqrt(g / ((g - 1) * used * (used - 1)))  # 1 / (G - 1) where all are used
        without = scores.expand(g, *scores.shape).clone()
        for run, own in zip(runs, by_group, strict=True):
            for block in run:
                rest = [b for b in run if b != block]
                inside = (n - 1) * (own - self._scored(rest)[0]) if rest else 0.0
                without[block] -= scale * (inside + own - scores)
        return without
