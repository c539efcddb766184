"""Pairwise KL from three sums against a loop over all ordered pairs."""

from itertools import permutations
from math import exp, inf, isclose, log

import numpy as np
import pytest
import torch
from torch import Tensor

from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.statistics import metric

EXACT = 1e-12  # float64 rounding of a few hundred terms


def log_softmax(z: list[float]) -> list[float]:
    top = max(z)
    total = log(sum(exp(v - top) for v in z))
    return [v - top - total for v in z]


def kl(p: list[float], q: list[float]) -> float:
    """KL(p || q) of two log-probability vectors, term by term."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a != -inf:
            total += inf if b == -inf else exp(a) * (a - b)
    return total


def by_pairs(z: Tensor) -> list[float]:
    """Mean KL over ordered pairs of sub-models, for each example of logits [K, N, C]."""
    found = []
    for n in range(z.shape[1]):
        log_p = [log_softmax(z[k, n].tolist()) for k in range(len(z))]
        pairs = [kl(log_p[i], log_p[j]) for i, j in permutations(range(len(z)), 2)]
        found.append(sum(pairs) / len(pairs))
    return found


def estimates(summed, z0, z):
    batch, sums = summed(PairwiseKL.terms, z0, z)
    return PairwiseKL().estimate(batch, sums.total())


@pytest.mark.parametrize("k", [2, 3, 7, 16])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_centred_sums_are_the_mean_over_ordered_pairs(summed, k, scale):
    z0 = torch.randn(6, 5, dtype=torch.float64)
    z = z0 + scale * torch.randn(k, 6, 5, dtype=torch.float64)
    assert estimates(summed, z0, z)["epkl"].tolist() == pytest.approx(by_pairs(z), rel=1e-9)


def small_epkl(z: Tensor) -> Tensor:
    """Mean over ordered pairs of (p_i - p_j)(log p_i - log p_j) / 2, which keeps its digits for close pairs."""
    log_p = z.log_softmax(-1)
    halves = [((log_p[i].exp() - log_p[j].exp()) * (log_p[i] - log_p[j])).sum(-1) / 2 for i, j in pairs_of(len(z))]
    return torch.stack(halves).mean(0)


def pairs_of(k: int) -> list[tuple[int, int]]:
    return list(permutations(range(k), 2))


@pytest.mark.parametrize(("noise", "below"), [(2e-4, 1e-7), (2e-7, 1e-13)])
def test_a_tiny_epkl_keeps_its_digits(summed, noise, below):
    z0 = torch.randn(20, 1000, dtype=torch.float64)
    z = z0 + noise * torch.randn(16, 20, 1000, dtype=torch.float64)
    found, exact = estimates(summed, z0, z)["epkl"], small_epkl(z)
    assert below / 100 < float(exact.mean()) < below
    # logarithms of about 10, right to 1e-15, against differences of `noise`; without centring it would be 1% and more
    assert (found / exact - 1).abs().max() < 1e-6


def test_float32_logits_lose_nothing_on_the_way(summed):
    z0 = torch.randn(5, 1000)
    z = z0 + 2e-4 * torch.randn(16, 5, 1000)
    torch.testing.assert_close(estimates(summed, z0, z)["epkl"], small_epkl(z.double()), rtol=1e-9, atol=0)


def test_logits_of_ten_thousand_give_the_kl_of_the_loop(summed):
    z0 = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4]], dtype=torch.float64)
    z = z0 + torch.randn(5, 2, 3, dtype=torch.float64)
    z[0, 0] = torch.tensor([-1e4, 1e4, 0.0])
    epkl = estimates(summed, z0, z)["epkl"].tolist()
    assert epkl[0] == pytest.approx(by_pairs(z)[0], rel=1e-9)  # thousands of nats
    assert epkl[0] > 1000
    assert epkl[1] == pytest.approx(by_pairs(z)[1], abs=EXACT)


def test_a_class_ruled_out_for_all_contributes_nothing(summed):
    z0 = torch.randn(4, 5, dtype=torch.float64)
    z = z0 + torch.randn(6, 4, 5, dtype=torch.float64)
    without = estimates(summed, z0[:, :4], z[:, :, :4])
    z0[:, 4], z[:, :, 4] = -inf, -inf
    for name, values in estimates(summed, z0, z).items():
        assert values.tolist() == pytest.approx(without[name].tolist(), rel=1e-9, abs=EXACT)


def test_a_class_ruled_out_by_the_eval_model_alone_still_counts(summed):
    z0 = torch.randn(3, 4, dtype=torch.float64)
    z = z0 + torch.randn(5, 3, 4, dtype=torch.float64)
    z0[:, 0] = -inf
    assert estimates(summed, z0, z)["epkl"].tolist() == pytest.approx(by_pairs(z), rel=1e-9)


def test_a_class_possible_for_one_sub_model_only_is_infinite_left_out_and_counted(summed):
    z0 = torch.randn(3, 4, dtype=torch.float64)
    z = z0 + torch.randn(5, 3, 4, dtype=torch.float64)
    z[2, 1, 0] = -inf
    probe = PairwiseKL()
    probe.update(*summed(PairwiseKL.terms, z0, z))
    column = probe.outcome().columns.columns["epkl"]
    oracle = by_pairs(z)
    assert column.values[1] == inf == oracle[1]
    found = metric(column, unit="nats", shared_masks=False)
    assert found.n == 2
    assert found.estimate == pytest.approx((oracle[0] + oracle[2]) / 2, rel=1e-9)
    assert found.low is not None


def test_a_class_that_only_one_sub_model_keeps_is_infinite_too(summed):
    z0 = torch.zeros(1, 3, dtype=torch.float64)
    z = torch.zeros(4, 1, 3, dtype=torch.float64)
    z[1:, 0, 2] = -inf
    assert by_pairs(z) == [inf]
    assert estimates(summed, z0, z)["epkl"].tolist() == [inf]


@pytest.mark.parametrize("k", [2, 5, 40])
def test_mutual_and_reverse_mutual_information_share_the_epkl(summed, k):
    z0 = torch.randn(6, 5, dtype=torch.float64)
    z = z0 + torch.randn(k, 6, 5, dtype=torch.float64)
    found = estimates(summed, z0, z)
    both = found["mutual_information"] + found["reverse_mutual_information"]
    torch.testing.assert_close(both, (k - 1) / k * found["epkl"], rtol=1e-10, atol=EXACT)


def test_mutual_information_is_entropy_of_the_mean_less_mean_entropy(summed):
    z0 = torch.randn(4, 5, dtype=torch.float64)
    z = z0 + torch.randn(6, 4, 5, dtype=torch.float64)
    p = z.softmax(-1).numpy()
    mean = p.mean(0)
    entropy = -(mean * np.log(mean)).sum(-1) + (p * np.log(p)).sum(-1).mean(0)
    reverse = [np.mean([(m * np.log(m / q)).sum() for q in p[:, n]]) for n, m in enumerate(mean)]
    found = estimates(summed, z0, z)
    assert found["mutual_information"].tolist() == pytest.approx(entropy.tolist(), rel=1e-9)
    assert found["reverse_mutual_information"].tolist() == pytest.approx(reverse, rel=1e-9)


def test_jackknifed_halves_add_up_to_the_epkl(summed):
    z0 = torch.randn(6, 5, dtype=torch.float64)
    probe = PairwiseKL()
    probe.update(*summed(PairwiseKL.terms, z0, z0 + torch.randn(9, 6, 5, dtype=torch.float64)))
    columns = probe.outcome().columns.columns
    both = columns["mutual_information"].values + columns["reverse_mutual_information"].values
    assert both.tolist() == pytest.approx(columns["epkl"].values.tolist(), rel=1e-9)


def test_the_jackknife_takes_the_bias_out_of_mutual_information(summed, z_score):
    """Four masks of equal probability: the truth is a finite sum."""
    truths = torch.randn(4, 3, dtype=torch.float64)
    p = truths.softmax(-1)
    true = float(-(p.mean(0) * p.mean(0).log()).sum() + (p * p.log()).sum(-1).mean())
    k, trials = 8, 4000
    z = truths[torch.randint(0, 4, (k, trials))]
    batch, sums = summed(PairwiseKL.terms, truths.mean(0).expand(trials, -1), z)
    plug_in = PairwiseKL().estimate(batch, sums.total())["mutual_information"]
    probe = PairwiseKL()
    probe.update(batch, sums)
    corrected = probe.outcome().columns.columns["mutual_information"].values
    assert z_score(plug_in, true) < -10  # an eighth too small: the test would see the bias
    # what the jackknife leaves is of order 1 / K^2
    assert abs(corrected.mean() - true) < 0.15 * abs(float(plug_in.mean()) - true)


def test_epkl_is_unbiased_for_any_number_of_sub_models(summed, z_score):
    truths = torch.randn(4, 3, dtype=torch.float64)
    log_p = [row.tolist() for row in truths.log_softmax(-1)]
    true = sum(kl(a, b) for a in log_p for b in log_p) / 16  # independent draws may coincide
    for k in (2, 5):
        z = truths[torch.randint(0, 4, (k, 4000))]
        epkl = estimates(summed, truths.mean(0).expand(4000, -1), z)["epkl"]
        assert abs(z_score(epkl, true)) < 4


def test_convergence_shows_the_epkl_of_the_first_sub_models(summed):
    z0 = torch.randn(5, 4, dtype=torch.float64)
    z = z0 + torch.randn(20, 5, 4, dtype=torch.float64)
    probe = PairwiseKL()
    probe.update(*summed(PairwiseKL.terms, z0, z))
    points = probe.outcome().tables["convergence"]
    assert [p.sub_models for p in points] == [4, 8, 16, 20]
    for point in points:
        assert isclose(point.estimate, np.mean(by_pairs(z[: point.sub_models])), rel_tol=1e-9)
        assert point.low < point.estimate < point.high


def test_two_sub_models_give_an_estimate_without_a_mask_interval(summed):
    z0 = torch.randn(5, 4, dtype=torch.float64)
    z = z0 + torch.randn(2, 5, 4, dtype=torch.float64)
    probe = PairwiseKL()
    probe.update(*summed(PairwiseKL.terms, z0, z))
    outcome = probe.outcome()
    (point,) = outcome.tables["convergence"]
    assert point.estimate == pytest.approx(np.mean(by_pairs(z)), rel=1e-9)
    assert (point.low, point.high) == (None, None)
    for shared in (False, True):
        found = metric(outcome.columns.columns["epkl"], unit="nats", shared_masks=shared)
        assert (found.mask_low, found.mask_high) == (None, None)
        assert (found.low is None) == shared  # the masks' share of the variance is not known
