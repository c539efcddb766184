"""Gap metrics against loops over sub-models, examples and pairs in NumPy."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from rdrop_probes.gap import Gap
from rdrop_probes.statistics import compare, metric

N, K, C = 7, 6, 4
LABELS = torch.tensor([0, 1, 2, 3, -100, 1, -100])
KEPT = LABELS.numpy() >= 0


@pytest.fixture
def logits():
    z0 = torch.randn(N, C, dtype=torch.float64)
    return z0, z0 + torch.randn(K, N, C, dtype=torch.float64)


@pytest.fixture
def columns(summed, logits):
    probe = Gap()
    probe.update(*summed(list(probe.terms_for(labels=True)), *logits, LABELS))
    return probe.outcome().columns.columns


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


def test_divergences_between_eval_model_and_sub_models(columns, logits):
    p0, p = (softmax(z.numpy()) for z in logits)
    for n in range(N):
        assert columns["kl_sub_to_eval"].values[n] == pytest.approx(np.mean([kl(p[k, n], p0[n]) for k in range(K)]))
        assert columns["kl_eval_to_sub"].values[n] == pytest.approx(np.mean([kl(p0[n], p[k, n]) for k in range(K)]))


def test_the_mean_models_divergence_is_the_jackknifed_plug_in(columns, logits):
    p0, p = (softmax(z.numpy()) for z in logits)
    for n in range(N):
        without = [kl(p[[k for k in range(K) if k != left], n].mean(0), p0[n]) for left in range(K)]
        jackknifed = K * kl(p[:, n].mean(0), p0[n]) - (K - 1) * np.mean(without)
        assert columns["kl_mean_to_eval"].values[n] == pytest.approx(jackknifed, rel=1e-9, abs=1e-12)  # float64


def shown(column):
    return metric(column, unit="logits", shared_masks=False)


def test_expectation_linearity_is_the_root_of_mean_products_over_pairs(columns, logits):
    z0, z = (t.numpy() for t in logits)
    products = [(z[i, n] - z0[n]) @ (z[j, n] - z0[n]) for n in range(N) for i in range(K) for j in range(K) if i != j]
    expected = np.sign(np.mean(products)) * abs(np.mean(products)) ** 0.5
    assert shown(columns["expectation_linearity"]).estimate == pytest.approx(expected, rel=1e-9)  # float64 rounding


def linearity(summed, spread, shift, n=4000, k=8):
    z = spread * torch.randn(k, n, 5, dtype=torch.float64)
    z[..., 0] += shift
    probe = Gap()
    probe.update(*summed(probe.terms, torch.zeros(n, 5, dtype=torch.float64), z))
    return probe.outcome().columns.columns["expectation_linearity"]


def test_expectation_linearity_of_a_clear_shift_is_its_size(summed):
    column = linearity(summed, 1.0, 3.0)
    assert abs(column.values.mean() - 9) / (column.values.std() / np.sqrt(len(column.values))) < 4
    found = shown(column)
    assert found.low < 3 < found.high


def test_where_there_is_no_shift_less_spread_is_no_smaller_expectation_linearity(summed):
    wide, narrow = (linearity(summed, spread, 0.0, n=450, k=32) for spread in (1.0, 0.8))
    for column in (wide, narrow):
        assert abs(column.values.mean()) / (column.values.std() / np.sqrt(450)) < 4
        assert shown(column).low < 0.2
    found = compare("expectation_linearity", ("a", wide), ("b", narrow), unit="logits", shared_masks=False)
    assert found.p_value > 1e-3
    assert found.unit == "logits²"


def test_the_nll_of_the_mean_is_finite_where_its_probability_underflows(summed):
    scale, labels = 3000.0, torch.randint(0, C, (N,))
    z0 = scale * torch.randn(N, C, dtype=torch.float64)
    z = z0 + 0.1 * scale * torch.randn(K, N, C, dtype=torch.float64)
    probe = Gap()
    probe.update(*summed(list(probe.terms_for(labels=True)), z0, z, labels))
    log_p = torch.log_softmax(z, -1)[:, torch.arange(N), labels]
    expected = float(np.log(K)) - torch.logsumexp(log_p, 0)
    found = probe.outcome().columns.columns["nll_mean"].values
    # beyond e^700 times the eval model's probability the ratio is cut
    close = (expected < 700) | ((log_p - torch.log_softmax(z0, -1)[torch.arange(N), labels]).max(0).values < 700)
    assert np.isfinite(found).all()
    assert found[close] == pytest.approx(expected[close].numpy(), rel=1e-9)


def test_flips_and_disagreement_count_votes(columns, logits):
    votes0, votes = (z.numpy().argmax(-1) for z in logits)
    for n in range(N):
        flips = np.mean([votes[k, n] != votes0[n] for k in range(K)])
        differ = np.mean([votes[i, n] != votes[j, n] for i, j in combinations(range(K), 2)])
        assert columns["flip_rate"].values[n] == pytest.approx(flips)
        assert columns["disagreement"].values[n] == pytest.approx(differ)
    assert 0 < columns["disagreement"].values.mean() < 1


def test_likelihood_and_accuracy_are_scikit_learns_without_ignored_positions(columns, logits):
    p0, p = (softmax(z.numpy())[..., KEPT, :] for z in logits)
    y = LABELS.numpy()[KEPT]

    def both(q):
        return log_loss(y, q, labels=range(C)), accuracy_score(y, q.argmax(-1))

    subs = np.mean([both(q) for q in p], axis=0)
    expected = {
        "nll_eval": both(p0)[0],
        "accuracy_eval": both(p0)[1],
        "nll_mean": both(p.mean(0))[0],
        "accuracy_mean": both(p.mean(0))[1],
        "nll_sub": subs[0],
        "accuracy_sub": subs[1],
        "nll_gap": subs[0] - both(p0)[0],
        "accuracy_gap": both(p0)[1] - subs[1],
    }
    for name, value in expected.items():
        values = columns[name].values
        assert np.isnan(values).tolist() == (~KEPT).tolist()
        assert np.nanmean(values) == pytest.approx(value, rel=1e-9)  # float64 rounding
    assert expected["accuracy_gap"] != 0
    assert columns["accuracy_gap"].range == (-1.0, 1.0)


def test_without_labels_only_what_needs_none_is_reported(summed, logits):
    probe = Gap()
    probe.update(*summed(list(probe.terms_for(labels=False)), *logits))
    assert set(probe.outcome().columns.columns) == {
        *("kl_sub_to_eval", "kl_eval_to_sub", "kl_mean_to_eval"),
        *("flip_rate", "disagreement", "expectation_linearity"),
    }


def test_a_logit_of_minus_infinity_in_both_models_leaves_the_linearity_gap_finite(summed, logits):
    z0, z = logits
    z0[:, 0], z[..., 0] = -torch.inf, -torch.inf
    probe = Gap()
    probe.update(*summed(Gap.terms, z0, z))
    columns = probe.outcome().columns.columns
    shift = (z[..., 1:].mean(0) - z0[:, 1:]).numpy()
    plug_in = np.sqrt((shift**2).sum(-1))
    assert np.isfinite(columns["expectation_linearity"].values).all()
    assert (columns["expectation_linearity"].values <= plug_in).all()  # a norm's jackknife only takes away
    assert np.isfinite(columns["kl_mean_to_eval"].values).all()


def test_the_jackknife_takes_the_bias_out_of_the_mean_models_divergence(summed, z_score):
    """Four masks of equal probability: the truth is a finite sum."""
    truths, z0 = torch.randn(4, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    mean = truths.softmax(-1).mean(0)
    true = float((mean * (mean.log() - z0.log_softmax(-1))).sum())
    z = truths[torch.randint(0, 4, (8, 4000))]
    batch, sums = summed(Gap.terms, z0.expand(4000, -1), z)
    probe = Gap()
    plug_in = probe.estimate(batch, sums.total())["kl_mean_to_eval"]
    probe.update(batch, sums)
    corrected = probe.outcome().columns.columns["kl_mean_to_eval"].values
    assert z_score(plug_in, true) > 10  # the bias is there to be seen
    assert abs(corrected.mean() - true) < 0.15 * abs(float(plug_in.mean()) - true)  # order 1 / K^2 remains
