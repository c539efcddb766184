"""Where the EPKL arises, measured: with only one site active, with all but it, and the same for groups of sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from rdrop_probes.block_sums import BlockSums
from rdrop_probes.columns import Column, ColumnSet, without_rounding
from rdrop_probes.convergence import ConvergingProbe
from rdrop_probes.distributions import EvalBatch
from rdrop_probes.jackknife import Jackknife, jackknives
from rdrop_probes.prediction import Prediction, left_out
from rdrop_probes.probe import Outcome, Probe
from rdrop_probes.rank_agreement import rank_agreement
from rdrop_probes.records import GroupAttribution, Metric, SiteAttribution
from rdrop_probes.regression import GaussianPairwise
from rdrop_probes.settings import Settings
from rdrop_probes.site_groups import KINDS, kinds_of, layer_of
from rdrop_probes.sites import SiteKey, SitePlan, label
from rdrop_probes.statistics import metric
from rdrop_probes.switches import Switches
from rdrop_probes.variant_probe import VariantProbe
from rdrop_probes.variants import Variant

WHOLE = "whole"


@dataclass(frozen=True)
class _Part:
    """Sites that are switched together: one of them, those in modules of a kind, or those of a layer."""

    by: Literal["site", "module", "layer"]
    name: str
    sites: frozenset[SiteKey]


class Attribution(VariantProbe):
    """EPKL of every site alone and of all but it, under the masks of the whole, so that differences are paired by mask.

    `epkl_sum_of_parts` = sum over sites of the EPKL with only that site active; `epkl_interaction` = whole EPKL less
    that sum (0 were the sites' effects to add up, as second-order theory has it). Both in nats, and left out where a
    site cannot be switched off. `attribution_rank_correlation` is Spearman's, over sites, between that EPKL and the
    predicted one, a description without an interval. Of S sites and some groups this takes twice as many runs of all
    K sub-models.
    """

    name = "attribution"
    units: ClassVar = {"epkl_sum_of_parts": "nats", "epkl_interaction": "nats", "attribution_rank_correlation": ""}

    between = frozenset({"epkl_sum_of_parts", "epkl_interaction"})

    def __init__(self) -> None:
        super().__init__()
        self._sites: tuple[SiteKey, ...] = ()
        self._certain: frozenset[SiteKey] = frozenset()
        self._parts: list[_Part] = []
        self._kinds: dict[SiteKey, str] = {}
        self._names: dict[frozenset[SiteKey], str] = {}
        self._reasons: dict[str, str] = {}
        self._pending: dict[str, Jackknife] = {}

    def start(self, plan: SitePlan, *, shared_masks: bool) -> None:
        """Learn the sites, and what groups they make."""
        super().start(plan, shared_masks=shared_masks)
        self._sites = tuple(plan.sites)
        self._certain = frozenset(key for key, site in plan.sites.items() if site.rate in (0, 1))
        self._kinds = kinds_of(plan.sites)
        self._parts = list(_parts(self._sites, self._kinds))

    def variants(self, switches: Switches, settings: Settings) -> Sequence[Variant]:
        """Every part alone, and all but it, as far as that can be had."""
        self._names = {frozenset(self._sites): WHOLE}
        for part in self._parts:
            self._names.setdefault(part.sites, f"only {part.by} {part.name}")
            self._names.setdefault(frozenset(self._sites) - part.sites, f"without {part.by} {part.name}")
        found = [Variant(name, active) for active, name in self._names.items() if active and name != WHOLE]
        self._reasons = {variant.name: why for variant in found if (why := switches.reason(variant))}
        return [variant for variant in found if variant.name not in self._reasons]

    def update(self, batch: EvalBatch, sums: BlockSums) -> None:
        """Take the whole."""
        self._take(WHOLE, batch, sums)

    def update_variant(self, variant: Variant, batch: EvalBatch, sums: BlockSums) -> None:
        """Take what is left of it."""
        self._take(variant.name, batch, sums)

    def outcome(self) -> Outcome:
        """The sum of parts against the whole, and which sites are left out."""
        reasons = {key: why for key in self._sites if (why := self._reason(frozenset([key])))}
        text = f"the exact attribution leaves out {left_out(reasons)}"
        return Outcome(self.kept, findings={"not_attributed": text} if reasons else {})

    def conclude(self, columns: Mapping[str, Column], probes: Mapping[str, Probe]) -> Outcome:
        """A line a site and a line a group, with what was predicted of them."""
        found = probes.get(Prediction.name)
        predicted = found.by_site.columns if isinstance(found, Prediction) else {}
        lines = [self._line(key) for key in self._sites]
        groups = [self._group(part, predicted) for part in self._parts if part.by != "site"]
        agreement = self._rank_agreement(predicted)
        return Outcome(
            ColumnSet(),
            {"attribution": lines, "attribution_groups": groups},
            metrics={} if agreement is None else {"attribution_rank_correlation": agreement},
        )

    def _take(self, name: str, batch: EvalBatch, sums: BlockSums) -> None:
        """Keep the EPKL of a variant, once the last of a batch's rows are in."""
        for jackknife in jackknives(self._epkl, batch, sums, self._examples).values():
            column = jackknife.column(corrected=False)
            column.floor = 0.0
            self.by_variant.add(name, column)
            self._pending[name] = jackknife
        self._add_up()

    def _add_up(self) -> None:
        """Hold the sum of single sites against the whole, as soon as all of them are in."""
        singles = [self._names.get(frozenset([key]), "") for key in self._sites]
        if not singles or not all(name in self._pending for name in (WHOLE, *singles)):
            return
        parts = _sum([self._pending[name] for name in singles])
        interaction = _sum([self._pending[WHOLE], replace(parts, full=-parts.full, without=-parts.without)])
        self._pending.clear()
        column = parts.column(corrected=False)
        column.floor = 0.0
        self.kept.add("epkl_sum_of_parts", column)
        self.kept.add("epkl_interaction", interaction.column(corrected=False))

    def _line(self, key: SiteKey) -> SiteAttribution:
        alone, layer = frozenset([key]), layer_of(key)
        return SiteAttribution(
            site=label(key),
            group=self._kinds[key],
            layer=None if layer is None else layer[1],
            only=self._metric(alone),
            without=self._metric(frozenset(self._sites) - alone),
            reason=self._reason(alone) or None,
        )

    def _group(self, part: _Part, predicted: Mapping[str, Column]) -> GroupAttribution:
        means = [_mean(predicted.get(label(key))) for key in self._sites if key in part.sites]
        return GroupAttribution(
            by="module" if part.by == "module" else "layer",
            name=part.name,
            sites=[label(key) for key in self._sites if key in part.sites],
            only=self._metric(part.sites),
            without=self._metric(frozenset(self._sites) - part.sites),
            predicted=None if None in means else sum(mean for mean in means if mean is not None),
        )

    def _metric(self, active: frozenset[SiteKey]) -> Metric | None:
        """EPKL with these sites active; 0 without any, and but for rounding where all their masks are certain."""
        columns = self.by_variant.columns
        if not active and WHOLE in columns:
            n = int(columns[WHOLE].finite.sum())
            return Metric(estimate=0.0, low=0.0, high=0.0, unit="nats", n=n, mask_low=0.0, mask_high=0.0)
        column = columns.get(self._names.get(active, ""))
        if column is None:
            return None
        column = without_rounding(column) if active <= self._certain else column
        return metric(column, unit="nats", shared_masks=self.shared_masks)

    def _reason(self, sites: frozenset[SiteKey]) -> str:
        """Why these sites cannot be had alone, or without them the others; empty if both can."""
        names = (self._names.get(active, "") for active in (sites, frozenset(self._sites) - sites))
        return next((self._reasons[name] for name in names if name in self._reasons), "")

    def _rank_agreement(self, predicted: Mapping[str, Column]) -> Metric | None:
        exact = {label(key): self.by_variant.columns.get(self._names.get(frozenset([key]), "")) for key in self._sites}
        pairs = [(column, predicted[name]) for name, column in exact.items() if column and name in predicted]
        return rank_agreement(pairs)


class GaussianAttribution(Attribution):
    """The same for a regression model, whose EPKL is that of its Gaussian surrogate."""

    terms = GaussianPairwise.terms
    families = ("gaussian",)
    pairwise: ClassVar[type[ConvergingProbe]] = GaussianPairwise


def _parts(sites: Sequence[SiteKey], kinds: Mapping[SiteKey, str]) -> Iterator[_Part]:
    """Single sites; kinds of modules, where there are several; numbered layers, where these are more than sites."""
    for key in sites:
        yield _Part("site", label(key), frozenset([key]))
    of_kinds = {kind: frozenset(key for key in sites if kinds[key] == kind) for kind in KINDS if kind in kinds.values()}
    if len(of_kinds) > 1:
        yield from (_Part("module", kind, members) for kind, members in of_kinds.items())
    layers = {key: found[0] for key in sites if (found := layer_of(key))}
    names = dict.fromkeys(layers.values())
    if 1 < len(names) < len(layers):
        yield from (_Part("layer", name, frozenset(key for key in layers if layers[key] == name)) for name in names)


def _sum(parts: Sequence[Jackknife]) -> Jackknife:
    """Sum of estimates; none of an example that has a row for which one of them is infinite."""
    total = replace(
        parts[0],
        full=torch.stack([part.full for part in parts]).sum(0),
        without=torch.stack([part.without for part in parts]).sum(0),
    )
    infinite = [part.infinite for part in parts if part.infinite is not None]
    if not infinite:
        return total
    return replace(total, full=torch.where(torch.stack(infinite).sum(0) > 0, torch.nan, total.full))


def _mean(column: Column | None) -> float | None:
    return None if column is None else metric(column, unit="nats", shared_masks=False).estimate
