from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from rdrop_probes.groups import NO_TEST, PAIRED, WELCH, Arm, compare_arms, group_result, hedges_g
from rdrop_probes.rankings import rankings, spearman
from rdrop_probes.records import CheckpointResult, Metric
from rdrop_probes.seeds import bound_over_seeds, over_seeds


def checkpoint(name: str, **estimates: float | None) -> CheckpointResult:
    metrics = {metric: Metric(estimate=value, unit="nats") for metric, value in estimates.items()}
    return CheckpointResult(
        name=name, path=None, sha256=None, n_parameters=1, architecture="", metrics=metrics
    )  # fmt: skip


def arm(name: str, values, seeds=None, metric: str = "epkl") -> Arm:
    members = [checkpoint(f"{name}{i}", **{metric: float(value)}) for i, value in enumerate(values)]
    return Arm(name, members, [None] * len(members) if seeds is None else list(seeds))


def test_the_mean_over_seeds_has_students_interval():
    values = np.random.default_rng(0).normal(2, 1, 5)
    found = over_seeds(values.tolist(), unit="nats")
    half = stats.t.ppf(0.975, 4) * values.std(ddof=1) / sqrt(5)
    assert found.estimate == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert (found.n, found.unit) == (5, "nats")


@pytest.mark.parametrize("values", [[0.3], [0.3, 0.3, 0.3], [0.3, None, float("nan")]])
def test_without_a_spread_over_seeds_there_is_no_interval(values):
    found = over_seeds(values)
    assert found.estimate == pytest.approx(0.3)
    assert found.low is found.high is None


def test_intervals_keep_within_what_a_metric_can_be():
    found = over_seeds([0.9, 0.99], within=(0.0, 1.0))
    assert found.high == 1.0
    assert over_seeds([], within=(0.0, 1.0)).estimate is None


def test_groups_have_every_metric_over_their_seeds():
    members = [checkpoint("a", epkl=0.1, nll=None), checkpoint("b", epkl=0.2, nll=1.0)]
    found = group_result(Arm("both", members, [0, 1], {"epkl": (0.0, 1.0)}))
    assert found.members == ["a", "b"]
    assert {name: metric.n for name, metric in found.metrics.items()} == {"epkl": 2, "nll": 1}
    assert found.metrics["epkl"].low == 0.0


@pytest.mark.parametrize(("within", "most"), [((0.0, 1.0), 1.0), ((-1.0, 1.0), 2.0), ((0.0, np.inf), np.inf)])
@pytest.mark.parametrize("seeds", [None, [0, 1]])
def test_a_difference_over_seeds_is_within_what_the_metric_can_be(within, most, seeds):
    arms = [replace(arm("a", values, seeds), ranges={"epkl": within}) for values in ([0.1, 0.9], [0.95, 0.2])]
    (found,) = compare_arms(*arms)
    free = compare_arms(*(replace(one, ranges={}) for one in arms))[0]
    assert free.low < -2 < 2 < free.high
    assert (found.low, found.high) == (max(free.low, -most), min(free.high, most))


def test_the_constraint_of_a_group_is_the_bound_of_its_mean_over_seeds_and_is_not_compared():
    members = [checkpoint(f"m{i}", epkl=x, constraint_epsilon=2 * x) for i, x in enumerate((0.1, 0.2, 0.4))]
    values = np.array([0.1, 0.2, 0.4])
    whole, alone = Arm("all", members, [0, 1, 2]), Arm("one", members[:1], [0])
    found = group_result(whole).metrics["constraint_epsilon"]
    bound = values.mean() + stats.t.ppf(0.95, 2) * values.std(ddof=1) / sqrt(3)
    assert (found.estimate, found.low, found.high) == (pytest.approx(bound), None, None)
    assert (found.unit, found.n) == ("nats", 3)
    assert group_result(alone).metrics["constraint_epsilon"].estimate is None
    assert group_result(Arm("alike", [members[0]] * 3, [0, 1, 2])).metrics["constraint_epsilon"].estimate is None
    assert [c.metric for c in compare_arms(whole, alone)] == ["epkl"]


