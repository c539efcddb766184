"""The largest singular value of the Jacobian of each example, from products with it and its transpose alone."""

from __future__ import annotations

import torch
from torch import Tensor

from rdrop_probes.gradients import GradientPass


def spectral_norm(gradients: GradientPass, steps: int) -> Tensor:
    """Largest singular value of J [N] by `steps` steps of Golub and Kahan's bidiagonalisation (1965), from below.

    J V = U B with orthonormal U and V and B bidiagonal: the norm of B grows towards that of J, far sooner than power
    iteration's estimate does. J v comes from a double backward pass. J is of all rows of an example together.
    """
    product = _Products(gradients)
    u, _ = product.unit_rows(gradients.numbers("start").normal(1, gradients.logits.shape[-1])[0].to(product.rows))
    v, beta = torch.zeros_like(product.inputs), product.rows.new_zeros(gradients.n)
    bidiagonal = torch.zeros(gradients.n, steps + 1, steps, dtype=torch.float64, device=u.device)
    for i in range(steps):
        v, alpha = product.unit_inputs(product.transposed(u) - product.over_inputs(beta) * v)
        u, beta = product.unit_rows(product.forward(v) - product.over_rows(alpha) * u)
        bidiagonal[:, i, i], bidiagonal[:, i + 1, i] = alpha.double(), beta.double()
    norms: Tensor = torch.linalg.svdvals(bidiagonal)[:, 0]
    return norms


class _Products:
    """J v and J^T u by example, in single precision at least."""

    def __init__(self, gradients: GradientPass) -> None:
        if gradients.leaf is None:
            raise RuntimeError("the input is not differentiable")
        self._logits, self._leaf = gradients.logits, gradients.leaf
        self._n, self._owners = gradients.n, gradients.owners
        self._w = torch.zeros_like(self._logits, requires_grad=True)
        (self._pulled,) = torch.autograd.grad(self._logits, self._leaf, self._w, create_graph=True)  # linear in w
        self.rows, self.inputs = _precise(self._logits.detach()), _precise(self._leaf.detach())

    def forward(self, v: Tensor) -> Tensor:
        """J v [P, C] for v [N, ...]."""
        (found,) = torch.autograd.grad(self._pulled, self._w, v.to(self._leaf.dtype), retain_graph=True)
        return _precise(found)

    def transposed(self, u: Tensor) -> Tensor:
        """J^T u [N, ...] for u [P, C]."""
        (found,) = torch.autograd.grad(self._logits, self._leaf, u.to(self._logits.dtype), retain_graph=True)
        return _precise(found)

    def over_rows(self, values: Tensor) -> Tensor:
        """Values [N] by example, shaped to multiply rows [P, C]."""
        return (values if self._owners is None else values[self._owners])[:, None]

    def over_inputs(self, values: Tensor) -> Tensor:
        """Values [N] by example, shaped to multiply inputs [N, ...]."""
        return values.reshape(-1, *[1] * (self._leaf.dim() - 1))

    def unit_rows(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [P, C] divided by the norm [N] of all rows of their example, and that norm."""
        squares = u.square().sum(-1)
        if self._owners is not None:
            squares = squares.new_zeros(self._n).index_add_(0, self._owners, squares)
        norms = squares.sqrt()
        return u / _positive(self.over_rows(norms)), norms

    def unit_inputs(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [N, ...] divided by their norms [N], and these."""
        norms = v.flatten(1).norm(dim=1)
        return v / _positive(self.over_inputs(norms)), norms


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny)
