"""The temperature against scipy's minimum of the NLL itself, fold by fold; intervals by simulation."""

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import nn

from rdrop_probes.block_sums import BlockSums
from rdrop_probes.calibration import BINS
from rdrop_probes.distributions import MANY_CLASSES, Distributions, EvalBatch
from rdrop_probes.temperature import FOLDS, TemperatureScaling
from rdrop_probes.temperature_curves import inverses

N, C, TRUE = 300, 4, 2.5
SIMULATIONS, EXAMPLES = 250, 300
MARGIN = 3 * (0.95 * 0.05 / SIMULATIONS) ** 0.5  # three binomial standard errors
INTERPOLATED = 1e-5  # relative error of 24 Chebyshev nodes


def overconfident(n=N, temperature=TRUE):
    """Logits that are too large by a temperature, and labels."""
    z = torch.randn(n, C, dtype=torch.float64) * 2
    return z * temperature, z.softmax(-1).multinomial(1).squeeze(1)


def nll_at(t, z, y):
    return -(z / t).log_softmax(-1)[torch.arange(len(y)), y].numpy()


def best(z, y):
    """Where scipy finds the least mean NLL."""
    ends = (-np.log(10), np.log(10))
    found = optimize.minimize_scalar(lambda u: nll_at(np.exp(u), z, y).mean(), bounds=ends, method="bounded")
    return float(np.exp(found.x))


def fed(*parts, exact=True):
    """A probe that has seen logits, labels, and the logits of sub-models: two like the eval model if none are given."""
    probe = TemperatureScaling()
    for z, y, *sub in parts:
        passes = sub[0] if sub else z.expand(2, -1, -1)
        seen = EvalBatch(0, None, z, y)
        sums = BlockSums(TemperatureScaling.terms, len(passes), *z.shape, exact=exact)
        sums.add(0, Distributions(seen, passes, exact=exact))
        probe.update(seen, sums)
    return probe


def found_by(probe, table="temperature"):
    return probe.outcome().tables[table]


@pytest.mark.parametrize(("classes", "gap"), [(1000, 30.0), (5000, 20.0)])
def test_one_class_that_stands_out_of_many_is_interpolated_as_well(classes, gap):
    z = 0.01 * torch.randn(200, classes, dtype=torch.float64)
    z[torch.arange(200), torch.randint(0, classes, (200,))] += gap
    y = (0.5 * z).softmax(-1).multinomial(1).squeeze(1)
    found = found_by(fed((z, y)))
    after, _ = crossed(z, y)
    assert found.temperature == pytest.approx(best(z, y), rel=1e-2)  # NLL is flat there
    assert found.nll_before.estimate == pytest.approx(nll_at(1.0, z, y).mean(), abs=2e-6)  # as nodes are chosen for
    assert found.nll_after.estimate == pytest.approx(after.mean(), abs=2e-5)


def test_nodes_grow_with_the_classes_so_that_curves_err_by_a_millionth():
    assert [len(inverses(c)) for c in (2, 10, 1000, 50_257)] == [24, 25, 71, 110]


def test_a_curve_that_misses_what_is_known_gives_no_temperature(monkeypatch):
    monkeypatch.setattr("rdrop_probes.temperature_curves.TRUSTED", -1.0)
    outcome = fed(overconfident()).outcome()
    assert outcome.tables == {}
    assert "no smooth curve" in outcome.findings["temperature_unavailable"]


def crossed(z, y):
    """NLL of each example under the temperature of the other fold, by loops."""
    fold = np.arange(len(y)) % FOLDS
    temperatures = [best(z[fold != f], y[fold != f]) for f in range(FOLDS)]
    return np.array([nll_at(temperatures[f], z[i, None], y[i, None])[0] for i, f in enumerate(fold)]), temperatures


def naive_ece(confidence, hit):
    bins = np.clip(np.ceil(confidence * BINS), 1, BINS)
    return sum(abs((confidence - hit)[bins == b].sum()) for b in range(1, BINS + 1)) / len(hit)


def test_the_temperature_is_where_the_nll_is_least():
    z, y = overconfident()
    found = found_by(fed((z, y)))
    assert found.temperature == pytest.approx(best(z, y), rel=1e-4)  # of scipy's own tolerance
    assert found.low < TRUE < found.high


