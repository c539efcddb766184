"""EPKL as second-order theory predicts it from gradients, site by site: which site causes it, and the check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from rdrop_probes.columns import Column, ColumnSet, State, plain
from rdrop_probes.gradients import GradientPass, Row, squares
from rdrop_probes.probe import GradientFold, Outcome, Probe
from rdrop_probes.records import SitePrediction
from rdrop_probes.sampling import RunningMean, Sampled, sampling_findings, standard_error
from rdrop_probes.sites import SiteKey, SitePlan, label
from rdrop_probes.statistics import metric, ratio_column

NAMED = 3  # sites for each reason why they are not predicted


class Prediction(Probe):
    """Predicted EPKL = 2 sum over sites of R_site.

    R_site = q / (2 (1 - q)) E_{y~p} sum_i (d log p(y) / d m_i)^2, m the site's mask at its neutral value, q
    its rate; for a mask on h this is h_i d log p / d h_i (after Wei et al. 2020, eq. 5, with the Fisher
    matrix of the output). To second order KL(p_xi || p_0) = sum R_site and EPKL is twice that. Feature
    dropout, attention dropout and stochastic depth come out with the mask as the unit. In nats.
    `epkl_over_predicted` = mean EPKL / mean prediction; it is left out if a site is not predicted.
    """

    name = "prediction"
    units: ClassVar = {"predicted_epkl": "nats", "epkl_over_predicted": ""}
    needs_site_gradients = True
    families = ("categorical", "gaussian")

    def __init__(self) -> None:
        super().__init__()
        self.sampling = ColumnSet()
        self.by_site = ColumnSet()
        self._site_sampling = ColumnSet()
        self._sampled = ""
        self.unpredictable: dict[SiteKey, str] = {}
        self._plan: SitePlan | None = None

    def start(self, plan: SitePlan, *, shared_masks: bool) -> None:
        """Remember the sites: every one of them gets a line."""
        super().start(plan, shared_masks=shared_masks)
        self._plan = plan

    def fold(self, gradients: GradientPass) -> GradientFold:
        """Take the rows with respect to masks."""
        self.unpredictable |= gradients.unpredictable
        self._sampled = self._sampled or gradients.sampled
        return _Fold(self, gradients)

    def keep(self, by_site: Mapping[SiteKey, Sampled], total: Sampled, weights: Tensor | None) -> None:
        """Keep 2 R_site [N] of one batch by site, and their sum: means over `weights` rows."""
        for key, found in by_site.items():
            self.by_site.add(label(key), plain(found.values, weights=weights, floor=0.0))
            if self._sampled:
                self._site_sampling.add(label(key), plain(found.variance, weights=weights))
        if by_site or not (self._plan and self._plan.stochastic):  # where nothing is predicted, 0 would be a lie
            self.kept.add("predicted_epkl", plain(total.values, weights=weights, floor=0.0))
            if self._sampled:
                self.sampling.add("predicted_epkl", plain(total.variance, weights=weights))

    def rate(self, key: SiteKey) -> float:
        """The drop probability of a predicted site."""
        rate = self._plan.sites[key].rate if self._plan else None
        if rate is None:
            raise RuntimeError(f"site {label(key)} has no rate")
        return rate

    def merge(self, other: Prediction) -> None:
        """Append another worker's examples."""
        super().merge(other)
        self.sampling.merge(other.sampling)
        self.by_site.merge(other.by_site)
        self._site_sampling.merge(other._site_sampling)
        self.unpredictable |= other.unpredictable
        self._sampled = self._sampled or other._sampled

    def state(self) -> State:
        """What is kept, as plain data."""
        sets = {"sampling": self.sampling, "by_site": self.by_site, "site_sampling": self._site_sampling}
        own = {name: columns.state() for name, columns in sets.items()} | {"sampled": self._sampled}
        reasons = [[*key, reason] for key, reason in self.unpredictable.items()]
        return super().state() | own | {"unpredictable": reasons}

    def restore(self, state: State) -> None:
        """Take back what :meth:`state` gave."""
        super().restore(state)
        self.sampling, self.by_site, self._site_sampling = (
            ColumnSet.restored(state[name]) for name in ("sampling", "by_site", "site_sampling")
        )
        self._sampled = state["sampled"]
        self.unpredictable = {(path, ordinal): reason for path, ordinal, reason in state["unpredictable"]}

    def derive(self, columns: Mapping[str, Column]) -> dict[str, Column]:
        """Measured over predicted, where every site is predicted."""
        hidden = self._plan is not None and (self._plan.erratic or self._plan.uncontrolled)
        if self.unpredictable or hidden or "epkl" not in columns or "predicted_epkl" not in columns:
            return {}
        ratio = ratio_column(columns["epkl"], columns["predicted_epkl"])
        return {} if ratio is None else {"epkl_over_predicted": ratio}

    def outcome(self) -> Outcome:
        """Columns, a line a site, and which sites are not predicted."""
        kept = self.kept.columns.get("predicted_epkl")
        predicted = None if kept is None else kept.linearised()
        total = 0.0 if predicted is None or not predicted.finite.any() else float(np.nanmean(predicted.values))
        lines = [self._line(key, total) for key in (self._plan.sites if self._plan else ())]
        findings = {}
        if self.unpredictable:
            findings["not_predicted"] = f"predicted EPKL leaves out {left_out(self.unpredictable)}"
        findings |= sampling_findings(self._sampled, "sampled_predictions", self.sampling, self.kept)
        return Outcome(self.kept, {"site_predictions": lines}, findings)

    def _line(self, key: SiteKey, total: float) -> SitePrediction:
        name = label(key)
        if name not in self.by_site.columns:
            return SitePrediction(site=name, predicted=None, reason=self.unpredictable.get(key, "not measured"))
        found = metric(self.by_site.columns[name], unit="nats", shared_masks=False)
        share = found.estimate / total if found.estimate is not None and total > 0 else None
        error = standard_error(self._site_sampling.columns[name]) if name in self._site_sampling.columns else None
        return SitePrediction(
            site=name, predicted=found.estimate, low=found.low, high=found.high, share=share, sampling_error=error
        )


