"""Whether two quantities put sites in the same order: Spearman's correlation, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from rdrop_probes.columns import Column, Floats
from rdrop_probes.records import Metric
from rdrop_probes.statistics import LEVEL

FEWEST = 3  # sites that have an order worth speaking of
RESAMPLES = 500


def rank_agreement(pairs: Sequence[tuple[Column, Column]], *, shared_masks: bool) -> Metric | None:
    """Rank correlation over sites of the means of two columns each; None for fewer than three sites.

    The interval is a percentile bootstrap over examples (none where masks are shared by them), `n` the number of
    sites. Where all of one quantity's means are equal there is no correlation.
    """
    if len(pairs) < FEWEST:
        return None
    values = np.stack([column.linearised().values for pair in pairs for column in pair])  # [2 S, N]
    values = values[:, np.isfinite(values).all(0)]
    n = values.shape[1]
    found = _correlation(values.mean(1)) if n else None
    if found is None:
        return Metric(estimate=None, n=len(pairs))
    low, high = (None, None) if shared_masks or n < 2 else _bootstrap(values)
    return Metric(estimate=found, low=low, high=high, level=LEVEL, n=len(pairs))


def _correlation(means: Floats) -> float | None:
    """Spearman's correlation of every other mean with those between."""
    first, second = means[::2], means[1::2]
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(stats.spearmanr(first, second).statistic)


def _bootstrap(values: Floats) -> tuple[float | None, float | None]:
    """Interval of the correlation of means over examples [2 S, N] that are drawn again."""
    generator, n = np.random.default_rng(0), values.shape[1]
    shares = np.full(n, 1 / n)
    found = [_correlation(values @ generator.multinomial(n, shares) / n) for _ in range(RESAMPLES)]
    known = [value for value in found if value is not None]
    if not known:
        return None, None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
