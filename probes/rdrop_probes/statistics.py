"""Intervals and tests: from per-example columns to metrics and paired comparisons.

With masks drawn per example the per-example values are independent, so Student's t over examples gives the
interval for new data. With masks shared by all examples the sub-models are a second sample, crossed with the
examples: their variances add (Cameron, Gelbach and Miller 2011, two-way clustering), with Satterthwaite's
degrees of freedom. The part of a metric's variance that is counted twice is taken off; of a difference it is
not known, which makes its interval a little wide. The mask-only interval is for these very examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, isfinite, log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rdrop_probes.columns import Column, Floats
from rdrop_probes.records import Comparison, Metric
from rdrop_probes.seeds import ROUNDING

LEVEL = 0.95
MAX_LOG_RATIO = 20.0  # an interval wider than e^20 either way says nothing; hiding narrower ones would cost coverage


@dataclass(frozen=True)
class Spread:
    """Variance of an estimated mean, with its degrees of freedom (0: it cannot be estimated)."""

    variance: float
    df: float

    def half_width(self, level: float) -> float | None:
        """Half the width of Student's interval."""
        if self.df <= 0:
            return None
        return float(stats.t.ppf(0.5 + level / 2, self.df)) * sqrt(self.variance)


def metric(column: Column, *, unit: str, shared_masks: bool, level: float = LEVEL) -> Metric:
    """Mean of a column (its root, for squares) with its intervals; n counts the finite values, others are left out.

    The mean is over rows, the sample is the examples.
    """
    shared_masks |= column.crossed
    sure = column.proportion and column.weights is not None and _all_alike(column)
    column = column.linearised()
    values = column.values[column.finite]
    if not len(values):
        return Metric(estimate=None, level=level, unit=unit, n=0)
    estimate = float(values.mean())
    if sure:  # every row of every example hits, or none: as many trials as examples
        column = replace(column, values=np.where(column.finite, round(estimate), np.nan))
        estimate = float(round(estimate))
    low, high = _interval(column, estimate, shared_masks=shared_masks, level=level)
    mask = mask_spread(column, shared_masks=shared_masks).half_width(level)
    mask_bounds = (None, None) if mask is None else _bounded(column, estimate, mask)
    shown = [_signed_root(x) if column.squared and x is not None else x for x in (estimate, low, high, *mask_bounds)]
    return Metric(
        estimate=shown[0],
        low=shown[1],
        high=shown[2],
        level=level,
        unit=unit,
        n=len(values),
        mask_low=shown[3],
        mask_high=shown[4],
    )


def upper_bound(column: Column, *, unit: str, shared_masks: bool, level: float = LEVEL) -> Metric:
    """The least number that the mean of a column stays below with confidence `level`, one-sided.

    Student's bound, put right for skewness by Hall's transformation (1992, "On the removal of skewness by
    transformation"): t + u t^2 / 3 + u^2 t^3 / 27 + u / 6 is free of it, with u = kappa_3 / variance^1.5 of the mean.
    Where a few examples carry most of the mean, Student's own holds too rarely. With masks shared by all examples,
    kappa_3 is that of the examples.
    """
    shared_masks |= column.crossed
    column = column.linearised()
    values = column.values[column.finite]
    spread = column_spread(column, shared_masks=shared_masks)
    if spread.df <= 0:
        return Metric(estimate=None, level=level, unit=unit, n=len(values))
    quantile = float(stats.t.ppf(1 - level, spread.df))
    away = sqrt(spread.variance) * _unskewed(quantile, _skewness(values, spread.variance))
    return Metric(estimate=float(values.mean()) - away, level=level, unit=unit, n=len(values))


def _skewness(values: Floats, variance: float) -> float:
    """Skewness of an estimated mean with this variance."""
    if variance == 0 or not _vary(values):
        return 0.0
    third = float(stats.skew(values, bias=False)) * float(values.std(ddof=1)) ** 3
    return float(third / len(values) ** 2 / variance**1.5)


