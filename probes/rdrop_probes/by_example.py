"""From rows (tokens, labels) to examples: means over the rows of each example, also where they come in groups."""

from __future__ import annotations

import torch
from torch import Tensor

from rdrop_probes.terms import EvalBatch


class ByExample:
    """Sums over the rows of each example, until the last group of a batch's rows is in."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Tensor | None = None
        self._counted: EvalBatch | None = None

    def mean(self, batch: EvalBatch, name: str, values: Tensor) -> Tensor | None:
        """Mean [..., N] over the rows of each example of values [..., P]; NaN for an example without rows.

        None while groups of the batch's rows are still to come.
        """
        total, weights = self.total(batch, name, values), self.weights(batch)
        return total if total is None or weights is None else total / weights

    def total(self, batch: EvalBatch, name: str, values: Tensor) -> Tensor | None:
        """Sum [..., N] over the rows of each example of values [..., P]; None while groups are still to come."""
        if batch.owners is None or batch.n is None:
            return values
        self._count(batch, batch.owners, batch.n)
        if name not in self._sums:
            self._sums[name] = values.new_zeros((*values.shape[:-1], batch.n))
        self._sums[name].index_add_(-1, batch.owners, values)
        return self._sums.pop(name) if batch.last else None

    def weights(self, batch: EvalBatch) -> Tensor | None:
        """How many rows each example has [N], once the last group is in; None where each example is one row."""
        return None if batch.owners is None else self._counts

    def _count(self, batch: EvalBatch, owners: Tensor, n: int) -> None:
        """Count the rows of a group once, and begin anew with the first group of a batch."""
        if self._counted is batch:
            return
        counts = torch.bincount(owners, minlength=n).double()
        begins = self._counted is None or self._counted.last
        self._counts = counts if begins or self._counts is None else self._counts + counts
        self._counted = batch
