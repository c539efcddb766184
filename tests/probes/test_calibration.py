"""Brier score and ECE against plain loops."""

import numpy as np
import pytest
import torch

from rdrop_probes.calibration import BINS, Calibration
from rdrop_probes.statistics import mask_spread, metric

N, K, C = 60, 5, 3


@pytest.fixture
def predictions():
    z0 = 2 * torch.randn(N, C, dtype=torch.float64)
    z = z0 + torch.randn(K, N, C, dtype=torch.float64)
    labels = torch.randint(0, C, (N,))
    labels[::7] = -100
    return z0, z, labels


@pytest.fixture
def outcome(summed, predictions):
    probe = Calibration()
    probe.update(*summed(Calibration.terms, *predictions))
    return probe.outcome()


def pooled(predictions):
    """Probabilities and labels of eval model, sub-models (pooled) and MC mean, without ignored positions."""
    z0, z, labels = predictions
    kept = labels >= 0
    y = labels[kept].numpy()
    p = z.softmax(-1)[:, kept]
    return {
        "eval": (z0.softmax(-1)[kept].numpy(), y),
        "sub": (p.flatten(0, 1).numpy(), np.tile(y, K)),
        "mean": (p.mean(0).numpy(), y),
    }


def ece(p, y):
    total = 0.0
    for b in range(BINS):
        members = [i for i in range(len(y)) if b / BINS < p[i].max() <= (b + 1) / BINS]
        if members:
            confidence = np.mean([p[i].max() for i in members])
            accuracy = np.mean([p[i].argmax() == y[i] for i in members])
            total += len(members) / len(y) * abs(confidence - accuracy)
    return total


@pytest.mark.parametrize("kind", ["eval", "sub", "mean"])
def test_brier_score_is_the_squared_distance_to_the_one_hot_label(outcome, predictions, kind):
    p, y = pooled(predictions)[kind]
    by_hand = np.mean([sum((p[i, c] - (c == y[i])) ** 2 for c in range(C)) for i in range(len(y))])
    found = metric(outcome.columns.columns[f"brier_{kind}"], unit="", shared_masks=False)
    assert found.estimate == pytest.approx(by_hand, rel=1e-9)  # float64 rounding
    assert found.n == int((predictions[2] >= 0).sum())


@pytest.mark.parametrize("kind", ["eval", "sub", "mean"])
def test_ece_is_the_sum_over_bins(outcome, predictions, kind):
    found = metric(outcome.columns.columns[f"ece_{kind}"], unit="", shared_masks=False)
    assert found.estimate == pytest.approx(ece(*pooled(predictions)[kind]), rel=1e-9)
    assert 0 <= found.low < found.estimate < found.high


@pytest.mark.parametrize("kind", ["eval", "sub", "mean"])
def test_the_reliability_diagram_holds_every_prediction_once(outcome, predictions, kind):
    p, y = pooled(predictions)[kind]
    bins = outcome.tables["reliability"][kind]
    assert sum(b.count for b in bins) == pytest.approx(int((predictions[2] >= 0).sum()))
    for b in bins:
        inside = (p.max(-1) > b.low) & (p.max(-1) <= b.high)
        assert b.count == pytest.approx(inside.sum() / (K if kind == "sub" else 1))
        if inside.any():
            assert b.confidence == pytest.approx(p[inside].max(-1).mean())
            assert b.accuracy == pytest.approx((p[inside].argmax(-1) == y[inside]).mean())
        else:
            assert b.confidence is b.accuracy is None


def test_a_prediction_of_certainty_falls_into_the_last_bin(summed):
    z = torch.tensor([[800.0, 0.0]], dtype=torch.float64)
    probe = Calibration()
    probe.update(*summed(Calibration.terms, z, z.expand(3, -1, -1), torch.tensor([0])))
    assert [b.count for b in probe.outcome().tables["reliability"]["eval"]] == [0.0] * (BINS - 1) + [1.0]


def test_calibration_without_labels_is_refused(summed):
    with pytest.raises(ValueError, match="needs labels"):
        summed(Calibration.terms, torch.zeros(2, 3), torch.zeros(2, 2, 3))


def test_with_shared_masks_the_ece_varies_as_its_jackknife_over_sub_models_says(summed, predictions):
    z0, z, labels = predictions
    probe = Calibration()
    probe.shared_masks = True
    probe.update(*summed(Calibration.terms, z0, z, labels))
    columns = probe.outcome().columns.columns
    for kind in ("sub", "mean"):
        without = [ece(*pooled_without(predictions, left)[kind]) for left in range(K)]
        expected = (K - 1) / K * sum((e - np.mean(without)) ** 2 for e in without)
        spread = mask_spread(columns[f"ece_{kind}"], shared_masks=True)
        assert spread.variance == pytest.approx(expected, rel=1e-9)  # float64 rounding
        assert spread.df == K - 1
        found = metric(columns[f"ece_{kind}"], unit="", shared_masks=True)
        alone = metric(columns[f"ece_{kind}"], unit="", shared_masks=False)
        assert found.high - found.estimate > alone.high - alone.estimate


def test_an_example_takes_little_memory_however_many_sub_models(summed):
    """Its gaps in a few bins of 15: at most 9 bytes each, where all bins would take 24 each for every kind."""
    n, k = 400, 64
    z0 = torch.randn(n, 10, dtype=torch.float64)
    probe = Calibration()
    probe.update(*summed(Calibration.terms, z0, z0 + torch.randn(k, n, 10), torch.randint(0, 10, (n,))))
    assert arrays_in(probe.state()) < 300 * n


def arrays_in(state):
    """Bytes of the arrays in plain data."""
    if isinstance(state, np.ndarray):
        return state.nbytes
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return sum(map(arrays_in, parts))


def pooled_without(predictions, left):
    _, z, labels = predictions
    kept = [k for k in range(K) if k != left]
    y = labels[labels >= 0].numpy()
    p = z[kept].softmax(-1)[:, labels >= 0]
    return {"sub": (p.flatten(0, 1).numpy(), np.tile(y, K - 1)), "mean": (p.mean(0).numpy(), y)}
