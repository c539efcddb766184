"""Jacobian norms against the full Jacobian, example by example."""

import numpy as np
import pytest
import torch
from torch import nn

from rdrop_probes.jacobian import Jacobian

N = 5
NORMS = ("jacobian_logits", "jacobian_probs", "jacobian_spectral", "jacobian_fisher")


class Tokens(nn.Module):
    """Mean of an encoder's states over embedded token ids; `encode` is what differs."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def after(self, e):
        h = self.encoder(e)
        return self.head((h[0] if isinstance(h, tuple) else h).mean(1))

    def forward(self, ids):
        return self.after(self.embedding(ids))


def mlp(classes):
    return nn.Sequential(nn.Linear(7, 12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, classes))


def conv(classes):
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.GELU(), nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(12, classes))


def bag(classes):
    return Tokens(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1)), 8, classes)


def lstm(classes):
    return Tokens(nn.LSTM(6, 5, 2, dropout=0.2, batch_first=True), 5, classes)


def transformer(classes):
    return Tokens(nn.TransformerEncoderLayer(6, 2, 8, 0.1, batch_first=True), 6, classes)


MODELS = {
    "mlp": (mlp, lambda: torch.randn(N, 7, dtype=torch.float64)),
    "conv": (conv, lambda: torch.randn(N, 2, 4, 4, dtype=torch.float64)),
    "embedding": (bag, lambda: torch.randint(0, 11, (N, 4))),
    "lstm": (lstm, lambda: torch.randint(0, 11, (N, 4))),
    "transformer": (transformer, lambda: torch.randint(0, 11, (N, 4))),
}


def full_jacobians(model, inputs):
    """Logits' Jacobian [C, D] of each example, by reverse mode on one example alone."""
    after = model.after if isinstance(model, Tokens) else model
    x = model.embedding(inputs).detach() if isinstance(model, Tokens) else inputs
    for one in x:
        jacobian = torch.autograd.functional.jacobian(lambda v: after(v[None])[0], one)
        yield jacobian.detach().flatten(1), after(one[None])[0].detach().softmax(-1)


def exact_norms(model, inputs):
    rows = []
    for j, p in full_jacobians(model, inputs):
        h = torch.diag(p) - torch.outer(p, p)
        rows.append([j.norm(), (h @ j).norm(), torch.linalg.matrix_norm(j, 2), torch.trace(j.T @ h @ j)])
    return dict(zip(NORMS, torch.tensor(rows, dtype=torch.float64).T.tolist(), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_up_to_64_classes_the_norms_are_those_of_the_full_jacobian(measured, name):
    build, inputs = MODELS[name]
    model, x = build(5).double().eval(), inputs()
    found = measured(model, x, [Jacobian], sub_models=2).columns
    for norm, expected in exact_norms(model, x).items():
        assert found[norm].values.tolist() == pytest.approx(expected, rel=1e-8)  # float64, roots of tiny eigenvalues


@pytest.mark.parametrize("name", MODELS)
def test_beyond_64_classes_the_spectral_norm_converges_to_the_singular_value(measured, name):
    build, inputs = MODELS[name]
    model, x = build(70).double().eval(), inputs()[:2]
    found = measured(model, x, [Jacobian], sub_models=2).columns["jacobian_spectral"].values
    exact = np.array(exact_norms(model, x)["jacobian_spectral"])
    # Lanczos steps approach from below
    assert found == pytest.approx(exact, rel=1e-2)
    assert (found <= exact * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", ["mlp", "embedding"])
def test_beyond_64_classes_norms_and_the_fisher_trace_are_unbiased(measured, z_score, name):
    """The same example many times: draws of the estimator around one true value."""
    build, inputs = MODELS[name]
    model, x = build(70).double().eval(), inputs()[:1]
    expected = exact_norms(model, x)
    found = measured(model, x.expand(640, *x.shape[1:]), [Jacobian], sub_models=2).columns
    for norm in ("jacobian_logits", "jacobian_probs"):
        values = found[norm].values / expected[norm][0]
        # the root of a noisy square is corrected to second order; squares vary by 2 / 8 at most
        assert abs(values.mean() - 1) < 4 * values.std() / len(values) ** 0.5 + 0.01
    assert abs(z_score(found["jacobian_fisher"].values, expected["jacobian_fisher"][0])) < 4


def test_no_two_passes_share_their_projections(measured):
    """200 copies of one example make four passes in two batches: all estimates differ."""
    model, x = mlp(70).double().eval(), torch.randn(1, 7, dtype=torch.float64)
    found = measured(model, x.expand(200, -1), [Jacobian], batch=100, sub_models=2).columns["jacobian_logits"].values
    assert len(set(found.tolist())) == 200


class RuledOut(nn.Module):
    """A model that never allows class 1."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = mlp(classes)

    def forward(self, x):
        z = self.body(x)
        return z.masked_fill(torch.arange(z.shape[-1]) == 1, -torch.inf)


@pytest.mark.parametrize("classes", [5, 70])
def test_a_class_ruled_out_adds_nothing_to_the_norms(measured, classes):
    model = RuledOut(classes).double().eval()
    x = torch.randn(N, 7, dtype=torch.float64)
    found = measured(model, x, [Jacobian], sub_models=2).columns
    expected = exact_norms(nn.Sequential(model, Without(1)), x)
    if classes == 5:
        for norm in NORMS:
            assert found[norm].values.tolist() == pytest.approx(expected[norm], rel=1e-8)
    else:
        for norm in NORMS:
            assert found[norm].values.tolist() == pytest.approx(expected[norm], rel=0.9)  # noisy: finite is the point


class Without(nn.Module):
    def __init__(self, column: int) -> None:
        super().__init__()
        self.column = column

    def forward(self, z):
        return torch.cat([z[:, : self.column], z[:, self.column + 1 :]], 1)


class Counts(nn.Module):
    """Integers in, and no embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x.float())


def test_an_input_that_cannot_be_differentiated_is_said_not_measured(measured):
    found = measured(Counts(), torch.randint(0, 5, (4, 3)), [Jacobian], sub_models=2)
    assert not found.columns
    assert "jacobian_unavailable" in found.findings


def test_parameters_get_no_gradient(measured):
    model = mlp(3)
    measured(model, torch.randn(4, 7), [Jacobian], sub_models=2)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
