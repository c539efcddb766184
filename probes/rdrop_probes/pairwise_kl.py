"""Expected pairwise KL between sub-models, and the two halves of it: MI and RMI."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rdrop_probes.block_sums import Totals
from rdrop_probes.convergence import ConvergingProbe
from rdrop_probes.distributions import EvalBatch
from rdrop_probes.terms import log_ratio, probability, self_product


class PairwiseKL(ConvergingProbe):
    """EPKL = E KL(p_xi1 || p_xi2), the left side of R-Drop's constraint (Liang et al. 2021, eq. 9).

    The unbiased U-statistic over ordered pairs, from three running sums, with r_k = log p_k - log p_0:
    sum_{i != j} KL_ij = K sum_k <p_k, r_k> - <sum_k p_k, sum_k r_k>. MI = H(mean p) - mean H(p_k) (BALD,
    Houlsby et al. 2011) = mean <p_k, r_k> - <mean p, log mean p - log p_0> and RMI = mean KL(mean p || p_k) (Malinin
    and Gales 2021) are jackknifed; before that, MI + RMI = (K - 1) / K EPKL exactly. In nats, per example. A slightly
    negative estimate is noise. `constraint_epsilon` is what the mean EPKL stays below with 95% confidence.
    """

    name = "pairwise_kl"
    units: ClassVar = {
        "epkl": "nats",
        "constraint_epsilon": "nats",
        "mutual_information": "nats",
        "reverse_mutual_information": "nats",
    }
    between = frozenset({"epkl", "mutual_information", "reverse_mutual_information"})
    terms = (probability, log_ratio, self_product)
    bias_corrected = frozenset({"mutual_information", "reverse_mutual_information"})

    def estimate(self, batch: EvalBatch, totals: Totals) -> dict[str, Tensor]:
        """EPKL, MI and RMI, each [N] or [G, N]; NaN where fewer than two sub-models are summed."""
        mi = totals.mean(self_product) - totals.of_mean(to_reference, probability, batch)
        pairs = _pairs(totals)
        k = totals.count(pairs.dim())
        return self.epkl(batch, totals) | {
            "mutual_information": mi,
            "reverse_mutual_information": pairs / k**2 - mi,
        }

    def epkl(self, _batch: EvalBatch, totals: Totals) -> dict[str, Tensor]:
        """EPKL alone."""
        pairs = _pairs(totals)
        k = totals.count(pairs.dim())
        return {"epkl": torch.where(k > 1, pairs / (k * (k - 1)), torch.nan)}


def to_reference(batch: EvalBatch, p: Tensor) -> Tensor:
    """<p, log p - log p_0> [..., P] in nats for probabilities p [..., P, C]; <p, log p> where p_0 is 0."""
    logs = p.clamp(min=torch.finfo(p.dtype).tiny).log_()  # 0 log 0 = 0
    return logs.sub_(batch.reference).mul_(p).sum(-1)


def _pairs(totals: Totals) -> Tensor:
    """Sum of KL over ordered pairs of different sub-models [P] or [G, P]."""
    cross = totals.product(probability, log_ratio)
    return totals.count(cross.dim()) * totals[self_product] - cross
