"""The mean of m sub-models against plain loops over stored probabilities; its intervals by simulation."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from rdrop_probes.averaging import MOST_GROUPS, Averages, GaussianAverages
from rdrop_probes.averaging_curves import EVAL, curve_point, enough_passes
from rdrop_probes.block_sums import BlockSums
from rdrop_probes.calibration import BINS
from rdrop_probes.columns import plain
from rdrop_probes.distributions import Distributions, EvalBatch
from rdrop_probes.families import Gaussian
from rdrop_probes.gap import Gap
from rdrop_probes.mean_models import grouped, mean_models, mean_of
from rdrop_probes.mean_scores import CategoricalScoring
from rdrop_probes.regression import GaussianGap
from rdrop_probes.statistics import compare, metric

TERMS = CategoricalScoring.terms
N, K, C = 40, 16, 3
SIMULATIONS, EXAMPLES = 250, 60
MARGIN = 3 * (0.95 * 0.05 / SIMULATIONS) ** 0.5  # three binomial standard errors


def predictions(n=N, k=K, noise=1.5):
    z0 = torch.randn(n, C, dtype=torch.float64)
    z = z0 + noise * torch.randn(k, n, C, dtype=torch.float64)
    return z0, z, z0.softmax(-1).multinomial(1).squeeze(1)


def naive_scores(p, y):
    """NLL, hits and Brier score of probabilities [n, C], example by example."""
    each = [
        (-np.log(p[i, c]), float(p[i].argmax() == c), sum((p[i, j] - (j == c)) ** 2 for j in range(C)))
        for i, c in enumerate(y)
    ]
    return dict(zip(("nll", "accuracy", "brier"), np.array(each).T, strict=True))


def naive(z, y, m):
    """Scores by example of the mean of m sub-models, averaged over consecutive groups of them."""
    p = z.softmax(-1).numpy()
    groups = [naive_scores(p[i : i + m].mean(0), y.numpy()) for i in range(0, len(p) - m + 1, m)]
    return {name: np.mean([group[name] for group in groups], axis=0) for name in groups[0]}


def naive_ece(p, y):
    """ECE of the predictions [n, C] of a model."""
    confidence, hit = p.max(-1), p.argmax(-1) == y
    bins = np.clip(np.ceil(confidence * BINS), 1, BINS)
    return sum(abs((confidence - hit)[bins == b].sum()) for b in range(1, BINS + 1)) / len(hit)


def means_of(z, m):
    """Mean probabilities [n, C] of m sub-models, for the first groups of them."""
    p = z.softmax(-1).numpy()
    return [p[i : i + m].mean(0) for i in range(0, len(p) - m + 1, m)][:MOST_GROUPS]


def mean_ece(z, y, m):
    """ECE of the mean of m sub-models, averaged over the first groups of them."""
    return np.mean([naive_ece(p, y.numpy()) for p in means_of(z, m)])


def fed(summed, z0, z, y, *, shared=False, step=3):
    probe = Averages()
    probe.shared_masks = shared
    probe.update(*summed(TERMS, z0, z, y, step=step))
    return probe


def points(probe):
    return {(point.metric, point.passes): point for point in probe.outcome().tables["averaging"].points}


@pytest.mark.parametrize("m", [1, 2, 4, 8, 16])
def test_scores_are_those_of_a_loop_over_stored_probabilities(summed, m):
    z0, z, y = predictions()
    found, expected = points(fed(summed, z0, z, y)), naive(z, y, m)
    own = naive_scores(z0.softmax(-1).numpy(), y.numpy())
    for name, values in expected.items():
        point = found[name, m]
        assert point.value.estimate == pytest.approx(values.mean(), rel=1e-9)  # float64 rounding
        paired = stats.ttest_rel(values, own[name])
        interval = paired.confidence_interval(0.95)
        assert point.difference.estimate == pytest.approx((values - own[name]).mean(), rel=1e-9)
        assert point.difference.low == pytest.approx(interval.low, rel=1e-9)
        assert point.difference.high == pytest.approx(interval.high, rel=1e-9)
        assert point.p_value == pytest.approx(paired.pvalue, rel=1e-6)
    assert found["ece", m].value.estimate == pytest.approx(mean_ece(z, y, m), rel=1e-9)
    ece = naive_ece(z0.softmax(-1).numpy(), y.numpy())
    assert found["ece", m].difference.estimate == pytest.approx(mean_ece(z, y, m) - ece, rel=1e-9)
    assert found["ece", m].difference.low < found["ece", m].difference.high


@pytest.mark.parametrize("k", [2, 3, 20, 33, 40, 64, 100])
def test_any_number_of_sub_models_is_grouped_without_overlap(summed, k):
    z0, z, y = predictions(n=10, k=k)
    batch, sums = summed(TERMS, z0, z, y)
    sizes, ends = sums.sizes.tolist(), sums.sizes.cumsum(0).tolist()
    assert grouped(sizes)[-1].passes == k
    p = z.softmax(-1)
    models = list(mean_models(CategoricalScoring(batch, sums), sums, leave_out=False))
    for groups, model in zip(grouped(sizes), models[2:], strict=True):
        members = [
            range(ends[start] - sizes[start], ends[start + groups.blocks - 1]) for start in groups.starts
        ]  # sub-models
        assert all(len(group) == groups.passes for group in members)
        assert len({i for group in members for i in group}) == groups.passes * len(members)
        by_hand = np.mean([naive_scores(p[list(g)].mean(0).numpy(), y.numpy())["nll"] for g in members], axis=0)
        np.testing.assert_allclose(model.scores[0].numpy(), by_hand, rtol=1e-9)


def test_powers_of_two_are_what_is_found_for_32_and_64_sub_models():
    assert [groups.passes for groups in grouped([1] * 32)] == [2, 4, 8, 16, 32]
    assert [groups.passes for groups in grouped([2] * 32)] == [2, 4, 8, 16, 32, 64]


def left_out(z, y, m, k):
    """Scores without one sub-model, of all (m = K) or single ones (m = 1)."""
    return naive(z[[i for i in range(K) if i != k]], y, 1 if m == 1 else K - 1)


@pytest.mark.parametrize("m", [1, K])
def test_with_shared_masks_the_spread_over_sub_models_is_the_jackknife(summed, m):
    z0, z, y = predictions()
    probe = fed(summed, z0, z, y, shared=True)
    for name in ("nll", "accuracy", "brier"):
        means = np.array([left_out(z, y, m, k)[name].mean() for k in range(K)])
        column = probe.kept.columns[f"{name}/{m}"]
        np.testing.assert_allclose(column.leave_out / column.leave_out_n, means, rtol=1e-9)
        point = points(probe)[name, m]
        assert point.difference.high - point.difference.low > 0
        assert point.value.mask_low < point.value.estimate < point.value.mask_high
    assert points(probe)["ece", m].value.low is None  # how it varies over sub-models is not known


def test_what_is_linear_in_the_probabilities_varies_alike_whatever_the_groups(summed):
    """-p(label) instead of the scores: means over groups are then equal, and so is every block's influence."""
    z0, z, y = predictions()
    batch, sums = summed(TERMS, z0, z, y)
    p_label = z.softmax(-1).gather(-1, y.expand(K, -1).unsqueeze(-1)).squeeze(-1)
    by_hand = torch.stack([p_label[[i for i in range(K) if i != k]].mean(0) for k in range(K)])

    class Linear(CategoricalScoring):
        def mean(self, blocks):
            return p_label[blocks].mean(0)[None], None

    for groups in grouped(sums.sizes.tolist()):
        found = mean_of(Linear(batch, sums), sums.blocks, groups, leave_out=True)
        torch.testing.assert_close(found.without[:, 0], by_hand, rtol=1e-9, atol=1e-12)


