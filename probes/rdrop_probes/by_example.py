"""From rows (tokens, labels) to examples: means over the rows of each example, also where they come in groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rdrop_probes.distributions import EvalBatch


@dataclass(frozen=True)
class Means:
    """Means over the rows of each example.

    Attributes:
        values: [..., N]; NaN for an example without rows.
        weights: [N], over how many rows they are; None where each example is one row.
        infinite: [N], how many rows were left out because their first value is infinite; None likewise.
    """

    values: Tensor
    weights: Tensor | None = None
    infinite: Tensor | None = None


class ByExample:
    """Sums over the rows of each example, until the last group of a batch's rows is in."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def means(self, batch: EvalBatch, name: str, values: Tensor) -> Means | None:
        """Means of values [P] or [G, P] over rows; None while groups of the batch's rows are still to come.

        A row whose first value is infinite is left out: one impossible token says nothing of the others. So is, without
        being counted, one whose first is NaN: a token without a label.
        """
        if batch.owners is None:
            return Means(values)
        first = values if values.dim() == 1 else values[0]
        kept = torch.isfinite(first)
        counts = self.total(batch, f"{name}/rows", torch.stack([kept, torch.isinf(first)]).to(values.dtype))
        total = self.total(batch, name, torch.where(kept, values, 0.0))
        return None if total is None or counts is None else Means(total / counts[0], counts[0], counts[1])

    def total(self, batch: EvalBatch, name: str, values: Tensor) -> Tensor | None:
        """Sum [..., N] over the rows of each example of values [..., P]; None while groups are still to come."""
        if batch.owners is None or batch.n is None:
            return values
        if name not in self._sums:
            self._sums[name] = values.new_zeros((*values.shape[:-1], batch.n))
        self._sums[name].index_add_(-1, batch.owners, values)
        return self._sums.pop(name) if batch.last else None
