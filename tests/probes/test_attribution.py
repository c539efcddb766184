"""Exact attribution against models written out by hand, or with the rates of all other dropout modules at 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by
from masked_models import MODELS, WAYS, C, N, mean_pairwise_kl, sub_models_by_hand
from scipy import stats
from test_items import STARTS, Decided, States, assert_equal
from test_items import run as run_items
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rdrop_probes.attribution import WHOLE, Attribution, GaussianAttribution
from rdrop_probes.batch import Batch
from rdrop_probes.columns import Column
from rdrop_probes.discovery import find_sites
from rdrop_probes.examples import Examples
from rdrop_probes.families import Gaussian
from rdrop_probes.interception import DrawInterceptor, ModulePaths
from rdrop_probes.items import PartDone
from rdrop_probes.masks import Sampler
from rdrop_probes.measure import measure
from rdrop_probes.measurement import Measurement
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.passes import Passes
from rdrop_probes.prediction import Prediction
from rdrop_probes.rank_agreement import rank_agreement
from rdrop_probes.records import Metric
from rdrop_probes.settings import Settings
from rdrop_probes.sites import label
from rdrop_probes.state import flags, preserved
from rdrop_probes.sweep import Sweep
from rdrop_probes.variants import Drawing

K = 5
PROBES = [PairwiseKL, Prediction, Attribution]
ROUNDING = 1e-9  # float64 through a small network


def run(model: nn.Module, x: Tensor, *, parts: int = 2, probes: Any = PROBES, **options: Any) -> Measurement:
    """Measure in batches, the last of them smaller."""
    size = -(-len(x) // parts)
    family = {"family": options.pop("family")} if "family" in options else {}
    batches = [Batch(x[i : i + size], len(x[i : i + size]), i) for i in range(0, len(x), size)]
    return measure(model, batches, forward=model, probes=probes, settings=Settings(sub_models=K, **options), **family)


def lines(found: Measurement) -> dict[str, Any]:
    return {line.site: line for line in found.tables["attribution"]}


def groups(found: Measurement) -> dict[str, Any]:
    return {line.name: line for line in found.tables["attribution_groups"]}


def built(name: str) -> tuple[Any, Tensor]:
    model = MODELS[name]
    return model.build().double().eval(), model.inputs()


@pytest.mark.parametrize(("name", "strategy"), WAYS)
def test_sites_are_switched_as_by_hand(name, strategy):
    model, x = built(name)
    found = run(model, x, strategy=strategy)
    plan = found.plan
    assert len(plan.sites) >= 2
    for key in plan.sites:
        line = lines(found)[label(key)]
        assert line.reason is None
        for metric, active in ((line.only, {key}), (line.without, set(plan.sites) - {key})):
            expected = mean_pairwise_kl(sub_models_by_hand(model, plan, x, active, K)).mean()
            assert expected > 1e-4
            assert metric.estimate == pytest.approx(float(expected), rel=ROUNDING)
            assert metric.low < metric.estimate < metric.high


def encoder(layers: int = 4) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.2, batch_first=True, dtype=torch.float64)
    return nn.Sequential(
        nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), nn.Flatten(), nn.Linear(24, C).double()
    ).eval()


def with_rates_at_zero(model: nn.Module, plan: Any, x: Tensor, active: set[tuple[str, int]]) -> Tensor:
    """Logits [K, N, C] in train mode, with the rates of all other modules at 0; in every module there is one site."""
    for path, module in model.named_modules():
        off = (path, 0) not in active
        if isinstance(module, nn.Dropout):
            module.p = 0.0 if off else 0.2
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0 if off else 0.2
    logits, paths = [], ModulePaths(model)
    for k in range(K):
        sampler = Sampler(plan.sites, seed=0, sub_models=[k], start=0, n=len(x))
        drawing = DrawInterceptor(paths, sampler)
        with preserved(model), torch.no_grad(), flags(model, plan.modules), paths.tracked(), drawing:
            logits.append(model(x))
        assert sampler.fired == active
    return torch.stack(logits)


def test_a_transformer_encoder_against_rates_at_zero():
    model, x = encoder(), torch.randn(4, 3, 8, dtype=torch.float64)
    found = run(model, x, parts=1, probes=[Attribution], strategy="loop")
    plan = found.plan
    assert len(plan.sites) == 16
    for key in plan.sites:
        line = lines(found)[label(key)]
        assert line.layer == int(key[0].split(".")[2])
        assert line.group == ("attention" if key[0].endswith(("self_attn", "dropout1")) else "mlp")
        for metric, active in ((line.only, {key}), (line.without, set(plan.sites) - {key})):
            expected = mean_pairwise_kl(with_rates_at_zero(model, plan, x, active)).mean()
            assert metric.estimate == pytest.approx(float(expected), rel=ROUNDING)


def test_groups_are_switched_together():
    model, x = encoder(2), torch.randn(N, 3, 8, dtype=torch.float64)
    found = run(model, x)
    plan, by_name = found.plan, groups(found)
    attention = {key for key in plan.sites if key[0].endswith(("self_attn", "dropout1"))}
    mlp = set(plan.sites) - attention
    first = {key for key in plan.sites if key[0].startswith("0.layers.0.")}
    assert by_name.keys() == {"attention", "mlp", "0.layers.0", "0.layers.1"}
    for name, members in {"attention": attention, "mlp": mlp, "0.layers.0": first}.items():
        line = by_name[name]
        assert set(line.sites) == {label(key) for key in members}
        expected = mean_pairwise_kl(with_rates_at_zero(model, plan, x, members)).mean()
        assert line.only.estimate == pytest.approx(float(expected), rel=ROUNDING)
        predicted = sum(p.predicted for p in found.tables["site_predictions"] if p.site in line.sites)
        assert line.predicted == pytest.approx(predicted)
    assert by_name["attention"].without == by_name["mlp"].only
    assert by_name["0.layers.0"].without == by_name["0.layers.1"].only


def naive_jackknife(values: Tensor) -> Tensor:
    """Variance [N] of a U-statistic from the values [K, N] with each sub-model left out."""
    return (K - 1) / K * ((values - values.mean(0)) ** 2).sum(0)


def test_the_sum_of_parts_and_the_interaction_are_paired_by_mask():
    model, x = built("functional")
    found = run(model, x)
    plan = found.plan
    every = set(plan.sites)
    whole, *parts = (sub_models_by_hand(model, plan, x, active, K) for active in (every, *({key} for key in every)))
    total = sum(mean_pairwise_kl(part) for part in parts)
    rest = [[i for i in range(K) if i != k] for k in range(K)]
    without = torch.stack([sum(mean_pairwise_kl(part[kept]) for part in parts) for kept in rest])
    interactions = torch.stack([mean_pairwise_kl(whole[kept]) for kept in rest]) - without
    for name, expected, left_out in (
        ("epkl_sum_of_parts", total, without),
        ("epkl_interaction", mean_pairwise_kl(whole) - total, interactions),
    ):
        column = found.columns[name]
        np.testing.assert_allclose(column.values, expected, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(column.mask_variance, naive_jackknife(left_out), rtol=1e-6)
        np.testing.assert_allclose(column.leave_out, left_out.sum(1), rtol=1e-8)
    assert (found.columns["epkl_interaction"].floor, found.columns["epkl_sum_of_parts"].floor) == (-np.inf, 0)


class Additive(nn.Module):
    """Outputs to which every site adds a part of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 2), nn.Linear(5, 2)
        self.first, self.second = nn.Dropout(0.2), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.first(x)) + self.b(self.second(x))