class _Fold(GradientFold):
    """2 R_site: E_{y~p} of squared mask derivatives, times q / (1 - q)."""

    def __init__(self, probe: Prediction, gradients: GradientPass) -> None:
        self._probe = probe
        self._gradients = gradients
        self._factors = {key: rate / (1 - rate) for key in gradients.sites for rate in (probe.rate(key),)}
        self._sums = {key: RunningMean() for key in gradients.sites}
        self._total = RunningMean()

    def add(self, row: Row) -> None:
        """Add the weighted squares."""
        total = torch.zeros_like(row.weight, dtype=torch.float64)
        for key, factor in self._factors.items():
            found = row.weight * factor * squares(row.sites[key]) if key in row.sites else torch.zeros_like(total)
            self._sums[key].add(found)
            total += found
        self._total.add(total)

    def close(self) -> None:
        """Hand the sums to the probe."""
        weights = self._gradients.weights
        by_site = {key: sums.total().over(weights) for key, sums in self._sums.items()}
        self._probe.keep(by_site, self._total.total().over(weights), weights)


def left_out(reasons: Mapping[SiteKey, str]) -> str:
    """How many sites, with the reasons and the first sites of each."""
    by_reason: dict[str, list[str]] = {}
    for key, why in reasons.items():
        by_reason.setdefault(why, []).append(label(key))
    parts = (f"{', '.join(sites[:NAMED])}{', ...' * (len(sites) > NAMED)}: {why}" for why, sites in by_reason.items())
    return f"{len(reasons)} site{'s' * (len(reasons) > 1)}: {'; '.join(parts)}"
