"""The theory check over dropout rates: EPKL measured and predicted with every dropout at another rate at inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from rdrop_probes.block_sums import BlockSums
from rdrop_probes.columns import Column, ColumnSet
from rdrop_probes.convergence import ConvergingProbe
from rdrop_probes.distributions import EvalBatch
from rdrop_probes.jackknife import jackknives
from rdrop_probes.prediction import Prediction, left_out
from rdrop_probes.probe import Outcome, Probe
from rdrop_probes.records import Comparison, Metric, SweepPoint
from rdrop_probes.regression import GaussianPairwise
from rdrop_probes.settings import Settings
from rdrop_probes.sites import SiteKey, SitePlan, label
from rdrop_probes.statistics import compare, metric, ratio_column
from rdrop_probes.switches import Switches
from rdrop_probes.variant_probe import VariantProbe
from rdrop_probes.variants import Variant


class Sweep(VariantProbe):
    """EPKL with every dropout at each of the rates of `Settings.dropout`, on the same examples and mask seeds.

    The prediction follows from the one at the trained rates q: R_site(r) = R_site(q) [r / (1 - r)] / [q / (1 - q)].
    Noise that is no dropout stays as it is. Modules of rate 1 are swept as well, and leave no prediction, for they have
    none themselves. Any other dropout of rate 1 draws nothing, so that nothing is swept.
    """

    name = "sweep"
    units: ClassVar = {}

    def __init__(self) -> None:
        super().__init__()
        self._rates: dict[str, float] = {}
        self._plan: SitePlan | None = None
        self._reasons: dict[SiteKey, str] = {}

    def start(self, plan: SitePlan, *, shared_masks: bool) -> None:
        """Remember the rates of the sites."""
        super().start(plan, shared_masks=shared_masks)
        self._plan = plan

    def variants(self, switches: Switches, settings: Settings) -> Sequence[Variant]:
        """One a rate, if every dropout can draw at it."""
        self._rates = {f"rate {rate!r}": rate for rate in settings.dropout or ()}
        found = [Variant(name, rate=rate) for name, rate in self._rates.items()]
        self._reasons = switches.unrated if found else {}
        return [] if self._reasons else found

    def update_variant(self, variant: Variant, batch: EvalBatch, sums: BlockSums) -> None:
        """Keep the EPKL at a rate, once the last of a batch's rows are in."""
        for jackknife in jackknives(self._epkl, batch, sums, self._examples).values():
            column = jackknife.column(corrected=False)
            column.floor = 0.0
            self.by_variant.add(variant.name, column)

    def outcome(self) -> Outcome:
        """What stands in the way of it, if anything does."""
        if not self._reasons:
            return Outcome(self.kept)
        return Outcome(self.kept, findings={"not_swept": f"dropout rates are not swept, for {left_out(self._reasons)}"})

    def conclude(self, columns: Mapping[str, Column], probes: Mapping[str, Probe]) -> Outcome:
        """A point a rate, and how far measured over predicted changes from the lowest rate to the highest."""
        prediction = probes.get(Prediction.name)
        epkl = {rate: self.by_variant.columns.get(name) for name, rate in self._rates.items()}
        points, ratios = [], {}
        for rate, column in epkl.items():
            if column is None:
                continue
            predicted = self._predicted(rate, prediction)
            ratio = None if predicted is None else ratio_column(column, predicted)
            points.append(self._point(rate, column, predicted, ratio))
            if ratio is not None:
                ratios[rate] = ratio
        return Outcome(ColumnSet(), {"sweep": points, "sweep_change": self._change(ratios)})

    def _change(self, ratios: Mapping[float, Column]) -> Comparison | None:
        """The ratio at the highest rate less that at the lowest, of the same examples: their intervals may overlap."""
        if len(ratios) < 2:
            return None
        low, high = min(ratios), max(ratios)
        ends = (f"rate {low:g}", ratios[low]), (f"rate {high:g}", ratios[high])
        return compare("epkl_over_predicted", *ends, unit="", shared_masks=self.shared_masks)

    def _point(self, rate: float, epkl: Column, predicted: Column | None, ratio: Column | None) -> SweepPoint:
        return SweepPoint(
            rate=rate,
            epkl=self._metric(epkl, "nats"),
            predicted=None if predicted is None else self._metric(predicted, "nats"),
            ratio=None if ratio is None else self._metric(ratio, ""),
        )

    def _metric(self, column: Column, unit: str) -> Metric:
        return metric(column, unit=unit, shared_masks=self.shared_masks)

    def _predicted(self, rate: float, prediction: Probe | None) -> Column | None:
        """The sum of all sites' predictions at a rate; None where one of them has none."""
        if self._plan is None or not isinstance(prediction, Prediction):
            return None
        columns = prediction.by_site.columns
        sites = {label(key): site.rate for key, site in self._plan.sites.items()}
        if not sites or prediction.unpredictable or not sites.keys() <= columns.keys():
            return None
        odds = {name: own / (1 - own) for name, own in sites.items() if own is not None and 0 < own < 1}
        total = sum((rate / (1 - rate) / odds[name] * columns[name].values for name in odds), start=np.zeros(1))
        return Column(total, weights=columns[next(iter(sites))].weights, floor=0.0)


class GaussianSweep(Sweep):
    """The same for a regression model, whose EPKL is that of its Gaussian surrogate."""

    terms = GaussianPairwise.terms
    families = ("gaussian",)
    pairwise: ClassVar[type[ConvergingProbe]] = GaussianPairwise
