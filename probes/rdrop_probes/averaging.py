"""Whether averaging sub-models helps, how many of them it takes, and whether the eval model does as well."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from rdrop_probes.averaging_curves import EVAL, Curve, curve_point, enough_passes, without_interval
from rdrop_probes.block_sums import BlockSums
from rdrop_probes.by_example import ByExample, Means
from rdrop_probes.calibration import Gaps, bin_statistics, ece_column
from rdrop_probes.columns import Column, ColumnSet, Floats, State, as_floats, plain
from rdrop_probes.distributions import EvalBatch, Term
from rdrop_probes.jackknife import Jackknife
from rdrop_probes.mean_models import MeanModel, mean_models
from rdrop_probes.mean_scores import CategoricalScoring, GaussianScoring, Predicted, Scoring
from rdrop_probes.probe import Outcome, Probe
from rdrop_probes.records import Averaging, AveragingPoint
from rdrop_probes.sites import SitePlan

MOST_GROUPS = 8  # whose bins are kept, which takes 9 bytes a group for each example


class Averages(Probe):
    """NLL, accuracy, Brier score and ECE of the MC mean of m = 1, 2, 4, ... K sub-models, and less the eval model's.

    Each is the mean over disjoint groups of m of the K sub-models (Gal and Ghahramani 2016 average all of them). The
    difference is paired by example, with a t interval. `enough` is the smallest m from which on a score is shown
    to be within 5% of what K passes gain over one of the score of K: the whole interval is. NLL of a mean falls as
    1 / m, so that infinitely many passes lie beyond K by about what lies between K / 2 and K.
    With masks shared by all examples the ECE has no interval. A row whose NLL is infinite under the eval model or any
    sub-model is left out of the whole curve of the NLL, so that all points are of the same rows. Several labels of an
    example are rows of two classes each, yes and no.

    The ECE is of the first 8 groups, each with bins of its own: the points of its curve compare with each other and
    with the eval model. Binned ECE is biased upwards on few examples, alike for all m as far as confidences are spread
    alike over the bins; pooled over groups it would be less so for few passes, of which there are many groups. Its
    interval is the delta method's: an example's value is the mean over groups of its gap under the signs of the group.
    """

    name = "averaging"
    units: ClassVar = {}
    terms: ClassVar[tuple[Term, ...]] = CategoricalScoring.terms
    needs_labels = True
    scoring: ClassVar[type[Scoring]] = CategoricalScoring

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
        for model in mean_models(self.scoring(batch, sums), sums, leave_out=self.shared_masks):
            self._keep_scores(batch, model)
            if model.predicted is not None:
                self._keep_bins(batch, model.passes, model.predicted)

    def _keep_scores(self, batch: EvalBatch, model: MeanModel) -> None:
        for i, name in enumerate(self.scoring.units):
            values = model.scores[i][None]
            if model.without is not None:
                values = torch.cat([values, model.without[:, i]])
            means = self.examples.means(batch, f"{name}/{model.passes}", values)
            if means is not None:
                self.kept.add(f"{name}/{model.passes}", _column(means, proportion=name == "accuracy"))

    def _keep_bins(self, batch: EvalBatch, passes: int, predicted: Predicted) -> None:
        gaps = self.examples.total(batch, f"gaps/{passes}", _gaps_by_group(batch, predicted).T)
        if gaps is not None:
            self._gaps.setdefault(passes, []).append(Gaps.of(as_floats(gaps.T)))
        if passes == EVAL:  # all count the same rows
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
        curves = self._curves()
        points = [point for name, curve in curves.items() for point in self._points(name, curve)]
        if not points:
            return Outcome(ColumnSet())
        enough = {name: self._enough(name, curve) for name, curve in curves.items()}
        known = {name: passes for name, passes in enough.items() if passes is not None}
        return Outcome(ColumnSet(), {"averaging": Averaging(points=points, enough=known)}, self._left_out())

    def _left_out(self) -> dict[str, str]:
        """How many rows are on no point of a curve, as a finding."""
        name = next(iter(self.scoring.units))
        infinite = self.kept.columns[f"{name}/{EVAL}"].infinite
        count = 0 if infinite is None else int(infinite.sum())
        where = "under the eval model or a sub-model: on no point of averaging's curve"
        text = f"{name.upper()} is infinite for {count} row{'s' * (count > 1)} {where}"
        return {"averaging_infinite": text} if count else {}

    def _curves(self) -> dict[str, Curve]:
        curves: dict[str, dict[int, Column]] = {name: {} for name in self.scoring.units}
        for key, column in self.kept.columns.items():
            name, passes = key.split("/")
            curves[name][int(passes)] = column
        ordered: dict[str, Curve] = {name: dict(sorted(curve.items())) for name, curve in curves.items()}
        return ordered | {"ece": self._ece_curve()} if self._gaps else ordered

    def _ece_curve(self) -> Curve:
        counts = np.concatenate(self._counts)
        joined = {passes: Gaps.joined(pieces) for passes, pieces in self._gaps.items()}
        return {passes: ece_column(gaps, counts, by_row=self._by_row) for passes, gaps in joined.items()}

    def _sure(self, name: str) -> bool:
        """Whether it is known how a score varies: over sub-models, of the ECE, it is not."""
        return not (name == "ece" and self.shared_masks)

    def _points(self, name: str, curve: Curve) -> list[AveragingPoint]:
        unit, shared = self.scoring.units.get(name, ""), self.shared_masks
        found = [curve_point(name, passes, curve, unit=unit, shared_masks=shared) for passes in curve if passes != EVAL]
        return found if self._sure(name) else [without_interval(point) for point in found]

    def _enough(self, name: str, curve: Curve) -> int | None:
        return enough_passes(name, curve, shared_masks=self.shared_masks) if self._sure(name) else None


class GaussianAverages(Averages):
    """Mean squared error of the mean of m = 1, 2, 4, ... K sub-models' outputs, and less the eval model's.

    In the squared unit of the targets, averaged over outputs, exact from sums of f_k - f_0. The curve, its differences
    and `enough` are those of :class:`Averages`. E (mean f - y)^2 = (E f - y)^2 + Var f / m: it falls as 1 / m, so that
    infinitely many passes lie beyond K by as much as lies between K / 2 and K. There is no ECE.
    """

    terms = GaussianScoring.terms
    families = ("gaussian",)
    scoring = GaussianScoring


def _gaps_by_group(batch: EvalBatch, predicted: Predicted) -> Tensor:
    """What each row adds to the gap of each bin of the first groups, over their number [P, groups BINS]."""
    pairs = list(zip(predicted.confidence, predicted.prediction, strict=True))[:MOST_GROUPS]
    bins = [bin_statistics(confidence[None], prediction[None], batch.labels) for confidence, prediction in pairs]
    return torch.cat([part[..., 1] - part[..., 2] for part in bins], 1) / len(pairs)


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
