"""A metric's evidence: one value for each example, and what the jackknife over sub-models says of it."""

from __future__ import annotations

from dataclasses import dataclass, field

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
        leave_out_n: how many examples that sum runs over.
        tabulated: whether the values stand for the example alone (False for linearised quantities).
        proportion: whether the values are shares of hits, so that 0 and 1 are outcomes and not quantities.
        squared: whether the values are squares and the metric is the root of their mean.
        floor: the least value the metric can have, where its interval has to respect it.
    """

    values: Floats
    mask_variance: Floats | None = None
    leave_out: Floats | None = None
    leave_out_n: int = 0
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


def plain(values: Tensor, *, proportion: bool = False) -> Column:
    """Column of values [N] without dropout in them."""
    return Column(values.detach().double().cpu().numpy(), proportion=proportion)
