"""What is sampled is right in expectation, and says itself by how much it is off."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from rdrop_probes import gradients as gradients_module
from rdrop_probes.batch import Batch
from rdrop_probes.columns import Column
from rdrop_probes.directions import sampled_scores, sphere
from rdrop_probes.discovery import find_sites
from rdrop_probes.example_numbers import ExampleNumbers
from rdrop_probes.families import CATEGORICAL, Gaussian
from rdrop_probes.jacobian import Jacobian
from rdrop_probes.prediction import Prediction
from rdrop_probes.sampling import RunningMean, Sampled, standard_error
from rdrop_probes.sharing import SharedGradients
from rdrop_probes.state import preserved

SEEDS = 200
ROUNDING = 1e-9


def fed(model, x, kind, *, seed=0, family=CATEGORICAL, places=None):
    """The probe after the gradients of one batch."""
    with preserved(model):
        plan = find_sites(model, lambda n: model(x[torch.arange(n) % len(x)]))
        probe = kind()
        probe.start(plan, shared_masks=False)
        SharedGradients(model, model, plan, seed=seed, family=family).feed(Batch(x, len(x), 0, None, places), [probe])
    return probe


def network(classes=5):
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, classes)).double().eval()


@pytest.mark.parametrize("power", [1, 2])
def test_directions_along_scores_have_the_covariance_asked_for_and_one_length(power):
    p = torch.softmax(torch.randn(1, 4, dtype=torch.float64), -1)
    h = torch.diag(p[0]) - torch.outer(p[0], p[0])
    numbers = ExampleNumbers(0, 0, [1], "classes")
    w = next(sampled_scores(p, p, numbers, 40_000, 40_000, power=power))[:, 0]
    expected = torch.linalg.matrix_power(h, power)
    products = torch.einsum("ki,kj->kij", w, w)
    score = (products.mean(0) - expected) / (products.std(0) / 200)
    assert score.abs().max() < 4.5  # 16 numbers
    assert (w.mean(0) / (w.std(0) / 200)).abs().max() < 4.5
    assert w.norm(dim=-1).numpy() == pytest.approx(float(expected.trace().sqrt()), rel=ROUNDING)


def test_a_class_that_is_ruled_out_is_never_drawn_and_a_certain_row_adds_nothing():
    logits = torch.tensor([[0.0, -torch.inf, 1.0], [0.0, -torch.inf, -torch.inf]], dtype=torch.float64)
    numbers = ExampleNumbers(0, 0, [1, 1], "classes")
    w = next(sampled_scores(logits.softmax(-1), logits, numbers, 500, 500))
    assert (w[:, 0, 1] == 0).all()
    assert (w[:, 0, 0] != 0).all()
    assert (w[:, 1] == 0).all()


def test_directions_on_the_sphere_have_the_identity_as_covariance():
    numbers = ExampleNumbers(0, 0, [1], "projections")
    w = next(sphere(torch.zeros(1, 3, dtype=torch.float64), numbers, 40_000, 40_000))[:, 0]
    products = torch.einsum("ki,kj->kij", w, w)
    assert ((products.mean(0) - torch.eye(3)) / (products.std(0) / 200)).abs().max() < 4.5


def test_numbers_follow_from_the_example_however_many_are_drawn_together():
    whole = ExampleNumbers(3, 10, [2, 0, 1], "projections").normal(4, 5)
    parts = [ExampleNumbers(3, 10 + i, [rows], "projections") for i, rows in enumerate([2, 0, 1])]
    by_two = torch.cat([torch.cat([part.normal(2, 5) for part in parts], 1) for _ in range(2)])
    assert torch.equal(whole, by_two)
    for other in (ExampleNumbers(4, 10, [2, 0, 1], "projections"), ExampleNumbers(3, 10, [2, 0, 1], "start")):
        assert not (other.normal(4, 5) == whole).any()


def test_the_error_of_a_mean_is_the_spread_of_its_draws():
    draws, mean = torch.randn(12, 3, dtype=torch.float64), RunningMean()
    mean.add(draws[:5])
    mean.add(draws[5:])
    found = mean.mean()
    assert torch.allclose(found.values, draws.mean(0))
    assert torch.allclose(found.variance, draws.var(0) / 12)
    assert torch.allclose(mean.total().variance, 12 * draws.var(0))
    known = Sampled(found.values, found.variance).over(torch.tensor([2.0, 1.0, 4.0]).double())
    assert torch.allclose(known.variance, found.variance / torch.tensor([4.0, 1.0, 16.0]).double())


def test_roots_of_noisy_squares_are_not_small_on_average(z_score):
    """16 squares of normal numbers: the plain root is 1.5% small, which 4000 of them show."""
    squares = torch.randn(16, 4000, dtype=torch.float64).square()
    mean = RunningMean()
    mean.add(squares)
    plain, corrected = mean.mean().values.sqrt(), mean.mean().root
    assert z_score(plain.numpy(), 1.0) < -4
    assert corrected.values.mean() == pytest.approx(1, abs=0.005)  # third order: 1/16^2
    spread = float(corrected.values.var())
    assert float(corrected.variance.mean()) == pytest.approx(spread, rel=0.15)


def test_the_error_of_a_mean_over_rows_weighs_examples_by_their_rows():
    variances = Column(np.array([0.1, np.nan, 0.4]), weights=np.array([3.0, 0.0, 1.0]))
    assert standard_error(variances) == pytest.approx((9 * 0.1 + 0.4) ** 0.5 / 4)


QUANTITIES = [
    (Jacobian, "jacobian_fisher"),
    (Jacobian, "jacobian_probs"),
    (Jacobian, "jacobian_logits"),
    (Prediction, "predicted_epkl"),
]


@pytest.mark.parametrize("kind", [Jacobian, Prediction])
@pytest.mark.parametrize("classes", [5, 70])
def test_a_probe_comes_back_from_its_state_as_it_was(kind, classes):
    model, x = network(classes), torch.randn(4, 6, dtype=torch.float64)
    kept, again = fed(model, x, kind), kind()
    again.start(find_sites(model, lambda n: model(x[:n])), shared_masks=False)
    again.restore(kept.state())
    assert again.outcome().findings == kept.outcome().findings
    assert again.outcome().tables == kept.outcome().tables
    assert again.state().keys() == kept.state().keys()
    for name, column in kept.kept.columns.items():
        assert again.kept.columns[name].values.tolist() == column.values.tolist()
    for name, column in kept.sampling.columns.items():
        assert again.sampling.columns[name].values.tolist() == column.values.tolist()


@pytest.mark.parametrize("rows", ["one", "several"])
@pytest.mark.parametrize(("kind", "name"), QUANTITIES)
def test_the_standard_error_from_sampling_is_how_far_off_the_estimate_is(monkeypatch, kind, name, rows):
    """Errors divided by their standard errors have the spread 1, over 200 seeds."""
    model = network()
    x = torch.randn(6, 6, dtype=torch.float64) if rows == "one" else torch.randn(6, 3, 6, dtype=torch.float64)
    exact = fed(model, x.reshape(-1, 6), kind).kept.columns[name].values.reshape(6, -1)
    root = name in ("jacobian_probs", "jacobian_logits")
    exact = (np.sqrt((exact**2).mean(1)) if root else exact.mean(1)).mean()
    if rows == "one":
        monkeypatch.setattr(gradients_module, "MAX_EXACT_CLASSES", 1)
    places = None if rows == "one" else torch.ones(6, 3, dtype=torch.bool)
    scores = []
    for seed in range(SEEDS):
        probe = fed(model, x, kind, seed=seed, places=places)
        error = standard_error(probe.sampling.columns[name])
        scores.append((probe.kept.columns[name].values.mean() - exact) / error)
    assert abs(np.mean(scores)) < 4 / SEEDS**0.5 + 0.3 * root  # of a root, what is left of its bias
    assert 0.85 < np.std(scores) < 1.25  # errors are themselves estimated, from 16 draws (8 for norms) in 6 examples


def test_the_standard_error_of_a_site_is_how_far_off_its_prediction_is(monkeypatch):
    model, x = network(), torch.randn(6, 6, dtype=torch.float64)
    (exact,) = fed(model, x, Prediction).outcome().tables["site_predictions"]
    assert exact.sampling_error is None
    monkeypatch.setattr(gradients_module, "MAX_EXACT_CLASSES", 1)
    lines = [fed(model, x, Prediction, seed=seed).outcome().tables["site_predictions"][0] for seed in range(SEEDS)]
    scores = [(line.predicted - exact.predicted) / line.sampling_error for line in lines]
    assert abs(np.mean(scores)) < 4 / SEEDS**0.5
    assert 0.85 < np.std(scores) < 1.25


def test_sampled_outputs_of_a_gaussian_are_unbiased(monkeypatch, z_score):
    model, family = network(4), Gaussian(0.5)
    x = torch.randn(1, 6, dtype=torch.float64)
    exact = fed(model, x, Jacobian, family=family).kept.columns["jacobian_fisher"].values[0]
    monkeypatch.setattr(gradients_module, "MAX_EXACT_CLASSES", 1)
    found = fed(model, x.expand(400, -1), Jacobian, family=family).kept.columns["jacobian_fisher"].values
    assert abs(z_score(found, exact)) < 4


def test_a_confident_model_needs_no_luck(monkeypatch):
    """One class has 99.9%: drawn from p, 16 classes would mostly be that one, which has hardly any gradient."""
    model = network()
    with torch.no_grad():
        model[-1].bias[0] += 12
    x = torch.randn(50, 6, dtype=torch.float64)
    exact = fed(model, x, Jacobian).kept.columns["jacobian_fisher"].values
    monkeypatch.setattr(gradients_module, "MAX_EXACT_CLASSES", 1)
    found = fed(model, x, Jacobian).kept.columns["jacobian_fisher"].values
    assert np.abs(found / exact - 1).max() < 0.75
    assert np.abs(found / exact - 1).mean() < 0.2


def test_the_reader_is_told_how_much_sampling_adds(measured):
    found = measured(network(70), torch.randn(8, 6, dtype=torch.float64), [Jacobian, Prediction], sub_models=2).findings
    why = "there are more than 64 outputs: Jacobian norms and predictions are estimated by sampling"
    assert found["sampled_classes"] == why
    for name in ("jacobian_logits", "jacobian_probs", "jacobian_fisher"):
        assert re.search(rf"[ ]\d+(\.\d+)?% of {name}", found["sampled_jacobian"])
    assert re.search(r" \d+(\.\d+)?% of predicted_epkl,", found["sampled_predictions"])
    assert not measured(network(5), torch.randn(8, 6).double(), [Jacobian, Prediction], sub_models=2).findings
