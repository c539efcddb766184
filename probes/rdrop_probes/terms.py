"""What is summed over sub-models, and the sums themselves.

A term maps the log-probabilities of some sub-models to one value for each of them. The engine adds each term
over sub-models once per batch, however many probes ask for it, in blocks of sub-models: the blocks give the
delete-a-block jackknife and the convergence in K, and memory does not grow with K.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from rdrop_probes.divergences import brier, entropy, hits, kl, nll, zero_times
from rdrop_probes.families import CATEGORICAL, Family

MAX_BLOCKS = 32
FEW_BLOCKS = 8  # where there are so many classes that every block is large
MANY_CLASSES = 2048
MEMORY = 2**30  # bytes that the sums of one group of rows may take


@dataclass(frozen=True)
class EvalBatch:
    """One batch, or a group of its rows, as its eval model sees it.

    A row is what one divergence is taken of: an example (P = N), or a token or label of one.

    Attributes:
        item: number of the work item; start: index of the first example.
        inputs: what the model was called with.
        logits: [P, C] in float64. log_p: log-softmax of them (the outputs themselves for a Gaussian).
        labels: [P] of class indices, -100 where to be ignored; None without labels. Of a Gaussian: [P, D] targets.
        owners: [P], the example in 0..n-1 that each row belongs to; None where each row is an example.
        n: number of examples N; None where each row is one. last: whether no group of the same batch follows.
        family: what a row's scores stand for.
    """

    item: int
    start: int
    inputs: Any
    logits: Tensor
    log_p: Tensor
    labels: Tensor | None
    owners: Tensor | None = None
    n: int | None = None
    last: bool = True
    family: Family = CATEGORICAL

    @cached_property
    def prediction(self) -> Tensor:
        """Most probable class [P], or a Gaussian's mean."""
        return self.family.prediction(self.log_p)


Term = Callable[[EvalBatch, Tensor, Tensor], Tensor]  # (batch, logits [k,N,C], log_p [k,N,C]) -> [k,N,...]


class BlockSums:
    """Sums of terms over sub-models, in blocks: `sums[term]` is [blocks, N, ...], `sizes` [blocks]."""

    def __init__(self, terms: Iterable[Term], count: int, classes: int = 1) -> None:
        self._many = classes > MANY_CLASSES
        self.blocks = min(count, most_blocks(classes))
        block_of = torch.arange(count) * self.blocks // count
        self.sizes = torch.bincount(block_of, minlength=self.blocks)
        self._block_of = block_of
        self._terms = tuple(terms)
        self._sums: dict[Term, Tensor] = {}
        self._reduced: dict[tuple[int, int], Totals] = {}

    def add(self, batch: EvalBatch, start: int, logits: Tensor, log_p: Tensor) -> None:
        """Add the sub-models `start`, ... with these logits and log-probabilities [k, N, C]."""
        block_of = self._block_of[start : start + len(log_p)].tolist()
        self._reduced.clear()
        for term in self._terms:
            values = term(batch, logits, log_p)
            if term not in self._sums:
                self._sums[term] = self._zeros(values).log_() if term in LOG_TERMS else self._zeros(values)
            for block, value in zip(block_of, values, strict=True):
                if term in LOG_TERMS:
                    self._sums[term][block] = torch.logaddexp(self._sums[term][block], value)
                else:
                    self._sums[term][block] += value

    def total(self, blocks: int | None = None) -> Totals:
        """Sums [N, ...] over the first `blocks` blocks, all by default."""
        blocks = blocks or self.blocks
        kept = list(range(blocks))
        return self._totals(blocks, self.sizes[:blocks].sum(), lambda term: self._some(term, kept)[0])

    def leave_one_out(self, blocks: int | None = None) -> Totals:
        """Sums [blocks, N, ...] over the first `blocks` blocks but one, each in turn."""
        blocks = blocks or self.blocks
        sizes = self.sizes[:blocks]
        return self._totals(blocks, sizes.sum() - sizes, lambda term: _all_but_one(self._sums[term][:blocks], term))

    def parts_left_out(self, blocks: int | None = None) -> Iterator[Totals]:
        """:meth:`leave_one_out` in parts, [1, N, ...] each where there are many classes, so that memory is bounded."""
        blocks = blocks or self.blocks
        if not self._many:
            yield self.leave_one_out(blocks)
            return
        for block in range(blocks):
            kept = [b for b in range(blocks) if b != block]
            yield Totals(self.sizes[kept].sum()[None], partial(self._some, kept=kept))

    def _some(self, term: Term, kept: list[int]) -> Tensor:
        """Sum of a term over some of the blocks [1, N, ...]."""
        if term in LOG_TERMS:
            return torch.logsumexp(self._sums[term][kept], 0)[None]
        return _total(self._sums[term], kept)[None]

    def _zeros(self, values: Tensor) -> Tensor:
        """Sums to begin with; single precision is enough for a few centred terms, and half the memory."""
        single = self._many and values.dtype == torch.float64 and values.dim() > 2
        return values.new_zeros((self.blocks, *values.shape[1:]), dtype=torch.float32 if single else values.dtype)

    def _totals(self, blocks: int, count: Tensor, reduce: Callable[[Term], Tensor]) -> Totals:
        key = (blocks, count.dim())
        if key not in self._reduced:
            self._reduced[key] = Totals(count, reduce)
        return self._reduced[key]


