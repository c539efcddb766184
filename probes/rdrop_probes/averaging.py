"""Whether averaging sub-models helps, how many of them it takes, and whether the eval model does as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from typing import ClassVar, Self

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from rdrop_probes.block_sums import BlockSums
from rdrop_probes.by_example import ByExample, Means
from rdrop_probes.calibration import Gaps, bin_statistics, ece_column
from rdrop_probes.columns import Column, ColumnSet, Floats, State, as_floats, plain
from rdrop_probes.distributions import EvalBatch
from rdrop_probes.jackknife import Jackknife
from rdrop_probes.mean_models import SCORES, TERMS, MeanModel, mean_models
from rdrop_probes.probe import Outcome, Probe
from rdrop_probes.records import Averaging, AveragingPoint
from rdrop_probes.sites import SitePlan
from rdrop_probes.statistics import metric, sample_spread

MARGIN = 0.05  # of what all passes gain over one: a difference that does not matter
UNITS = {"nll": "nats"}
EVAL = 0  # passes of the eval model
MOST_GROUPS = 8  # whose bins are kept, which takes 9 bytes a group for each example

Curve = Mapping[int, Column]
"""Evidence of one score by number of passes."""


class Averages(Probe):
    """NLL, accuracy, Brier score and ECE of the MC mean of m = 1, 2, 4, ... K sub-models, and less the eval model's.

    Each is the mean over disjoint groups of m of the K sub-models (Gal and Ghahramani 2016 average all of them). The
    difference is paired by example, with a t interval. `enough` is the smallest m from which on a score is not
    significantly worse than that of K passes by more than 5% of what K passes gain over one. NLL of a mean falls as
    1 / m, so that infinitely many passes lie beyond K by about what lies between K / 2 and K.
    With masks shared by all examples the ECE has no interval. A row whose NLL is infinite under the eval model or any
    sub-model is left out of the whole curve of the NLL, so that all points are of the same rows.

    The ECE is of the first 8 groups, each with bins of its own: the points of its curve compare with each other and
    with the eval model. Binned ECE is biased upwards on few examples, alike for all m as far as confidences are spread
    alike over the bins; pooled over groups it would be less so for few passes, of which there are many groups. Its
    interval is the delta method's: an example's value is the mean over groups of its gap under the signs of the group.
    """

    name = "averaging"
    units: ClassVar = {}
    terms = TERMS
    needs_labels = True

    def __init__(self) -> None:
        super().__init__()
        self.examples = ByExample()
        self._gaps: dict[int, list[Gaps]] = {}
        self._counts: list[Floats] = []
        self._by_row = True
        self._stochastic = True

    def start(self, plan: SitePlan, *, shared_masks: bool) -> None:
        """Without dropout there is nothing to average."""
        super().start(plan, shared_masks=shared_masks)
        self._stochastic = plan.stochastic

    def update(self, batch: EvalBatch, sums: BlockSums) -> None:
        """Keep scores by example, and what each adds to the gaps of the confidence bins, for every number of passes."""
        if not self._stochastic:
            return
        for model in mean_models(batch, sums, leave_out=self.shared_masks):
            self._keep_scores(batch, model)
            self._keep_bins(batch, model)

    def _keep_scores(self, batch: EvalBatch, model: MeanModel) -> None:
        for i, name in enumerate(SCORES):
            values = model.scores[i][None]
            if model.without is not None:
                values = torch.cat([values, model.without[:, i]])
            means = self.examples.means(batch, f"{name}/{model.passes}", values)
            if means is not None:
                self.kept.add(f"{name}/{model.passes}", _column(means, proportion=name == "accuracy"))

    def _keep_bins(self, batch: EvalBatch, model: MeanModel) -> None:
        gaps = self.examples.total(batch, f"gaps/{model.passes}", _gaps_by_group(batch, model).T)
        if gaps is not None:
            self._gaps.setdefault(model.passes, []).append(Gaps.of(as_floats(gaps.T)))
        if model.passes == EVAL:  # all count the same rows
            self._count(batch)

    def _count(self, batch: EvalBatch) -> None:
        """Keep how many rows of each example have a label."""
        if batch.labels is None:
            raise ValueError("averaging needs labels")
        counts = self.examples.total(batch, "counts", (batch.labels >= 0).double())
        if counts is not None:
            self._counts.append(as_floats(counts))
        self._by_row = self._by_row and batch.owners is None

    def merge(self, other: Self) -> None:
        """Append another worker's examples."""
        super().merge(other)
        for passes, pieces in other._gaps.items():
            self._gaps.setdefault(passes, []).extend(pieces)
        self._counts += other._counts
        self._by_row = self._by_row and other._by_row

    def state(self) -> State:
        """With what the examples add to the bins."""
        gaps = [[passes, [piece.state() for piece in pieces]] for passes, pieces in self._gaps.items()]
        return super().state() | {"gaps": gaps, "counts": self._counts, "by_row": self._by_row}

    def restore(self, state: State) -> None:
        """Take back what :meth:`state` gave."""
        super().restore(state)
        self._gaps = {passes: [Gaps(*piece) for piece in pieces] for passes, pieces in state["gaps"]}
        self._counts, self._by_row = state["counts"], state["by_row"]

    def outcome(self) -> Outcome:
        """The curves, and how many passes are enough; no columns, for the metrics of K passes are other probes'."""
        if not self._counts:
            return Outcome(ColumnSet())
        curves = {name: self._curve(name) for name in SCORES} | {"ece": self._ece_curve()}
        points = [point for name, curve in curves.items() for point in self._points(name, curve)]
        enough = {name: self._enough(name, curve) for name, curve in curves.items()}
        known = {name: passes for name, passes in enough.items() if passes is not None}
        return Outcome(ColumnSet(), {"averaging": Averaging(points=points, enough=known)}, self._left_out())

    def _left_out(self) -> dict[str, str]:
        """How many rows are on no point of a curve, as a finding."""
        infinite = self.kept.columns[f"nll/{EVAL}"].infinite
        count = 0 if infinite is None else int(infinite.sum())
        text = (
            f"NLL is infinite for {count} row(s) under the eval model or a sub-model, left out of all means of passes"
        )
        return {"averaging_infinite": text} if count else {}

    def _curve(self, name: str) -> Curve:
        return {passes: self.kept.columns[f"{name}/{passes}"] for passes in self._gaps}

    def _ece_curve(self) -> Curve:
        counts = np.concatenate(self._counts)
        joined = {passes: Gaps.joined(pieces) for passes, pieces in self._gaps.items()}
        return {passes: ece_column(gaps, counts, by_row=self._by_row) for passes, gaps in joined.items()}

    def _sure(self, name: str) -> bool:
        """Whether it is known how a score varies: over sub-models, of the ECE, it is not."""
        return not (name == "ece" and self.shared_masks)

    def _points(self, name: str, curve: Curve) -> list[AveragingPoint]:
        found = [_point(name, passes, curve, shared_masks=self.shared_masks) for passes in curve if passes != EVAL]
        return found if self._sure(name) else [_without_interval(point) for point in found]

    def _enough(self, name: str, curve: Curve) -> int | None:
        return enough_passes(name, curve, shared_masks=self.shared_masks) if self._sure(name) else None


