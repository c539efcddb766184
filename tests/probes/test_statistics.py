"""Intervals, tests and ratios against formulas written out, scipy and the bootstrap."""

from dataclasses import replace
from math import isnan, log, sqrt

import numpy as np
import pytest
from scipy import stats

from rdrop_probes.columns import Column
from rdrop_probes.records import Comparison
from rdrop_probes.statistics import adjust, block_spread, compare, metric, ratio_column


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def compared(a, b, *, shared=False, **columns):
    ref, cand = columns.get("ref", Column(a)), columns.get("cand", Column(b))
    return compare("epkl", ("ref", ref), ("cand", cand), unit="nats", shared_masks=shared)


def test_the_interval_for_new_data_is_students_over_examples(rng):
    values = rng.exponential(size=40)
    values[[3, 8]] = np.nan, np.inf
    kept = values[np.isfinite(values)]
    found = metric(Column(values), unit="nats", shared_masks=False)
    expected = stats.t.interval(0.95, 37, kept.mean(), stats.sem(kept))
    assert (found.n, found.estimate) == (38, pytest.approx(kept.mean()))
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.mask_low, found.mask_high) == (None, None)


def test_the_interval_for_these_examples_adds_their_mask_variances(rng):
    values, variances = rng.normal(size=30), rng.exponential(size=30)
    column = Column(values, variances, np.zeros(8), 30)
    found = metric(column, unit="nats", shared_masks=False)
    df = 7 * variances.sum() ** 2 / (variances**2).sum()  # Satterthwaite
    half = stats.t.ppf(0.975, df) * sqrt(variances.sum()) / 30
    assert (found.mask_low, found.mask_high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_with_shared_masks_both_samples_add_up(rng):
    n, k = 50, 12
    table = rng.normal(size=(n, 1)) + rng.normal(size=(1, k)) + rng.normal(size=(n, k))  # crossed effects
    without = np.stack([np.delete(table, i, 1).mean(1) for i in range(k)])
    column = Column(table.mean(1), table.var(1, ddof=1) / k, without.sum(1), n)
    found = metric(column, unit="nats", shared_masks=True)
    examples = table.mean(1).var(ddof=1) / n
    masks = table.mean(0).var(ddof=1) / k
    twice = (table.var(1, ddof=1) / k).sum() / n**2
    df = (examples + masks) ** 2 / (examples**2 / (n - 1) + masks**2 / (k - 1))
    half = stats.t.ppf(0.975, df) * sqrt(examples + masks - twice)
    assert found.high - found.estimate == pytest.approx(half)
    assert found.mask_high - found.estimate == pytest.approx(stats.t.ppf(0.975, k - 1) * sqrt(masks))


def test_a_block_spread_is_the_jackknife_of_the_mean(rng):
    x = rng.normal(size=9)
    found = block_spread(np.array([np.delete(x, i).mean() for i in range(9)]))
    assert (found.variance, found.df) == (pytest.approx(x.var(ddof=1) / 9), 8)


@pytest.mark.parametrize("hits", [0, 1, 37, 40])
def test_shares_of_hits_have_wilsons_interval(hits):
    n = 40
    values = np.repeat([1.0, 0.0], [hits, n - hits])
    found = metric(Column(values, proportion=True), unit="", shared_masks=False)
    p, z = hits / n, stats.norm.ppf(0.975)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_divergences_that_are_all_zero_are_not_taken_for_shares_of_hits():
    found = metric(Column(np.zeros(40), np.zeros(40), np.zeros(8), 40), unit="nats", shared_masks=False)
    assert (found.estimate, found.low, found.high, found.mask_low, found.mask_high) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("shared", [False, True])
def test_one_example_has_an_estimate_and_no_interval_for_new_data(shared):
    column = Column(np.array([0.3]), np.array([0.01]), np.array([0.31, 0.29, 0.3]), 1)
    found = metric(column, unit="nats", shared_masks=shared)
    assert (found.n, found.estimate, found.low, found.high) == (1, 0.3, None, None)
    assert found.mask_low < 0.3 < found.mask_high
    versus = compared(None, None, ref=column, cand=column, shared=shared)
    assert (versus.n, versus.difference, versus.low, versus.p_value, versus.ratio_low) == (1, 0, None, None, None)
    assert versus.ratio == 1


@pytest.mark.parametrize("values", [[], [np.nan, np.inf]])
@pytest.mark.parametrize("shared", [False, True])
def test_no_example_has_nothing(values, shared):
    column = Column(np.array(values), np.array(values), np.zeros(3), 0)
    found = metric(column, unit="nats", shared_masks=shared)
    assert (found.n, found.estimate, found.low, found.mask_low) == (0, None, None, None)
    versus = compared(None, None, ref=column, cand=column, shared=shared)
    assert (versus.n, versus.difference, versus.low, versus.ratio, versus.p_value) == (0, None, None, None, None)


def test_equal_values_have_an_interval_of_no_width():
    found = metric(Column(np.full(5, 0.7)), unit="nats", shared_masks=False)
    assert (found.low, found.high) == pytest.approx((0.7, 0.7))


def test_an_interval_ends_at_the_floor(rng):
    found = metric(Column(rng.normal(0.1, 1, size=10), floor=0.0), unit="", shared_masks=False)
    assert found.low == 0.0


def test_a_comparison_is_the_paired_t_test(rng):
    a = rng.exponential(size=50)
    b = 0.7 * a + 0.1 * rng.normal(size=50)
    found = compared(a, b)
    expected = stats.ttest_rel(b, a)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.difference == pytest.approx((b - a).mean())
    assert found.test == "paired t test"


def test_swapping_reference_and_candidate_turns_the_sign_and_inverts_the_ratio(rng):
    n, k = 40, 10
    columns = []
    for scale in (1.0, 0.6):
        table = scale * rng.exponential(size=(n, k))
        without = np.array([np.delete(table, i, 1).mean(1).sum() for i in range(k)])
        columns.append(Column(table.mean(1), table.var(1, ddof=1) / k, without, n))
    for shared in (False, True):
        there = compared(None, None, ref=columns[0], cand=columns[1], shared=shared)
        back = compared(None, None, ref=columns[1], cand=columns[0], shared=shared)
        assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
        assert back.p_value == pytest.approx(there.p_value)
        inverted = (1 / there.ratio, 1 / there.ratio_high, 1 / there.ratio_low)
        assert (back.ratio, back.ratio_low, back.ratio_high) == pytest.approx(inverted)
        assert there.ratio_low < there.ratio < there.ratio_high


def test_the_interval_of_a_ratio_is_the_bootstraps(rng):
    a = rng.exponential(size=300)
    b = 0.5 * a + 0.2 * rng.exponential(size=300)
    found = compared(a, b)
    draws = rng.integers(0, 300, size=(4000, 300))
    logs = np.log(b[draws].mean(1) / a[draws].mean(1))
    width = log(found.ratio_high) - log(found.ratio_low)
    # 4000 draws know a standard deviation to 1.1%, the delta method errs by a few times 1 / 300
    assert width / (2 * stats.t.ppf(0.975, 299)) == pytest.approx(logs.std(), rel=0.05)


def test_a_ratio_column_spreads_like_the_bootstrapped_ratio(rng):
    b = rng.exponential(size=400)
    a = 1.3 * b + 0.3 * rng.normal(size=400)
    column = ratio_column(Column(a), Column(b))
    assert column.values.mean() == pytest.approx(a.mean() / b.mean())
    draws = rng.integers(0, 400, size=(4000, 400))
    bootstrapped = (a[draws].mean(1) / b[draws].mean(1)).std()
    assert column.values.std() / 20 == pytest.approx(bootstrapped, rel=0.05)  # as above
    assert not column.tabulated


def test_a_ratio_column_leaves_out_what_either_side_lacks(rng):
    a, b = rng.exponential(size=(2, 6))
    a[1], b[4] = np.inf, np.nan
    column = ratio_column(Column(a), Column(b))
    assert column.finite.tolist() == [True, False, True, True, False, True]
    assert column.values[column.finite].mean() == pytest.approx(a[[0, 2, 3, 5]].mean() / b[[0, 2, 3, 5]].mean())


@pytest.mark.parametrize("denominator", [np.zeros(3), -np.ones(3), np.full(3, np.nan)])
def test_there_is_no_ratio_to_a_mean_that_is_not_positive(denominator):
    assert ratio_column(Column(np.ones(3)), Column(denominator)) is None


def test_examples_without_a_value_on_either_side_are_left_out_of_the_comparison(rng):
    a, b = rng.exponential(size=(2, 20))
    a[0], b[1] = np.inf, np.nan
    found = compared(a, b)
    expected = compared(a[2:], b[2:])
    assert found == expected
    assert found.n == 18


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 0.0)])
def test_a_ratio_needs_two_means_of_one_sign(a, b, rng):
    noise = rng.normal(size=10)
    noise -= noise.mean()
    found = compared(a + (noise if a else 0 * noise), b + (noise if b else 0 * noise))
    assert (found.ratio, found.ratio_low, found.ratio_high) == (None, None, None)
    assert found.difference == pytest.approx(b - a)


