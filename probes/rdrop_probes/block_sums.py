"""Sums of terms over sub-models, in blocks of consecutive sub-models.

The blocks give the delete-a-block jackknife and the convergence in K, and memory does not grow with K.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Self
from weakref import proxy

import torch
from torch import Tensor

from rdrop_probes.distributions import MANY_CLASSES, Distributions, EvalBatch, Term
from rdrop_probes.divergences import zero_times
from rdrop_probes.memory import SHARE_OF_SUMS, Space, total_memory
from rdrop_probes.terms import KEPT_TERMS, LOG_TERMS

MAX_BLOCKS = 32
FEW_BLOCKS = 8  # where there are so many classes that every block is large
SMALL = 2**13  # numbers of a block; larger ones are worked on one by one, in the processor's cache
IN_CACHE = 2**13  # classes of which inner products are taken at a time
SMALL_TERMS = 16  # terms with one number a row, about


class BlockSums:
    """Sums of terms over `count` sub-models for `rows` rows of so many classes.

    Attributes:
        blocks: their number G. sizes: sub-models in each [G].

    Args:
        exact: whether sums may hold infinities, which differences of sums would turn into NaN.
        space: where the sums are kept; they are good until other sums are kept there.
    """

    def __init__(
        self,
        terms: Iterable[Term],
        count: int,
        rows: int,
        classes: int = 1,
        *,
        exact: bool = True,
        space: Space | None = None,
    ) -> None:
        self.exact = exact
        self.blocks = min(count, most_blocks(classes))
        self.block_of = torch.arange(count) * self.blocks // count
        self.sizes = torch.bincount(self.block_of, minlength=self.blocks)
        self._block_of: list[int] = self.block_of.tolist()
        self._firsts: list[int] = (self.sizes.cumsum(0) - self.sizes).tolist()
        self._rows = rows
        self._single = classes > MANY_CLASSES
        self._terms = tuple(terms)
        self._space = space or Space()
        self._stores: dict[Term | None, Tensor] = {}
        self._grams: dict[tuple[Term, Term], Tensor] = {}
        self._totals: dict[tuple[int, bool], Totals] = {}

    def add(self, start: int, seen: Distributions, rows: slice = slice(None)) -> None:
        """Add the sub-models `start`, ... as seen on some of the rows; sub-models come in order."""
        small = []
        for term in self._terms:
            values = term(seen)
            if term in KEPT_TERMS:
                self._held(term, values, len(self._block_of))[start : start + seen.k, rows] = values
            elif term in LOG_TERMS or values.dim() > 2:
                self._add(term, start, values, rows)
            else:
                small.append(values.double())
        if small:
            self._add(None, start, torch.stack(small, -1), rows)

    def rows(self, rows: slice) -> Self:
        """The sums of some of the rows."""
        part = copy.copy(self)
        part.__dict__["_sums"] = {term: sums[:, rows] for term, sums in self._sums.items()}
        part._grams, part._totals = {}, {}
        return part

    def kept(self, term: Term) -> Tensor:
        """[K, P], the values of a kept term."""
        return self._sums[term]

    def total(self, blocks: int | None = None) -> Totals:
        """Sums [P, ...] over the first `blocks` blocks, all by default."""
        return self._some(blocks or self.blocks, left_out=False)

    def leave_one_out(self, blocks: int | None = None) -> Totals:
        """Sums [blocks, P, ...] over the first `blocks` blocks but one, each in turn."""
        return self._some(blocks or self.blocks, left_out=True)

    def block_sums(self, term: Term, blocks: int) -> Tensor:
        """Sums of each block [blocks, P, ...]."""
        return self._sums[term][:blocks]

    def gram(self, a: Term, b: Term) -> Tensor:
        """Sums over classes of every block's sum of `a` times every block's sum of `b` [P, G, G]."""
        if (a, b) not in self._grams:
            self._grams[a, b] = _inner(self._sums[a], self._sums[b])
        return self._grams[a, b]

    def _add(self, term: Term | None, start: int, values: Tensor, rows: slice) -> None:
        """Add values [k, P, ...] of a term, or of all small terms at once, to the sums of some rows."""
        sums = self._held(term, values, self.blocks)
        if self.blocks == len(self._block_of):
            sums[start : start + values.shape[0], rows] = values
            return
        for i in range(values.shape[0]):
            block = self._block_of[start + i]
            held = sums[block, rows]
            if start + i == self._firsts[block]:
                held.copy_(values[i])
            elif term in LOG_TERMS:
                torch.logaddexp(held, values[i], out=held)
            else:
                held += values[i]

    def _held(self, term: Term | None, values: Tensor, first: int) -> Tensor:
        """What is held of a term [first, P, ...]; of all small terms [first, P, terms] where it is None."""
        if term not in self._stores:
            single = self._single and term is not None and values.dtype == torch.float64 and values.dim() > 2
            dtype = torch.float32 if single else values.dtype
            shape = (first, self._rows, *values.shape[2:])
            self._stores[term] = self._space.take(term, shape, dtype, values.device)
        return self._stores[term]

    @cached_property
    def _sums(self) -> dict[Term, Tensor]:
        """What is held of each term [G, P, ...], once all is added."""
        small = self._stores.get(None)
        named = {term: held for term, held in self._stores.items() if term is not None}
        rest = [term for term in self._terms if term not in named]
        return named if small is None else named | dict(zip(rest, small.unbind(-1), strict=True))

    @property
    def device(self) -> torch.device:
        """Where the sums are."""
        return next(iter(self._sums.values())).device

    def _some(self, blocks: int, *, left_out: bool) -> Totals:
        if (blocks, left_out) not in self._totals:
            self._totals[blocks, left_out] = Totals(self, blocks, left_out=left_out)
        return self._totals[blocks, left_out]


OfMean = Callable[[EvalBatch, Tensor], Tensor]
"""A function of the mean over sub-models [..., P, C] of some rows: [..., P]."""


class Totals:
    """Sums of terms over `count` sub-models, each computed when first asked for, and kept.

    Over the first `blocks` blocks of `sums`; with `left_out` without each of them in turn, which gives every sum a
    leading dimension G.
    """

    def __init__(self, sums: BlockSums, blocks: int, *, left_out: bool) -> None:
        sizes = sums.sizes[:blocks].double()
        self._count = sizes.sum() - sizes if left_out else sizes.sum()
        self._sums: BlockSums = proxy(sums)  # which keep these: in a circle, memory would wait for the collector
        self._blocks = blocks
        self._left_out = left_out
        self._found: dict[object, Tensor] = {}

    def __getitem__(self, term: Term) -> Tensor:
        return self._once(term, lambda: self._sum(term))

    def mean(self, term: Term) -> Tensor:
        """Average of a term over the sub-models; of a term in logarithms, the logarithm of the average."""
        return self._once(("mean", term), lambda: self._mean(term))

    def count(self, dims: int) -> Tensor:
        """Number of sub-models, shaped to go with a tensor of `dims` dimensions."""
        return self._count.to(self._sums.device).reshape(*self._count.shape, *[1] * (dims - self._count.dim()))

    def product(self, a: Term, b: Term) -> Tensor:
        """Sum over classes of (the sum of `a`) (the sum of `b`) [P] or [G, P], with 0 times anything as 0."""
        if self._sums.exact:
            return zero_times(self[a], self[b]).sum(-1)
        gram = self._sums.gram(a, b)[:, : self._blocks, : self._blocks]
        whole = gram.sum((1, 2))
        if not self._left_out:
            return whole
        return (whole[:, None] - gram.sum(1) - gram.sum(2) + gram.diagonal(dim1=1, dim2=2)).T

    def weighted(self, weights: Tensor, term: Term) -> Tensor:
        """Sum over classes of weights [P, C] times the sum of a term [P] or [G, P], with 0 times anything as 0."""
        if self._sums.exact:
            return zero_times(weights, self[term]).sum(-1)
        by_block = _inner(self._sums.block_sums(term, self._blocks), weights[None]).squeeze(-1).T
        return by_block.sum(0) - by_block if self._left_out else by_block.sum(0)

    def alike(self, term: Term) -> Tensor:
        """Ordered pairs of different sub-models whose values of a kept term are equal [P] or [G, P]."""
        kept = int(self._sums.sizes[: self._blocks].sum())
        values, block_of = self._sums.kept(term)[:kept], self._sums.block_of[:kept].to(self._sums.device)
        equal = _equals(values) - 1
        if not self._left_out:
            return equal.sum(0).double()
        within = _equals(values.long() * self._blocks + block_of[:, None]) - 1
        lost = torch.zeros(self._blocks, *values.shape[1:], dtype=torch.long, device=values.device)
        lost.index_add_(0, block_of, 2 * equal - within)
        return (equal.sum(0) - lost).double()

    def of_mean(self, function: OfMean, term: Term, batch: EvalBatch) -> Tensor:
        """A function of the average of a term [P] or [G, P], found once however many probes ask for it."""
        return self._once((function, term), lambda: self._of_mean(function, term, batch))

    def _of_mean(self, function: OfMean, term: Term, batch: EvalBatch) -> Tensor:
        parts = self._sums.block_sums(term, self._blocks)
        if not self._left_out or self._sums.exact or parts[0].numel() <= SMALL:
            return function(batch, self.mean(term))
        whole = self._sums.total(self._blocks)[term]
        means = ((whole - part.double()).div_(n) for part, n in zip(parts, self._count.tolist(), strict=True))
        return torch.stack([function(batch, mean) for mean in means])

    def _once(self, name: object, compute: Callable[[], Tensor]) -> Tensor:
        if name not in self._found:
            self._found[name] = compute()
        return self._found[name]

    def _mean(self, term: Term) -> Tensor:
        count = self.count(self[term].dim())
        return self[term] - count.log() if term in LOG_TERMS else self[term] / count

    def _sum(self, term: Term) -> Tensor:
        parts = self._sums.block_sums(term, self._blocks)
        if term in LOG_TERMS:
            return _logs_but_one(parts) if self._left_out else torch.logsumexp(parts, 0)
        if not self._left_out:
            return _sum_of(parts)
        return _all_but_one(parts.double()) if self._sums.exact else self._sums.total(self._blocks)[term] - parts


def most_blocks(classes: int) -> int:
    """How many blocks sub-models are summed in."""
    return FEW_BLOCKS if classes > MANY_CLASSES else MAX_BLOCKS


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Inner products over classes of left [G, P, C] and right [H, P, C], in double precision [P, G, H]."""
    products: Tensor | float = 0.0
    for a, b in zip(left.split(IN_CACHE, -1), right.split(IN_CACHE, -1), strict=True):
        products = a.double().transpose(0, 1) @ b.double().permute(1, 2, 0) + products
    return torch.as_tensor(products)