def _unskewed(quantile: float, skewness: float) -> float:
    """Quantile of Student's t from that of Hall's transformation of it: the inverse of the transformation."""
    if abs(skewness) < ROUNDING:
        return quantile
    return float(3 / skewness * (np.cbrt(1 + skewness * (quantile - skewness / 6)) - 1))


def compare(
    name: str,
    reference: tuple[str, Column],
    candidate: tuple[str, Column],
    *,
    unit: str,
    shared_masks: bool,
    level: float = LEVEL,
) -> Comparison:
    """Candidate minus reference on the same examples: difference, ratio, intervals and a paired t test.

    Examples where either value is not finite are left out of all of it. Columns of squares are compared as such.

    Raises:
        ValueError: the columns are of different examples.
    """
    (ref_name, ref), (cand_name, cand) = reference, candidate
    if len(ref.values) != len(cand.values):
        raise ValueError(f"{name}: {len(ref.values)} and {len(cand.values)} examples cannot be paired")
    vectors = ref.crossed or cand.crossed
    shared_masks |= vectors
    ref, cand = paired(ref, cand)
    both = ref.finite & cand.finite
    a, b = ref.values[both], cand.values[both]
    blocks = _difference_of_blocks(ref, cand) if shared_masks else None
    df = _fewer(ref, cand)
    spread = sample_spread(b - a, blocks, df)
    difference = float((b - a).mean()) if len(a) else None
    half = spread.half_width(level) if len(a) else None
    bound = _most_apart(ref, cand)
    if half == 0 and isfinite(bound):
        half = bound * _never_seen(len(a), level)
    shared = "random vectors" if vectors else "sub-models"
    ratio, ratio_low, ratio_high = _ratio(a, b, (ref, cand) if shared_masks else None, level, df)
    return Comparison(
        metric=name,
        reference=ref_name,
        candidate=cand_name,
        difference=difference,
        low=None if half is None or difference is None else max(difference - half, -bound),
        high=None if half is None or difference is None else min(difference + half, bound),
        ratio=ratio,
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        p_value=_p_value(difference, spread, len(a)),
        p_adjusted=None,
        test="paired t test" if blocks is None else f"t test crossed over examples and {shared}",
        level=level,
        unit=f"{unit}²" if ref.squared else unit,
        n=len(a),
        effect_size=_standardised(b - a),
    )


def _standardised(differences: Floats) -> float | None:
    """Mean difference in standard deviations of the differences; None where these do not vary."""
    if len(differences) < 2 or not _vary(differences):
        return None
    return float(differences.mean()) / float(differences.std(ddof=1))


def _vary(values: Floats) -> bool:
    """Whether values differ by more than rounding."""
    return bool(np.ptp(values) > ROUNDING * np.abs(values).max())


def paired(ref: Column, cand: Column) -> tuple[Column, Column]:
    """Both columns with one value an example (linearised), over the examples that both have."""
    both = ref.finite & cand.finite
    return _over(ref, both), _over(cand, both)


def _all_alike(column: Column) -> bool:
    """Whether every row of every example hits, or none does."""
    values = column.values[column.finite]
    return bool(len(values)) and bool((values == 0).all() or (values == 1).all())


def _most_apart(a: Column, b: Column) -> float:
    """By how much the two can differ: shares by 1, differences of shares by 2, anything else without a bound."""
    if a.proportion and b.proportion:
        return 1.0
    return 2.0 if a.share_difference and b.share_difference else np.inf


def _fewer(a: Column, b: Column) -> float | None:
    """Degrees of freedom over examples of the two together; None where examples weigh alike."""
    known = [column.df for column in (a, b) if column.df is not None]
    return min(known) if known else None


