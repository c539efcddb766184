"""Whether two quantities put sites in the same order: Spearman's correlation, which describes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from rdrop_probes.columns import Column, Floats
from rdrop_probes.records import Metric

FEWEST = 3  # sites that have an order worth speaking of


def rank_agreement(pairs: Sequence[tuple[Column, Column]]) -> Metric | None:
    """Rank correlation over sites of the means of two columns each; None for fewer than three sites.

    `n` is the number of sites. Where all of one quantity's means are equal there is no correlation. It has no interval:
    noise mixes up the ranks of sites that are close to each other, so that the estimate lies nearer to 0 than the
    correlation of the true means, and a bootstrap over examples, in which the noise is added twice, lies nearer still.
    """
    if len(pairs) < FEWEST:
        return None
    values = np.stack([column.linearised().values for pair in pairs for column in pair])  # [2 S, N]
    values = values[:, np.isfinite(values).all(0)]
    return Metric(estimate=_correlation(values.mean(1)) if values.shape[1] else None, n=len(pairs))


def _correlation(means: Floats) -> float | None:
    """Spearman's correlation of every other mean with those between."""
    first, second = means[::2], means[1::2]
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(stats.spearmanr(first, second).statistic)
