"""The gap between the eval model and the sub-models it was trained as."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from rdrop_probes.block_sums import BlockSums, Totals
from rdrop_probes.distributions import EvalBatch, Term
from rdrop_probes.divergences import hits, nll
from rdrop_probes.pairwise_kl import to_reference
from rdrop_probes.probe import SubModelProbe
from rdrop_probes.terms import (
    correct,
    flip,
    kl_to_eval,
    log_likelihood,
    log_ratio,
    logit_shift_square,
    negative_log_likelihood,
    offset,
    probability,
    rounding,
    vote,
)


class Gap(SubModelProbe):
    """Eval model (dropout off) against sub-models and against their MC mean.

    KL(p_k || p_0), KL(p_0 || p_k), KL(mean p || p_0); NLL and accuracy of each; nll_gap = mean NLL_k - NLL_0
    (the explicit regulariser of Wei et al. 2020); accuracy_gap = accuracy_0 - mean accuracy_k; flip_rate =
    P(argmax p_k != argmax p_0); disagreement between pairs of sub-models, from vote counts;
    expectation_linearity = |E z_k - z_0|_2 on logits (Ma et al. 2017), as the root of its mean square over
    examples: the square is estimated without bias by the U-statistic over pairs of sub-models, a norm is not;
    comparisons are of the squares.
    Divergences and NLL in nats.
    """

    name = "gap"
    units: ClassVar = {
        "kl_sub_to_eval": "nats",
        "kl_eval_to_sub": "nats",
        "kl_mean_to_eval": "nats",
        "flip_rate": "",
        "disagreement": "",
        "expectation_linearity": "logits",
        "nll_eval": "nats",
        "nll_sub": "nats",
        "nll_mean": "nats",
        "nll_gap": "nats",
        "accuracy_eval": "",
        "accuracy_sub": "",
        "accuracy_mean": "",
        "accuracy_gap": "",
    }
    between = frozenset({"disagreement"})
    terms = (kl_to_eval, probability, log_ratio, vote, flip, offset, rounding, logit_shift_square)
    bias_corrected = frozenset({"kl_mean_to_eval"})
    squared = frozenset({"expectation_linearity"})
    signed = frozenset({"nll_gap", "accuracy_gap"})
    share_differences = frozenset({"accuracy_gap"})
    proportions = frozenset({"flip_rate", "disagreement", "accuracy_sub", "accuracy_mean"})

    def terms_for(self, *, labels: bool) -> Iterable[Term]:
        """With labels also the likelihood and the hits of each sub-model."""
        return (*self.terms, negative_log_likelihood, correct, log_likelihood) if labels else self.terms

    def update(self, batch: EvalBatch, sums: BlockSums) -> None:
        """Sub-model metrics by jackknife, eval metrics as they are."""
        super().update(batch, sums)
        if batch.labels is not None:
            self.keep_plain(batch, "nll_eval", nll(batch.log_p, batch.labels))
            self.keep_plain(batch, "accuracy_eval", hits(batch.log_p, batch.labels), proportion=True)

    def estimate(self, batch: EvalBatch, totals: Totals) -> dict[str, Tensor]:
        """Per-example estimates, each [N] or [G, N]."""
        alike = totals.alike(vote)
        k = totals.count(alike.dim())
        pairs = k * (k - 1)
        estimates = {
            "kl_sub_to_eval": totals.mean(kl_to_eval),
            "kl_eval_to_sub": -totals.weighted(batch.p, log_ratio) / k - totals.mean(rounding),
            "kl_mean_to_eval": self._mean_to_eval(batch, totals),
            "flip_rate": totals.mean(flip),
            "disagreement": torch.where(k > 1, 1 - alike / pairs, torch.nan),
            "expectation_linearity": torch.where(k > 1, _products_of_shifts(batch, totals) / pairs, torch.nan),
        }
        return estimates | (self._labelled(batch, totals) if batch.labels is not None else {})

    def _mean_to_eval(self, batch: EvalBatch, totals: Totals) -> Tensor:
        """KL(mean p || p_0) [P] or [G, P]; infinite where a class is possible that the eval model rules out."""
        divergence = totals.of_mean(to_reference, probability, batch)
        if not batch.ruled_out:
            return divergence
        return torch.where(totals.of_mean(_mass_ruled_out, probability, batch) > 0, torch.inf, divergence)

    def _labelled(self, batch: EvalBatch, totals: Totals) -> dict[str, Tensor]:
        if batch.labels is None:
            raise ValueError("accuracy and NLL need labels")
        nll_sub, accuracy_sub = totals.mean(negative_log_likelihood), totals.mean(correct)
        return {
            "nll_sub": nll_sub,
            "nll_mean": -totals.mean(log_likelihood),
            "nll_gap": nll_sub - nll(batch.log_p, batch.labels),
            "accuracy_sub": accuracy_sub,
            "accuracy_mean": totals.of_mean(_hits, probability, batch),
            "accuracy_gap": hits(batch.log_p, batch.labels) - accuracy_sub,
        }


def _mass_ruled_out(batch: EvalBatch, p: Tensor) -> Tensor:
    """The highest probability [..., P] of a class that the eval model rules out."""
    return torch.where(batch.impossible, p, 0.0).amax(-1)


def _hits(batch: EvalBatch, p: Tensor) -> Tensor:
    return hits(p, batch.labels)


def _products_of_shifts(batch: EvalBatch, totals: Totals) -> Tensor:
    """Sum over ordered pairs of different sub-models of <z_i - z_0, z_j - z_0> [P] or [G, P].

    z_k - z_0 = r_k + c_k, with c_k the offset of the normalisers, in every class that is not ruled out.
    """
    offsets, squares = totals[offset], totals[logit_shift_square]
    ratios = totals.weighted(torch.ones_like(batch.p), log_ratio)
    possible = (~batch.impossible).sum(-1)
    square = totals.product(log_ratio, log_ratio) + offsets * (2 * ratios + possible * offsets)
    return torch.where(torch.isfinite(squares), square - squares, torch.inf)
