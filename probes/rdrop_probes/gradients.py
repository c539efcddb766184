"""Gradients of the eval model, shared by every probe that wants them: with respect to input and to masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rdrop_probes.directions import sampled_scores, scores, sphere, units
from rdrop_probes.example_numbers import ExampleNumbers, Purpose
from rdrop_probes.families import CATEGORICAL, Family, Gaussian
from rdrop_probes.sites import SiteKey

MAX_EXACT_CLASSES = 64
SAMPLED_CLASSES = 16
BLOCK = 128  # squares added up in single precision before double precision takes over


@dataclass(frozen=True)
class Row:
    """Gradients of log p(y), for k choices of y at once, each the same in all rows of the output.

    Where expectations over y are sampled they are of scaled log p(y), whose squares are right in expectation.

    Attributes:
        weight: [k, N], the weight of each in E_{y~p}.
        possible: [k, P], False where the logit is minus infinity and the gradient is given as 0.
        inputs: [k, N, D] or None. sites: [k, N, ...] by site, derivative with respect to the mask.
    """

    weight: Tensor
    possible: Tensor
    inputs: Tensor | None
    sites: dict[SiteKey, Tensor]


@dataclass(frozen=True)
class NotedMask:
    """Result of multiplying by a mask, with the mask's shape and the dimension that holds the examples."""

    out: Tensor
    mask_shape: torch.Size
    batch_dim: int
    n: int

    def mask_gradient(self, gradients: Tensor) -> Tensor:
        """Derivatives with respect to the mask [k, N, mask elements of one example] from those of the result."""
        missing = self.out.dim() - len(self.mask_shape)
        shape = (len(gradients), *[1] * missing, *self.mask_shape)
        derivative = (gradients * self.out.detach()).sum_to_size(shape)
        place = 1 + missing + self.batch_dim
        by_example: Tensor = derivative.unflatten(place, (self.n, -1)).movedim(place, 1)
        return by_example.reshape(len(gradients), self.n, -1)