def test_halves_make_the_whole(summed):
    z0, z, y = predictions()
    for shared in (False, True):
        first, second, whole = (
            fed(summed, z0[rows], z[:, rows], y[rows], shared=shared)
            for rows in (slice(0, 15), slice(15, N), slice(0, N))
        )
        restored = Averages()
        restored.shared_masks = shared
        restored.restore(first.state())
        restored.merge(second)
        found, expected = points(restored), points(whole)
        assert found.keys() == expected.keys()
        for key, point in expected.items():
            assert found[key].value.estimate == pytest.approx(point.value.estimate, rel=1e-9)
            if shared and key[0] == "ece":
                assert found[key].value.high is point.value.high is None
            else:
                assert found[key].value.high == pytest.approx(point.value.high, rel=1e-9)
                assert found[key].p_value == pytest.approx(point.p_value, rel=1e-6)


def test_rows_of_an_example_weigh_as_rows_and_vary_as_examples(summed):
    """Tokens, some of them not labelled, in two groups of rows of one batch."""
    z0, z, y = predictions()
    y[::5] = -100
    owners = torch.arange(N) // 4
    probe = Averages()
    for rows in (slice(0, 18), slice(18, N)):
        batch = EvalBatch(0, None, z0[rows], y[rows], owners[rows], N // 4, last=rows.stop == N)
        sums = BlockSums(TERMS, K, len(batch.logits), C)
        sums.add(0, Distributions(batch, z[:, rows]))
        probe.update(batch, sums)
    assert not probe.outcome().findings  # a token without a label is not one whose NLL is infinite
    known = y >= 0
    for m in (1, 4, K):
        point = points(probe)["nll", m]
        assert point.value.estimate == pytest.approx(naive(z[:, known], y[known], m)["nll"].mean(), rel=1e-9)
        assert point.value.n == point.difference.n == N // 4
        ece = mean_ece(z[:, known], y[known], m)
        assert points(probe)["ece", m].value.estimate == pytest.approx(ece, rel=1e-9)


def with_impossible_labels():
    """Labels that the eval model (rows 0 to 2), one sub-model (rows 2 to 9) or all of them (row 12) rule out."""
    z0, z, y = predictions()
    z0[[0, 1, 2], y[:3]] = -torch.inf
    z[5, torch.arange(2, 10), y[2:10]] = -torch.inf
    z[:, 12, y[12]] = -torch.inf
    return z0, z, y, torch.tensor([i not in {*range(10), 12} for i in range(N)])


@pytest.mark.parametrize("shared", [False, True])
def test_an_example_whose_nll_is_infinite_for_one_model_is_on_no_point_of_the_curve(summed, shared):
    z0, z, y, kept = with_impossible_labels()
    probe = fed(summed, z0, z, y, shared=shared)
    own = naive_scores(z0[kept].softmax(-1).numpy(), y[kept].numpy())["nll"]
    for m in (1, 2, 4, 8, K):
        point, expected = points(probe)["nll", m], naive(z[:, kept], y[kept], m)["nll"]
        assert point.value.estimate == pytest.approx(expected.mean(), rel=1e-9)
        assert point.difference.estimate == pytest.approx((expected - own).mean(), rel=1e-9)
        assert point.value.n == point.difference.n == int(kept.sum())
        assert points(probe)["brier", m].value.n == N  # finite everywhere
        assert point.p_value is not None
    assert "infinite for 11 rows" in probe.outcome().findings["averaging_infinite"]


def test_a_token_whose_nll_is_infinite_for_one_model_is_on_no_point_of_the_curve(summed):
    """Examples of four tokens; the first two have none left, and weigh nothing."""
    z0, z, y, kept = with_impossible_labels()
    owners = torch.arange(N) // 4
    probe = Averages()
    batch = EvalBatch(0, None, z0, y, owners, N // 4)
    sums = BlockSums(TERMS, K, N, C)
    sums.add(0, Distributions(batch, z))
    probe.update(batch, sums)
    own = naive_scores(z0[kept].softmax(-1).numpy(), y[kept].numpy())["nll"]
    for m in (1, 2, 4, 8, K):
        point, expected = points(probe)["nll", m], naive(z[:, kept], y[kept], m)["nll"]
        assert point.value.estimate == pytest.approx(expected.mean(), rel=1e-9)
        assert point.difference.estimate == pytest.approx((expected - own).mean(), rel=1e-9)
        assert point.difference.n == N // 4 - 2  # rows 0 to 3 and 4 to 7
        np.testing.assert_array_equal(probe.kept.columns[f"nll/{m}"].weights, np.bincount(owners[kept], minlength=10))
        assert probe.kept.columns[f"nll/{m}"].infinite.sum() == 11
    assert "infinite for 11 rows" in probe.outcome().findings["averaging_infinite"]


def signed_gaps(p, y):
    """What each example adds to the ECE of predictions [n, C], times n: its gap, under the sign of its bin's."""
    gap = p.max(-1) - (p.argmax(-1) == y)
    bins = np.clip(np.ceil(p.max(-1) * BINS), 1, BINS)
    return np.array([np.sign(gap[bins == b].sum()) * own for b, own in zip(bins, gap, strict=True)])


@pytest.mark.parametrize("m", [1, 4, 16])
def test_the_interval_of_the_ece_is_of_each_examples_mean_gap_under_the_signs_of_each_group(summed, m):
    z0, z, y = predictions()
    values = np.mean([signed_gaps(p, y.numpy()) for p in means_of(z, m)], axis=0)
    paired = stats.ttest_rel(values, signed_gaps(z0.softmax(-1).numpy(), y.numpy()))
    found = points(fed(summed, z0, z, y))["ece", m]
    assert found.difference.low == pytest.approx(paired.confidence_interval().low, rel=1e-9)
    assert found.difference.high == pytest.approx(paired.confidence_interval().high, rel=1e-9)
    assert found.p_value == pytest.approx(paired.pvalue, rel=1e-6)


def calibrated_at_borders(n=400, k=8):
    """Eval model and sub-models of two classes that are right as often as they say, whatever dropout does.

    Confidences lie on borders between bins: dropout moves them across at random, and changes nothing else.
    """
    right = torch.tensor([8, 10, 12, 14], dtype=torch.float64).repeat(n // 4) / BINS
    z = torch.stack([right.logit() + 1e-6 * torch.randn(k + 1, n, dtype=torch.float64), torch.zeros(k + 1, n)], -1)
    return z[0], z[1:], torch.bernoulli(1 - right).long()


def test_where_means_of_all_sizes_are_calibrated_alike_their_ece_is_alike(summed, z_score):
    """60 simulations. Pooled over groups, the ECE of one pass would be lower than the eval model's: less biased."""
    apart, pooled_apart = {1: [], 2: [], 4: [], 8: []}, []
    for _ in range(60):
        z0, z, y = calibrated_at_borders()
        found = points(fed(summed, z0, z, y))
        for m, values in apart.items():
            values.append(found["ece", m].difference.estimate)
        pooled = naive_ece(np.concatenate(means_of(z, 1)), y.repeat(8).numpy())
        pooled_apart.append(pooled - naive_ece(z0.softmax(-1).numpy(), y.numpy()))
    assert all(abs(z_score(values, 0.0)) < 4 for values in apart.values())
    assert z_score(pooled_apart, 0.0) < -6


def test_without_dropout_there_is_nothing_to_average(measured):
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.0)), torch.randn(12, 4)
    assert "averaging" not in measured(model, x, [Averages], torch.randint(0, 3, (12,)), sub_models=4).tables


def test_a_model_is_measured_as_its_sub_models_say(measured):
    model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)), torch.randn(30, 4)
    found = measured(model, x, [Averages], torch.randint(0, 3, (30,)), sub_models=8, batch=7)
    averaging = found.tables["averaging"]
    assert [point.passes for point in averaging.points if point.metric == "nll"] == [1, 2, 4, 8]
    nll = [point.value.estimate for point in averaging.points if point.metric == "nll"]
    assert nll == sorted(nll, reverse=True)  # NLL is convex in p (Jensen): the mean of more is never worse
    assert not found.columns


