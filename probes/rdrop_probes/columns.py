"""A metric's evidence: one value for each example, and what the jackknife over sub-models says of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
FEWEST = 0.5  # degrees of freedom, with fewer of which one example is nearly all there is: no interval
EQUAL = 1e-9  # of effective examples, below which weights differ by rounding alone


@dataclass
class Column:
    """Per-example values of one metric.

    Attributes:
        values: [N]; the metric is their mean. Not finite where the example has no value.
        mask_variance: [N], variance over masks of each value (jackknife); None without dropout in it.
        leave_out: [blocks], sum over examples of the estimates with one block of sub-models left out.
        leave_out_n: how many examples (rows, with weights) that sum runs over.
        weights: [N], how many rows (tokens, labels) each value is the mean of; None where an example is one row.
            The metric is then the mean over all rows.
        infinite: [N], how many rows of each example are left out of it because they are not finite.
        df: degrees of freedom of the spread over examples, where these weigh unequally.
        tabulated: whether the values stand for the example alone (False for linearised quantities).
        proportion: whether the values are shares of hits, so that 0 and 1 are outcomes and not quantities.
        squared: whether the values are squares and the metric is the root of their mean.
        floor: the least value that the metric can truly have, which its interval respects.
    """

    values: Floats
    mask_variance: Floats | None = None
    leave_out: Floats | None = None
    leave_out_n: float = 0
    weights: Floats | None = None
    infinite: Floats | None = None
    df: float | None = None
    tabulated: bool = True
    squared: bool = False
    proportion: bool = False
    floor: float = -np.inf

    @property
    def finite(self) -> NDArray[np.bool_]:
        """[N], which examples have a value."""
        return np.isfinite(self.values)

    def append(self, other: Column) -> None:
        """Take over the examples of `other` behind the own."""
        self.values = np.concatenate([self.values, other.values])
        if self.mask_variance is not None and other.mask_variance is not None:
            self.mask_variance = np.concatenate([self.mask_variance, other.mask_variance])
        if self.leave_out is not None and other.leave_out is not None:
            self.leave_out = self.leave_out + other.leave_out
            self.leave_out_n += other.leave_out_n
        if self.weights is not None and other.weights is not None:
            self.weights = np.concatenate([self.weights, other.weights])
        if self.infinite is not None and other.infinite is not None:
            self.infinite = np.concatenate([self.infinite, other.infinite])

    def linearised(self) -> Column:
        """Column of one value an example whose plain mean is the metric, and whose spread is that of the metric.

        The jackknife of a ratio of sums (Efron and Stein 1981): with h = w / sum(w) and r the mean over all rows,
        value = r + (N - 1) h / (1 - h) (m - r), centred at r. An example with many rows has more leverage than the
        delta method grants it. Degrees of freedom are those of Kish's effective number of examples,
        sum(w)^2 / sum(w^2). The examples stay the sample: rows of one share their input and their masks.
        """
        if self.weights is None:
            return self
        kept = self.finite & (self.weights > 0)
        n = int(kept.sum())
        share = np.where(kept, self.weights, 0.0) / max(self.weights[kept].sum(), 1.0)
        mean = (share * np.where(kept, self.values, 0.0)).sum()
        leverage = (n - 1) * share / np.maximum(1 - share, np.finfo(float).eps)
        moved = leverage * np.where(kept, self.values - mean, 0.0)
        values = np.where(kept, mean + moved - moved[kept].sum() / max(n, 1), self.values)
        variance = None if self.mask_variance is None else (n * share) ** 2 * self.mask_variance
        df = float(1 / (share**2).sum() - 1) if n else 0.0
        df = n - 1.0 if df > n - 1 - EQUAL else df * (df > FEWEST)
        return replace(self, values=values, mask_variance=variance, weights=None, infinite=None, df=df, tabulated=False)


@dataclass
class ColumnSet:
    """Columns by metric name, grown batch by batch and merged between workers."""

    columns: dict[str, Column] = field(default_factory=dict)

    def add(self, name: str, column: Column) -> None:
        """Append a batch's column to what is there."""
        if name in self.columns:
            self.columns[name].append(column)
        else:
            self.columns[name] = column

    def merge(self, other: ColumnSet) -> None:
        """Append the columns of another worker."""
        for name, column in other.columns.items():
            self.add(name, column)


def plain(values: Tensor, *, proportion: bool = False, weights: Tensor | None = None, floor: float = -np.inf) -> Column:
    """Column of values [N] without dropout in them."""
    by_row = None if weights is None else as_floats(weights)
    return Column(as_floats(values), proportion=proportion, weights=by_row, floor=floor)


def as_floats(values: Tensor) -> Floats:
    """The values as a NumPy array."""
    array: Floats = values.detach().double().cpu().numpy()
    return array