def enough_passes(name: str, curve: Curve, *, shared_masks: bool) -> int | None:
    """The smallest number of passes from which on more of them do not matter; None if nothing is known of it.

    They matter where the score is worse than that of all passes by more than `MARGIN` of what all of these gain over
    one (by more than 0 if they gain nothing), significantly: the whole 95% interval of the excess is above 0.
    """
    worse = -1.0 if name == "accuracy" else 1.0
    last = max(curve)
    gain = metric(_combined([(1, worse), (last, -worse)], curve), unit="", shared_masks=shared_masks).estimate
    share = MARGIN if gain is not None and gain > 0 else 0.0
    enough = None
    for passes in sorted(set(curve) - {EVAL}, reverse=True):
        parts = [(passes, worse), (1, -share * worse), (last, (share - 1) * worse)]
        excess = metric(_combined(parts, curve), unit="", shared_masks=shared_masks)
        if excess.low is None:
            return None
        if excess.low > 0:
            break
        enough = passes
    return enough


def _combined(parts: Sequence[tuple[int, float]], curve: Curve) -> Column:
    """Weighted sum of columns of a curve, with the spread that it has over examples and masks."""
    columns = [(curve[passes], weight) for passes, weight in parts]
    blocks = [
        weight * column.leave_out / max(column.leave_out_n, 1.0)
        for column, weight in columns
        if column.leave_out is not None
    ]
    return Column(
        np.sum([weight * column.values for column, weight in columns], axis=0),
        np.zeros(len(columns[0][0].values)) if blocks else None,
        np.sum(blocks, axis=0) if blocks else None,
        1.0,
        weights=columns[0][0].weights,
    )