def curve_of(**values):
    """Columns by number of passes of scores around a value; `eval` stands for the eval model."""
    noise = torch.randn(200, dtype=torch.float64)
    own = {EVAL if name == "eval" else int(name.strip("m")): value for name, value in values.items()}
    return {m: plain(value + noise + 0.01 * torch.randn_like(noise)) for m, value in own.items()}


def test_enough_is_where_less_than_a_twentieth_of_the_gain_is_left():
    curve = curve_of(eval=1.0, m1=2.0, m2=1.5, m4=1.2, m8=1.03, m16=1.0)
    assert enough_passes("nll", curve, shared_masks=False) == 8
    assert enough_passes("accuracy", curve, shared_masks=False) == 1  # it falls: one pass is best


def test_one_pass_is_enough_where_more_are_worse():
    assert enough_passes("nll", curve_of(eval=1.0, m1=0.5, m2=0.8, m4=1.0), shared_masks=False) == 1


def test_an_accuracy_that_was_never_seen_to_change_may_still_do_so():
    alike = {m: plain(torch.ones(20, dtype=torch.float64), proportion=True) for m in (EVAL, 1, 2)}
    found = curve_point("accuracy", 2, alike, unit="", shared_masks=False).difference
    assert found.estimate == 0
    assert found.high == -found.low == pytest.approx(stats.binomtest(0, 20).proportion_ci(0.95, method="wilson").high)


