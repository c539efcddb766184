"""A score over the number of passes that are averaged: its points, and how many passes are enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from rdrop_probes.columns import Column
from rdrop_probes.records import AveragingPoint
from rdrop_probes.statistics import metric, p_value

MARGIN = 0.05  # of what all passes gain over one: a loss that does not matter
EVAL = 0  # passes of the eval model

Curve = Mapping[int, Column]
"""Evidence of one score by number of passes."""


def enough_passes(name: str, curve: Curve, *, shared_masks: bool) -> int | None:
    """The smallest number of passes from which on more of them are shown not to matter; None if no such is shown.

    They do not matter where the score is within `MARGIN` of what all passes gain over one of the score of all, with
    the whole 95% interval (a test of equivalence, Schuirmann 1987): that no loss is seen would prove nothing. All
    passes are not compared with themselves.
    """
    worse = -1.0 if name == "accuracy" else 1.0
    last, enough = max(curve), None
    gain = metric(_combined([(1, worse), (last, -worse)], curve), unit="", shared_masks=shared_masks).estimate
    margin = MARGIN if gain is not None and gain > 0 else 0.0
    for passes in sorted(set(curve) - {EVAL, last}, reverse=True):
        parts = [(passes, worse), (1, -margin * worse), (last, (margin - 1) * worse)]
        excess = metric(_combined(parts, curve), unit="", shared_masks=shared_masks)
        if excess.high is None or excess.high > 0 or excess.low == excess.high:  # what does not vary is not known
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
    change = replace(
        column,
        values=column.values - curve[EVAL].values,
        proportion=False,
        share_difference=column.proportion,
        floor=-np.inf,
    )
    difference = metric(change, unit=unit, shared_masks=shared_masks)
    return AveragingPoint(
        metric=name,
        passes=passes,
        value=metric(column, unit=unit, shared_masks=shared_masks),
        difference=difference,
        p_value=p_value(change.linearised(), shared_masks=shared_masks),
    )


def without_interval(point: AveragingPoint) -> AveragingPoint:
    """The point where it is not known how the score varies."""
    difference = None if point.difference is None else replace(point.difference, low=None, high=None)
    return replace(point, value=replace(point.value, low=None, high=None), difference=difference, p_value=None)
