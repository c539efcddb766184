"""A metric's evidence: one value for each example, and what the jackknife over sub-models says of it."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
State = dict[str, Any]
"""Plain data: numbers, texts, None, NumPy arrays, and lists and dicts (whose keys are texts) of these."""

FEWEST = 0.5  # degrees of freedom, with fewer of which one example is nearly all there is: no interval
MOST_WAITING = 0.25  # of what is joined of a column, that may lie beside it in pieces
ROUNDING = 1e-6  # of single precision at worst, below which a divergence between equal models is nothing else
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
        share_difference: whether the values are differences of two such shares.
        floor: the least value that the metric can truly have, which its interval respects.
        crossed: whether random vectors that all examples share are in the values, whatever the masks are.
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
    crossed: bool = False
    share_difference: bool = False

    @property
    def finite(self) -> NDArray[np.bool_]:
        """[N], which examples have a value."""
        return np.isfinite(self.values)

    @property
    def range(self) -> tuple[float, float]:
        """What the metric can be, from the least to the most."""
        if self.proportion:
            return 0.0, 1.0
        return (-1.0, 1.0) if self.share_difference else (self.floor, np.inf)

    def state(self) -> State:
        """The column as plain data."""
        return {name.name: getattr(self, name.name) for name in fields(self)}

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


def without_rounding(column: Column) -> Column:
    """Of differences between models that are the same: exact zeros, where none is more than rounding."""
    if np.abs(column.values[column.finite]).max(initial=0) >= ROUNDING:
        return column
    return replace(
        column,
        values=np.where(column.finite, 0.0, column.values),
        mask_variance=np.zeros_like(column.values),
        leave_out=None if column.leave_out is None else np.zeros_like(column.leave_out),
        proportion=False,
        share_difference=False,
    )


class ColumnSet:
    """Columns by metric name, grown batch by batch and merged between work items.

    Pieces are joined when they are asked for, or are a quarter of what is joined: joining them one by one would take
    time quadratic in their number, and many small ones take more memory than their numbers do.
    """

    def __init__(self) -> None:
        self._joined: dict[str, Column] = {}
        self._pieces: dict[str, list[Column]] = {}
        self._waiting: Counter[str] = Counter()

    @property
    def columns(self) -> dict[str, Column]:
        """The columns by name."""
        while self._pieces:
            name, pieces = self._pieces.popitem()
            self._joined[name] = join([self._joined[name], *pieces])
        self._waiting.clear()
        return self._joined

    def add(self, name: str, column: Column) -> None:
        """Put a batch's column behind what is there."""
        if name not in self._joined:
            self._joined[name] = column
            return
        self._pieces.setdefault(name, []).append(column)
        self._waiting[name] += len(column.values)
        if self._waiting[name] > MOST_WAITING * len(self._joined[name].values):
            self._joined[name] = join([self._joined[name], *self._pieces.pop(name)])
            del self._waiting[name]

    def merge(self, other: ColumnSet) -> None:
        """Put the columns of other examples behind the own."""
        for name, column in other.columns.items():
            self.add(name, column)

    def state(self) -> State:
        """The columns as plain data."""
        return {name: column.state() for name, column in self.columns.items()}

    @classmethod
    def restored(cls, state: State) -> Self:
        """Columns from their :meth:`state`."""
        found = cls()
        for name, column in state.items():
            found.add(name, Column(**column))
        return found


def join(pieces: Sequence[Column]) -> Column:
    """One column of the examples of all pieces, in order."""
    first = pieces[0]
    has_leave_out = all(piece.leave_out is not None for piece in pieces)
    return replace(
        first,
        values=np.concatenate([piece.values for piece in pieces]),
        mask_variance=_together([piece.mask_variance for piece in pieces]),
        leave_out=reduce(operator.add, [piece.leave_out for piece in pieces]) if has_leave_out else None,
        leave_out_n=reduce(operator.add, [piece.leave_out_n for piece in pieces]) if has_leave_out else 0,
        weights=_together([piece.weights for piece in pieces]),
        infinite=_together([piece.infinite for piece in pieces]),
    )


def _together(parts: Sequence[Floats | None]) -> Floats | None:
    """The parts one after the other; None where one is missing."""
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def plain(values: Tensor, *, proportion: bool = False, weights: Tensor | None = None, floor: float = -np.inf) -> Column:
    """Column of values [N] without dropout in them."""
    by_row = None if weights is None else as_floats(weights)
    return Column(as_floats(values), proportion=proportion, weights=by_row, floor=floor)


def as_floats(values: Tensor) -> Floats:
    """The values as a NumPy array."""
    array: Floats = values.detach().double().cpu().numpy()
    return array