def test_that_no_loss_is_seen_does_not_make_it_enough():
    assert enough_passes("nll", curve_of(eval=1.0, m1=1.0, m2=1.0, m4=1.0), shared_masks=False) is None
    noisy = {m: plain(2 / m + 5 * torch.randn(20, dtype=torch.float64)) for m in (1, 2, 4, 8)}
    assert enough_passes("nll", noisy | {EVAL: noisy[1]}, shared_masks=False) is None
    alike = {m: plain(torch.ones(20, dtype=torch.float64), proportion=True) for m in (EVAL, 1, 2, 4)}
    assert enough_passes("accuracy", alike, shared_masks=False) is None


def test_too_few_passes_are_called_enough_as_rarely_as_the_interval_says():
    generator, called, simulations = np.random.default_rng(4), 0, 400
    truth = {1: 10.0, 4: 0.5, 8: 0.0}  # 4 passes lack a twentieth of the gain
    for _ in range(simulations):
        curve = {m: plain(torch.from_numpy(mean + generator.standard_normal(30))) for m, mean in truth.items()}
        called += enough_passes("nll", curve | {EVAL: curve[8]}, shared_masks=False) == 4
    assert called / simulations <= 0.025 + 4 * (0.025 * 0.975 / simulations) ** 0.5


def test_nothing_is_said_of_one_example():
    curve = {m: plain(torch.tensor([1.0])) for m in (EVAL, 1, 2)}
    assert enough_passes("nll", curve, shared_masks=False) is None


