"""The sweep of dropout rates against models that are built anew at each rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by
from scipy import stats
from torch import Tensor, nn

from rdrop_probes import registry
from rdrop_probes.batch import Batch
from rdrop_probes.families import Gaussian
from rdrop_probes.measure import measure
from rdrop_probes.measurement import Measurement
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.prediction import Prediction
from rdrop_probes.regression import GaussianPairwise
from rdrop_probes.settings import Settings
from rdrop_probes.statistics import metric
from rdrop_probes.sweep import GaussianSweep, Sweep

N, C, K = 6, 4, 6
RATES = (0.05, 0.3, 0.6)
PROBES = [PairwiseKL, Prediction, Sweep]


def run(model: nn.Module, x: Tensor, probes: Any = PROBES, **options: Any) -> Measurement:
    family = {"family": options.pop("family")} if "family" in options else {}
    batches = [Batch(x[:4], 4, 0), Batch(x[4:], len(x) - 4, 4)]
    return measure(model, batches, forward=model, probes=probes, settings=Settings(sub_models=K, **options), **family)


class Written(nn.Module):
    """A model written as a function of its rate (0.2, unless something else is asked for)."""

    def __init__(self, forward: Callable[..., Tensor], rate: float = 0.2, **modules: nn.Module) -> None:
        super().__init__()
        self.rate, self._written = rate, forward
        for name, module in modules.items():
            self.add_module(name, module)
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.head(self._written(self, torch.tanh(self.body(x))))


def functional(m: Any, h: Tensor) -> Tensor:
    return F.dropout(torch.tanh(F.dropout(h, m.rate, m.training)), m.rate, m.training)


def attended(m: Any, h: Tensor) -> Tensor:
    h = torch.stack([h, -h, h * h], 1)
    return m.attention(h, h, h, need_weights=False)[0].mean(1)


def attended_by_function(m: Any, h: Tensor) -> Tensor:
    h = torch.stack([h, -h, h * h], 1)
    return F.scaled_dot_product_attention(h, h, h, dropout_p=m.rate if m.training else 0.0).mean(1)


def recurrent(m: Any, h: Tensor) -> Tensor:
    return m.rnn(3 * torch.stack([h, -h, h * h], 1))[0][:, -1]


def depth_by_floor(m: Any, h: Tensor) -> Tensor:
    if not m.training:
        return h + 0.1
    keep = 1 - m.rate
    return h.div(keep) * (keep + torch.rand((len(h), 1), dtype=h.dtype)).floor_() + 0.1


def depth_by_mask(m: Any, h: Tensor) -> Tensor:
    mask = h.new_empty(len(h), 1).bernoulli_(1 - m.rate).div_(1 - m.rate) if m.training else 1
    return h * mask + 0.1


def fused(m: Any, h: Tensor) -> Tensor:
    return torch.native_dropout(h, m.rate, m.training)[0]


MODELS: dict[str, Callable[[float], nn.Module]] = {
    "module": lambda q: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(q), nn.Linear(8, 8), nn.Linear(8, C)),
    "in place": lambda q: Written(lambda m, h: m.drop(h + 0), drop=nn.Dropout(q, inplace=True)),
    "alpha": lambda q: Written(lambda m, h: m.drop(h), drop=nn.AlphaDropout(q)),
    "feature maps": lambda q: Written(lambda m, h: m.drop(h[..., None, None]).flatten(1), drop=nn.Dropout2d(q)),
    "functional": lambda q: Written(functional, q),
    "attention": lambda q: Written(attended, attention=nn.MultiheadAttention(8, 2, q, batch_first=True)),
    "attention by function": lambda q: Written(attended_by_function, q),
    "lstm": lambda q: Written(recurrent, rnn=nn.LSTM(8, 8, 3, dropout=q, batch_first=True)),
    "depth by mask": lambda q: Written(depth_by_mask, q),
    "fused": lambda q: Written(fused, q),
}


def rebuilt(name: str, model: nn.Module, rate: float) -> nn.Module:
    """The same model with another rate."""
    other = MODELS[name](rate).double().eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("name", list(MODELS))
def test_points_are_those_of_models_that_are_built_with_the_rate(name):
    model, x = MODELS[name](0.2).double().eval(), torch.randn(N, 5, dtype=torch.float64)
    found = run(model, x, dropout=RATES)
    points = found.tables["sweep"]
    assert [point.rate for point in points] == list(RATES)
    assert "not_swept" not in found.findings
    for point in points:
        other = run(rebuilt(name, model, point.rate), x, [PairwiseKL, Prediction])
        assert {site.rate for site in other.plan.sites.values()} == {point.rate}
        expected = metric(other.columns["epkl"], unit="nats", shared_masks=False)
        assert expected.estimate > 1e-6
        for bound in ("estimate", "low", "high", "mask_low", "mask_high"):
            assert getattr(point.epkl, bound) == pytest.approx(getattr(expected, bound), rel=1e-7, abs=1e-12)
        if name in ("alpha", "fused"):
            assert (point.predicted, point.ratio) == (None, None)
            continue
        predicted = metric(other.columns["predicted_epkl"], unit="nats", shared_masks=False)
        assert point.predicted.estimate == pytest.approx(predicted.estimate, rel=1e-7)
        assert point.predicted.high == pytest.approx(predicted.high, rel=1e-7)
        ratio = metric(other.columns["epkl_over_predicted"], unit="", shared_masks=False)
        assert (point.ratio.estimate, point.ratio.low) == pytest.approx((ratio.estimate, ratio.low), rel=1e-7)


@pytest.mark.parametrize("masks", ["per-example", "shared"])
def test_the_change_from_the_lowest_to_the_highest_rate_is_paired_by_example(masks):
    """Against the ratio with one example left out (jackknife), of which the linearised one is the first order."""
    model, x = MODELS["module"](0.2).double(), torch.randn(60, 5, dtype=torch.float64)
    kept = KeptColumns.of(model, x, dropout=(0.6, 0.05), masks=masks, probes=[PairwiseKL, Prediction, KeptColumns])
    change = KeptColumns.concluded["sweep_change"]
    assert (change.reference, change.candidate) == ("rate 0.05", "rate 0.6")
    low, high = (point.ratio for point in KeptColumns.concluded["sweep"][::-1])
    assert change.difference == pytest.approx(high.estimate - low.estimate)
    columns = {rate: kept[f"rate {rate}"].values for rate in (0.05, 0.6)}
    predicted = {rate: run(rebuilt("module", model, rate), x, [Prediction]).columns["predicted_epkl"].values
                 for rate in columns}  # fmt: skip

    def difference(keep: Any) -> float:
        return float(np.diff([columns[rate][keep].mean() / predicted[rate][keep].mean() for rate in columns])[0])

    without = np.array([difference(np.arange(60) != i) for i in range(60)])
    error = np.sqrt(59 / 60 * ((without - without.mean()) ** 2).sum())
    if masks == "per-example":
        half = stats.t.ppf(0.975, 59) * error
        assert (change.high - change.low) / 2 == pytest.approx(half, rel=0.1)  # second order is some percent here
    else:
        assert (change.high - change.low) / 2 > stats.t.ppf(0.975, 59) * error * 0.9
    assert run(model, x, dropout=(0.3,)).tables["sweep_change"] is None


@pytest.mark.parametrize("strategy", ["loop", "vmap", "fold"])
def test_at_its_own_rate_a_model_is_what_it_is(strategy):
    model, x = MODELS["functional"](0.2).double(), torch.randn(N, 5, dtype=torch.float64)
    found = run(model, x, dropout=(0.2,), strategy=strategy)
    (point,) = found.tables["sweep"]
    assert point.epkl == metric(found.columns["epkl"], unit="nats", shared_masks=False)
    expected = metric(found.columns["epkl_over_predicted"], unit="", shared_masks=False)
    assert point.ratio.estimate == pytest.approx(expected.estimate)
    assert point.ratio.high == pytest.approx(expected.high)


def test_masks_that_are_made_of_uniform_numbers_are_drawn_anew(z_score):
    model, x = Written(depth_by_floor).double(), torch.randn(300, 5, dtype=torch.float64)
    kept = KeptColumns.of(model, x, dropout=(0.2, 0.4))
    own = run(model, x, [PairwiseKL]).columns["epkl"]
    np.testing.assert_allclose(kept["rate 0.2"].values, own.values, rtol=1e-7, atol=1e-12)
    other = Written(depth_by_floor, 0.4).double()
    other.load_state_dict(model.state_dict())
    expected = run(other, x, [PairwiseKL]).columns["epkl"].values
    assert abs(z_score(kept["rate 0.4"].values - expected, 0)) < 4
    assert abs(z_score(own.values - expected, 0)) > 6  # at another rate it would show


class KeptColumns(Sweep):
    """Shows what is kept of each rate."""

    columns: ClassVar[dict[str, Any]] = {}
    concluded: ClassVar[dict[str, Any]] = {}

    def conclude(self, columns: Any, probes: Any) -> Any:
        found = super().conclude(columns, probes)
        self.columns.update(self.by_variant.columns)
        self.concluded.update(found.tables)
        return found

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, probes: Any = None, **options: Any) -> dict[str, Any]:
        run(model, x, [cls] if probes is None else probes, **options)
        return cls.columns


def test_the_main_metrics_stay_at_the_trained_rates():
    model, x = MODELS["module"](0.2), torch.randn(N, 5)
    without, swept = run(model, x, strategy="loop"), run(model, x, strategy="loop", dropout=RATES)
    np.testing.assert_array_equal(without.columns["epkl"].values, swept.columns["epkl"].values)
    assert without.tables["sweep"] == []


def test_sites_at_different_rates_are_predicted_each_by_its_own():
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.1), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, C)).double()
    x = torch.randn(N, 5, dtype=torch.float64)
    (point,) = run(model, x, dropout=(0.25,)).tables["sweep"]
    model[1].p = model[3].p = 0.25
    other = run(model, x, [PairwiseKL, Prediction])
    assert point.predicted.estimate == pytest.approx(float(np.mean(other.columns["predicted_epkl"].values)))
    assert point.epkl.estimate == pytest.approx(float(np.mean(other.columns["epkl"].values)))


@pytest.mark.parametrize("strategy", ["loop", "vmap", "fold"])
def test_dropout_at_rate_1_is_swept_and_other_noise_stays_as_it_is(strategy):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gone, self.drop, self.noise, self.head = nn.Dropout(1.0), nn.Dropout(0.2), Noise(), nn.Linear(5, C)

        def forward(self, x: Tensor) -> Tensor:
            x = self.noise(x)  # sites have their masks by their order, and those that draw nothing come last
            return self.head(self.drop(x) + self.gone(torch.tanh(x)))

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.1 * torch.randn_like(x) if self.training else x

    model, x = Mixed().double(), torch.randn(N, 5, dtype=torch.float64)
    (point,) = run(model, x, dropout=(0.4,), strategy=strategy).tables["sweep"]
    assert (model.gone.p, model.drop.p) == (1.0, 0.2)
    model.gone.p = model.drop.p = 0.4
    expected = run(model, x, [PairwiseKL])
    assert point.epkl.estimate == pytest.approx(float(np.mean(expected.columns["epkl"].values)))
    assert point.predicted is None


def boolean(m: Any, h: Tensor) -> Tensor:
    return torch.where(torch.rand((len(h), 1)) < 0.7, h / 0.7, 0.0) if m.training else h


def test_dropout_whose_rate_cannot_be_changed_is_said_and_nothing_swept():
    model = Written(boolean)
    found = run(model, torch.randn(N, 5), dropout=RATES)
    assert found.plan.sites["", 0].rate == 0.3
    assert found.tables["sweep"] == []
    assert "its noise is not a mask whose rate can be changed" in found.findings["not_swept"]


def test_a_model_whose_only_dropout_is_at_rate_1_is_swept():
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Dropout(1.0), nn.Linear(8, C)).double(), torch.randn(N, 5).double()
    found = run(model, x, dropout=(0.1, 0.3)).tables["sweep"]
    for point in found:
        model[1].p = point.rate
        expected = run(model, x, [PairwiseKL]).columns["epkl"].values
        assert point.epkl.estimate == pytest.approx(float(expected.mean()))
        assert point.epkl.estimate > 1e-6


def test_dropout_at_rate_1_that_is_no_module_is_said_and_nothing_swept():
    found = run(MODELS["functional"](1.0), torch.randn(N, 5), dropout=RATES)
    assert found.tables["sweep"] == []
    assert "at rate 1 it draws no mask whose rate could be changed" in found.findings["not_swept"]


def test_without_dropout_there_is_nothing_to_sweep():
    assert run(nn.Linear(5, C), torch.randn(N, 5), dropout=RATES).tables["sweep"] == []


def test_regression_is_swept_as_well():
    model, x = MODELS["functional"](0.2).double(), torch.randn(N, 5, dtype=torch.float64)
    probes = [GaussianPairwise, Prediction, GaussianSweep]
    (point,) = run(model, x, probes, dropout=(0.4,), family=Gaussian(2.0)).tables["sweep"]
    other = run(rebuilt("functional", model, 0.4), x, probes, family=Gaussian(2.0))
    assert point.epkl.estimate == pytest.approx(float(np.mean(other.columns["epkl"].values)))
    assert point.predicted.estimate == pytest.approx(float(np.mean(other.columns["predicted_epkl"].values)))


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan")])
def test_rates_without_sub_models_are_refused(rate):
    with pytest.raises(ValueError, match=f"a dropout rate of {rate} makes no sub-models"):
        Settings(dropout=(0.1, rate))


def test_it_runs_where_rates_are_given_beside_what_it_is_held_against():
    names = [probe.name for probe in registry.choose(["gap"], labels=False, sweep=True)]
    assert names == ["pairwise_kl", "gap", "prediction", "sweep"]
    assert "sweep" in [probe.name for probe in registry.choose(None, labels=True, sweep=True)]
    assert "sweep" not in [probe.name for probe in registry.choose(None, labels=True)]
    with pytest.raises(ValueError, match="probe sweep needs dropout rates"):
        registry.choose(["sweep"], labels=True)
    (sweep,) = [p for p in registry.choose(None, labels=True, family="gaussian", sweep=True) if p.name == "sweep"]
    assert sweep is GaussianSweep