def test_nll_before_and_after_are_cross_fitted_and_paired():
    z, y = overconfident()
    found, before, (after, _) = found_by(fed((z, y))), nll_at(1.0, z, y), crossed(z, y)
    paired = stats.ttest_rel(after, before)
    assert found.nll_before.estimate == pytest.approx(before.mean(), abs=1e-6)
    assert found.nll_after.estimate == pytest.approx(after.mean(), rel=INTERPOLATED)
    assert found.nll_difference.estimate == pytest.approx((after - before).mean(), rel=10 * INTERPOLATED)
    assert found.nll_difference.low == pytest.approx(paired.confidence_interval().low, rel=10 * INTERPOLATED)
    assert found.nll_difference.high == pytest.approx(paired.confidence_interval().high, rel=10 * INTERPOLATED)
    assert found.p_value == pytest.approx(paired.pvalue, rel=1e-2)
    assert found.nll_difference.high < 0  # it helps here


def test_ece_before_and_after_is_that_of_a_loop():
    z, y = overconfident()
    z = z[y != 3]
    y = y[y != 3]
    found, (_, temperatures) = found_by(fed((z, y))), crossed(z, y)
    hit = (z.argmax(-1) == y).double().numpy()
    p = np.array([float((z[i] / temperatures[i % FOLDS]).softmax(-1).max()) for i in range(len(y))])
    assert found.ece_before == pytest.approx(naive_ece(z.softmax(-1).amax(-1).numpy(), hit), rel=1e-9)
    assert found.ece_after == pytest.approx(naive_ece(p, hit), rel=1e-3)  # p from another tolerance of T


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_logits_of_any_size_are_interpolated_well(scale):
    z, y = overconfident(temperature=scale)
    after, _ = crossed(z, y)
    assert found_by(fed((z, y))).nll_after.estimate == pytest.approx(after.mean(), rel=1e-4)


def test_a_minimum_beyond_what_is_tried_is_said_and_has_no_interval():
    z, y = overconfident(temperature=30.0)
    outcome = fed((z, y)).outcome()
    assert "at a temperature of 10, the highest that is tried" in outcome.findings["temperature_at_edge"]
    assert outcome.tables["temperature"].low is outcome.tables["temperature"].high is None
    outcome = fed((torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5))).outcome()  # always right
    assert "at a temperature of 0.1, the lowest that is tried" in outcome.findings["temperature_at_edge"]


def test_parts_stored_and_merged_make_the_whole_bit_for_bit():
    z, y = overconfident()
    whole = fed((z[:101], y[:101]), (z[101:], y[101:]))
    restored = TemperatureScaling()
    restored.restore(fed((z[:101], y[:101])).state())
    restored.merge(fed((z[101:], y[101:])))
    assert restored.outcome().tables == whole.outcome().tables
    assert set(whole.outcome().tables) == {"temperature", "temperature_mean"}
    assert found_by(whole).temperature == pytest.approx(found_by(fed((z, y))).temperature, rel=1e-6)


def test_labels_that_are_not_known_do_not_count():
    z, y = overconfident()
    y[::3] = -100
    found = found_by(fed((z, y)))
    known = y >= 0
    assert found.temperature == pytest.approx(best(z[known], y[known]), rel=1e-4)
    assert found.nll_before.n == int(known.sum())


def test_an_impossible_label_is_left_out_and_an_impossible_class_is_not():
    z, y = overconfident()
    z[0, y[0]] = -torch.inf
    z[1:40, 3][y[1:40] != 3] = -torch.inf
    found = found_by(fed((z, y)))
    assert found.nll_before.n == N - 1
    assert found.temperature == pytest.approx(best(z[1:], y[1:]), rel=1e-4)