def test_the_bound_of_the_mean_over_seeds_holds_as_often_as_it_says():
    rng, repeats, n = np.random.default_rng(7), 4000, 3
    hits = sum((bound_over_seeds(rng.normal(2, 1, n).tolist()).estimate or 0) >= 2 for _ in range(repeats))
    assert abs(hits / repeats - 0.95) / sqrt(0.95 * 0.05 / repeats) < 4


def test_arms_of_the_same_seeds_are_paired_in_whatever_order():
    rng = np.random.default_rng(1)
    a, b = rng.normal(2, 1, 4), rng.normal(1, 1, 4)
    (found,) = compare_arms(arm("a", a, [0, 1, 2, 3]), arm("b", b[[2, 0, 3, 1]], [2, 0, 3, 1]))
    expected = stats.ttest_rel(b, a)
    interval = expected.confidence_interval()
    assert found.test == PAIRED
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high, found.n) == (pytest.approx(interval.low), pytest.approx(interval.high), 4)


@pytest.mark.parametrize("seeds", [(None, None), ([0, 1, 2], [1, 2, 3, 4]), ([0, 0, 1], [0, 0, 1, 1])])
def test_other_arms_are_compared_by_welch(seeds):
    rng = np.random.default_rng(2)
    a, b = rng.normal(2, 1, 3), rng.normal(1, 3, 4)
    (found,) = compare_arms(arm("a", a, seeds[0]), arm("b", b, seeds[1]))
    expected = stats.ttest_ind(b, a, equal_var=False)
    assert found.test == WELCH
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.difference == pytest.approx(b.mean() - a.mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.n == 7


@pytest.mark.parametrize("paired", [True, False])
def test_the_ratio_has_the_interval_of_the_delta_method(paired):
    rng = np.random.default_rng(3)
    a, b = rng.uniform(1, 1.2, 5), rng.uniform(0.5, 0.6, 5)
    (found,) = compare_arms(arm("a", a, range(5)), arm("b", b, range(5) if paired else range(5, 10)))
    relative_a, relative_b = a / a.mean(), b / b.mean()
    if paired:
        variance, df = (relative_b - relative_a).var(ddof=1) / 5, 4.0
    else:
        parts = np.array([relative_a.var(ddof=1) / 5, relative_b.var(ddof=1) / 5])
        variance, df = parts.sum(), parts.sum() ** 2 / (parts**2 / 4).sum()
    half = stats.t.ppf(0.975, df) * sqrt(variance)
    assert found.ratio == pytest.approx(b.mean() / a.mean())
    assert (np.log(found.ratio_low), np.log(found.ratio_high)) == pytest.approx(
        (np.log(found.ratio) - half, np.log(found.ratio) + half)
    )


@pytest.mark.parametrize(
    ("a", "b"), [([0.2], [0.1, 0.3]), ([0.2] * 2, [0.1] * 2), ([0.2], [0.1]), ([0.97] * 3, [0.96, 0.97, 0.98])]
)
def test_nothing_is_tested_where_the_spread_of_seeds_is_not_known(a, b):
    (found,) = compare_arms(arm("a", a), arm("b", b))
    assert found.test == NO_TEST
    assert found.low is found.high is found.p_value is found.p_adjusted is found.ratio_low is None
    assert (found.effect_size is None) == (len(a) < 3)
    assert found.difference == pytest.approx(np.mean(b) - np.mean(a))


def test_p_values_are_adjusted_over_the_metrics_that_both_have_in_one_unit():
    rng = np.random.default_rng(4)
    members = [
        [checkpoint(f"{x}{i}", **dict(zip("abc", rng.normal(size=3), strict=True))) for i in range(3)] for x in "xy"
    ]
    found = compare_arms(Arm("x", members[0], [None] * 3), Arm("y", members[1], [None] * 3))
    expected = stats.false_discovery_control([c.p_value for c in found])
    assert [c.p_adjusted for c in found] == pytest.approx(expected.tolist())
    other = Arm("z", [CheckpointResult(name="z", path=None, sha256=None, n_parameters=1, architecture="",
                                       metrics={"a": Metric(estimate=1.0, unit="bits")})], [None])  # fmt: skip
    assert compare_arms(Arm("x", members[0], [None] * 3), other) == []


def test_what_depends_on_the_number_of_sub_models_is_not_compared_over_seeds_that_differ_in_it():
    def counted(name: str, counts: list[int | None]) -> Arm:
        members = [replace(checkpoint(name, epkl=0.1 * i, nll_mean=0.2 * i), sub_models=k)
                   for i, k in enumerate(counts)]  # fmt: skip
        return Arm(name, members, [None] * len(members))

    def compared(ours: list[int | None], theirs: list[int | None]) -> list[str]:
        return [c.metric for c in compare_arms(counted("a", ours), counted("b", theirs))]

    assert compared([8, 8], [8, None]) == ["epkl", "nll_mean"]
    assert compared([8, 8], [16, 16]) == compared([8, 16], [8, 16]) == ["epkl"]


def test_hedges_g_is_unbiased_where_cohens_d_is_not():
    rng, n, repeats, truth = np.random.default_rng(5), 3, 4000, 1.0
    found = np.array([hedges_g(rng.normal(0, 1, n), rng.normal(truth, 1, n)) for _ in range(repeats)])
    error = found.std(ddof=1) / sqrt(repeats)
    assert abs(found.mean() - truth) / error < 4
    assert abs(found.mean() / (1 - 3 / (4 * 4 - 1)) - truth) / error > 4  # Cohen's d


@pytest.mark.parametrize(
    ("paired", "sizes", "scales"),
    [(True, (3, 3), (1, 1)), (True, (5, 5), (1, 4)), (False, (3, 3), (1, 1)), (False, (5, 3), (1, 1))],
)
def test_intervals_over_seeds_cover(paired, sizes, scales):
    repeats, truth, hits = 1000, 0.7, 0
    rng = np.random.default_rng(6)
    for _ in range(repeats):
        common = rng.normal(0, 2, sizes[0]) if paired else 0.0
        a = 3 + common + rng.normal(0, scales[0], sizes[0])
        b = 3 + truth + common + rng.normal(0, scales[1], sizes[1])
        seeds = (range(sizes[0]), range(sizes[1])) if paired else (None, None)
        (found,) = compare_arms(arm("a", a, seeds[0]), arm("b", b, seeds[1]))
        hits += found.low <= truth <= found.high
    coverage, error = hits / repeats, sqrt(0.95 * 0.05 / repeats)
    if paired:  # exact under normality
        assert abs(coverage - 0.95) / error < 4
    else:  # Welch's is an approximation: 93 to 97% is what is claimed
        assert 0.93 - 4 * error < coverage < 0.97 + 4 * error


@pytest.mark.parametrize("n", [3, 4, 6])
def test_rank_correlations_are_tested_against_every_permutation(n):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=n), np.round(rng.normal(size=n), 1)
    correlation, p_value = spearman(x.tolist(), y.tolist())
    every = [stats.spearmanr(x, np.array(order)).statistic for order in permutations(y)]
    assert correlation == pytest.approx(stats.spearmanr(x, y).statistic)
    assert p_value == pytest.approx(np.mean(np.abs(every) >= abs(correlation) - 1e-9))


