"""Predicted EPKL of each site against the model written out by hand with its mask as an argument."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from rdrop_probes.jacobian import Jacobian
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.prediction import Prediction
from rdrop_probes.statistics import metric

N = 4
ROUNDING = 1e-8  # float64 through a small network


def twice_r(log_p_of_mask: Callable[[Tensor], Tensor], mask_shape: tuple[int, ...], q: float) -> float:
    """q / (1 - q) E_{y~p} sum_i (d log p(y) / d m_i)^2 at mask 1, for one example."""
    one = torch.ones(mask_shape, dtype=torch.float64)
    rows = jacobian(log_p_of_mask, one).flatten(1)  # [C, mask elements]
    p = log_p_of_mask(one).detach().exp()
    return float(q / (1 - q) * (p * rows.square().sum(1)).sum())


class TwoSites(nn.Module):
    q = 0.3, 0.1

    def __init__(self, *, inplace: bool = False, classes: int = 3) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, classes)
        self.drop = nn.Dropout(self.q[0], inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.drop(self.a(x)))
        return self.c(F.dropout(F.gelu(self.b(h)), self.q[1], self.training))

    def by_hand(self, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
        h = torch.tanh(self.a(x) * masks.get("drop", 1))
        return self.c(F.gelu(self.b(h)) * masks.get("(root)", 1))

    shapes: ClassVar = {"drop": (8,), "(root)": (6,)}
    rates: ClassVar = {"drop": 0.3, "(root)": 0.1}


class Maps(nn.Module):
    """Feature maps dropped whole."""

    shapes: ClassVar = {"drop": (4, 1, 1)}
    rates: ClassVar = {"drop": 0.25}

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.drop, self.head = nn.Dropout2d(0.25), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(F.relu(self.norm(self.conv(x)))).flatten(1))

    def by_hand(self, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
        norm = self.norm
        h = self.conv(x[None])[0]
        h = (h - norm.running_mean[:, None, None]) / (norm.running_var + norm.eps).sqrt()[:, None, None]
        return self.head((F.relu(h) * masks["drop"]).flatten())


class Attention(nn.Module):
    """Attention probabilities dropped."""

    shapes: ClassVar = {"attention": (2, 3, 3)}
    rates: ClassVar = {"attention": 0.2}

    def __init__(self, *, need_weights: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(12, 3)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=self.need_weights)[0].flatten(1))

    def by_hand(self, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
        att = self.attention
        projected = x @ att.in_proj_weight.T + att.in_proj_bias  # [3, 12]
        q, k, v = (part.view(3, 2, 2).transpose(0, 1) for part in projected.split(4, 1))  # heads first
        weights = (q @ k.mT / 2**0.5).softmax(-1) * masks["attention"]
        return self.head(att.out_proj((weights @ v).transpose(0, 1).reshape(3, 4)).flatten())


class Recurrent(nn.Module):
    """Dropout between the layers of an LSTM."""

    shapes: ClassVar = {"lstm": (3, 6)}
    rates: ClassVar = {"lstm": 0.4}

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, 2, dropout=0.4, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])

    def layer(self, x: Tensor, number: int) -> Tensor:
        weights = [getattr(self.lstm, f"{name}_l{number}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        h = c = x.new_zeros(6)
        out = []
        for step in x:
            i, f, g, o = (weights[0] @ step + weights[2] + weights[1] @ h + weights[3]).chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        return torch.stack(out)

    def by_hand(self, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
        return self.head(self.layer(self.layer(x, 0) * masks["lstm"], 1)[-1])


class Branches(nn.Module):
    """A residual branch dropped whole, as DropPath does."""

    shapes: ClassVar = {"(root)": (1,)}
    rates: ClassVar = {"(root)": 0.3}

    def __init__(self) -> None:
        super().__init__()
        self.branch, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.branch(x))
        if self.training:
            mask = x.new_empty(x.shape[0], 1).bernoulli_(0.7)
            mask.div_(0.7)
            h = h * mask
        return self.head(x + h)

    def by_hand(self, x: Tensor, masks: dict[str, Tensor]) -> Tensor:
        return self.head(x + torch.tanh(self.branch(x)) * masks["(root)"])


CASES: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "mlp": (TwoSites, (5,)),
    "in-place mlp": (lambda: TwoSites(inplace=True), (5,)),
    "dropout2d": (Maps, (1, 4, 4)),
    "attention": (Attention, (3, 4)),
    "attention without weights": (lambda: Attention(need_weights=False), (3, 4)),
    "lstm": (Recurrent, (3, 5)),
    "drop path": (Branches, (5,)),
}


@pytest.mark.parametrize("case", CASES)
def test_each_site_is_predicted_from_the_derivative_by_its_mask(measured, case):
    build, shape = CASES[case]
    model = build().double().eval()
    x = torch.randn(N, *shape, dtype=torch.float64)
    torch.testing.assert_close(model(x), torch.stack([model.by_hand(v, ones(model)) for v in x]))  # the copy is one
    found = measured(model, x, [Prediction], sub_models=2)
    assert found.findings == {}

    def by_site(v: Tensor, site: str) -> float:
        others = {k: m for k, m in ones(model).items() if k != site}
        return twice_r(
            lambda mask: model.by_hand(v, {**others, site: mask}).log_softmax(-1), model.shapes[site], model.rates[site]
        )

    expected = {site: [by_site(v, site) for v in x] for site in model.shapes}
    lines = {line.site: line for line in found.tables["site_predictions"]}
    assert set(lines) == set(expected)
    for site, values in expected.items():
        assert lines[site].predicted == pytest.approx(sum(values) / N, rel=ROUNDING)
    totals = [sum(values) for values in zip(*expected.values(), strict=True)]
    assert found.columns["predicted_epkl"].values.tolist() == pytest.approx(totals, rel=ROUNDING)
    assert sum(line.share for line in lines.values()) == pytest.approx(1)


def ones(model: Any) -> dict[str, Tensor]:
    return {site: torch.ones(shape, dtype=torch.float64) for site, shape in model.shapes.items()}


def test_the_mask_derivative_is_activation_times_gradient_by_finite_differences(measured):
    model = TwoSites().double().eval()
    x = torch.randn(1, 5, dtype=torch.float64)
    h = model.a(x).detach()

    def log_p(hidden: Tensor) -> Tensor:
        return model.c(F.gelu(model.b(torch.tanh(hidden)))).log_softmax(-1)[0].detach()

    total, step = 0.0, 1e-5
    for i in range(8):
        up, down = h.clone(), h.clone()
        up[0, i] += step
        down[0, i] -= step
        slope = (log_p(up) - log_p(down)) / (2 * step)
        total += float((log_p(h).exp() * (h[0, i] * slope) ** 2).sum())
    lines = measured(model, x, [Prediction], sub_models=2).tables["site_predictions"]
    predicted = {line.site: line.predicted for line in lines}["drop"]
    assert predicted == pytest.approx(0.3 / 0.7 * total, rel=1e-6)  # central differences err by step^2


def test_beyond_64_classes_sampled_labels_are_unbiased(measured, z_score):
    model = TwoSites(classes=70).double().eval()
    x = torch.randn(1, 5, dtype=torch.float64)
    site = ones(model)
    exact = sum(
        twice_r(
            lambda mask, name=name: model.by_hand(x[0], {**site, name: mask}).log_softmax(-1),
            model.shapes[name],
            model.rates[name],
        )
        for name in site
    )
    found = measured(model, x.expand(500, -1), [Prediction], sub_models=2).columns["predicted_epkl"]
    assert abs(z_score(found.values, exact)) < 4


def test_measured_over_predicted_goes_to_one_with_the_rate(measured):
    ratios = {}
    wide = nn.Sequential(nn.Linear(5, 200), nn.Tanh(), nn.Dropout(), nn.Linear(200, 3)).double().eval()
    for q in (0.5, 0.02):
        wide[2].p = q
        found = measured(wide, torch.randn(400, 5, dtype=torch.float64), [PairwiseKL, Prediction], sub_models=16)
        ratios[q] = metric(found.columns["epkl_over_predicted"], unit="", shared_masks=False)
        standard_error = (ratios[q].high - ratios[q].low) / 2 / 1.96
        # what is left of order q: one of 200 units is a small step, so 1% at the small rate
        assert abs(ratios[q].estimate - 1) < 4 * standard_error + (0.01 if q < 0.1 else 0.5)
    assert ratios[0.02].high - ratios[0.02].low < 0.1


def changed_in_place() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 8), nn.Dropout(0.3, inplace=True), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(8, 3)
    )


class Twice(nn.Module):
    """One mask on two things."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        mask = torch.empty_like(h).bernoulli_(0.9) / 0.9 if self.training else torch.ones_like(h)
        return self.b(torch.tanh(h * mask) * mask)