def test_a_ratio_of_bias_corrected_metrics_is_as_wide_as_their_corrected_means_ask_for(rng):
    """Leave-out means hold the bias that the values have lost: only their differences may count."""
    n, k = 30, 8
    ref, cand = (0.1 * rng.normal(size=k) for _ in range(2))
    values = 1.0 + 1e-3 * rng.normal(size=n)

    def columns(bias):
        return [Column(values, np.zeros(n), n * (bias + leave_out), n) for leave_out in (ref, cand)]

    widths = []
    for bias in (1.0, 5.0):
        a, b = columns(bias)
        found = compared(None, None, ref=a, cand=b, shared=True)
        widths.append(log(found.ratio_high / found.ratio_low))
    assert widths[0] == pytest.approx(widths[1])
    assert widths[0] == pytest.approx(2 * stats.t.ppf(0.975, k - 1) * sqrt(block_spread(cand - ref).variance), rel=0.01)


def test_a_metric_without_dropout_is_compared_by_the_paired_test_under_shared_masks_too(rng):
    a, b = rng.normal(size=(2, 20))
    assert compared(a, b, shared=True) == compared(a, b)


def test_columns_of_different_data_are_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        compared(np.zeros(3), np.zeros(4))


def with_p(p: float | None) -> Comparison:
    return replace(compared(np.arange(3.0), np.arange(3.0) ** 2), p_value=p)