class Totals:
    """Sums of terms over `count` sub-models, each computed when first asked for.

    With several counts [G], every sum has a leading dimension G.
    """

    def __init__(self, count: Tensor, compute: Callable[[Term], Tensor]) -> None:
        self._count = count.double()
        self._compute = compute
        self._sums: dict[Term, Tensor] = {}

    def __getitem__(self, term: Term) -> Tensor:
        if term not in self._sums:
            self._sums[term] = self._compute(term)
        return self._sums[term]

    def mean(self, term: Term) -> Tensor:
        """Average of a term over the sub-models; of a term in logarithms, the logarithm of the average."""
        count = self.count(self[term].dim())
        return self[term] - count.log() if term in LOG_TERMS else self[term] / count

    def count(self, dims: int) -> Tensor:
        """Number of sub-models, shaped to go with a tensor of `dims` dimensions."""
        return self._count.reshape(*self._count.shape, *[1] * (dims - self._count.dim()))


def most_blocks(classes: int) -> int:
    """How many blocks sub-models are summed in."""
    return FEW_BLOCKS if classes > MANY_CLASSES else MAX_BLOCKS


def rows_that_fit(classes: int) -> int:
    """How many rows of so many classes may be summed at a time: what :class:`BlockSums` and its users take."""
    many = classes > MANY_CLASSES
    held = most_blocks(classes) * (3 * (4 if many else 8) + 2)  # three terms with a number a class, and the votes
    passing = 8 * (8 + 8 if many else 6 * MAX_BLOCKS + 8 * 8)  # leave-one-out sums, and a chunk of sub-models
    return max(1, MEMORY // (classes * (held + passing)))


def _total(parts: Tensor, kept: list[int]) -> Tensor:
    """Sum of some of the blocks, in double precision, without a copy of them all."""
    total = torch.zeros(parts.shape[1:], dtype=torch.float64, device=parts.device)
    for block in kept:
        total += parts[block]
    return total


def _all_but_one(parts: Tensor, term: Term) -> Tensor:
    """Sums over dimension 0 without each entry in turn; no subtraction, so that infinities stay what they are."""
    parts = parts.double()
    if term in LOG_TERMS:
        others = [torch.cat([parts[:b], parts[b + 1 :]]) for b in range(len(parts))]
        return torch.stack([torch.logsumexp(other, 0) for other in others])
    zero = torch.zeros_like(parts[:1])
    before = torch.cat([zero, parts[:-1]]).cumsum(0)
    after = torch.cat([parts[1:], zero]).flip(0).cumsum(0).flip(0)
    return before + after


def centred(batch: EvalBatch, log_p: Tensor) -> Tensor:
    """r = log p_k - log p_0, the centring that keeps pairwise sums exact; 0 where both are impossible."""
    r = log_p - torch.where(torch.isneginf(batch.log_p), 0.0, batch.log_p)
    return torch.where(torch.isneginf(log_p) & torch.isneginf(batch.log_p), 0.0, r)


def probability(_batch: EvalBatch, _logits: Tensor, log_p: Tensor) -> Tensor:
    """p_k [k, N, C]."""
    return log_p.exp()


def log_ratio(batch: EvalBatch, _logits: Tensor, log_p: Tensor) -> Tensor:
    """r_k = log p_k - log p_0 [k, N, C]."""
    return centred(batch, log_p)


def self_product(batch: EvalBatch, _logits: Tensor, log_p: Tensor) -> Tensor:
    """Sum over classes of p_k r_k [k, N]."""
    return zero_times(log_p.exp(), centred(batch, log_p)).sum(-1)


def entropy_term(_batch: EvalBatch, _logits: Tensor, log_p: Tensor) -> Tensor:
    """H(p_k) [k, N] in nats."""
    return entropy(log_p)


def kl_to_eval(batch: EvalBatch, _logits: Tensor, log_p: Tensor) -> Tensor:
    """KL(p_k || p_0) [k, N] in nats."""
    return kl(log_p, batch.log_p)


def kl_from_eval(batch: EvalBatch, _logits: Tensor, log_p: Tensor) -> Tensor:
    """KL(p_0 || p_k) [k, N] in nats."""
    return kl(batch.log_p.expand_as(log_p), log_p)


def vote(_batch: EvalBatch, _logits: Tensor, log_p: Tensor) -> Tensor:
    """One-hot argmax of p_k [k, N, C], in a type that is small and holds every count of sub-models."""
    votes = torch.zeros(log_p.shape, dtype=torch.int16, device=log_p.device)
    return votes.scatter_(-1, log_p.argmax(-1, keepdim=True), 1)


def logit_shift(batch: EvalBatch, logits: Tensor, _log_p: Tensor) -> Tensor:
    """z_k - z_0 [k, N, C]; 0 where both are minus infinity."""
    z = batch.logits
    return torch.where(torch.isneginf(logits) & torch.isneginf(z), 0.0, logits - z)


def logit_shift_square(batch: EvalBatch, logits: Tensor, log_p: Tensor) -> Tensor:
    """Squared norm of z_k - z_0 over classes [k, N]."""
    return logit_shift(batch, logits, log_p).square().sum(-1)


def log_likelihood(batch: EvalBatch, _logits: Tensor, log_p: Tensor) -> Tensor:
    """log p_k(label) [k, N], summed over sub-models as p_k(label); NaN where there is no label."""
    return -nll(log_p, batch.labels)


def negative_log_likelihood(batch: EvalBatch, _logits: Tensor, log_p: Tensor) -> Tensor:
    """-log p_k(label) [k, N] in nats; NaN where there is no label."""
    return nll(log_p, batch.labels)


def flip(batch: EvalBatch, _logits: Tensor, log_p: Tensor) -> Tensor:
    """1 where argmax p_k differs from argmax p_0 [k, N]."""
    return (log_p.argmax(-1) != batch.prediction).double()


def correct(batch: EvalBatch, _logits: Tensor, log_p: Tensor) -> Tensor:
    """1 where argmax p_k is the label [k, N]; NaN where there is no label."""
    return hits(log_p, batch.labels)


def brier_term(batch: EvalBatch, _logits: Tensor, log_p: Tensor) -> Tensor:
    """Brier score of p_k [k, N]; NaN where there is no label."""
    return brier(log_p, batch.labels)


LOG_TERMS: frozenset[Term] = frozenset({log_likelihood})
"""Terms whose exponentials are summed, and whose sums are kept as logarithms: nothing underflows."""
