"""Directions w in the space of the outputs whose pull-backs J^T w add up to what is wanted of J.

The squares of the pull-backs of directions with E w w^T = A have the expectation tr(J^T A J): A = I gives |dz/dx|^2,
A = H = diag(p) - p p^T the Fisher-weighted E_{y~p} |d log p(y)/dx|^2, A = H^2 gives |dp/dx|^2. Directions of
different rows are independent with mean 0, so that rows of one example can be pulled back together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rdrop_probes.example_numbers import ExampleNumbers


def scores(p: Tensor, classes: range) -> Tensor:
    """d log p(y) / d logits = e_y - p [k, P, C] for the same class y in all rows."""
    found = -p.expand(len(classes), *p.shape).clone()
    for k, y in enumerate(classes):
        found[k, :, y] += 1
    return found


def units(like: Tensor, outputs: range) -> Tensor:
    """e_d [k, P, D] for the same output d in all rows."""
    found = like.new_zeros(len(outputs), *like.shape)
    for k, d in enumerate(outputs):
        found[k, :, d] = 1
    return found


def sphere(like: Tensor, numbers: ExampleNumbers, times: int, at_a_time: int) -> Iterator[Tensor]:
    """Directions [k, P, C] with E w w^T = I and |w|^2 = C, uniform on the sphere (Hoffman et al. 2019)."""
    width = like.shape[-1]
    for k in _chunks(times, at_a_time):
        v = numbers.normal(k, width).to(like.device)
        yield (v * (width**0.5 / v.norm(dim=-1, keepdim=True))).to(like.dtype)


def sampled_scores(
    p: Tensor, like: Tensor, numbers: ExampleNumbers, times: int, at_a_time: int, *, power: int = 1
) -> Iterator[Tensor]:
    """Directions [k, P, C] along e_y - p for random y, with E w w^T = H^power (power 1 or 2).

    y is drawn in proportion to p(y)^power |e_y - p|^2, not to p(y): then all directions are equally long, as they
    have to be for the least variance under an isotropic J. A confident model's rare classes, in which nearly all of the
    expectation is, are not left to chance. A random sign gives each the mean 0.

    Args:
        p: probabilities [P, C] in float64.
        like: a tensor of the type that directions are to have.
        numbers: where the random numbers come from.
        times: how many directions.
        at_a_time: how many of them together.
        power: of H.
    """
    total = p.square().sum(-1, keepdim=True)
    squares = (1 - p).square() + (total - p.square()).clamp(min=0)
    cumulated = (p.pow(power) * squares).cumsum(-1)
    length = cumulated[:, -1:].sqrt()  # [P, 1]
    for k in _chunks(times, at_a_time):
        u = 2 * numbers.uniform(k).to(p.device) - 1  # its sign is random as well
        y = torch.searchsorted(cumulated, (u.abs().T * cumulated[:, -1:]).contiguous(), right=True).clamp(
            max=p.shape[-1] - 1
        )
        scale = torch.where(length > 0, length / squares.gather(1, y).sqrt(), 0.0) * u.T.sign()  # [P, k]
        found = -p * scale.T[..., None]
        yield found.scatter_add_(2, y.T[..., None], scale.T[..., None]).to(like.dtype)


def _chunks(times: int, at_a_time: int) -> Iterator[int]:
    for first in range(0, times, at_a_time):
        yield min(at_a_time, times - first)
