"""A score over the number of passes that are averaged: its points, and how many passes are enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt

import numpy as np
from scipy import stats

from rdrop_probes.columns import Column
from rdrop_probes.records import AveragingPoint
from rdrop_probes.statistics import metric, sample_spread

MARGIN = 0.05  # of what all passes gain over one: a difference that does not matter
EVAL = 0  # passes of the eval model

Curve = Mapping[int, Column]
"""Evidence of one score by number of passes."""


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


def curve_point(name: str, passes: int, curve: Curve, *, unit: str, shared_masks: bool) -> AveragingPoint:
    """The score of the mean of so many passes, and less that of the eval model, paired by example."""
    column = curve[passes]
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


def without_interval(point: AveragingPoint) -> AveragingPoint:
    """The point where it is not known how the score varies."""
    difference = None if point.difference is None else replace(point.difference, low=None, high=None)
    return replace(point, value=replace(point.value, low=None, high=None), difference=difference, p_value=None)
