"""The gap between the eval model and the sub-models it was trained as."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from rdrop_probes.divergences import hits, kl, nll
from rdrop_probes.probe import SubModelProbe
from rdrop_probes.terms import (
    BlockSums,
    EvalBatch,
    Term,
    Totals,
    correct,
    flip,
    kl_from_eval,
    kl_to_eval,
    log_likelihood,
    logit_shift,
    logit_shift_square,
    negative_log_likelihood,
    probability,
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
    terms = (kl_to_eval, kl_from_eval, probability, vote, flip, logit_shift, logit_shift_square)
    bias_corrected = frozenset({"kl_mean_to_eval"})
    squared = frozenset({"expectation_linearity"})
    signed = frozenset({"nll_gap", "accuracy_gap"})
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
        votes = totals[vote]
        alike = (votes * (votes - 1)).sum(-1)  # ordered pairs of sub-models that vote alike
        k = totals.count(alike.dim())
        pairs = k * (k - 1)
        shift = totals[logit_shift].square().sum(-1) - totals[logit_shift_square]
        estimates = {
            "kl_sub_to_eval": totals.mean(kl_to_eval),
            "kl_eval_to_sub": totals.mean(kl_from_eval),
            "kl_mean_to_eval": kl(totals.mean(probability).log(), batch.log_p),
            "flip_rate": totals.mean(flip),
            "disagreement": torch.where(k > 1, 1 - alike / pairs, torch.nan),
            "expectation_linearity": torch.where(k > 1, shift / pairs, torch.nan),
        }
        return estimates | (self._labelled(batch, totals) if batch.labels is not None else {})

    def _labelled(self, batch: EvalBatch, totals: Totals) -> dict[str, Tensor]:
        if batch.labels is None:
            raise ValueError("accuracy and NLL need labels")
        mean = totals.mean(probability).log()
        nll_sub, accuracy_sub = totals.mean(negative_log_likelihood), totals.mean(correct)
        return {
            "nll_sub": nll_sub,
            "nll_mean": -totals.mean(log_likelihood),
            "nll_gap": nll_sub - nll(batch.log_p, batch.labels),
            "accuracy_sub": accuracy_sub,
            "accuracy_mean": hits(mean, batch.labels),
            "accuracy_gap": hits(batch.log_p, batch.labels) - accuracy_sub,
        }
