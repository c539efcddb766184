"""How often the 95% intervals hold the truth, by simulation: 93-97% is promised.

Two kinds of row fall short, and are here to be seen: the divergence of the mean model, so skewed over examples
and masks that a t interval needs more of both (`--examples 400`); and pairs taken for samples, at the end.

Usage: python benchmarks/coverage.py [--simulations 2000] [--seed 0]

The world is a linear classifier with dropout on its features: z = W (h * m / keep), with random h of uneven
norm as examples and real masks m, drawn per example or shared. Examples go through the estimators of the
package (block sums, jackknife, intervals); the truth comes from many more draws of the same world. Groups of
training seeds are simulated as what they are to the package: a number a seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import exp

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rdrop_probes.block_sums import BlockSums
from rdrop_probes.columns import Column
from rdrop_probes.distributions import Distributions, EvalBatch
from rdrop_probes.gap import Gap
from rdrop_probes.groups import Arm, compare_arms, group_result
from rdrop_probes.jackknife import Jackknife
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.probe import SubModelProbe
from rdrop_probes.records import CheckpointResult, Metric
from rdrop_probes.statistics import compare, metric, upper_bound

FEATURES, CLASSES, KEEP = 32, 5, 0.8
PART = 100  # simulations at a time
METRICS = ("epkl", "mutual_information", "kl_sub_to_eval", "kl_mean_to_eval", "flip_rate")


@dataclass
class World:
    """Two linear classifiers (reference, candidate) and the distribution of their examples."""

    generator: torch.Generator
    weights: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        first = self._normal(FEATURES, CLASSES) * 0.35
        self.weights = first, 0.8 * first + 0.05 * self._normal(FEATURES, CLASSES)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def examples(self, n: int) -> Tensor:
        """Features [n, FEATURES] of random norm."""
        return self._normal(n, FEATURES).relu() * (0.3 * self._normal(n, 1)).exp()

    def masks(self, sub_models: int, simulations: int, n: int, *, shared: bool) -> Tensor:
        """Masks [K, simulations * n, FEATURES] with mean 1; shared: the same for the n of a simulation."""
        shape = (sub_models, simulations, 1 if shared else n, FEATURES)
        drawn = torch.empty(shape, dtype=torch.float64).bernoulli_(KEEP, generator=self.generator) / KEEP
        return drawn.expand(-1, -1, n, -1).reshape(sub_models, simulations * n, FEATURES)


def jackknives(h: Tensor, masks: Tensor, weights: Tensor) -> dict[str, Jackknife]:
    """Jackknives of the metrics for examples h [N, F] under masks [K, N, F], as the engine makes them."""
    logits = (h * masks) @ weights
    batch = EvalBatch(0, None, h @ weights, ruled_out=False)
    probes: tuple[SubModelProbe, ...] = PairwiseKL(), Gap()
    sums = BlockSums(dict.fromkeys(t for p in probes for t in p.terms), *logits.shape, exact=False)
    sums.add(0, Distributions(batch, logits, exact=False))
    found = {name: j for p in probes for name, j in p.jackknife(batch, sums).items()}
    return {name: found[name] for name in METRICS}


def columns(jackknives: dict[str, Jackknife], rows: slice) -> dict[str, Column]:
    """Columns of the examples in `rows`: one simulation."""
    corrected = PairwiseKL.bias_corrected | Gap.bias_corrected
    return {
        name: Jackknife(j.full[rows], j.without[:, rows], j.sizes).column(
            corrected=name in corrected, proportion=name in Gap.proportions
        )
        for name, j in jackknives.items()
    }


def truth(world: World, h: Tensor, sub_models: int = 64) -> list[dict[str, float]]:
    """Means over the examples h of every metric under both classifiers, from many sub-models each."""
    totals: list[dict[str, float]] = [dict.fromkeys(METRICS, 0.0) for _ in world.weights]
    for part in h.split(2000):
        masks = world.masks(sub_models, 1, len(part), shared=False)
        for total, weights in zip(totals, world.weights, strict=True):
            found = columns(jackknives(part, masks, weights), slice(None))
            for name, column in found.items():
                total[name] += float(column.values.sum()) / len(h)
    return totals


def simulations(
    world: World, count: int, n: int, sub_models: int, *, shared: bool, fixed: Tensor | None = None
) -> Iterator[tuple[dict[str, Column], dict[str, Column]]]:
    """Columns of both classifiers, `count` times; on the examples `fixed` [n, F], or on new ones each time."""
    for start in range(0, count, PART):
        size = min(PART, count - start)
        h = world.examples(size * n) if fixed is None else fixed.repeat(size, 1)
        masks = world.masks(sub_models, size, n, shared=shared)
        both = [jackknives(h, masks, weights) for weights in world.weights]
        for s in range(size):
            rows = slice(s * n, (s + 1) * n)
            yield columns(both[0], rows), columns(both[1], rows)


class Score:
    """Hits and mean width of each kind of interval."""

    def __init__(self) -> None:
        self.hits: dict[str, list[bool]] = {}
        self.widths: dict[str, list[float]] = {}

    def note(self, kind: str, low: float | None, high: float | None, true: float) -> None:
        """Count one interval; one that cannot be given counts as a miss."""
        if low is None or high is None:
            low = high = np.nan
        self.hits.setdefault(kind, []).append(low <= true <= high)
        self.widths.setdefault(kind, []).append(high - low)

    def coverage(self) -> dict[str, float]:
        """Share of intervals that hold the truth, by kind."""
        return {kind: float(np.mean(hits)) for kind, hits in self.hits.items()}


def new_data(world: World, count: int, n: int, sub_models: int, *, shared: bool, true: list[dict[str, float]]) -> Score:
    """Intervals for new data: each metric, and the paired difference and ratio of EPKL."""
    score = Score()
    for ref, cand in simulations(world, count, n, sub_models, shared=shared):
        for name, column in ref.items():
            found = metric(column, unit="", shared_masks=shared)
            score.note(name, found.low, found.high, true[0][name])
        bound = upper_bound(ref["epkl"], unit="", shared_masks=shared)
        score.note("constraint_epsilon", -np.inf, bound.estimate, true[0]["epkl"])
        for name in ("epkl", "kl_mean_to_eval"):
            versus = compare(name, ("ref", ref[name]), ("cand", cand[name]), unit="", shared_masks=shared)
            score.note(f"{name} difference", versus.low, versus.high, true[1][name] - true[0][name])
            score.note(f"{name} ratio", versus.ratio_low, versus.ratio_high, true[1][name] / true[0][name])
    return score


def this_test_set(world: World, count: int, h: Tensor, sub_models: int, *, shared: bool) -> Score:
    """Mask-only intervals for the examples h."""
    true = truth(world, h, sub_models=20000 // len(h) * 20)[0]
    score = Score()
    for ref, _ in simulations(world, count, len(h), sub_models, shared=shared, fixed=h):
        for name, column in ref.items():
            found = metric(column, unit="", shared_masks=shared)
            score.note(name, found.mask_low, found.mask_high, true[name])
    return score


def constraint(rng: np.random.Generator, count: int, n: int) -> Score:
    """How often the bound of the constraint holds for n examples whose EPKL is skewed, more and more."""
    score = Score()
    for name, draw, true in (
        ("gamma, skewness 3 (as on digits)", lambda: rng.gamma(0.44, 1 / 0.44, n), 1.0),
        ("lognormal, sigma 1", lambda: rng.lognormal(0, 1, n), exp(0.5)),
        ("lognormal, sigma 1.5", lambda: rng.lognormal(0, 1.5, n), exp(1.125)),
    ):
        for _ in range(count):
            found = upper_bound(Column(draw()), unit="", shared_masks=False)
            score.note(name, -np.inf, found.estimate, true)
    return score


def pairs_as_samples(world: World, count: int, sub_models: int) -> float:
    """Coverage of mean +- 1.96 sd / sqrt(K (K - 1)) over the pairs of one example: what not to do."""
    h = world.examples(1)
    true = truth(world, h, sub_models=20000)[0]["epkl"]
    logits = (h * world.masks(sub_models, count, 1, shared=False)) @ world.weights[0]  # [K, count, C]
    log_p = torch.log_softmax(logits, -1).movedim(1, 0)
    p = log_p.exp()
    kl = (p * log_p).sum(-1)[:, :, None] - p @ log_p.mT  # [count, K, K]
    pairs = kl.flatten(1)[:, ~torch.eye(sub_models, dtype=torch.bool).flatten()]
    half = 1.96 * pairs.std(1) / pairs.shape[1] ** 0.5
    return float(((pairs.mean(1) - true).abs() <= half).double().mean())


def training_runs(rng: np.random.Generator, count: int, *, paired: bool, seeds: tuple[int, int]) -> Score:
    """Intervals over training seeds: the mean of a group, the difference and the ratio of two.

    A seed moves both arms where they are paired; the candidate varies half as much.
    """
    score, truth_of = Score(), (0.10, 0.07)
    for _ in range(count):
        common = 0.01 * rng.standard_normal(max(seeds)) * paired
        arms = [
            _arm(name, mean + common[:n] + scale * rng.standard_normal(n), named=paired)
            for name, mean, n, scale in zip("ab", truth_of, seeds, (0.01, 0.005), strict=True)
        ]
        group, (versus,) = group_result(arms[0]).metrics["epkl"], compare_arms(*arms)
        score.note("epkl of a group", group.low, group.high, truth_of[0])
        score.note("epkl difference", versus.low, versus.high, truth_of[1] - truth_of[0])
        score.note("epkl ratio", versus.ratio_low, versus.ratio_high, truth_of[1] / truth_of[0])
    return score


def _arm(name: str, values: NDArray[np.float64], *, named: bool) -> Arm:
    members = [
        CheckpointResult(
            name=f"{name}{seed}", path=None, sha256=None, n_parameters=0, architecture="",
            metrics={"epkl": Metric(estimate=float(value), unit="nats")},
        )
        for seed, value in enumerate(values)
    ]  # fmt: skip
    return Arm(name, members, [float(seed) if named else None for seed in range(len(values))])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Coverage of the intervals, by simulation.")
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--sub-models", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    count, n, k = options.simulations, options.examples, options.sub_models
    world = World(torch.Generator().manual_seed(options.seed))
    true = truth(world, world.examples(100_000))
    print(f"{count} simulations, {n} examples, {k} sub-models; standard error {100 * (0.0475 / count) ** 0.5:.1f}%")
    for shared in (False, True):
        masks = "shared masks" if shared else "masks per example"
        _show(f"new data, {masks}", new_data(world, count, n, k, shared=shared, true=true))
        _show(f"this test set, {masks}", this_test_set(world, count, world.examples(n), k, shared=shared))
    rng = np.random.default_rng(options.seed)
    for seeds in ((3, 3), (5, 5)):
        _show(f"training runs, {seeds[0]} paired seeds", training_runs(rng, count, paired=True, seeds=seeds))
    for seeds in ((3, 3), (3, 5), (5, 5)):
        _show(f"training runs, {seeds[0]} and {seeds[1]} seeds", training_runs(rng, count, paired=False, seeds=seeds))
    for examples in (30, 100, 450):
        _show(f"constraint_epsilon, {examples} examples", constraint(rng, count, examples))
    for sub_models in (8, 16, 32):
        print(f"{'pairs as samples (wrong)':36} {f'epkl, K = {sub_models}':32}", end="")
        print(f"{100 * pairs_as_samples(world, count, sub_models):6.1f}%")


def _show(kind: str, score: Score) -> None:
    for name, share in score.coverage().items():
        widths = np.array(score.widths[name])
        missing = f", not given in {100 * np.isnan(widths).mean():.1f}%" if np.isnan(widths).any() else ""
        width = "one-sided" if np.isinf(widths).any() else f"mean width {np.nanmean(widths):.2g}"
        print(f"{kind:36} {name:32}{100 * share:6.1f}%   {width}{missing}")


if __name__ == "__main__":
    main()
