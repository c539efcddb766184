"""Delete-a-block jackknife over sub-models: bias correction and the variance that comes from masks alone.

Formulas for blocks of unequal size: Busing, Meijer and van der Leeden (1999), "Delete-m jackknife for unequal
m", Statistics and Computing 9. With one sub-model a block they are the classical delete-one jackknife.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rdrop_probes.block_sums import BlockSums, Totals
from rdrop_probes.by_example import ByExample
from rdrop_probes.columns import Column, as_floats
from rdrop_probes.distributions import EvalBatch

Estimator = Callable[[EvalBatch, Totals], dict[str, Tensor]]
"""Estimates [P] by name from sums, or [G, P] from sums with a leading dimension G."""


@dataclass(frozen=True)
class Jackknife:
    """Estimates from all sub-models and with each block left out.

    Attributes:
        full: [N]. without: [G, N]. sizes: [G], sub-models in each block.
        weights: [N], how many rows each value is the mean of; None where each is one.
        infinite: [N], how many rows are left out of it.
    """

    full: Tensor
    without: Tensor
    sizes: Tensor
    weights: Tensor | None = None
    infinite: Tensor | None = None

    @cached_property
    def corrected(self) -> Tensor:
        """Bias-corrected estimate [N]: G full - sum_g (1 - m_g / K) without_g."""
        shares = self.sizes.double() / self.sizes.sum()
        return len(self.sizes) * self.full - ((1 - shares)[:, None] * self.without).sum(0)

    @property
    def variance(self) -> Tensor:
        """Variance over masks [N]: mean over g of (pseudo-value - their mean)^2 / (K / m_g - 1)."""
        h = (self.sizes.sum() / self.sizes.double())[:, None]
        pseudo = h * self.full - (h - 1) * self.without
        return ((pseudo - self.corrected) ** 2 / (h - 1)).mean(0)

    def column(self, *, corrected: bool, proportion: bool = False) -> Column:
        """Column of the estimates, bias-corrected or as they are."""
        values = self.corrected if corrected else self.full
        usable = torch.isfinite(values + self.without.sum(0))
        weights = torch.ones_like(values) if self.weights is None else self.weights
        leave_out = torch.where(usable, weights * self.without, 0.0).sum(1)
        return Column(
            as_floats(torch.where(torch.isfinite(self.full), values, self.full)),
            as_floats(torch.where(usable, self.variance, torch.nan)),
            as_floats(leave_out),
            float(weights[usable].sum()),
            weights=None if self.weights is None else as_floats(weights),
            infinite=None if self.infinite is None else as_floats(self.infinite),
            proportion=proportion,
        )


def jackknives(
    estimate: Estimator, batch: EvalBatch, sums: BlockSums, examples: ByExample, blocks: int | None = None
) -> dict[str, Jackknife]:
    """Estimates by example over the first `blocks` blocks (all by default), with and without each of them.

    Empty until the last of the batch's rows are in; `examples` keeps what comes before.
    """
    full = estimate(batch, sums.total(blocks))
    without = estimate(batch, sums.leave_one_out(blocks))
    found = {}
    for name, values in full.items():
        means = examples.means(batch, f"{name}/{blocks}", torch.cat([values[None], without[name]]))
        if means is not None:
            sizes = sums.sizes[:blocks].to(values.device)
            found[name] = Jackknife(means.values[0], means.values[1:], sizes, means.weights, means.infinite)
    return found
