"""Gradients of the eval model, shared by every probe that wants them: with respect to input and to masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rdrop_probes.families import CATEGORICAL, Family, Gaussian
from rdrop_probes.sites import SiteKey

MAX_EXACT_CLASSES = 64
SAMPLED_CLASSES = 16


@dataclass(frozen=True)
class Row:
    """Gradient of log p(y) for one choice of y in every row of the output.

    Attributes:
        weight: [N], the weight of this y in E_{y~p}. p: [P], its probability (1 for a Gaussian).
        possible: [P], False where the logit is minus infinity and the gradient is given as 0.
        inputs: [N, D] or None. sites: [N, ...] by site, derivative with respect to the mask.
    """

    weight: Tensor
    p: Tensor
    possible: Tensor
    inputs: Tensor | None
    sites: dict[SiteKey, Tensor]


@dataclass
class GradientPass:
    """The differentiable eval pass over one batch.

    Attributes:
        logits: [P, C] with its graph. leaf: what gradients are taken with respect to, [N, ...]; None if the
            model's input is not differentiable. sites: results of the masks' multiplications.
        unpredictable: why a site has no gradient, by site.
        n: number of examples N. owners: [P], the example of each row; None where each example is one row.
        family: what a row's scores stand for.
    """

    logits: Tensor
    leaf: Tensor | None
    sites: dict[SiteKey, NotedMask]
    unpredictable: dict[SiteKey, str]
    generator: torch.Generator = field(repr=False)
    n: int
    owners: Tensor | None = None
    family: Family = CATEGORICAL

    @property
    def exact(self) -> bool:
        """Whether expectations over y run over all classes."""
        return self.owners is None and self.logits.shape[1] <= MAX_EXACT_CLASSES

    @property
    def weights(self) -> Tensor | None:
        """How many rows each example has [N]; None where each is one."""
        return None if self.owners is None else torch.bincount(self.owners, minlength=self.n).double()

    def by_row(self, totals: Tensor) -> Tensor:
        """Totals [N] over the rows of each example as means; NaN for an example without rows."""
        return totals if self.weights is None else totals / self.weights

    def gradient(self, scalar: Tensor) -> Tensor | None:
        """Gradient [N, D] of a sum over examples with respect to the input."""
        if self.leaf is None:
            return None
        (gradient,) = torch.autograd.grad(scalar, self.leaf, retain_graph=True)
        return gradient.detach().reshape(self.n, -1)

    def rows(self) -> Iterator[Row]:
        """Gradients whose weighted squares add up to E_{y~p} |d log p(y)|^2, summed over the rows of an example.

        For every class weighted by p(y), or for classes sampled from p. Where an example has several rows, y is
        sampled in each independently: scores d log p(y) have mean 0, so that the square of their sum is in
        expectation the sum of their squares.
        """
        if not len(self.logits):
            return
        if isinstance(self.family, Gaussian):
            yield from self._gaussian_rows(self.family.variance)
            return
        log_p = torch.log_softmax(self.logits, -1)
        p = log_p.detach().exp()
        for y, weight in self._choices(p):
            chosen = log_p.gather(1, y[:, None]).squeeze(1)
            yield self._row(chosen, weight, p.gather(1, y[:, None]).squeeze(1))

    def _gaussian_rows(self, variance: float) -> Iterator[Row]:
        """|d log p(y)|^2 is in expectation the sum over outputs of |d output|^2 / variance."""
        one = torch.ones(len(self.logits), device=self.logits.device, dtype=torch.float64)
        if self.exact:
            for output in self.logits.unbind(1):
                yield self._row(output, one / variance, one)
            return
        for _ in range(SAMPLED_CLASSES):
            v = torch.randn(self.logits.shape, generator=self.generator, dtype=torch.float32).to(self.logits)
            yield self._row((v * self.logits).sum(1), one / (SAMPLED_CLASSES * variance), one)

    def _choices(self, p: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        rows = len(p)
        if self.exact:
            for c in range(p.shape[1]):
                yield torch.full((rows,), c, device=p.device), p[:, c]
            return
        drawn = torch.multinomial(p.cpu(), SAMPLED_CLASSES, replacement=True, generator=self.generator).to(p.device)
        for y in drawn.T:
            yield y, torch.full((rows,), 1 / SAMPLED_CLASSES, device=p.device, dtype=p.dtype)

    def _row(self, chosen: Tensor, weight: Tensor, p: Tensor) -> Row:
        keys = list(self.sites)
        wanted = [self.sites[key].out for key in keys] + ([] if self.leaf is None else [self.leaf])
        possible = ~torch.isneginf(chosen.detach())
        total = torch.where(possible, chosen, 0.0).sum()
        found = torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True)
        by_site = {key: self.sites[key].mask_gradient(g) for key, g in zip(keys, found, strict=False) if g is not None}
        leaf = None if self.leaf is None or found[-1] is None else found[-1].detach().reshape(self.n, -1)
        return Row(self._by_example(weight), p, possible, leaf, by_site)

    def _by_example(self, weight: Tensor) -> Tensor:
        """Weights [N], which are alike in all rows where an example has several."""
        return weight if self.owners is None else weight[:1].expand(self.n)


@dataclass(frozen=True)
class NotedMask:
    """Result of multiplying by a mask, with the mask's shape and the dimension that holds the examples."""

    out: Tensor
    mask_shape: torch.Size
    batch_dim: int
    n: int

    def mask_gradient(self, gradient: Tensor) -> Tensor:
        """Derivative with respect to the mask, examples first: [N, mask elements of one example]."""
        derivative = (gradient * self.out.detach()).sum_to_size(self.mask_shape)
        by_example: Tensor = derivative.unflatten(self.batch_dim, (self.n, -1)).movedim(self.batch_dim, 0)
        return by_example.reshape(self.n, -1)