def test_where_effects_add_up_there_is_no_interaction(z_score):
    found = run(Additive(), torch.randn(400, 5), probes=[GaussianAttribution], family=Gaussian(2.0))
    interaction, total = found.columns["epkl_interaction"].values, found.columns["epkl_sum_of_parts"].values
    assert abs(z_score(interaction, 0)) < 4
    assert interaction.std() > 0.01 * total.mean()


class TwoInOne(nn.Module):
    """Alpha dropout, whose mask has no neutral value, and plain dropout in one module; another one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(5, 8), nn.Linear(8, C), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.alpha_dropout(torch.tanh(self.a(self.drop(x))), 0.2, self.training)
        return self.b(F.dropout(h, 0.3, self.training))


def test_sites_that_cannot_be_told_apart_are_listed_and_the_others_measured():
    model, x = TwoInOne().eval(), torch.randn(N, 5)
    found = run(model, x)
    assert [line.reason for line in lines(found).values()] == [
        None,
        *["the sites of its module can only be switched off together"] * 2,
    ]
    for line in list(lines(found).values())[1:]:
        assert line.only is None
        assert line.without is None
    assert lines(found)["drop"].only.estimate > 0
    assert "epkl_interaction" not in found.columns
    assert "leaves out 2 sites: (root), (root)#1: the sites of its module" in found.findings["not_attributed"]


class Erratic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.drop = nn.Linear(5, C), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.rand(1) < 0.5:
            return self.head(x)
        return self.head(self.drop(x))


class Brothers(nn.Module):
    """A site whose mask cannot be neutral, and draws under the flag of either of two others."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.a, self.b = nn.Linear(5, C), nn.Dropout(0.3), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.alpha_dropout(x, 0.2, self.a.training or self.b.training)
        return self.head(self.b(self.a(x)))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Erratic(), "which sites draw is itself decided at random"),
        (Brothers(), "with every site off the model is not the eval model"),
    ],
)
def test_models_whose_sites_cannot_be_switched_at_all(model, reason):
    found = run(model.eval(), torch.randn(N, 5))
    assert {line.reason for line in lines(found).values()} == {reason}
    assert all(line.only is None and line.without is None for line in lines(found).values())
    assert groups(found) == {}
    assert "epkl_sum_of_parts" not in found.columns
    assert "attribution_rank_correlation" not in found.metrics
    assert reason in found.findings["not_attributed"]


