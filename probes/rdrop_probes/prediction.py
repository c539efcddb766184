"""EPKL as second-order theory predicts it from gradients, site by site: which site causes it, and the check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from rdrop_probes.columns import Column, ColumnSet, plain
from rdrop_probes.gradients import GradientPass, Row
from rdrop_probes.probe import GradientFold, Outcome, Probe
from rdrop_probes.records import SitePrediction
from rdrop_probes.sites import SiteKey, SitePlan
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
        self._by_site = ColumnSet()
        self._unpredictable: dict[SiteKey, str] = {}
        self._plan: SitePlan | None = None

    def start(self, plan: SitePlan, *, shared_masks: bool) -> None:
        """Remember the sites: every one of them gets a line."""
        super().start(plan, shared_masks=shared_masks)
        self._plan = plan

    def fold(self, gradients: GradientPass) -> GradientFold:
        """Take the rows with respect to masks."""
        self._unpredictable |= gradients.unpredictable
        return _Fold(self, gradients)

    def keep(self, by_site: Mapping[SiteKey, Tensor], n: int, weights: Tensor | None) -> None:
        """Keep E_{y~p} sum_i (d log p(y) / d m_i)^2 of one batch, [N] by site, means over `weights` rows."""
        total = torch.zeros(n, dtype=torch.float64)
        for key, squares in by_site.items():
            rate = self._rate(key)
            predicted = (rate / (1 - rate) * squares).cpu()  # 2 R_site
            self._by_site.add(_label(key), plain(predicted, weights=weights, floor=0.0))
            total += predicted
        if by_site or not (self._plan and self._plan.stochastic):  # where nothing is predicted, 0 would be a lie
            self.kept.add("predicted_epkl", plain(total, weights=weights, floor=0.0))

    def merge(self, other: Prediction) -> None:
        """Append another worker's examples."""
        super().merge(other)
        self._by_site.merge(other._by_site)
        self._unpredictable |= other._unpredictable

    def derive(self, columns: Mapping[str, Column]) -> dict[str, Column]:
        """Measured over predicted, where every site is predicted."""
        hidden = self._plan is not None and (self._plan.erratic or self._plan.uncontrolled)
        if self._unpredictable or hidden or "epkl" not in columns or "predicted_epkl" not in columns:
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
        if self._unpredictable:
            findings["not_predicted"] = f"predicted EPKL leaves out {_left_out(self._unpredictable)}"
        return Outcome(self.kept, {"site_predictions": lines}, findings)

    def _line(self, key: SiteKey, total: float) -> SitePrediction:
        label = _label(key)
        if label not in self._by_site.columns:
            return SitePrediction(site=label, predicted=None, reason=self._unpredictable.get(key, "not measured"))
        found = metric(self._by_site.columns[label], unit="nats", shared_masks=False)
        share = found.estimate / total if found.estimate is not None and total > 0 else None
        return SitePrediction(site=label, predicted=found.estimate, low=found.low, high=found.high, share=share)

    def _rate(self, key: SiteKey) -> float:
        rate = self._plan.sites[key].rate if self._plan else None
        if rate is None:
            raise RuntimeError(f"site {_label(key)} has no rate")
        return rate


class _Fold(GradientFold):
    """E_{y~p} of squared mask derivatives, one sum a site."""

    def __init__(self, probe: Prediction, gradients: GradientPass) -> None:
        self._probe = probe
        self._gradients = gradients
        zero = torch.zeros(gradients.n, dtype=torch.float64, device=gradients.logits.device)
        self._sums = {key: zero.clone() for key in gradients.sites}

    def add(self, row: Row) -> None:
        """Add the weighted squares."""
        for key, derivative in row.sites.items():
            self._sums[key] += row.weight.double() * derivative.double().square().sum(1)

    def close(self) -> None:
        """Hand the sums to the probe."""
        by_row = {key: self._gradients.by_row(total) for key, total in self._sums.items()}
        self._probe.keep(by_row, self._gradients.n, self._gradients.weights)


def _label(key: SiteKey) -> str:
    path, ordinal = key
    return (path or "(root)") + (f"#{ordinal}" if ordinal else "")


def _left_out(reasons: Mapping[SiteKey, str]) -> str:
    """How many sites, with the reasons and the first sites of each."""
    by_reason: dict[str, list[str]] = {}
    for key, why in reasons.items():
        by_reason.setdefault(why, []).append(_label(key))
    parts = (f"{', '.join(sites[:NAMED])}{', ...' * (len(sites) > NAMED)}: {why}" for why, sites in by_reason.items())
    return f"{len(reasons)} site(s): {'; '.join(parts)}"