def test_tokens_count_as_rows_and_vary_as_examples():
    z, y = overconfident()
    owners = torch.arange(N) // 5
    probe = TemperatureScaling()
    for rows in (slice(0, 123), slice(123, N)):
        seen = EvalBatch(0, None, z[rows], y[rows], owners[rows], N // 5, last=rows.stop == N)
        sums = BlockSums(TemperatureScaling.terms, 2, *z[rows].shape)
        sums.add(0, Distributions(seen, z[rows].expand(2, -1, -1)))
        probe.update(seen, sums)
    found = found_by(probe)
    assert found.temperature == pytest.approx(best(z, y), rel=1e-4)
    assert found.nll_difference.n == N // 5
    assert found.nll_before.estimate == pytest.approx(nll_at(1.0, z, y).mean(), abs=1e-6)
    assert found.ece_before is found.ece_after is None


def noisy(z, k=6):
    """Sub-models about an eval model, and the logarithm of their mean by a loop."""
    passes = z + 1.5 * torch.randn(k, *z.shape, dtype=torch.float64)
    return passes, sum(one.softmax(-1) for one in passes).div(k).log()


def test_the_mc_mean_has_a_temperature_of_its_own():
    z, y = overconfident()
    passes, log_mean = noisy(z)
    probe = fed((z[:101], y[:101], passes[:, :101]), (z[101:], y[101:], passes[:, 101:]))
    found, before, (after, temperatures) = (
        found_by(probe, "temperature_mean"),
        nll_at(1.0, log_mean, y),
        crossed(log_mean, y),
    )
    paired = stats.ttest_rel(after, before)
    assert found.temperature == pytest.approx(best(log_mean, y), rel=1e-4)
    assert found.low < found.temperature < found.high
    assert found.nll_before.estimate == pytest.approx(before.mean(), abs=1e-6)
    assert found.nll_after.estimate == pytest.approx(after.mean(), rel=INTERPOLATED)
    assert found.nll_difference.low == pytest.approx(paired.confidence_interval().low, rel=10 * INTERPOLATED)
    assert found.nll_difference.high == pytest.approx(paired.confidence_interval().high, rel=10 * INTERPOLATED)
    hit = (log_mean.argmax(-1) == y).double().numpy()
    p = np.array([float((log_mean[i] / temperatures[i % FOLDS]).softmax(-1).max()) for i in range(N)])
    assert found.ece_before == pytest.approx(naive_ece(log_mean.exp().amax(-1).numpy(), hit), rel=1e-9)
    assert found.ece_after == pytest.approx(naive_ece(p, hit), rel=1e-3)
    assert found_by(probe).temperature == pytest.approx(best(z, y), rel=1e-4)  # the eval model's, as ever


def test_of_sub_models_that_are_the_eval_model_the_mean_has_its_temperature():
    probe = fed(overconfident())
    assert found_by(probe, "temperature_mean").temperature == pytest.approx(found_by(probe).temperature, rel=1e-6)


def test_a_label_that_some_sub_models_rule_out_counts_and_one_that_all_do_is_left_out():
    z, y = overconfident()
    passes, _ = noisy(z)
    passes[0, torch.arange(40), y[:40]] = -torch.inf
    passes[:, 7, y[7]] = -torch.inf
    log_mean = sum(one.softmax(-1) for one in passes).div(len(passes)).log()
    kept = torch.arange(N) != 7
    probe = fed((z, y, passes))
    assert found_by(probe, "temperature_mean").nll_before.n == N - 1
    assert found_by(probe, "temperature_mean").temperature == pytest.approx(best(log_mean[kept], y[kept]), rel=1e-4)
    assert found_by(probe).nll_before.n == N


def test_a_label_too_improbable_for_single_precision_counts():
    """Many classes are summed in single precision, where exp(-200) is 0; the logarithm of the label's is not lost."""
    z = torch.randn(40, MANY_CLASSES + 1)
    y = z.argmax(-1)
    z[0, y[0]] = -200.0
    found = found_by(fed((z, y), exact=False), "temperature_mean")
    assert found.nll_before.n == 40
    assert found.nll_before.estimate == pytest.approx(nll_at(1.0, z.double(), y).mean(), rel=1e-5)  # float32


def test_without_dropout_the_mc_mean_is_not_spoken_of(measured):
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.0))
    found = measured(model, torch.randn(30, 3), [TemperatureScaling], torch.randint(0, 2, (30,)), sub_models=2)
    assert "temperature" in found.tables
    assert "temperature_mean" not in found.tables


def test_too_few_examples_have_no_temperature(measured):
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    found = measured(model, torch.randn(3, 3), [TemperatureScaling], torch.tensor([0, 1, 1]), sub_models=2)
    assert "temperature" not in found.tables
    found = measured(model, torch.randn(30, 3), [TemperatureScaling], torch.randint(0, 2, (30,)), sub_models=2)
    assert 0.1 <= found.tables["temperature"].temperature <= 10


def test_intervals_of_the_temperature_and_of_the_difference_cover():
    """250 samples of 300 examples; the true difference of each is that of its own temperature, on new data."""
    large, grid = overconfident(50_000), np.linspace(1.0, 6.0, 51)
    curve = np.array([nll_at(t, *large).mean() for t in grid]) - nll_at(1.0, *large).mean()
    held, changed = [], []
    for _ in range(SIMULATIONS):
        z, y = overconfident(EXAMPLES)
        found = found_by(fed((z, y)))
        held.append(found.low <= TRUE <= found.high)
        true = np.interp(found.temperature, grid, curve)
        changed.append(found.nll_difference.low <= true <= found.nll_difference.high)
    assert 0.93 - MARGIN <= np.mean(held) <= 0.97 + MARGIN
    assert 0.93 - MARGIN <= np.mean(changed) <= 0.97 + MARGIN
