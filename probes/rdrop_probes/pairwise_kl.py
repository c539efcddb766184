"""Expected pairwise KL between sub-models, and the two halves of it: MI and RMI."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from rdrop_probes.columns import Floats
from rdrop_probes.divergences import entropy, zero_times
from rdrop_probes.jackknife import Jackknife
from rdrop_probes.probe import Outcome, SubModelProbe
from rdrop_probes.records import ConvergencePoint
from rdrop_probes.statistics import LEVEL, Spread, block_spread
from rdrop_probes.terms import (
    BlockSums,
    EvalBatch,
    Totals,
    entropy_term,
    log_ratio,
    probability,
    self_product,
)


class PairwiseKL(SubModelProbe):
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

    def __init__(self) -> None:
        super().__init__()
        self._convergence: dict[int, _PrefixSums] = {}

    def estimate(self, batch: EvalBatch, totals: Totals) -> dict[str, Tensor]:
        """EPKL, MI and RMI, each [N] or [G, N]; NaN where fewer than two sub-models are summed."""
        cross = zero_times(totals[probability], totals[log_ratio]).sum(-1)
        k = totals.count(cross.dim())
        pairs = k * totals[self_product] - cross
        mean = totals.mean(probability)
        mi = entropy(mean.log()) - totals.mean(entropy_term)
        epkl = torch.where(k > 1, pairs / (k * (k - 1)), torch.nan)
        return {"epkl": epkl, "mutual_information": mi, "reverse_mutual_information": pairs / k**2 - mi}

    def update(self, batch: EvalBatch, sums: BlockSums) -> None:
        """Keep the columns, and the mean EPKL of the first 4, 8, 16, ... blocks for the convergence in K."""
        super().update(batch, sums)
        for blocks in _prefixes(sums.blocks):
            prefix = self._convergence.setdefault(blocks, _PrefixSums(int(sums.sizes[:blocks].sum()), blocks))
            prefix.add(self.jackknife(batch, sums, blocks)["epkl"])

    def merge(self, other: PairwiseKL) -> None:
        """Add another worker's sums."""
        super().merge(other)
        for blocks, prefix in other._convergence.items():
            self._convergence.setdefault(blocks, _PrefixSums(prefix.sub_models, blocks)).merge(prefix)

    def outcome(self) -> Outcome:
        """Columns, and the convergence of EPKL in K."""
        prefixes = [prefix for _, prefix in sorted(self._convergence.items()) if prefix.n]
        points = [prefix.point(shared_masks=self.shared_masks) for prefix in prefixes]
        return Outcome(self.kept, {"convergence": points})


class _PrefixSums:
    """EPKL from the first few sub-models, summed over examples."""

    def __init__(self, sub_models: int, blocks: int) -> None:
        self.sub_models = sub_models
        self._blocks = blocks
        self.n = 0
        self._usable = 0
        self._total = 0.0
        self._variance = 0.0
        self._leave_out: Floats = np.zeros(blocks)

    def add(self, jackknife: Jackknife) -> None:
        column = jackknife.column(corrected=False)
        if column.mask_variance is None or column.leave_out is None:
            return
        usable = np.isfinite(column.mask_variance)
        self.n += int(column.finite.sum())
        self._usable += int(usable.sum())
        self._total += float(column.values[column.finite].sum())
        self._variance += float(column.mask_variance[usable].sum())
        self._leave_out = self._leave_out + column.leave_out

    def merge(self, other: _PrefixSums) -> None:
        self.n += other.n
        self._usable += other._usable
        self._total += other._total
        self._variance += other._variance
        self._leave_out = self._leave_out + other._leave_out

    def point(self, *, shared_masks: bool) -> ConvergencePoint:
        half = self._spread(shared_masks=shared_masks).half_width(LEVEL)
        estimate = self._total / self.n
        return ConvergencePoint(
            sub_models=self.sub_models,
            estimate=estimate,
            low=None if half is None else estimate - half,
            high=None if half is None else estimate + half,
        )

    def _spread(self, *, shared_masks: bool) -> Spread:
        n = self._usable
        if not n:
            return Spread(0.0, 0)
        return (
            block_spread(self._leave_out / n) if shared_masks else Spread(self._variance / n**2, n * (self._blocks - 1))
        )


def _prefixes(blocks: int) -> list[int]:
    """4, 8, 16, ... and the whole."""
    doubling = []
    size = 4
    while size < blocks:
        doubling.append(size)
        size *= 2
    return [*doubling, blocks]