def test_rankings_are_of_proxies_over_at_least_three_checkpoints():
    rows = [(0.1, 1.0, 5.0), (0.2, 2.0, 5.0), (0.3, 3.0, 5.0), (0.4, 4.0, 5.0)]
    checkpoints = [
        checkpoint(f"c{i}", epkl=e, jacobian_fisher=j, kl_sub_to_eval=k, nll_eval=1.0)
        for i, (e, j, k) in enumerate(rows)
    ]
    found = {r.metric: r for r in rankings(checkpoints)}
    assert set(found) == {"jacobian_fisher", "kl_sub_to_eval"}
    assert found["jacobian_fisher"].correlation == pytest.approx(1.0)
    assert found["jacobian_fisher"].p_value == pytest.approx(2 / 24)
    assert found["kl_sub_to_eval"].correlation is None
    assert rankings(checkpoints[:2]) == []
    described = {r.metric: r for r in rankings(checkpoints, clustered=True)}
    assert (described["jacobian_fisher"].correlation, described["jacobian_fisher"].p_value) == (pytest.approx(1), None)


def test_many_checkpoints_are_ranked_without_permutations():
    rng = np.random.default_rng(9)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    assert spearman(x.tolist(), y.tolist()) == pytest.approx(tuple(stats.spearmanr(x, y)))
