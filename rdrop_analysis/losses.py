"""The R-Drop training loss, in each of the normalisations that published code uses.

R-Drop (Liang et al., NeurIPS 2021) runs every example through the network twice, with two dropout masks, and
adds to the usual loss the symmetric KL divergence between the two predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rdrop_analysis.conventions import CONVENTIONS, Reduction
from rdrop_analysis.passes import concatenated_forward, separate_forward, split_passes

__all__ = [
    "CONVENTIONS",
    "RDropLoss",
    "RDropTerms",
    "concatenated_forward",
    "mean_pairwise_kl",
    "separate_forward",
]


class RDropTerms(NamedTuple):
    """The loss and its parts, each a scalar: loss = fit + alpha * consistency."""

    loss: Tensor
    fit: Tensor
    consistency: Tensor


class RDropLoss(nn.Module):
    """The R-Drop loss of m >= 2 passes over the same examples with different dropout masks.

    For m > 2 it is the mean of the two-pass loss over all pairs of passes.

    Args:
        alpha: the weight of the consistency term, at least 0.
        convention: a name in `CONVENTIONS`, which says what is averaged and what is summed.
        reduction: replaces both reductions of the convention: "mean" over the positions that count, "sum", or
            "batchmean", the sum divided by the number of examples.
        task: "classification", or "regression", where both terms are squared errors: of each pass against the
            targets, and between passes, averaged over the outputs of a position (as the authors' GLUE code
            does for a single output).
        label_smoothing: as in `torch.nn.functional.cross_entropy`; not for regression.
        ignore_index: positions with this label count in neither term.

    Example:
        >>> loss = RDropLoss(alpha=1.0)
        >>> value = loss(concatenated_forward(model, inputs), labels)
    """

    def __init__(
        self,
        alpha: float,
        *,
        convention: str = "paper",
        reduction: Reduction | None = None,
        task: Literal["classification", "regression"] = "classification",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        _check_settings(alpha, convention, reduction, task, label_smoothing)
        chosen = CONVENTIONS[convention]
        self.alpha = alpha
        self.convention = convention
        self.task = task
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self._weights = (chosen.fit_weight, chosen.consistency_weight)
        self._reductions = (reduction or chosen.fit_reduction, reduction or chosen.consistency_reduction)

    def forward(self, outputs: Tensor | Sequence[Tensor], labels: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar.

        Args:
            outputs: [m, N, C] or, per token, [m, N, L, C] logits, or a sequence of m tensors [N, (L,) C]; for
                regression [m, N, ...] predictions.
            labels: int64 [N] or [N, L]; for regression of the shape of one pass, or [N] for outputs [N, 1].
            pad_mask: bool of the shape of the positions, [N] or [N, L], True where a position is to be
            ignored.

        Raises:
            ValueError: there are fewer than two passes, or the shapes do not go together.
        """
        return self.terms(outputs, labels, pad_mask).loss

    def from_concatenated(
        self, outputs: Tensor, labels: Tensor, pad_mask: Tensor | None = None, passes: int = 2
    ) -> Tensor:
        """Return the loss from outputs [m·N, ...] of one forward on the inputs repeated m times."""
        return self.terms(split_passes(outputs, passes), labels, pad_mask).loss

    def terms(self, outputs: Tensor | Sequence[Tensor], labels: Tensor, pad_mask: Tensor | None = None) -> RDropTerms:
        """Return the loss with its two terms, for logging; arguments as for `forward`."""
        passes = _stacked(outputs)
        if self.task == "regression":
            fit, consistency, counts = _squared_errors(passes, labels)
        else:
            fit, consistency = _cross_entropy(passes, labels, self.ignore_index, self.label_smoothing)
            counts = labels != self.ignore_index
        counts = counts if pad_mask is None else counts & ~_checked_mask(pad_mask, counts)
        fit_term = self._weights[0] * _reduced(fit, counts, self._reductions[0])
        consistency_term = self._weights[1] * _reduced(consistency, counts, self._reductions[1])
        loss = fit_term + self.alpha * consistency_term if self.alpha else fit_term  # 0 times infinity is not 0
        return RDropTerms(loss, fit_term, consistency_term)

    def extra_repr(self) -> str:
        """Return the settings, as they show in `repr`."""
        return f"alpha={self.alpha}, convention={self.convention!r}, task={self.task!r}"


