"""Arms of an experiment against each other: groups of training seeds, of which each is one observation.

Where both arms were trained with the same seeds they are paired by seed (Student's t of the differences), else
their variances are estimated apart (Welch 1947). The effect size is Hedges' g (1981): the difference in pooled
standard deviations over seeds, corrected for few of them, whichever the test, so that experiments compare. The
examples are the same for every seed: nothing here covers new data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, isfinite, log, sqrt
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from rdrop_probes.records import CheckpointResult, Comparison, GroupResult, Metric
from rdrop_probes.seeds import EVERYTHING, LEVEL, ROUNDING, bound_over_seeds, over_seeds
from rdrop_probes.statistics import MAX_LOG_RATIO, adjust

Values = NDArray[np.float64]
PAIRED = "t test paired by seed"
WELCH = "Welch's t test over seeds"
NO_TEST = "none, for want of seeds that differ"
BOUNDS: Mapping[str, str] = MappingProxyType({"constraint_epsilon": "epkl"})
"""Metrics that are an upper bound of another one's mean: what holds of a group is not the mean of its seeds' bounds."""

BIASED_IN_K = frozenset({"nll_mean", "brier_mean", "ece_mean", "accuracy_mean", "mse_mean"})  # the more, the better


@dataclass(frozen=True)
class Arm:
    """Checkpoints that differ in their training seed.

    Attributes:
        name: of the group.
        members: what was measured on each.
        seeds: the training seed of each, None where it is not known.
        ranges: by metric, what it can be; anything where nothing is said.
    """

    name: str
    members: Sequence[CheckpointResult]
    seeds: Sequence[float | None]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, str]:
        """Unit of every metric that any member has, in their order."""
        return {name: metric.unit for member in self.members for name, metric in member.metrics.items()}

    def values(self, metric: str) -> dict[int, float]:
        """Estimates by number of the member, without those that are not there or not finite."""
        found = {number: m for number, c in enumerate(self.members) if (m := c.metrics.get(metric)) is not None}
        return {n: m.estimate for n, m in found.items() if m.estimate is not None and isfinite(m.estimate)}


def group_result(arm: Arm, *, level: float = LEVEL) -> GroupResult:
    """Every metric of the arm, over its seeds: its mean; of a bound of a metric, that of the metric over seeds."""
    metrics = {name: _over_seeds(arm, name, unit, level) for name, unit in arm.metrics.items()}
    return GroupResult(name=arm.name, members=[member.name for member in arm.members], metrics=metrics)


def _over_seeds(arm: Arm, name: str, unit: str, level: float) -> Metric:
    if name in BOUNDS:
        return bound_over_seeds(list(arm.values(BOUNDS[name]).values()), unit=unit, level=level)
    return over_seeds(list(arm.values(name).values()), unit=unit, within=arm.ranges.get(name, EVERYTHING), level=level)


def same_seeds(reference: Arm, candidate: Arm) -> bool:
    """Whether each seed of one arm has its partner in the other."""
    ours, theirs = set(candidate.seeds), set(reference.seeds)
    unique = len(ours) == len(candidate.seeds) and len(theirs) == len(reference.seeds)
    return unique and ours == theirs and None not in ours


def compare_arms(reference: Arm, candidate: Arm, *, level: float = LEVEL) -> list[Comparison]:
    """Candidate minus reference on every metric that both have in one unit, p-values adjusted over these.

    Bounds of other metrics are left out, and what depends on the number of sub-models where members were measured
    with different ones.
    """
    units = reference.metrics
    left_out = {*BOUNDS, *(BIASED_IN_K if differ_in_k([*reference.members, *candidate.members]) else ())}
    shared = [name for name, unit in candidate.metrics.items() if units.get(name) == unit and name not in left_out]
    return adjust([_compare(reference, candidate, name, level) for name in shared])


def differ_in_k(checkpoints: Iterable[CheckpointResult]) -> bool:
    """Whether checkpoints were measured with different numbers of sub-models; one without dropout has none."""
    return len({checkpoint.sub_models for checkpoint in checkpoints} - {None}) > 1


def hedges_g(reference: Values, candidate: Values) -> float | None:
    """Difference of means in pooled standard deviations, unbiased; None where there are none."""
    df = len(reference) + len(candidate) - 2
    if min(len(reference), len(candidate)) < 2:
        return None
    squares = sum(float(((x - x.mean()) ** 2).sum()) for x in (reference, candidate))
    if squares == 0:
        return None
    correction = exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / sqrt(df / 2)
    return float(correction * (candidate.mean() - reference.mean()) / sqrt(squares / df))


def _compare(reference: Arm, candidate: Arm, metric: str, level: float) -> Comparison:
    """One metric; difference and ratio alone where there are too few seeds to test."""
    paired = same_seeds(reference, candidate)
    a, b = _aligned(reference, candidate, metric) if paired else _apart(reference, candidate, metric)
    difference = float(b.mean() - a.mean()) if len(a) and len(b) else None
    tested = None if difference is None else _tested(a, b, paired=paired)
    low, high = (None, None) if tested is None else _within(tested.confidence_interval(level), reference, metric)
    ratio, ratio_low, ratio_high = _ratio(a, b, paired=paired, level=level)
    return Comparison(
        metric=metric,
        reference=reference.name,
        candidate=candidate.name,
        difference=difference,
        low=low,
        high=high,
        ratio=ratio,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        p_value=None if tested is None else float(tested.pvalue),
        p_adjusted=None,
        test=NO_TEST if tested is None else PAIRED if paired else WELCH,
        level=level,
        unit=candidate.metrics[metric],
        n=len(a) if paired else len(a) + len(b),
        effect_size=hedges_g(a, b),
    )


def _within(bounds: Any, arm: Arm, metric: str) -> tuple[float, float]:
    """Bounds of a difference, which is no larger than what the metric can be is wide: 1 for shares."""
    least, most = arm.ranges.get(metric, EVERYTHING)
    return max(float(bounds.low), least - most), min(float(bounds.high), most - least)


def _apart(reference: Arm, candidate: Arm, metric: str) -> tuple[Values, Values]:
    return tuple(np.array(list(arm.values(metric).values())) for arm in (reference, candidate))  # type: ignore[return-value] # two of them


def _aligned(reference: Arm, candidate: Arm, metric: str) -> tuple[Values, Values]:
    """Values by seed, of the seeds that have one in both arms."""
    ours, theirs = candidate.values(metric), reference.values(metric)
    partner = {seed: number for number, seed in enumerate(reference.seeds)}
    pairs = [(theirs[partner[candidate.seeds[n]]], x) for n, x in ours.items() if partner[candidate.seeds[n]] in theirs]
    return np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])


def _tested(a: Values, b: Values, *, paired: bool) -> Any:
    """What scipy says of b minus a; None where the spread over seeds cannot be told, of either arm unless paired."""
    if min(len(a), len(b)) < 2:
        return None
    noise = ROUNDING * max(np.abs(a).max(), np.abs(b).max())
    if (np.ptp(b - a) if paired else min(np.ptp(a), np.ptp(b))) <= noise:
        return None
    return stats.ttest_rel(b, a) if paired else stats.ttest_ind(b, a, equal_var=False)


def _ratio(a: Values, b: Values, *, paired: bool, level: float) -> tuple[float | None, float | None, float | None]:
    """mean(b) / mean(a) with an interval by the delta method on its logarithm: Var log = Var(b/mean b - a/mean a)."""
    if not len(a) or not len(b) or a.mean() == 0 or not isfinite(ratio := float(b.mean() / a.mean())) or ratio <= 0:
        return None, None, None
    tested = _tested(a / a.mean(), b / b.mean(), paired=paired)
    half = None if tested is None else float(np.diff(tested.confidence_interval(level))[0] / 2)
    if half is None or half > MAX_LOG_RATIO:
        return ratio, None, None
    return ratio, exp(log(ratio) - half), exp(log(ratio) + half)
