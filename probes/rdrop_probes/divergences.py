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


def entropy(log_p: Tensor) -> Tensor:
    """H(p) over the last dimension, in nats."""
    return -zero_times(log_p.exp(), log_p).sum(-1)


def nll(log_p: Tensor, labels: Tensor | None) -> Tensor:
    """-log p(label) [..., N] for log_p [..., N, C]; NaN where the label is to be ignored."""
    ignored, index = _index(log_p, labels)
    return torch.where(ignored, torch.nan, -log_p.gather(-1, index).squeeze(-1))


def brier(log_p: Tensor, labels: Tensor | None) -> Tensor:
    """Sum over classes of (p - onehot(label))^2 [..., N]; NaN where the label is to be ignored."""
    ignored, index = _index(log_p, labels)
    p = log_p.exp()
    return torch.where(ignored, torch.nan, (p**2).sum(-1) - 2 * p.gather(-1, index).squeeze(-1) + 1)


def hits(log_p: Tensor, labels: Tensor | None) -> Tensor:
    """1 where the most probable class is the label, else 0 [..., N]; NaN where the label is to be ignored."""
    ignored, index = _index(log_p, labels)
    return torch.where(ignored, torch.nan, (log_p.argmax(-1) == index.squeeze(-1)).double())


def _index(log_p: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which labels to ignore [N], and labels as an index into the last dimension of log_p [..., N, 1]."""
    if labels is None:
        raise ValueError("this quantity needs labels")
    ignored = labels < 0
    return ignored, labels.clamp(min=0).expand(log_p.shape[:-1]).unsqueeze(-1)


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two computations of the same logits differ by no more than rounding of their dtype."""
    if a.shape != b.shape:
        return False
    finite = b[torch.isfinite(b)].double()
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    eps = torch.finfo(b.dtype).eps
    roundings = 1e3 if eps < 1e-4 else 8  # a thousand roundings of a half-precision number would be anything
    tolerance = roundings * eps * max(scale, 1.0)
    return torch.allclose(a.double(), b.double(), rtol=0, atol=tolerance, equal_nan=True)
