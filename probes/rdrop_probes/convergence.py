"""How the EPKL estimate settles as sub-models are added: whether enough of them were sampled."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Self

import numpy as np
from torch import Tensor

from rdrop_probes.block_sums import BlockSums, Totals
from rdrop_probes.columns import Column, ColumnSet, Floats, State
from rdrop_probes.distributions import EvalBatch
from rdrop_probes.jackknife import Jackknife, jackknives
from rdrop_probes.probe import Outcome, Probe, SubModelProbe
from rdrop_probes.records import ConvergencePoint
from rdrop_probes.sites import SitePlan
from rdrop_probes.statistics import LEVEL, Spread, block_spread, upper_bound


class ConvergingProbe(SubModelProbe):
    """A probe that estimates EPKL and keeps how it converges in the number of sub-models."""

    def __init__(self) -> None:
        super().__init__()
        self._convergence: dict[int, _PrefixSums] = {}
        self._alike = False

    def start(self, plan: SitePlan, *, shared_masks: bool) -> None:
        """Learn whether there is anything to converge."""
        super().start(plan, shared_masks=shared_masks)
        self._alike = plan.alike

    def update(self, batch: EvalBatch, sums: BlockSums) -> None:
        """Keep the columns, and the mean EPKL of the first 4, 8, 16, ... blocks for the convergence in K."""
        super().update(batch, sums)
        for blocks in _prefixes(sums.blocks):
            prefix = self._convergence.setdefault(blocks, _PrefixSums(int(sums.sizes[:blocks].sum()), blocks))
            if found := jackknives(self.epkl, batch, sums, self.examples, blocks):
                prefix.add(found["epkl"])

    @abstractmethod
    def epkl(self, batch: EvalBatch, totals: Totals) -> dict[str, Tensor]:
        """The part of :meth:`estimate` called "epkl", [P] or [G, P]."""

    def merge(self, other: Self) -> None:
        """Add another worker's sums."""
        super().merge(other)
        for blocks, prefix in other._convergence.items():
            self._convergence.setdefault(blocks, _PrefixSums(prefix.sub_models, blocks)).merge(prefix)

    def state(self) -> State:
        """With the sums over prefixes."""
        return super().state() | {"convergence": [prefix.state() for prefix in self._convergence.values()]}

    def restore(self, state: State) -> None:
        """With the sums over prefixes."""
        super().restore(state)
        self._convergence = {prefix["blocks"]: _PrefixSums.restored(prefix) for prefix in state["convergence"]}

    def conclude(self, columns: Mapping[str, Column], probes: Mapping[str, Probe]) -> Outcome:
        """R-Drop's constraint: the smallest eps for which mean EPKL <= eps holds with 95% confidence."""
        bound = upper_bound(columns["epkl"], unit="nats", shared_masks=self.shared_masks)
        return Outcome(ColumnSet(), metrics={"constraint_epsilon": bound})

    def outcome(self) -> Outcome:
        """Columns, and the convergence of EPKL in K; of sub-models that are all alike there is none."""
        prefixes = [] if self._alike else [prefix for _, prefix in sorted(self._convergence.items()) if prefix.n]
        points = [prefix.point(shared_masks=self.shared_masks) for prefix in prefixes]
        return Outcome(self.kept, {"convergence": points})


class _PrefixSums:
    """EPKL from the first few sub-models, summed over rows."""

    def __init__(self, sub_models: int, blocks: int) -> None:
        self.sub_models = sub_models
        self._blocks = blocks
        self.n = 0.0
        self._usable = 0.0
        self._examples = 0
        self._total = 0.0
        self._variance = 0.0
        self._leave_out: Floats = np.zeros(blocks)

    def add(self, jackknife: Jackknife) -> None:
        column = jackknife.column(corrected=False)
        if column.mask_variance is None or column.leave_out is None:
            return
        usable = np.isfinite(column.mask_variance)
        weights = np.ones_like(column.values) if column.weights is None else column.weights
        self.n += float(weights[column.finite].sum())
        self._usable += float(weights[usable].sum())
        self._examples += int(usable.sum())
        self._total += float((weights * column.values)[column.finite].sum())
        self._variance += float((weights**2 * column.mask_variance)[usable].sum())
        self._leave_out = self._leave_out + column.leave_out

    def merge(self, other: _PrefixSums) -> None:
        self.n += other.n
        self._usable += other._usable
        self._examples += other._examples
        self._total += other._total
        self._variance += other._variance
        self._leave_out = self._leave_out + other._leave_out

    def state(self) -> State:
        return {name.lstrip("_"): value for name, value in vars(self).items()}

    @classmethod
    def restored(cls, state: State) -> Self:
        found = cls(state["sub_models"], state["blocks"])
        for name in vars(found):
            setattr(found, name, state[name.lstrip("_")])
        return found

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
            block_spread(self._leave_out / n)
            if shared_masks
            else Spread(self._variance / n**2, self._examples * (self._blocks - 1))
        )


def _prefixes(blocks: int) -> list[int]:
    """4, 8, 16, ... and the whole."""
    doubling = []
    size = 4
    while size < blocks:
        doubling.append(size)
        size *= 2
    return [*doubling, blocks]
