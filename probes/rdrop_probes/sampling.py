"""What sampling adds: means over random draws, with the variance that the draws themselves leave in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rdrop_probes.columns import Column, ColumnSet, Floats


@dataclass(frozen=True)
class Sampled:
    """Estimates [N], and the variance [N] of each over the draws that it was made from (0 where it is exact)."""

    values: Tensor
    variance: Tensor

    def over(self, count: Tensor | None) -> Sampled:
        """Divided by numbers [N] that are known exactly; NaN for an example without rows."""
        return self if count is None else Sampled(self.values / count, self.variance / count.square())

    @property
    def root(self) -> Sampled:
        """Square roots, corrected to second order for that of a noisy square being too small on average.

        E sqrt(x) = sqrt(m) (1 - v / (8 m^2)) for x of mean m and variance v; the variance is v / (4 m).
        """
        known = self.values > 0
        values = torch.where(known, self.values.sqrt() * (1 + self.variance / (8 * self.values.square())), self.values)
        return Sampled(values, torch.where(known, self.variance / (4 * self.values), 0.0))


class RunningMean:
    """Mean over draws of values [N], which come as sums would: `add` takes [k, N]."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Take k draws [k, N], float64."""
        self._count += len(values)
        self._sum = self._sum.to(values.device) + values.sum(0)
        self._squares = self._squares.to(values.device) + values.square().sum(0)

    def total(self) -> Sampled:
        """The sum of what was added, with its variance."""
        mean = self.mean()
        return Sampled(mean.values * self._count, mean.variance * self._count**2)

    def mean(self) -> Sampled:
        """The mean, with its variance over draws."""
        mean = self._sum / self._count
        spread = (self._squares / self._count - mean.square()).clamp(min=0) / max(self._count - 1, 1)
        return Sampled(mean, spread)


def standard_error(variances: Column) -> float:
    """Standard error, from sampling alone, of the mean over all rows of values with these variances."""
    weights = _weights(variances)
    total = weights.sum()
    return float(np.sqrt((weights**2 * np.nan_to_num(variances.values)).sum()) / total) if total else 0.0


def errors_in_words(variances: ColumnSet, estimates: ColumnSet) -> str:
    """Standard errors from sampling, relative to the means: `1.2% of jacobian_fisher, 0.3% of ...`."""
    parts = []
    for name, column in variances.columns.items():
        weights = _weights(estimates.columns[name])
        mean = (weights * np.nan_to_num(estimates.columns[name].values)).sum() / max(weights.sum(), 1.0)
        if mean > 0:
            parts.append(f"{100 * standard_error(column) / mean:.2g}% of {name}")
    return ", ".join(parts)


def sampling_findings(why: str, code: str, variances: ColumnSet, estimates: ColumnSet) -> dict[str, str]:
    """That expectations are sampled, which all checkpoints share, and under `code` how much of an error that adds."""
    if not why:
        return {}
    findings = {"sampled_classes": f"{why}: Jacobian norms and predictions are estimated by sampling"}
    if errors := errors_in_words(variances, estimates):
        findings[code] = f"sampling adds a standard error of {errors}, which the intervals contain"
    return findings


def _weights(column: Column) -> Floats:
    """How much each value [N] weighs in the mean over all rows; 0 for those that are left out."""
    weights = np.ones_like(column.values) if column.weights is None else column.weights
    return np.where(column.finite, weights, 0.0)
