"""Scores of the mean of m sub-models, for m = 1, 2, 4, ..., from the block sums of one pass: no further passes.

The mean of m sub-models is what somebody gets who runs m passes and averages what they say. Disjoint groups of blocks
are so many draws of it, over which its scores are averaged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from rdrop_probes.block_sums import BlockSums
from rdrop_probes.mean_scores import Predicted, Scoring


@dataclass(frozen=True)
class MeanModel:
    """Scores of the mean of so many sub-models; of the eval model where `passes` is 0.

    Attributes:
        scores: [S, P], averaged over groups.
        without: [G, S, P], the same with one block of sub-models left out; None where it is not asked for.
        predicted: what each of the J groups predicts, where that is a class.
    """

    passes: int
    scores: Tensor
    without: Tensor | None
    predicted: Predicted | None

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


def mean_models(scoring: Scoring, sums: BlockSums, *, leave_out: bool) -> Iterator[MeanModel]:
    """The eval model, one sub-model on average, and the means of 2, 4, ... and all of them.

    All of them score the same rows: one whose score is not finite under the eval model or under a sub-model (the NLL of
    a label that it rules out) has none under any of them. Where each sub-model's is finite, so is that of their means.
    """
    own, predicted = scoring.own()
    single = scoring.single(sums.total())
    either = own + single  # infinite where one of them is, NaN where there is no label
    still = own.expand(sums.blocks, *own.shape) if leave_out else None
    yield MeanModel(0, own, still, predicted).where_finite(either)
    without = scoring.single(sums.leave_one_out()) if leave_out else None
    yield MeanModel(1, single, without, scoring.singles()).where_finite(either)
    for groups in grouped(sums.sizes.tolist()):
        yield mean_of(scoring, sums.blocks, groups, leave_out=leave_out).where_finite(either)


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


def mean_of(scoring: Scoring, blocks: int, groups: Groups, *, leave_out: bool) -> MeanModel:
    """The mean of the sub-models of so many of the `blocks` as a group has, its scores averaged over the groups."""
    runs = [list(range(start, start + groups.blocks)) for start in groups.starts]
    found = [scoring.mean(run) for run in runs]
    by_group = torch.stack([scores for scores, _ in found])
    without = _without(scoring, blocks, runs, by_group) if leave_out else None
    predicted = Predicted.together([predicted for _, predicted in found])
    return MeanModel(groups.passes, by_group.mean(0), without, predicted)


def _without(scoring: Scoring, blocks: int, runs: Sequence[Sequence[int]], by_group: Tensor) -> Tensor:
    """Scores with one block left out [G, S, P], so that their jackknife is the spread of the mean over groups.

    What a block adds is what its group loses without it, (n - 1) (f_j - f_j without b), and by how much its group
    stands out, f_j - mean f. For a single group that is the jackknife; for groups of one block as well, and for
    scores linear in the mean whatever the groups. Blocks in no group add nothing.
    """
    n, scores = len(runs[0]), by_group.mean(0)
    used = n * len(runs)
    scale = sqrt(blocks / ((blocks - 1) * used * (used - 1)))  # 1 / (G - 1) where all are used
    without = scores.expand(blocks, *scores.shape).clone()
    for run, own in zip(runs, by_group, strict=True):
        for block in run:
            rest = [b for b in run if b != block]
            inside = (n - 1) * (own - scoring.mean(rest)[0]) if rest else 0.0
            without[block] -= scale * (inside + own - scores)
    return without