def mean_pairwise_kl(log_probs: Tensor) -> Tensor:
    """Return the mean over ordered pairs of passes of KL(P_i‖P_j), in nats.

    For two passes that is ½[KL(P1‖P2) + KL(P2‖P1)] = ½ Σ(p - q)(log p - log q). For m it is the covariance of
    p and log p over the passes, with divisor m - 1, summed over the classes: no loop over pairs is needed.

    Args:
        log_probs: [m, ..., C], m >= 2. A class that is impossible (-inf) in all passes contributes 0; one that is
            impossible in some of them only makes the divergence infinite.

    Returns:
        The divergences, [...].
    """
    impossible = log_probs.isneginf()
    probs, finite = log_probs.exp(), log_probs.masked_fill(impossible, 0.0)
    centred = (probs - probs.mean(dim=0)) * (finite - finite.mean(dim=0))
    divergence = centred.sum(dim=(0, -1)) / (len(log_probs) - 1)
    disagreed = impossible.any(dim=0) & ~impossible.all(dim=0)
    return divergence.masked_fill(disagreed.any(dim=-1), torch.inf)


def _check_settings(alpha: float, convention: str, reduction: str | None, task: str, label_smoothing: float) -> None:
    """Raise `ValueError` on a setting that has no meaning."""
    if not 0 <= alpha < float("inf"):
        raise ValueError(f"alpha must be at least 0 and finite, not {alpha}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], not {label_smoothing}")
    choices = (
        ("convention", convention, tuple(CONVENTIONS)),
        ("reduction", reduction, (None, "mean", "sum", "batchmean")),
        ("task", task, ("classification", "regression")),
    )
    for name, value, known in choices:
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: known are {', '.join(map(str, known))}")


def _stacked(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the passes as one tensor [m, N, ...], half precision as float32."""
    passes = outputs if isinstance(outputs, Tensor) else torch.stack(tuple(outputs))
    if passes.ndim < 2 or len(passes) < 2:
        raise ValueError(f"R-Drop needs outputs [m, N, ...] of at least two passes, not {list(passes.shape)}")
    return passes.to(torch.promote_types(passes.dtype, torch.float32))


def _cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int, smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of the passes and their divergence, both of the shape of the labels."""
    if logits.shape[1:-1] != labels.shape:
        raise ValueError(
            f"logits {list(logits.shape)} need labels {list(logits.shape[1:-1])}, not {list(labels.shape)}"
        )
    log_probs = logits.log_softmax(dim=-1)
    known = labels.masked_fill(labels == ignore_index, 0)
    nll = -log_probs.gather(-1, known.expand(log_probs.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    if smoothing:
        nll = (1 - smoothing) * nll - smoothing * log_probs.mean(dim=-1)
    return nll.mean(dim=0), mean_pairwise_kl(log_probs)


def _squared_errors(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each example, the mean squared error of the passes and between them, and that it counts."""
    if outputs.shape[1:] == (*targets.shape, 1):
        outputs = outputs.squeeze(-1)
    if outputs.shape[1:] != targets.shape:
        raise ValueError(
            f"outputs {list(outputs.shape)} need targets {list(outputs.shape[1:])}, not {list(targets.shape)}"
        )
    flat = outputs.flatten(start_dim=2) if outputs.ndim > 2 else outputs.unsqueeze(-1)
    errors = (outputs - targets).square().reshape(flat.shape).mean(dim=(0, -1))
    between = 2 * flat.var(dim=0).mean(dim=-1)  # the mean of (a - b)² over pairs is twice the variance
    return errors, between, torch.ones_like(errors, dtype=torch.bool)


def _checked_mask(pad_mask: Tensor, positions: Tensor) -> Tensor:
    """Return the mask if it is a bool for each position: an inverted or a float mask would pass unnoticed."""
    if pad_mask.dtype != torch.bool or pad_mask.shape != positions.shape:
        wanted, given = list(positions.shape), list(pad_mask.shape)
        raise ValueError(f"pad_mask must be bool {wanted}, True = ignore, not {pad_mask.dtype} {given}")
    return pad_mask


def _reduced(values: Tensor, counts: Tensor, reduction: Reduction) -> Tensor:
    """Return the mean or the sum of the values that count; with none, 0."""
    total = values.masked_fill(~counts, 0.0).sum()  # masked before reducing
    if reduction == "sum":
        return total
    return total / (len(values) if reduction == "batchmean" else counts.sum().clamp(min=1))