def test_intervals_of_paired_differences_cover(summed):
    """250 samples of 60 examples each, against the mean over 100,000 examples of the same world."""
    large = fed(summed, *predictions(100_000, 8), step=1)
    truth = {m: compared(large, m, slice(None)).difference for m in (2, 8)}
    probe = fed(summed, *predictions(SIMULATIONS * EXAMPLES, 8), step=1)
    for m, expected in truth.items():
        found = [compared(probe, m, slice(i * EXAMPLES, (i + 1) * EXAMPLES)) for i in range(SIMULATIONS)]
        assert 0.93 - MARGIN <= np.mean([c.low <= expected <= c.high for c in found]) <= 0.97 + MARGIN


def compared(probe, m, rows):
    reference, candidate = (plain(torch.from_numpy(probe.kept.columns[f"nll/{i}"].values[rows])) for i in (EVAL, m))
    return compare("nll", ("eval", reference), ("mean", candidate), unit="nats", shared_masks=False)


def test_intervals_of_paired_differences_cover_with_shared_masks(summed):
    """Masks are shared by the examples of a simulation: a linear model with dropout on its features."""
    features, k = 24, 12
    w = torch.randn(features, C, dtype=torch.float64) * 0.4

    def world(n):
        h = torch.randn(n, features, dtype=torch.float64).relu()
        masks = torch.bernoulli(torch.full((k, 1, features), 0.7, dtype=torch.float64)) / 0.7
        return h @ w, (h * masks) @ w, (h @ w).softmax(-1).multinomial(1).squeeze(1)

    many = [naive_differences(*world(1000)) for _ in range(300)]  # masks are few in each: many of them
    hits = {m: [] for m in many[0]}
    for _ in range(SIMULATIONS):
        found = points(fed(summed, *world(EXAMPLES), shared=True, step=k))
        for m, seen in hits.items():
            point = found["nll", m]
            expected = np.mean([differences[m] for differences in many])
            seen.append(point.difference.low <= expected <= point.difference.high)
            assert (point.p_value < 0.05) == (point.difference.low > 0 or point.difference.high < 0)
    for seen in hits.values():
        assert 0.93 - MARGIN <= np.mean(seen) <= 0.97 + MARGIN