class Selected(nn.Module):
    """A mask that selects and does not multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.a(x))
        if self.training:
            h = torch.where(torch.empty_like(h).bernoulli_(0.9).bool(), h / 0.9, 0.0)
        return self.b(h)


class Fused(nn.Module):
    """The operator that CUDA uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.native_dropout(F.relu(self.a(x)), 0.3, self.training)[0])


NOT_PREDICTED = {
    "changed in place": (changed_in_place, {"1": "changed in place"}),
    "alpha dropout": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.SELU(), nn.AlphaDropout(0.2), nn.Linear(8, 3)),
        {"2": "not the eval model"},
    ),
    "mask used twice": (Twice, {"(root)": "more than once"}),
    "selecting mask": (Selected, {"(root)": "not the eval model"}),
    "fused kernel": (Fused, {"(root)": "fused"}),
    "rate one": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(1.0), nn.Linear(8, 3)), {"1": "not the eval model"}),
}


@pytest.mark.parametrize("case", NOT_PREDICTED)
def test_what_the_formula_does_not_cover_is_named_and_gives_no_ratio(measured, case):
    build, reasons = NOT_PREDICTED[case]
    found = measured(build().eval(), torch.randn(N, 5), [PairwiseKL, Prediction], sub_models=4)
    lines = {line.site: line for line in found.tables["site_predictions"]}
    for site, reason in reasons.items():
        assert lines[site].predicted is None
        assert reason in lines[site].reason
        assert f"{site}: " in found.findings["not_predicted"]
    assert "epkl_over_predicted" not in found.columns


