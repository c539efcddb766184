"""Divergences and scores of categorical distributions, from log-probabilities in float64, in nats.

Impossible outcomes are exact: a class impossible under both distributions contributes nothing, one possible
under p and impossible under q makes KL(p || q) infinite.
"""

from __future__ import annotations

import torch
from torch import Tensor


def zero_times(p: Tensor, x: Tensor) -> Tensor:
    """p x, with 0 times anything (infinity too) as 0."""
    return torch.where(p == 0, 0.0, p * x)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension, in nats; infinite where q is 0 and p is not."""
    return zero_times(log_p.exp(), log_p - log_q).sum(-1)


def log_of_sum(logits: Tensor, highest: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Logarithm of the sum of exp(logits) [...], in double precision, and the softmax [..., C].

    `highest` are the highest logits [...], if they are known.
    """
    highest = logits.amax(-1) if highest is None else highest
    p = (logits - highest.unsqueeze(-1)).exp_()
    total = p.sum(-1, dtype=torch.float64)  # its error is one of all KL to the eval model
    return highest.double() + total.log(), p.div_(total.to(p.dtype).unsqueeze(-1))


def square_norm(x: Tensor) -> Tensor:
    """Sum of squares over the last dimension, in double precision."""
    return torch.as_tensor(torch.linalg.vector_norm(x, dim=-1)).double().square()


def nll(log_p: Tensor, labels: Tensor | None) -> Tensor:
    """-log p(label) [..., N] for log_p [..., N, C]; NaN where the label is to be ignored."""
    ignored, index = _index(log_p, labels)
    return torch.where(ignored, torch.nan, -log_p.gather(-1, index).squeeze(-1))


def brier(p: Tensor, labels: Tensor | None) -> Tensor:
    """Sum over classes of (p - onehot(label))^2 [..., N] for p [..., N, C]; NaN where the label is to be ignored."""
    ignored, index = _index(p, labels)
    return torch.where(ignored, torch.nan, square_norm(p) - 2 * p.gather(-1, index).squeeze(-1).double() + 1)


def hits(scores: Tensor, labels: Tensor | None) -> Tensor:
    """1 where the class of the highest score is the label, else 0 [..., N]; NaN where the label is to be ignored."""
    ignored, index = _index(scores, labels)
    return torch.where(ignored, torch.nan, (scores.max(-1).indices == index.squeeze(-1)).double())


def _index(scores: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which labels to ignore [N], and labels as an index into the last dimension of scores [..., N, 1]."""
    if labels is None:
        raise ValueError("this quantity needs labels")
    return labels < 0, labels.clamp(min=0).expand(scores.shape[:-1]).unsqueeze(-1)


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two computations of the same logits differ by no more than rounding of their dtype."""
    if a.shape != b.shape or not b.numel():
        return a.shape == b.shape
    eps = torch.finfo(b.dtype).eps
    roundings = 1e3 if eps < 1e-4 else 8  # a thousand roundings of a half-precision number would be anything
    size = torch.where(torch.isfinite(b), b.double().abs(), torch.nan)
    usual = size.nanmedian(-1, keepdim=True).values.nan_to_num(1.0).clamp(min=1.0)  # a class may be ruled out by -1e9
    tolerance = roundings * eps * torch.maximum(usual, size.nan_to_num(1.0))
    close = (a.double() - b.double()).abs() <= tolerance
    return bool((close | (a == b) | (a.isnan() & b.isnan())).all())