def naive_differences(z0, z, y):
    def nll(p):
        return -p.gather(-1, y.expand(p.shape[:-1]).unsqueeze(-1)).log().mean().item()

    p, own = z.softmax(-1), nll(z0.softmax(-1))
    return {m: nll(p.unflatten(0, (-1, m)).mean(1)) - own for m in (1, 2, 4, len(z))}


D, TARGET = 3, 2  # outputs, and the row whose targets are not known


def outputs():
    f0 = torch.randn(N, D, dtype=torch.float64)
    y = f0 + torch.randn(N, D, dtype=torch.float64)
    y[TARGET] = torch.nan
    y[5, 0] = torch.nan
    return f0, f0 + 0.3 + 0.7 * torch.randn(K, N, D, dtype=torch.float64), y


def regressed(f0, f, y, *, shared=False):
    probe = GaussianAverages()
    probe.shared_masks = shared
    batch = EvalBatch(0, None, f0, y, family=Gaussian(0.5))
    sums = BlockSums(GaussianAverages.terms, len(f), *f0.shape)
    for k in range(0, len(f), 3):
        sums.add(k, Distributions(batch, f[k : k + 3]))
    probe.update(batch, sums)
    return probe


def naive_mse(f, y, m):
    """Mean squared error of each example, of the mean of m passes, averaged over groups of them."""
    groups = [f[i : i + m].mean(0) for i in range(0, len(f) - m + 1, m)]
    by_group = [
        [
            np.mean([(g[i, d] - y[i, d]) ** 2 for d in range(D) if not np.isnan(y[i, d])])
            for i in range(N)
            if i != TARGET
        ]
        for g in np.array([group.numpy() for group in groups])
    ]
    return np.mean(by_group, axis=0)


@pytest.mark.parametrize("m", [1, 2, 4, 8, 16])
def test_the_squared_error_of_a_mean_is_that_of_a_loop_over_stored_outputs(m):
    f0, f, y = outputs()
    point, expected = points(regressed(f0, f, y))["mse", m], naive_mse(f, y.numpy(), m)
    paired = stats.ttest_rel(expected, naive_mse(f0[None], y.numpy(), 1))
    assert point.value.estimate == pytest.approx(expected.mean(), rel=1e-9)
    assert point.value.unit == point.difference.unit == "target²"
    assert point.difference.low == pytest.approx(paired.confidence_interval().low, rel=1e-9)
    assert point.difference.high == pytest.approx(paired.confidence_interval().high, rel=1e-9)
    assert point.p_value == pytest.approx(paired.pvalue, rel=1e-6)
    assert point.value.n == N - 1