def _over(column: Column, kept: NDArray[np.bool_]) -> Column:
    if column.weights is None:
        return column
    return replace(column, values=np.where(kept, column.values, np.nan)).linearised()


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Fill `p_adjusted`: Benjamini-Hochberg over the comparisons given."""
    tested = [c.p_value for c in comparisons if c.p_value is not None]
    if not tested:
        return list(comparisons)
    adjusted = iter(stats.false_discovery_control(tested).tolist())
    return [replace(c, p_adjusted=None if c.p_value is None else next(adjusted)) for c in comparisons]


def column_spread(column: Column, *, shared_masks: bool) -> Spread:
    """Variance of the mean of a linearised column over new examples, and over masks if these are shared by all."""
    values = column.values[column.finite]
    spread = sample_spread(values, df=column.df)
    if not shared_masks or column.leave_out is None or column.mask_variance is None:
        return spread
    twice = float(np.nansum(column.mask_variance)) / max(len(values), 1) ** 2
    both = _add(spread, mask_spread(column, shared_masks=True))
    return Spread(max(both.variance - twice, spread.variance), both.df)


def p_value(column: Column, *, shared_masks: bool) -> float | None:
    """Of the t test of mean 0 that goes with the interval of a linearised column; None where there is none."""
    values = column.values[column.finite]
    estimate = float(values.mean()) if len(values) else None
    return _p_value(estimate, column_spread(column, shared_masks=shared_masks), len(values))


def sample_spread(values: Floats, blocks: Floats | None = None, df: float | None = None) -> Spread:
    """Variance of the mean of values [N] over examples; plus, from leave-one-block-out means [G], over masks.

    `df` are the degrees of freedom of the former, N - 1 by default.
    """
    n = len(values)
    if n < 2:
        return Spread(0.0, 0)
    over_examples = Spread(float(values.var(ddof=1)) / n if _vary(values) else 0.0, n - 1 if df is None else df)
    return over_examples if blocks is None else _add(over_examples, block_spread(blocks))


def block_spread(leave_out: Floats) -> Spread:
    """Jackknife variance of a mean from its leave-one-block-out values [G]; t with G - 1 degrees of freedom."""
    g = len(leave_out)
    if g < 2:
        return Spread(0.0, 0)
    return Spread((g - 1) / g * float(((leave_out - leave_out.mean()) ** 2).sum()), g - 1)


def mask_spread(column: Column, *, shared_masks: bool) -> Spread:
    """Variance of the metric over masks alone, the examples being given."""
    if column.mask_variance is None or column.leave_out is None:
        return Spread(0.0, 0)
    if shared_masks:
        return block_spread(_leave_out_means(column))
    variance = column.mask_variance[np.isfinite(column.mask_variance)]
    if not len(variance):
        return Spread(0.0, 0)
    total, squares = float(variance.sum()), float((variance**2).sum())
    equal = total**2 / squares if squares > 0 else len(variance)  # Satterthwaite: examples differ in their noise
    return Spread(total / len(variance) ** 2, equal * (len(column.leave_out) - 1))


def ratio_column(numerator: Column, denominator: Column) -> Column | None:
    """Column whose mean is the ratio of the means, linearised so that its spread is the ratio's.

    value_n = r + (a_n - r b_n) / mean(b): the delta method for a ratio of means. None if mean(b) is not > 0.
    """
    numerator, denominator = paired(numerator, denominator)
    both = numerator.finite & denominator.finite
    if not both.any() or not (scale := denominator.values[both].mean()) > 0:
        return None
    ratio = numerator.values[both].mean() / scale
    values = np.full(len(both), np.nan)
    values[both] = ratio + (numerator.values[both] - ratio * denominator.values[both]) / scale
    df = _fewer(numerator, denominator)
    if numerator.mask_variance is None or numerator.leave_out is None:
        return Column(values, df=df, tabulated=False)
    return Column(
        values,
        numerator.mask_variance / scale**2,
        numerator.leave_out / scale,
        numerator.leave_out_n,
        df=df,
        tabulated=False,
    )


def _signed_root(x: float) -> float:
    """Root with the sign of its argument: an unbiased square is negative now and then where the truth is near 0."""
    return sqrt(x) if x >= 0 else -sqrt(-x)


def _never_seen(n: int, level: float) -> float:
    """Wilson's upper bound on how often happens what did not happen in n trials.

    Such as a right answer of one model where the other's is wrong, or a hit that dropout takes away.
    """
    return float(stats.binomtest(0, n).proportion_ci(level, method="wilson").high)


def _interval(
    column: Column, estimate: float, *, shared_masks: bool, level: float
) -> tuple[float | None, float | None]:
    values = column.values[column.finite]
    n = len(values)
    independent = not (shared_masks and column.leave_out is not None) or _all_alike(column)
    if column.proportion and independent and np.isin(values, (0.0, 1.0)).all() and n > 1:
        wilson = stats.binomtest(int(values.sum()), n).proportion_ci(level, method="wilson")
        return float(wilson.low), float(wilson.high)
    half = column_spread(column, shared_masks=shared_masks).half_width(level)
    if half == 0 and column.share_difference:
        half = _never_seen(n, level)
    return (None, None) if half is None else _bounded(column, estimate, half)


def _bounded(column: Column, estimate: float, half: float) -> tuple[float, float]:
    """Bounds within what the metric can be; an estimate below 0 is honest noise and stays in its interval."""
    floor, ceiling = column.range
    return max(estimate - half, min(floor, estimate)), min(estimate + half, max(ceiling, estimate))


def _add(a: Spread, b: Spread) -> Spread:
    """Sum of independent variances, with Satterthwaite's degrees of freedom."""
    total = a.variance + b.variance
    if a.df <= 0 or b.df <= 0:
        return Spread(total, 0)
    if total == 0:
        return Spread(0.0, a.df)
    return Spread(total, total**2 / (a.variance**2 / a.df + b.variance**2 / b.df))


