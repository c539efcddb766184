"""Gap metrics against loops over sub-models, examples and pairs in NumPy."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from rdrop_probes.gap import Gap

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


def test_expectation_linearity_is_the_jackknifed_plug_in(columns, logits):
    z0, z = (t.numpy() for t in logits)
    for n in range(N):
        without = [np.linalg.norm(z[[k for k in range(K) if k != left], n].mean(0) - z0[n]) for left in range(K)]
        jackknifed = K * np.linalg.norm(z[:, n].mean(0) - z0[n]) - (K - 1) * np.mean(without)
        assert columns["expectation_linearity"].values[n] == pytest.approx(jackknifed, rel=1e-9)  # float64 rounding


def test_the_jackknife_takes_the_bias_of_expectation_linearity_away_where_the_shift_is_clear(summed):
    n, k, shift = 4000, 8, 3.0
    z0 = torch.zeros(n, 5, dtype=torch.float64)
    z = torch.randn(k, n, 5, dtype=torch.float64)
    z[..., 0] += shift
    probe = Gap()
    probe.update(*summed(probe.terms, z0, z))
    values = probe.outcome().columns.columns["expectation_linearity"].values
    plug_in = (z.mean(0) - z0).norm(dim=1).numpy()
    error = values.std() / np.sqrt(n)
    assert (plug_in.mean() - shift) / error > 10  # the plug-in is too high, visibly
    assert abs(values.mean() - shift) / error < 4


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
