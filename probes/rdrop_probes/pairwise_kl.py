"""Expected pairwise KL between sub-models, and the two halves of it: MI and RMI."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rdrop_probes.convergence import ConvergingProbe
from rdrop_probes.divergences import entropy, zero_times
from rdrop_probes.terms import EvalBatch, Totals, entropy_term, log_ratio, probability, self_product


class PairwiseKL(ConvergingProbe):
    """EPKL = E KL(p_xi1 || p_xi2), the left side of R-Drop's constraint (Liang et al. 2021, eq. 9).

    The unbiased U-statistic over ordered pairs, from three running sums, with r_k = log p_k - log p_0:
    sum_{i != j} KL_ij = K sum_k <p_k, r_k> - <sum_k p_k, sum_k r_k>. MI = H(mean p) - mean H(p_k) (BALD,
    Houlsby et al. 2011) and RMI = mean KL(mean p || p_k) (Malinin and Gales 2021) are jackknifed; before
    that, MI + RMI = (K - 1) / K EPKL exactly. In nats, per example. A slightly negative estimate is noise.
    """

    name = "pairwise_kl"
    units: ClassVar = {"epkl": "nats", "mutual_information": "nats", "reverse_mutual_information": "nats"}
    terms = (probability, log_ratio, self_product, entropy_term)
    bias_corrected = frozenset({"mutual_information", "reverse_mutual_information"})

    def estimate(self, batch: EvalBatch, totals: Totals) -> dict[str, Tensor]:
        """EPKL, MI and RMI, each [N] or [G, N]; NaN where fewer than two sub-models are summed."""
        cross = zero_times(totals[probability], totals[log_ratio]).sum(-1)
        k = totals.count(cross.dim())
        pairs = k * totals[self_product] - cross
        mean = totals.mean(probability)
        mi = entropy(mean.log()) - totals.mean(entropy_term)
        epkl = torch.where(k > 1, pairs / (k * (k - 1)), torch.nan)
        return {"epkl": epkl, "mutual_information": mi, "reverse_mutual_information": pairs / k**2 - mi}
