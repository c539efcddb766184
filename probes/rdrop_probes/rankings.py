"""Whether what is cheap ranks checkpoints as EPKL does: Spearman correlations over checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import factorial, isfinite

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rdrop_probes.records import CheckpointResult, Ranking

FEWEST = 3  # checkpoints that can be ranked at all
EXACT = 7  # checkpoints up to which every permutation is tried
PREFIXES = ("kl_", "jacobian_", "predicted_epkl", "fisher_trace", "effective_dimension")


def rankings(checkpoints: Sequence[CheckpointResult], *, clustered: bool = False) -> list[Ranking]:
    """One ranking a proxy that at least three checkpoints have beside their EPKL.

    Its p-value takes checkpoints for exchangeable. Seeds or epochs of a few trainings (`clustered`) are not: the
    settings alone may put both quantities in the same order, so that the correlation describes and has no p-value.
    """
    names = dict.fromkeys(name for c in checkpoints for name in c.metrics if name.startswith(PREFIXES))
    found = [_ranking(name, checkpoints) for name in names]
    return [replace(r, p_value=None) if clustered else r for r in found if r.n >= FEWEST]


def spearman(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, float | None]:
    """Rank correlation and two-sided p-value, by all permutations where they are few; None where one is constant."""
    if len(x) < FEWEST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None, None
    found = stats.spearmanr(x, y)
    least = 2 / factorial(len(x))  # what no permutation test goes below; the approximation gives 0 for a perfect order
    p_value = _permuted(x, y) if len(x) <= EXACT else max(float(found.pvalue), least)
    return float(found.statistic), p_value


def _permuted(x: Sequence[float], y: Sequence[float]) -> float:
    """Share of the pairings that correlate as much, either way."""
    first, second = (stats.rankdata(values) - (len(values) + 1) / 2 for values in (x, y))

    def together(ranks: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(np.abs((ranks * second).sum(axis)))

    # the statistic is an absolute value: both sides of the correlation are in its upper tail
    tried = stats.permutation_test(
        (first,), together, permutation_type="pairings", vectorized=True, alternative="greater",
        n_resamples=factorial(len(x)),
    )  # fmt: skip
    return float(tried.pvalue)


def _ranking(name: str, checkpoints: Sequence[CheckpointResult]) -> Ranking:
    pairs = [(_estimate(c, "epkl"), _estimate(c, name)) for c in checkpoints]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    correlation, p_value = spearman([a for a, _ in known], [b for _, b in known])
    return Ranking(metric=name, correlation=correlation, p_value=p_value, n=len(known))


def _estimate(checkpoint: CheckpointResult, name: str) -> float | None:
    found = checkpoint.metrics.get(name)
    return found.estimate if found is not None and found.estimate is not None and isfinite(found.estimate) else None
