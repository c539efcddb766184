"""NLL and confidence of examples as functions of the temperature; from them the best one and what it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import asinh, ceil, exp, log, pi, sqrt

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy import optimize, stats

from rdrop_probes.calibration import BINS
from rdrop_probes.columns import Column, Floats
from rdrop_probes.records import Metric, Temperature
from rdrop_probes.statistics import LEVEL, compare, metric, sample_spread

HIGHEST = 10.0  # temperature; the lowest is its inverse
SPAN = log(HIGHEST)
FEWEST_NODES = 24
EXACT = 1e-6  # of how much an interpolated curve may err
TRUSTED = 1e-4  # nats by which the mean curve may miss the NLL that it has at a temperature of 1
FOLDS = 10
SHARP = 1e-7  # of where a minimum is, from -1 (lowest temperature) to 1 (highest)
EDGE = 1 - 1e-3


@lru_cache
def inverses(classes: int) -> Sequence[float]:
    """1 / T of the temperatures at which a curve is known: Chebyshev's points in log T.

    A normaliser of `classes` terms has singularities no nearer to the range (-1 to 1) than pi / (log C log 10) where
    one class stands out from all others alike; interpolation errs by rho^-n, log rho = asinh of that distance
    (Trefethen 2019, "Approximation Theory and Approximation Practice", theorem 8.2).
    """
    distance = pi / (log(max(classes, 2)) * SPAN)
    nodes = max(FEWEST_NODES, ceil(-log(EXACT) / asinh(distance)))
    found: list[float] = np.exp(-SPAN * chebyshev.chebpts1(nodes)).tolist()
    return found


@lru_cache
def _to_series(nodes: int) -> Floats:
    """[nodes, nodes], from the values at Chebyshev's points to the series through them."""
    return np.linalg.inv(chebyshev.chebvander(chebyshev.chebpts1(nodes), nodes - 1)).astype(float)


@dataclass(frozen=True)
class Piece:
    """What is known of some examples.

    Attributes:
        nll: [1 + nodes, N], NLL as it is and at all temperatures.
        bins: [2 + nodes, N], hits, and the logarithm of the confidence as it is and at all temperatures; [0, N] where
            examples have several rows. weights: [N], how many rows; None where each is one.
    """

    nll: Floats
    bins: Floats
    weights: Floats | None


class Curves:
    """NLL and confidence of N examples as functions of log T, in units of the range: from -1 to 1."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.nll = np.concatenate([piece.nll for piece in pieces], axis=1)
        bins = [piece.bins for piece in pieces if len(piece.bins)]
        self.bins = np.concatenate(bins, axis=1) if bins else np.zeros((1 + len(self.nll), 0))
        weights = [piece.weights for piece in pieces if piece.weights is not None]
        self.weights = np.concatenate(weights) if weights else None
        self.known: NDArray[np.bool_] = np.asarray(np.isfinite(self.nll).all(0))

    @cached_property
    def series(self) -> Floats:
        """[nodes, N], Chebyshev series of each example's NLL; NaN of those that have none."""
        series: Floats = _to_series(len(self.nll) - 1) @ np.where(self.known, self.nll[1:], np.nan)
        return series

    @property
    def trusted(self) -> bool:
        """Whether the curves pass through what is known at a temperature of 1."""
        missed = self.mean(chebyshev.chebval(0.0, self.series) - self.nll[0], self.known)
        return bool(abs(missed) <= TRUSTED)

    def best(self, examples: NDArray[np.bool_]) -> float:
        """Where the mean NLL of some examples is least: it is convex in 1 / T."""
        mean = self.mean(self.series, examples)
        least = optimize.minimize_scalar(
            lambda place: chebyshev.chebval(place, mean), bounds=(-1, 1), options={"xatol": SHARP}
        )
        return float(least.x)

    def mean(self, values: Floats, examples: NDArray[np.bool_]) -> Floats:
        """Mean over the rows of some examples of values [..., N]."""
        weights = None if self.weights is None else self.weights[examples]
        means: Floats = np.average(values[..., examples], axis=-1, weights=weights)
        return means

    def crossed(self) -> list[float]:
        """Where NLL is least for the examples that are not in a fold, fold by fold."""
        folds = np.arange(len(self.known)) % FOLDS
        return [self.best(self.known & (folds != fold)) for fold in range(FOLDS)]

    def column(self, values: Floats) -> Column:
        """Column of values [N]."""
        return Column(values, weights=self.weights)


def scaled(curves: Curves, place: float) -> Temperature:
    """The temperature at `place`, with its interval, and what cross-fitted ones change."""
    crossed = curves.crossed()
    after = _under(curves.series, crossed)
    before = curves.column(np.asarray(chebyshev.chebval(0.0, curves.series), dtype=float))
    paired = compare("nll", ("before", before), ("after", curves.column(after)), unit="nats", shared_masks=False)
    half = None if abs(place) > EDGE else _half_width(curves, place)
    return Temperature(
        temperature=exp(SPAN * place),
        low=None if half is None else exp(SPAN * place - half),
        high=None if half is None else exp(SPAN * place + half),
        nll_before=_metric(before),
        nll_after=_metric(curves.column(after)),
        nll_difference=Metric(
            estimate=paired.difference, low=paired.low, high=paired.high, unit="nats", n=paired.n, level=paired.level
        ),
        ece_before=_ece(curves.bins, curves.bins[1]),
        ece_after=_ece(curves.bins, _under(_to_series(len(curves.nll) - 1) @ curves.bins[2:], crossed)),
        p_value=paired.p_value,
    )


def _metric(column: Column) -> Metric:
    column.floor = 0.0
    return metric(column, unit="nats", shared_masks=False)


def _under(series: Floats, crossed: Sequence[float]) -> Floats:
    """Values [N] of series [nodes, N], of each fold's examples at a place of their own."""
    values = np.empty(series.shape[1])
    for fold, place in enumerate(crossed):
        values[fold::FOLDS] = chebyshev.chebval(place, series[:, fold::FOLDS])
    return values


def _half_width(curves: Curves, place: float) -> float | None:
    """Half the interval of log T."""
    slopes = np.asarray(chebyshev.chebval(place, chebyshev.chebder(curves.series)) / SPAN, dtype=float)
    curvature = (
        float(chebyshev.chebval(place, chebyshev.chebder(curves.mean(curves.series, curves.known), 2))) / SPAN**2
    )
    column = curves.column(slopes).linearised()
    spread = sample_spread(column.values[column.finite], df=column.df)
    if spread.df <= 0 or not curvature > 0:
        return None
    return float(stats.t.ppf(0.5 + LEVEL / 2, spread.df)) * sqrt(spread.variance) / curvature


def _ece(bins: Floats, log_confidence: Floats) -> float | None:
    """ECE of confidences [N]; None where it is not known for each row."""
    hit = bins[0]
    known = np.isfinite(hit)
    if not known.any():
        return None
    confidence = np.exp(np.minimum(log_confidence[known], 0.0))
    index = np.clip(np.ceil(confidence * BINS), 1, BINS).astype(int)
    return float(np.abs(np.bincount(index, confidence - hit[known])).sum() / known.sum())