def test_one_site_is_the_whole_and_nothing_is_left_without_it():
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, C))
    found = run(model, torch.randn(N, 5))
    (line,) = lines(found).values()
    assert line.only.estimate == pytest.approx(float(np.mean(found.columns["epkl"].values)), rel=1e-12)
    assert (line.without.estimate, line.without.low, line.without.high) == (0, 0, 0)
    assert np.all(found.columns["epkl_interaction"].values == 0)
    assert (line.group, line.layer) == ("other", 2)


def test_without_dropout_there_is_nothing_to_attribute():
    found = run(nn.Linear(5, C), torch.randn(N, 5))
    assert (found.tables["attribution"], found.tables["attribution_groups"]) == ([], [])
    assert "epkl_interaction" not in found.columns
    assert found.metrics["constraint_epsilon"].estimate == 0


class Whole(nn.Module):
    """A site that drops everything, which draws nothing; and draws in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gone, self.drop = nn.Linear(5, 8), nn.Linear(8, C), nn.Dropout(1.0), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = h + F.dropout(self.gone(torch.tanh(h)) + h, 0.2)
        return 2 * self.b(self.drop(h))

    def by_hand(self, x: Tensor, masks: Any) -> Tensor:
        h = self.a(x)
        h = h + (torch.tanh(h) * masks.get(("gone", 0), 1) + h) * masks.get(("", 0), 1)
        return 2 * self.b(h * masks.get(("drop", 0), 1))


def test_rate_1_and_draws_in_eval_mode_are_switched_off_as_well():
    model, x = Whole().double().eval(), torch.randn(N, 5, dtype=torch.float64)
    found = run(model, x)
    keys = set(found.plan.sites)
    assert len(keys) == 3
    assert lines(found)["gone"].only.estimate == pytest.approx(0, abs=1e-12)
    for key in keys - {("gone", 0)}:
        for metric, active in (
            (lines(found)[label(key)].only, {key}),
            (lines(found)[label(key)].without, keys - {key}),
        ):
            drawn = sub_models_by_hand(model, found.plan, x, active, K)
            assert metric.estimate == pytest.approx(float(mean_pairwise_kl(drawn).mean()), rel=ROUNDING)


class Counts(TorchDispatchMode):
    """How often matrices are really multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func is torch.ops.aten.addmm.default
        return func(*args, **(kwargs or {}))


def test_what_lies_before_the_first_active_site_runs_once_also_behind_neutral_masks():
    model, x = built("functional")
    with preserved(model):
        plan = find_sites(model, lambda n: model(x[torch.arange(n) % N]), N)
        passes = Passes(model, model, plan, seed=0, masks="per-example")
        last = Drawing(plan.modules - {model.drop}, frozenset({("", 0)}))
        own, counts = passes.under(last), Counts()
        whole = [own.one(Examples(x, N, 0), k, replay=False).clone() for k in range(4)]
        own.replay, examples = True, Examples(x, N, 0)
        with counts:
            again = [own.one(examples, k).clone() for k in (0, 1, 2, 3, 1)]
    assert counts.products == 2 + 5  # two layers in the recording, the last one in every pass
    for k, logits in zip((0, 1, 2, 3, 1), again, strict=True):
        assert torch.equal(logits, whole[k])


