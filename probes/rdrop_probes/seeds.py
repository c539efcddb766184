"""The mean over training seeds, with Student's interval: the seed is the unit, not the example.

Torch-free, because reports draw such means as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rdrop_probes.records import Metric

LEVEL = 0.95
EVERYTHING = (-inf, inf)
ROUNDING = 1e-12  # of a value: seeds that differ by less came out alike


def over_seeds(
    values: Sequence[float | None],
    *,
    unit: str = "",
    within: tuple[float, float] = EVERYTHING,
    level: float = LEVEL,
) -> Metric:
    """Mean over seeds and its interval; n counts the finite values, others are left out.

    There is no interval from a single seed, nor from seeds that all came out alike: nothing is known of the spread.

    Args:
        values: one estimate a seed.
        unit: that of the values.
        within: what the metric can be, which its interval respects.
        level: of the interval.
    """
    known = _known(values)
    if not len(known):
        return Metric(estimate=None, level=level, unit=unit, n=0)
    mean = float(known.mean())
    if not _spread(known):
        return Metric(estimate=mean, level=level, unit=unit, n=len(known))
    bounds = stats.ttest_1samp(known, 0).confidence_interval(level)
    low, high = max(float(bounds.low), min(within[0], mean)), min(float(bounds.high), max(within[1], mean))
    return Metric(estimate=mean, low=low, high=high, level=level, unit=unit, n=len(known))


def bound_over_seeds(values: Sequence[float | None], *, unit: str = "", level: float = LEVEL) -> Metric:
    """The least number that the mean over seeds stays below with confidence `level`: mean + t s / sqrt(n), one-sided.

    There is none where nothing is known of the spread over seeds.
    """
    known = _known(values)
    if not _spread(known):
        return Metric(estimate=None, level=level, unit=unit, n=len(known))
    away = float(stats.t.ppf(level, len(known) - 1)) * float(stats.sem(known))
    return Metric(estimate=float(known.mean()) + away, level=level, unit=unit, n=len(known))


def _known(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([value for value in values if value is not None and isfinite(value)])


def _spread(known: NDArray[np.float64]) -> bool:
    """Whether seeds tell how far they are spread: several that did not all come out alike."""
    return len(known) > 1 and bool(np.ptp(known) > ROUNDING * np.abs(known).max())