def _gaps_by_group(batch: EvalBatch, model: MeanModel) -> Tensor:
    """What each row adds to the gap of each bin of the first groups, over their number [P, groups BINS]."""
    pairs = list(zip(model.confidence, model.prediction, strict=True))[:MOST_GROUPS]
    bins = [bin_statistics(confidence[None], prediction[None], batch.labels) for confidence, prediction in pairs]
    return torch.cat([part[..., 1] - part[..., 2] for part in bins], 1) / len(pairs)


def _point(name: str, passes: int, curve: Curve, *, shared_masks: bool) -> AveragingPoint:
    unit, column = UNITS.get(name, ""), curve[passes]
    change = replace(column, values=column.values - curve[EVAL].values, proportion=False, floor=-np.inf)
    difference = metric(change, unit=unit, shared_masks=shared_masks)
    return AveragingPoint(
        metric=name,
        passes=passes,
        value=metric(column, unit=unit, shared_masks=shared_masks),
        difference=difference,
        p_value=_p_value(change, difference.estimate, shared_masks=shared_masks),
    )


def _p_value(change: Column, estimate: float | None, *, shared_masks: bool) -> float | None:
    """Of the t test of mean 0 that goes with the interval of a metric."""
    column = change.linearised()
    values = column.values[column.finite]
    left = column.leave_out if shared_masks and column.leave_out_n else None
    examples = sample_spread(values, df=column.df)
    both = examples if left is None else sample_spread(values, left / column.leave_out_n, column.df)
    twice = 0.0 if left is None or column.mask_variance is None else np.nansum(column.mask_variance) / len(values) ** 2
    variance = max(both.variance - float(twice), examples.variance)
    if estimate is None or both.df <= 0:
        return None
    if variance == 0:
        return 1.0 if estimate == 0 else 2.0 ** (1 - len(values))  # all alike: the sign test
    return float(2 * stats.t.sf(abs(estimate) / sqrt(variance), both.df))


def _without_interval(point: AveragingPoint) -> AveragingPoint:
    difference = None if point.difference is None else replace(point.difference, low=None, high=None)
    return replace(point, value=replace(point.value, low=None, high=None), difference=difference, p_value=None)


def _column(means: Means, *, proportion: bool) -> Column:
    """Column of [1 + G, N]: scores by example, and those with each block left out if there are any.

    What is infinite is counted, and no value: differences of it would be neither.
    """
    infinite = torch.isinf(means.values)
    values = torch.where(infinite, torch.nan, means.values)
    if len(values) == 1:
        column = plain(values[0], proportion=proportion, weights=means.weights)
    else:
        jackknife = Jackknife(values[0], values[1:], torch.ones(len(values) - 1), means.weights)
        column = jackknife.column(corrected=False, proportion=proportion)
    column.infinite = as_floats(infinite[0] if means.infinite is None else means.infinite)
    column.floor = 0.0
    return column
