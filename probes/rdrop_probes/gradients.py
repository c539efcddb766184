"""Gradients of the eval model, shared by every probe that wants them: with respect to input and to masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rdrop_probes.sites import SiteKey

MAX_EXACT_CLASSES = 64
SAMPLED_CLASSES = 16


@dataclass(frozen=True)
class Row:
    """Gradient of log p(y) for one choice of y per example.

    Attributes:
        weight: [N], the weight of this y in E_{y~p}. p: [N], its probability.
        possible: [N], False where the logit is minus infinity and the gradient is given as 0.
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
        logits: [N, C] with its graph. leaf: what gradients are taken with respect to, [N, ...]; None if the
            model's input is not differentiable. sites: results of the masks' multiplications.
        unpredictable: why a site has no gradient, by site.
    """

    logits: Tensor
    leaf: Tensor | None
    sites: dict[SiteKey, NotedMask]
    unpredictable: dict[SiteKey, str]
    generator: torch.Generator = field(repr=False)

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.logits)

    @property
    def exact(self) -> bool:
        """Whether expectations over y run over all classes."""
        return self.logits.shape[1] <= MAX_EXACT_CLASSES

    def gradient(self, scalar: Tensor) -> Tensor | None:
        """Gradient [N, D] of a sum over examples with respect to the input."""
        if self.leaf is None:
            return None
        (gradient,) = torch.autograd.grad(scalar, self.leaf, retain_graph=True)
        return gradient.detach().reshape(self.n, -1)

    def rows(self) -> Iterator[Row]:
        """Gradients of log p(y): for every class weighted by p(y), or for classes sampled from p."""
        log_p = torch.log_softmax(self.logits, -1)
        p = log_p.detach().exp()
        for y, weight in self._choices(p):
            chosen = log_p.gather(1, y[:, None]).squeeze(1)
            yield self._row(chosen, weight, p.gather(1, y[:, None]).squeeze(1))

    def _choices(self, p: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        if self.exact:
            for c in range(p.shape[1]):
                yield torch.full((self.n,), c, device=p.device), p[:, c]
            return
        drawn = torch.multinomial(p.cpu(), SAMPLED_CLASSES, replacement=True, generator=self.generator).to(p.device)
        for y in drawn.T:
            yield y, torch.full((self.n,), 1 / SAMPLED_CLASSES, device=p.device, dtype=p.dtype)

    def _row(self, chosen: Tensor, weight: Tensor, p: Tensor) -> Row:
        keys = list(self.sites)
        wanted = [self.sites[key].out for key in keys] + ([] if self.leaf is None else [self.leaf])
        possible = ~torch.isneginf(chosen.detach())
        total = torch.where(possible, chosen, 0.0).sum()
        found = torch.autograd.grad(total, wanted, retain_graph=True, allow_unused=True)
        by_site = {key: self.sites[key].mask_gradient(g) for key, g in zip(keys, found, strict=False) if g is not None}
        leaf = None if self.leaf is None or found[-1] is None else found[-1].detach().reshape(self.n, -1)
        return Row(weight, p, possible, leaf, by_site)


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