def _sum_of(parts: Tensor) -> Tensor:
    """Sum over dimension 0, in double precision without a copy of all parts."""
    if parts.dtype == torch.float64:
        return parts.sum(0)
    total = parts[0].double()
    for part in parts[1:]:
        total += part.double()
    return total


def _all_but_one(parts: Tensor) -> Tensor:
    """Sums over dimension 0 without each entry in turn; no subtraction, so that infinities stay what they are."""
    zero = torch.zeros_like(parts[:1])
    before = torch.cat([zero, parts[:-1]]).cumsum(0)
    after = torch.cat([parts[1:], zero]).flip(0).cumsum(0).flip(0)
    return before + after


def _logs_but_one(parts: Tensor) -> Tensor:
    """Logarithms of sums over dimension 0 without each entry in turn."""
    nothing = torch.full_like(parts[:1], -torch.inf)
    before = torch.cat([nothing, parts[:-1]]).logcumsumexp(0)
    after = torch.cat([parts[1:], nothing]).flip(0).logcumsumexp(0).flip(0)
    return torch.logaddexp(before, after)


def _equals(values: Tensor) -> Tensor:
    """How many entries of its column [K, P] each value is equal to, itself among them."""
    columns = values.T.contiguous()
    ordered = columns.sort(-1).values
    return (torch.searchsorted(ordered, columns, right=True) - torch.searchsorted(ordered, columns)).T


def rows_that_fit(classes: int, memory: int | None = None, device: torch.device | None = None) -> int:
    """How many rows of so many classes may be summed at a time, at least one.

    `memory` is how many bytes may be used for everything; by default what the machine has.
    """
    number = 4 if classes > MANY_CLASSES else 8
    row = most_blocks(classes) * (2 * number * classes + SMALL_TERMS * 8)  # probabilities and their log-ratios
    return max(1, (memory or total_memory(device)) // SHARE_OF_SUMS // row)