def test_adjustment_is_benjamini_and_hochbergs(rng):
    ps = [*rng.uniform(size=7) ** 3, 0.04, 0.04]
    expected = []
    for p in ps:  # the least over larger p of m p' / rank(p')
        expected.append(min(len(ps) * q / sum(r <= q for r in ps) for q in ps if q >= p))
    found = adjust([with_p(ps[0]), with_p(None), *map(with_p, ps[1:])])
    assert found[1].p_adjusted is None
    assert [c.p_adjusted for i, c in enumerate(found) if i != 1] == pytest.approx([min(e, 1) for e in expected])


def test_nothing_to_adjust_is_left_alone():
    assert [c.p_adjusted for c in adjust([with_p(None)])] == [None]
    assert adjust([]) == []


def test_a_difference_that_never_varies_is_as_sure_as_the_sign_test_says():
    assert compared(np.zeros(5), np.ones(5)).p_value == pytest.approx(stats.binomtest(5, 5).pvalue)
    assert compared(np.ones(5), np.ones(5)).p_value == 1.0
    assert not isnan(compared(np.ones(5), np.ones(5)).ratio_low)


def test_two_models_that_never_disagreed_on_a_few_examples_may_still_disagree():
    hits = Column(np.array([1.0, 0.0, 1.0, 1.0]), proportion=True)
    found = compare("accuracy_eval", ("a", hits), ("b", hits), unit="", shared_masks=False)
    z = stats.norm.ppf(0.975)
    assert found.difference == 0
    assert found.high == -found.low == pytest.approx(z**2 / (4 + z**2))  # Wilson's bound for 0 of 4
    assert found.p_value == 1


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_share_that_no_example_departs_from_has_wilsons_interval_whatever_the_masks(shared, value):
    values = np.full(40, value)
    found = metric(Column(values, np.zeros(40), 40 * np.full(8, value), 40, proportion=True), unit="",
                   shared_masks=shared)  # fmt: skip
    wilson = stats.binomtest(int(values.sum()), 40).proportion_ci(0.95, method="wilson")
    assert (found.estimate, found.low, found.high) == (value, wilson.low, wilson.high)


@pytest.mark.parametrize("shared", [False, True])
def test_a_gap_between_shares_that_no_example_shows_may_still_be_there(shared):
    column = Column(np.zeros(4), np.zeros(4), np.zeros(8), 4, share_difference=True)
    z = stats.norm.ppf(0.975)
    bound = z**2 / (4 + z**2)  # Wilson's bound for 0 of 4
    found = metric(column, unit="", shared_masks=shared)
    assert (found.estimate, found.low, found.high) == (0, pytest.approx(-bound), pytest.approx(bound))
    versus = compared(None, None, ref=column, cand=column, shared=shared)
    assert (versus.low, versus.high) == pytest.approx((-2 * bound, 2 * bound))


def test_a_gap_between_shares_is_between_minus_1_and_1():
    found = metric(Column(np.array([1.0, 1.0, 0.0]), share_difference=True), unit="", shared_masks=False)
    assert (found.low, found.high) == (pytest.approx(2 / 3 - stats.t.ppf(0.975, 2) / 3), 1.0)


def test_a_difference_that_is_the_same_but_for_rounding_has_no_spread(rng):
    a = rng.normal(size=50)
    found = compared(a, a + 0.1)
    assert found.effect_size is None
    assert found.p_value == 2.0**-49