def _leave_out_means(column: Column) -> Floats:
    """Means with one block of sub-models left out [blocks]; empty where they cannot be had."""
    if column.leave_out is None or not column.leave_out_n:
        return np.empty(0)
    means: Floats = column.leave_out / column.leave_out_n
    return means


def _difference_of_blocks(ref: Column, cand: Column, times: float = 1.0) -> Floats | None:
    """Candidate less `times` reference with one block of sub-models left out; None if neither has dropout in it."""
    if ref.leave_out is None and cand.leave_out is None:
        return None
    a, b = _leave_out_means(ref), _leave_out_means(cand)
    return b - times * a if len(a) == len(b) else np.empty(0)


def _p_value(difference: float | None, spread: Spread, n: int) -> float | None:
    if difference is None or spread.df <= 0:
        return None
    if spread.variance == 0:
        return 1.0 if difference == 0 else 2.0 ** (1 - n)  # all alike: the sign test
    return float(2 * stats.t.sf(abs(difference) / sqrt(spread.variance), spread.df))


def _ratio(
    a: Floats, b: Floats, masks: tuple[Column, Column] | None, level: float, df: float | None
) -> tuple[float | None, float | None, float | None]:
    """mean(b) / mean(a) with an interval by the delta method on its logarithm (paired)."""
    if not len(a) or a.mean() == 0 or not isfinite(ratio := float(b.mean() / a.mean())) or ratio <= 0:
        return None, None, None
    blocks = _difference_of_blocks(*masks, times=ratio) if masks else None
    scale = float(b.mean())  # not the leave-out means: those of a bias-corrected metric are not corrected
    half = sample_spread((b - ratio * a) / scale, None if blocks is None else blocks / scale, df).half_width(level)
    if half is None or half > MAX_LOG_RATIO:
        return ratio, None, None
    return ratio, exp(log(ratio) - half), exp(log(ratio) + half)
