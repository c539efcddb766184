"""The divergences and the gap of a regression model, whose output is read as the mean of a Gaussian surrogate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from rdrop_probes.block_sums import BlockSums, Totals
from rdrop_probes.convergence import ConvergingProbe
from rdrop_probes.distributions import Distributions, EvalBatch, Term
from rdrop_probes.families import Gaussian
from rdrop_probes.probe import SubModelProbe
from rdrop_probes.terms import logit_shift, logit_shift_square


class GaussianPairwise(ConvergingProbe):
    """EPKL of the surrogate N(f(x), v): E |f_1 - f_2|^2 / (2 v) over two independent sub-models, in nats.

    `pairwise_mse` = E |f_1 - f_2|^2 / D, the mean squared error between passes that R-Drop trains with for
    regression (Liang et al. 2021). Both are unbiased, from running sums of d_k = f_k - f_0:
    sum_{i != j} |f_i - f_j|^2 = 2 (K sum_k |d_k|^2 - |sum_k d_k|^2). v is the family's variance.
    """

    name = "pairwise_kl"
    units: ClassVar = {"epkl": "nats", "constraint_epsilon": "nats", "pairwise_mse": "target²"}
    between = frozenset({"epkl", "pairwise_mse"})
    terms = (logit_shift, logit_shift_square)
    families = ("gaussian",)

    def estimate(self, batch: EvalBatch, totals: Totals) -> dict[str, Tensor]:
        """EPKL and MSE between passes, each [P] or [G, P]; NaN where fewer than two sub-models are summed."""
        together = totals.product(logit_shift, logit_shift)
        k = totals.count(together.dim())
        pairs = 2 * (k * totals[logit_shift_square] - together)
        squared = torch.where(k > 1, pairs / (k * (k - 1)), torch.nan)
        return {"epkl": squared / (2 * variance(batch)), "pairwise_mse": squared / batch.logits.shape[-1]}

    def epkl(self, batch: EvalBatch, totals: Totals) -> dict[str, Tensor]:
        """EPKL alone."""
        return {"epkl": self.estimate(batch, totals)["epkl"]}


class GaussianGap(SubModelProbe):
    """Eval model f_0 against sub-models f_k, under the surrogate N(f(x), v).

    kl_sub_to_eval = E |f_k - f_0|^2 / (2 v) (both orders are alike); kl_mean_to_eval = |E f_k - f_0|^2 / (2 v) and
    expectation_linearity = |E f_k - f_0|_2, root mean square over examples (Ma et al. 2017), both from the unbiased
    U-statistic over pairs. With targets: the mean squared error over outputs of the eval model, of the
    sub-models and of the mean of K passes, and mse_gap = mse_sub - mse_eval. Unknown targets are NaN.
    """

    name = "gap"
    units: ClassVar = {
        "kl_sub_to_eval": "nats",
        "kl_mean_to_eval": "nats",
        "expectation_linearity": "target",
        "mse_eval": "target²",
        "mse_sub": "target²",
        "mse_mean": "target²",
        "mse_gap": "target²",
    }
    terms = (logit_shift, logit_shift_square)
    squared = frozenset({"expectation_linearity"})
    signed = frozenset({"mse_gap"})
    families = ("gaussian",)

    def terms_for(self, *, labels: bool) -> Iterable[Term]:
        """With targets also the error of each sub-model."""
        return (*self.terms, squared_error) if labels else self.terms

    def update(self, batch: EvalBatch, sums: BlockSums) -> None:
        """Sub-model metrics by jackknife, those of the eval model as they are."""
        super().update(batch, sums)
        if batch.labels is not None:
            self.keep_plain(batch, "mse_eval", mean_squared_error(batch, batch.scores))

    def estimate(self, batch: EvalBatch, totals: Totals) -> dict[str, Tensor]:
        """Per-row estimates, each [P] or [G, P]."""
        squares = totals[logit_shift_square]
        together = totals.product(logit_shift, logit_shift) - squares
        k = totals.count(squares.dim())
        shift = torch.where(k > 1, together / (k * (k - 1)), torch.nan)
        twice = 2 * variance(batch)
        found = {
            "kl_sub_to_eval": squares / k / twice,
            "kl_mean_to_eval": shift / twice,
            "expectation_linearity": shift,
        }
        if batch.labels is None:
            return found
        sub = totals.mean(squared_error)
        mean = mean_squared_error(batch, batch.scores + totals.mean(logit_shift))
        return found | {"mse_sub": sub, "mse_mean": mean, "mse_gap": sub - mean_squared_error(batch, batch.scores)}


def variance(batch: EvalBatch) -> float:
    """The surrogate's variance, in the squared unit of the targets."""
    if not isinstance(batch.family, Gaussian):
        raise TypeError("a regression probe needs a Gaussian family")
    return batch.family.variance


def squared_error(seen: Distributions) -> Tensor:
    """Term: mean over outputs of (f_k - target)^2 [k, P]; NaN where no target is known."""
    return mean_squared_error(seen.batch, seen.logits)


def mean_squared_error(batch: EvalBatch, outputs: Tensor) -> Tensor:
    """Mean over outputs of (outputs - target)^2 [..., P] for outputs [..., P, D]; NaN where no target is known."""
    if batch.labels is None:
        raise ValueError("errors need targets")
    return (outputs - batch.labels).square().nanmean(-1)