@dataclass
class GradientPass:
    """The differentiable eval pass over `n` examples, of which the first is number `start`.

    Attributes:
        logits: [P, C] with its graph. leaf: what gradients are taken with respect to, [N, ...]; None if the
            model's input is not differentiable. sites: results of the masks' multiplications.
        unpredictable: why a site has no gradient, by site.
        owners: [P], the example of each row; None where each example is one row.
        family: what a row's scores stand for.
        seed: random numbers follow from it and from the example.
        directions: how many are pulled back at a time.
    """

    logits: Tensor
    leaf: Tensor | None
    sites: dict[SiteKey, NotedMask]
    unpredictable: dict[SiteKey, str]
    n: int
    start: int = 0
    owners: Tensor | None = None
    family: Family = CATEGORICAL
    seed: int = 0
    directions: int = 1

    def __post_init__(self) -> None:
        if self.owners is not None:
            self.owners = self.owners.to(self.logits.device)

    @property
    def sampled(self) -> str:
        """Why expectations over y are sampled; empty where they run over all classes."""
        if self.owners is not None:
            return "an example has several rows (tokens, labels)"
        return f"there are more than {MAX_EXACT_CLASSES} outputs" if self.logits.shape[1] > MAX_EXACT_CLASSES else ""

    @cached_property
    def weights(self) -> Tensor | None:
        """How many rows each example has [N]; None where each is one."""
        return None if self.owners is None else torch.bincount(self.owners, minlength=self.n).double()

    @cached_property
    def p(self) -> Tensor:
        """Probabilities [P, C] in float64."""
        return self.logits.detach().double().softmax(-1)

    def numbers(self, purpose: Purpose) -> ExampleNumbers:
        """Random numbers for the rows."""
        counts = [1] * self.n if self.weights is None else [int(count) for count in self.weights.tolist()]
        return ExampleNumbers(self.seed, self.start, counts, purpose)

    def pull(self, directions: Tensor) -> Tensor | None:
        """J^T w [k, N, D] for directions w [k, P, C], J the Jacobian with respect to the input."""
        return None if self.leaf is None else self._by_example(self._pulled(directions, [self.leaf])[0])

    def rows(self) -> Iterator[Row]:
        """Gradients whose weighted squares add up to E_{y~p} |d log p(y)|^2, summed over the rows of an example.

        For every class weighted by p(y), or for sampled classes. Where an example has several rows, y is sampled in
        each independently: the square of a sum of independent gradients of mean 0 is in expectation the sum of their
        squares. For a Gaussian, |d log p(y)|^2 is in expectation the sum over outputs of |d output|^2 / variance.
        """
        if self.sampled:
            directions = self._sampled_directions()
            weight = 1 / SAMPLED_CLASSES / (self.family.variance if isinstance(self.family, Gaussian) else 1)
            for w in directions:
                yield self._row(
                    w, w.new_full((len(w), self.n), weight, dtype=torch.float64), torch.ones_like(w[..., 0]).bool()
                )
            return
        for classes in _ranges(self.logits.shape[1], self.directions):
            yield self._exact(classes)

    def _sampled_directions(self) -> Iterator[Tensor]:
        like, numbers = self.logits.detach(), self.numbers("classes")
        if isinstance(self.family, Gaussian):
            return sphere(like, numbers, SAMPLED_CLASSES, self.directions)
        return sampled_scores(self.p, like, numbers, SAMPLED_CLASSES, self.directions)

    def _exact(self, classes: range) -> Row:
        chosen = self.logits.detach()[:, classes.start : classes.stop].T  # [k, N]
        possible = ~torch.isneginf(chosen)
        if isinstance(self.family, Gaussian):
            weight = torch.full_like(chosen, 1 / self.family.variance, dtype=torch.float64)
            return self._row(units(self.logits.detach(), classes), weight, possible)
        p = self.p
        directions = torch.where(possible[..., None], scores(p, classes), 0.0).to(self.logits.dtype)
        return self._row(directions, p[:, classes.start : classes.stop].T, possible)

    def everywhere(self, directions: Tensor) -> list[Tensor | None]:
        """Gradients [k, ...] with respect to the result of every mask, then to the leaf, for directions [k, P, C]."""
        wanted = [noted.out for noted in self.sites.values()] + ([] if self.leaf is None else [self.leaf])
        return self._pulled(directions, wanted)

    def _row(self, directions: Tensor, weight: Tensor, possible: Tensor) -> Row:
        found = self.everywhere(directions)
        sites = zip(self.sites.items(), found, strict=False)
        by_site = {key: noted.mask_gradient(g) for (key, noted), g in sites if g is not None}
        return Row(weight, possible, None if self.leaf is None else self._by_example(found[-1]), by_site)

    def _pulled(self, directions: Tensor, wanted: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients [k, ...] with respect to each of `wanted`; None for those that the logits do not depend on."""
        if self.directions > 1 and len(directions) > 1:
            return list(
                torch.autograd.grad(
                    self.logits, wanted, directions, retain_graph=True, allow_unused=True, is_grads_batched=True
                )
            )
        one_by_one = [
            torch.autograd.grad(self.logits, wanted, w, retain_graph=True, allow_unused=True) for w in directions
        ]
        return [None if found[0] is None else _stacked(found) for found in zip(*one_by_one, strict=True)]

    def _by_example(self, found: Tensor | None) -> Tensor | None:
        return None if found is None else found.detach().reshape(len(found), self.n, -1)


def squares(x: Tensor) -> Tensor:
    """Sum of squares over the last dimension, float64, without a copy of `x` in double precision."""
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    whole = x.shape[-1] // BLOCK * BLOCK
    blocks = torch.linalg.vector_norm(x[..., :whole].unflatten(-1, (-1, BLOCK)), dim=-1).double().square().sum(-1)
    total: Tensor = blocks + torch.linalg.vector_norm(x[..., whole:], dim=-1).double().square()
    return total


def _stacked(found: Sequence[Tensor]) -> Tensor:
    return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(list(found))


def _ranges(count: int, at_a_time: int) -> Iterator[range]:
    for first in range(0, count, at_a_time):
        yield range(first, min(first + at_a_time, count))