def test_a_site_beside_one_that_is_changed_in_place_is_still_predicted(measured):
    model = changed_in_place().eval()
    lines = {
        line.site: line
        for line in measured(model, torch.randn(N, 5), [Prediction], sub_models=2).tables["site_predictions"]
    }
    assert lines["1"].predicted is None
    assert lines["3"].predicted > 0


@pytest.mark.parametrize("build", [TwoSites, Fused, Twice])
def test_input_gradients_are_the_eval_models_with_and_without_site_gradients(measured, build):
    model = build().double().eval()
    x = torch.randn(N, 5, dtype=torch.float64)
    alone = measured(model, x, [Jacobian], sub_models=2).columns
    beside = measured(model, x, [Jacobian, Prediction], sub_models=2).columns
    for name, column in alone.items():
        assert beside[name].values.tolist() == pytest.approx(column.values.tolist(), rel=ROUNDING)


def test_half_precision_does_not_hide_that_a_neutral_mask_is_not_the_eval_model(measured):
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.AlphaDropout(0.3), nn.Tanh(), nn.Linear(8, 3)).bfloat16()
    found = measured(model.eval(), torch.randn(N, 5).bfloat16(), [Prediction], sub_models=2)
    assert "not the eval model" in found.findings["not_predicted"]
    assert "predicted_epkl" not in found.columns  # a 0 would be a lie


def test_a_mask_laid_out_time_first_is_not_ascribed_to_the_wrong_examples(measured):
    class TimeFirst(nn.Module):
        def __init__(self, time_first):
            super().__init__()
            self.body, self.head, self.drop = nn.Linear(5, 8), nn.Linear(8, 3), nn.Dropout(0.3)
            self.time_first = time_first

        def forward(self, x):  # [N, L, 5]
            h = torch.tanh(self.body(x))
            h = h.transpose(0, 1) if self.time_first else h
            h = self.drop(h.reshape(-1, 8)).reshape(h.shape)
            return self.head(h.mean(0 if self.time_first else 1))

    x = torch.randn(40, 4, 5)
    found = measured(TimeFirst(True), x, [Prediction], sub_models=2)
    assert "which examples its mask belongs to" in found.findings["not_predicted"]
    assert "not_predicted" not in measured(TimeFirst(False), x, [Prediction], sub_models=2).findings


class Depth(nn.Module):
    """Stochastic depth, its mask drawn as the caller says."""

    def __init__(self, mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mask, self.a, self.b = mask, nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        branch = torch.tanh(self.a(x))
        return self.b(x + (branch / 0.8 * self.mask(x) if self.training else branch))


@pytest.mark.parametrize(
    "mask",
    [lambda x: (0.8 + torch.rand(len(x), 1, dtype=x.dtype)).floor(), lambda x: (torch.rand(len(x), 1) < 0.8).to(x)],
    ids=["floor", "comparison"],
)
def test_depth_drawn_from_uniform_numbers_is_predicted_as_if_drawn_at_once(measured, mask):
    drawn = Depth(lambda x: x.new_empty(len(x), 1).bernoulli_(0.8)).double().eval()
    made = Depth(mask).double().eval()
    made.load_state_dict(drawn.state_dict())
    x = torch.randn(N, 5, dtype=torch.float64)
    expected, found = (measured(m, x, [Prediction], sub_models=2).columns["predicted_epkl"] for m in (drawn, made))
    assert found.values == pytest.approx(expected.values, rel=1e-9)
    assert (found.values > 0).all()
