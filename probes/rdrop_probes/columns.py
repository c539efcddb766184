"""A metric's evidence: one value for each example, and what the jackknife over sub-models says of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


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
        tabulated: whether the values stand for the example alone (False for linearised quantities).
        proportion: whether the values are shares of hits, so that 0 and 1 are outcomes and not quantities.
        squared: whether the values are squares and the metric is the root of their mean.
        floor: the least value the metric can have, where its interval has to respect it.
    """

    values: Floats
    mask_variance: Floats | None = None
    leave_out: Floats | None = None
    leave_out_n: float = 0
    weights: Floats | None = None
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

    def linearised(self) -> Column:
        """Column of one value an example whose plain mean is the metric, and whose spread is that of the metric.

        value_n = r + w_n (m_n - r) / mean(w), r the mean over all rows: the delta method for a ratio of means.
        The examples stay the sample: rows of one example share their input and their masks.
        """
        if self.weights is None:
            return self
        scale = np.where(self.finite, self.weights, 0.0)
        scale = scale / scale[self.finite].mean() if self.finite.any() else scale
        mean = (scale * np.where(self.finite, self.values, 0.0)).sum() / max(self.finite.sum(), 1)
        values = np.where(self.finite, mean + scale * (self.values - mean), self.values)
        variance = None if self.mask_variance is None else scale**2 * self.mask_variance
        return replace(self, values=values, mask_variance=variance, weights=None, tabulated=False)


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


def plain(values: Tensor, *, proportion: bool = False, weights: Tensor | None = None) -> Column:
    """Column of values [N] without dropout in them."""
    return Column(as_floats(values), proportion=proportion, weights=None if weights is None else as_floats(weights))


def as_floats(values: Tensor) -> Floats:
    """The values as a NumPy array."""
    array: Floats = values.detach().double().cpu().numpy()
    return array