@pytest.mark.parametrize("m", [1, K])
def test_the_squared_error_varies_over_shared_masks_as_the_jackknife_says(m):
    f0, f, y = outputs()
    without = [f[[i for i in range(K) if i != k]] for k in range(K)]
    means = [naive_mse(part, y.numpy(), 1 if m == 1 else K - 1).mean() for part in without]
    column = regressed(f0, f, y, shared=True).kept.columns[f"mse/{m}"]
    np.testing.assert_allclose(column.leave_out / column.leave_out_n, means, rtol=1e-9)


def test_in_regression_halves_make_the_whole_and_enough_is_of_the_squared_error():
    f0, f, y = outputs()
    first, second, whole = (regressed(f0[r], f[:, r], y[r]) for r in (slice(0, 17), slice(17, N), slice(None)))
    restored = GaussianAverages()
    restored.restore(first.state())
    restored.merge(second)
    found, expected = (probe.outcome().tables["averaging"] for probe in (restored, whole))
    assert found.enough == expected.enough
    assert [p.value.estimate for p in found.points] == pytest.approx([p.value.estimate for p in expected.points])


def test_the_squared_error_of_all_passes_is_the_gap_probes(measured):
    model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2)), torch.randn(30, 4)
    probes = [GaussianGap, GaussianAverages]
    found = measured(model, x, probes, torch.randn(30, 2), sub_models=8, batch=7, family=Gaussian(1.0))
    averaging = found.tables["averaging"]
    assert [point.passes for point in averaging.points] == [1, 2, 4, 8]
    gap = metric(found.columns["mse_mean"], unit="target²", shared_masks=False)
    assert averaging.points[-1].value.estimate == pytest.approx(gap.estimate, rel=1e-6)  # float32 outputs
    assert averaging.points[-1].value.low == pytest.approx(gap.low, rel=1e-6)


def test_labels_that_are_each_yes_or_no_are_averaged_in_probability(summed):
    """Several labels: rows (0, z) of two classes, so that the mean is that of sigmoids, and counts by label."""
    z = torch.randn(K + 1, N, dtype=torch.float64)
    y, owners = torch.randint(0, 2, (N,)), torch.arange(N) // 4
    two = torch.stack([torch.zeros_like(z), z], -1)
    batch, sums = EvalBatch(0, None, two[0], y, owners, N // 4), BlockSums(TERMS, K, N, 2)
    sums.add(0, Distributions(batch, two[1:]))
    probe = Averages()
    probe.update(batch, sums)
    yes = z[1:].sigmoid().numpy()
    for m in (1, 4, K):
        p = np.array([yes[i : i + m].mean(0) for i in range(0, K, m)])
        of_label = np.where(y == 1, p, 1 - p)
        expected = {"nll": -np.log(of_label), "accuracy": of_label > 0.5, "brier": 2 * (p - y.numpy()) ** 2}
        for name, values in expected.items():
            assert points(probe)[name, m].value.estimate == pytest.approx(values.mean(), rel=1e-9)
        ece = np.mean([naive_ece(np.stack([1 - q, q], -1), y.numpy()) for q in p[:MOST_GROUPS]])
        assert points(probe)["ece", m].value.estimate == pytest.approx(ece, rel=1e-9)


def test_the_metric_of_all_passes_is_the_gap_probes(measured):
    model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)), torch.randn(30, 4)
    found = measured(model, x, [Gap, Averages], torch.randint(0, 3, (30,)), sub_models=8)
    last = {point.metric: point for point in found.tables["averaging"].points if point.passes == 8}
    for name in ("nll", "accuracy"):
        expected = metric(found.columns[f"{name}_mean"], unit="nats", shared_masks=False)
        assert last[name].value.estimate == pytest.approx(expected.estimate, rel=1e-9)
        assert last[name].value.low == pytest.approx(expected.low, rel=1e-9)