def test_the_model_is_left_as_it_was_and_progress_adds_up():
    model, x = encoder(1), torch.randn(7, 3, 8, dtype=torch.float64)
    state, done = {name: value.clone() for name, value in model.state_dict().items()}, []
    batches = [Batch(x[:5], 5, 0), Batch(x[5:], 2, 5)]
    settings = Settings(sub_models=2, dropout=(0.4,))
    measure(model, batches, forward=model, probes=[*PROBES, Sweep], settings=settings, progress=done.append)
    assert sum(done) == 7
    assert len(done) > 2 * 8
    assert not any(module.training for module in model.modules())
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.2}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_tokens_are_weighed_and_impossible_ones_left_out():
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.3), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, C)).double()
    x, places = torch.randn(N, 3, 5, dtype=torch.float64), torch.rand(N, 3) < 0.7
    places[:, 0] = True

    def forward(inputs: Tensor) -> Tensor:
        z = model(inputs)
        return torch.where((z[..., :1] > 0.6) & (torch.arange(C) == 1), -torch.inf, z)  # impossible in some sub-models

    batches = [Batch(x[:4], 4, 0, None, places[:4]), Batch(x[4:], 2, 4, None, places[4:])]
    settings = Settings(sub_models=K)
    found = measure(model, batches, forward=forward, probes=[PairwiseKL, Attribution], settings=settings)
    total, whole = (found.columns[name] for name in ("epkl_sum_of_parts", "epkl"))
    interaction = found.columns["epkl_interaction"]
    known = total.finite & (whole.infinite == 0)
    assert 0 < known.sum() < N
    parts = [column.values for name, column in attributed(batches, model, forward).items() if name != WHOLE]
    np.testing.assert_allclose(total.values[known], sum(parts)[known], rtol=1e-12)
    np.testing.assert_allclose(interaction.values[known], (whole.values - sum(parts))[known], rtol=1e-12)
    assert np.array_equal(total.weights[known], places.sum(1).numpy()[known])


def attributed(batches: list[Batch], model: nn.Module, forward: Any) -> dict[str, Any]:
    """The columns of variants."""
    kept: list[Attribution] = []

    class Keeping(Attribution):
        def conclude(self, columns: Any, probes: Any) -> Any:
            kept.append(self)
            return super().conclude(columns, probes)

    measure(model, batches, forward=forward, probes=[Keeping], settings=Settings(sub_models=K))
    return kept[0].by_variant.columns


def test_shared_masks_widen_intervals():
    model, x = built("functional")
    own, shared = (lines(run(model, x, masks=masks))["drop"].only for masks in ("per-example", "shared"))
    assert shared.mask_high - shared.mask_low > own.mask_high - own.mask_low
    assert own.estimate != shared.estimate


@pytest.mark.parametrize("masks", ["per-example", "shared"])
def test_stored_items_give_the_same_bits_whoever_measured_them(masks):
    model, data = encoder(1), [Batch(torch.randn(6, 3, 8, dtype=torch.float64), 6, start) for start in STARTS]
    probes, options = [*PROBES, Sweep], {"dropout": (0.1, 0.4), "masks": masks}
    first = Decided()
    whole = run_items(model, data, probes, first, **options)
    assert len(whole.tables["attribution"]) == 4
    assert len(whole.tables["sweep"]) == 2
    odd, even = (States(STARTS[part::2], decisions=first.decisions) for part in (1, 0))
    for work in (odd, even):
        with pytest.raises(PartDone):
            run_items(model, data, probes, work, **options)
    merged = States((), [*odd.states.values(), *even.states.values()], first.decisions)
    again = run_items(model, data, probes, merged, **options)
    assert_equal(again, whole)
    assert again.metrics == whole.metrics


def columns(means: Any, spread: float, rng: Any) -> list[Column]:
    return [Column(mean + spread * rng.standard_normal(200)) for mean in means]


def test_rank_agreement_is_of_means_and_has_no_interval():
    rng = np.random.default_rng(0)
    exact = columns((5, 1, 4, 2), 0.1, rng)
    predicted = columns((10, 4, 8, 2), 0.1, rng)
    pairs = list(zip(exact, predicted, strict=True))
    assert rank_agreement(pairs) == Metric(estimate=pytest.approx(0.8), n=4)
    assert rank_agreement(pairs[:2]) is None
    assert rank_agreement([(column, Column(np.ones(200))) for column in exact]).estimate is None


def test_noise_pulls_the_rank_agreement_of_close_sites_to_0():
    """Why it has no interval: none around the estimate would cover the true correlation, which is 1 here."""
    rng, repeats, means = np.random.default_rng(1), 300, (1.0, 1.01, 1.02, 1.03)
    noisy = [zip(columns(means, 1, rng), columns(means, 0, rng), strict=True) for _ in range(repeats)]
    estimates = np.array([rank_agreement(list(pairs)).estimate for pairs in noisy])
    assert (1 - estimates.mean()) / (estimates.std(ddof=1) / np.sqrt(repeats)) > 6


def test_rank_correlation_is_between_exact_and_predicted_sites():
    found = run(*built("functional"))
    exact = [line.only.estimate for line in found.tables["attribution"]]
    predicted = [line.predicted for line in found.tables["site_predictions"]]
    expected = stats.spearmanr(exact, predicted).statistic
    assert found.metrics["attribution_rank_correlation"].estimate == pytest.approx(expected)
