"""The matrix K of :mod:`rdrop_probes.output_fisher` made whole from gradients, where these fit into memory.

That takes one backward pass over one example for every number of its outputs, which is far less than products of K
with as many vectors, and leaves nothing random in the effective dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import torch
from torch import Tensor

from rdrop_probes.families import Family, Gaussian
from rdrop_probes.memory import total_memory
from rdrop_probes.output_fisher import trainable
from rdrop_probes.selection import Case

NUMBERS = 2**11  # in all outputs, up to which the eigenvalues of K are had in seconds
HELD = 2**30  # bytes of gradients that are held at most, and no more than an eighth of the memory


def fits(case: Case, numbers: int) -> bool:
    """Whether the gradients of so many outputs can be held."""
    held = numbers * sum(parameter.numel() * parameter.element_size() for parameter in trainable(case.model))
    return numbers <= NUMBERS and held <= min(HELD, total_memory() // 8)


def gram(case: Case) -> Tensor:
    """K = G G^T / R [D, D] in float64; G has the gradients of every row r along sqrt(p_c) (e_c - p), class by class."""
    parameters, gradients, rows = trainable(case.model), list[Tensor](), 0
    for done, example in enumerate(case.selection.parts(1), start=1):
        with torch.enable_grad():
            outputs = example.rows(case.forward(example.inputs))
        rows += len(outputs)
        for direction in _roots(outputs.detach(), case.family):
            pulled = torch.autograd.grad(outputs, parameters, direction, retain_graph=True, allow_unused=True)
            flat = [torch.zeros_like(p) if g is None else g for g, p in zip(pulled, parameters, strict=True)]
            gradients.append(torch.cat([g.flatten() for g in flat]).cpu())
        case.stage("effective dimension", done, len(case.selection.indices))
    whole = torch.stack(gradients)
    product = whole.new_zeros(len(whole), len(whole), dtype=torch.float64)
    for part in whole.split(NUMBERS, dim=1):
        product += part.double() @ part.double().T
    return product / rows


def _roots(outputs: Tensor, family: Family) -> Iterator[Tensor]:
    """The columns of L for each row, as directions [R, C] in which nothing but the row's own part is not 0."""
    if isinstance(family, Gaussian):
        roots = torch.eye(outputs.shape[-1], dtype=torch.float64) / sqrt(family.variance)
        by_row = roots.expand(len(outputs), *roots.shape)
    else:
        p = outputs.double().softmax(-1)
        by_row = p.sqrt()[:, :, None] * (torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) - p[:, None, :])
    for row, columns in enumerate(by_row.to(outputs)):
        for column in columns:
            direction = torch.zeros_like(outputs)
            direction[row] = column
            yield direction
