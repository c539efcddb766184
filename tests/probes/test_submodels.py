"""Every way of writing dropout: its sites are found and its sub-models are those of plain train mode."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by
import torch.utils.checkpoint
from torch import Tensor, nn

from rdrop_probes.discovery import keeps_statistics
from rdrop_probes.gap import Gap
from rdrop_probes.jacobian import Jacobian
from rdrop_probes.measure import NotFiniteError
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.prediction import Prediction
from rdrop_probes.sites import SilentSiteError
from rdrop_probes.statistics import mask_spread
from rdrop_probes.submodels import StrategyError

N, C = 12, 3


class Written(nn.Module):
    """A model written as a function of itself and its input."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self._written = forward
        for name, module in modules.items():
            self.add_module(name, module)
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, C)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._written(self, *args, **kwargs)


def functional(m, x):
    x = F.dropout(x, 0.2, training=m.training)
    return m.head(F.dropout(F.relu(m.body(x)), p=0.3, training=m.training))


def attention(m, x):
    h = torch.stack([m.body(x), m.body(-x), m.body(x * x)], 1)
    return m.head(m.attention(h, h, h, need_weights=False)[0].mean(1))


def encoder(m, x):
    return m.head(m.encoder(torch.stack([m.body(x), m.body(-x)], 1)).mean(1))


def recurrent(m, x):
    return m.head(m.rnn(torch.stack([m.body(x), m.body(-x), m.body(x * x)], 1))[0][:, -1])


def scaled_attention(m, x):
    h = torch.stack([m.body(x), m.body(-x), m.body(x * x)], 1)
    return m.head(F.scaled_dot_product_attention(h, h, h, dropout_p=0.3 if m.training else 0.0).mean(1))


def drop_path(m, x):
    h = torch.tanh(m.body(x))
    if m.training:
        h = h * x.new_empty(len(x), 1).bernoulli_(0.7).div_(0.7)
    return m.head(h + 0.1)


def random_depth(m, x):
    h = torch.tanh(m.body(x))
    if m.training:
        h = torch.where(torch.rand(len(x), 1) < 0.7, h / 0.7, 0.0)
    return m.head(h + 0.1)


class TakesFlag(nn.Module):
    def forward(self, x, training):
        return F.dropout(x, 0.3, training)


def flag_of_parent(m, x):
    return m.head(m.child(F.relu(m.body(x)), m.training))


def unguarded(m, x):
    return m.head(m.noisy(F.relu(m.body(x))))


class Unguarded(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.3)


def weight_dropout(m, x):
    return m.head(F.relu(F.linear(x, F.dropout(m.body.weight, 0.3, m.training))))


def dropped(m, x):
    return m.head(m.drop(F.relu(m.body(x))))


def dropped_first(m, x):
    return m.head(F.relu(m.drop(m.body(x))))


def dropped_whole(m, x):
    return m.head(F.dropout(F.relu(m.body(x)), 1.0, m.training))


def by_keyword(m, x, scale):
    return dropped(m, x * scale)


def two_inputs(m, x, y):
    return dropped(m, x + y)


def legacy_names(m, x):
    return m.head(torch.dropout(F.relu(m.body(x)), p=0.3, train=m.training))


def from_numpy(m, x):
    h = F.relu(m.body(x))
    mask = torch.from_numpy(np.random.random(h.shape) > 0.3).to(h) if m.training else 0.7  # noqa: NPY002 - as users do
    return m.head(h * mask / 0.7)


def gaussian(m, x):
    h = F.relu(m.body(x))
    return m.head(h * torch.normal(1.0, 0.4, h.shape)) if m.training else m.head(h)


class Inference(nn.Sequential):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


def called_directly(m, x):
    return m.head(m.drop.forward(F.relu(m.body(x))))


def needs_its_brothers_flag(m, x):
    return m.child(m.head(m.body(x)), m.brother.training)


class BatchNormByHand(nn.Module):
    """Functional batch norm and functional dropout in one module, under one flag."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(8))
        self.register_buffer("running_var", torch.ones(8))
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, C)

    def forward(self, x):
        h = F.batch_norm(self.body(x), self.running_mean, self.running_var, training=self.training)
        return self.head(F.dropout(F.relu(h), 0.3, self.training))


class Counting(nn.Module):
    """Dropout beside a buffer that train mode updates and eval mode computes with."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(5))
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, C)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.centre.add_(x.mean(0))
        return self.head(F.dropout(F.relu(self.body(x - self.centre)), 0.3, self.training))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(24, C)
    )


@dataclass(frozen=True)
class Case:
    """A model with its sites: rate by path and ordinal."""

    build: Callable[[], nn.Module]
    sites: dict[tuple[str, int], float | None]
    inputs: Callable[[], Any] = field(default=lambda: torch.randn(N, 5))
    kind: str = "dropout"
    finding: str | None = None


ENCODER_SITES = {
    (f"encoder.layers.{i}.{name}", 0): 0.2 for i in (0, 1) for name in ("self_attn", "dropout", "dropout1", "dropout2")
}
CASES = {
    "modules": Case(
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, C)), {("2", 0): 0.3}
    ),
    "input dropout": Case(
        lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, C)),
        {("0", 0): 0.2, ("3", 0): 0.4},
    ),
    "functional": Case(lambda: Written(functional), {("", 0): 0.2, ("", 1): 0.3}),
    "keyword arguments of torch.dropout": Case(lambda: Written(legacy_names), {("", 0): 0.3}),
    "transformer encoder": Case(
        lambda: Written(
            encoder, encoder=nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.2, batch_first=True), 2)
        ),
        ENCODER_SITES,
        kind="",
    ),
    "multi-head attention": Case(
        lambda: Written(attention, attention=nn.MultiheadAttention(8, 2, 0.3, batch_first=True)),
        {("attention", 0): 0.3},
        kind="attention dropout",
    ),
    "lstm": Case(
        lambda: Written(recurrent, rnn=nn.LSTM(8, 8, 2, dropout=0.4, batch_first=True)),
        {("rnn", 0): 0.4},
        kind="recurrent dropout",
    ),
    "gru": Case(
        lambda: Written(recurrent, rnn=nn.GRU(8, 8, 3, dropout=0.4, batch_first=True)),
        {("rnn", 0): 0.4, ("rnn", 1): 0.4},
        kind="recurrent dropout",
    ),
    "feature maps beside batch norm": Case(
        cnn, {("3", 0): 0.3}, lambda: torch.randn(N, 1, 4, 4), kind="feature dropout"
    ),
    "scaled dot product attention": Case(lambda: Written(scaled_attention), {("", 0): 0.3}),
    "stochastic depth": Case(lambda: Written(drop_path), {("", 0): 0.3}, kind="stochastic depth"),
    "stochastic depth from torch.rand": Case(lambda: Written(random_depth), {("", 0): None}, kind="random (rand)"),
    "the parent's flag": Case(lambda: Written(flag_of_parent, child=TakesFlag()), {("child", 0): 0.3}),
    "in place": Case(lambda: Written(dropped_first, drop=nn.Dropout(0.3, inplace=True)), {("drop", 0): 0.3}),
    "alpha dropout": Case(
        lambda: Written(dropped, drop=nn.AlphaDropout(0.3)), {("drop", 0): 0.3}, kind="alpha dropout"
    ),
    "rate 0": Case(lambda: Written(dropped, drop=nn.Dropout(0.0)), {}, finding="no_dropout"),
    "no dropout": Case(lambda: Written(dropped, drop=nn.Identity()), {}, finding="no_dropout"),
    "rate 1": Case(lambda: Written(dropped, drop=nn.Dropout(1.0)), {("drop", 0): 1.0}),
    "rate 1, functional": Case(lambda: Written(dropped_whole), {("", 0): 1.0}),
    "unguarded": Case(lambda: Written(unguarded, noisy=Unguarded()), {("noisy", 0): 0.3}, finding="dirty_eval"),
    "the child's forward, past its hooks": Case(lambda: Written(called_directly, drop=nn.Dropout(0.3)), {("", 0): 0.3}),
    "a brother's flag": Case(
        lambda: Written(needs_its_brothers_flag, child=TakesFlag(), brother=nn.Identity()), {("child", 0): 0.3}
    ),
    "a rare operator": Case(lambda: Written(gaussian), {("", 0): None}, kind="random (normal)"),
    "inference mode": Case(
        lambda: Inference(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, C)), {("2", 0): 0.3}
    ),
    "weights": Case(lambda: Written(weight_dropout), {("", 0): 0.3}, finding="masks_shared"),
    "keyword inputs": Case(
        lambda: Written(by_keyword, drop=nn.Dropout(0.3)),
        {("drop", 0): 0.3},
        lambda: {"x": torch.randn(N, 5), "scale": torch.rand(N, 1)},
    ),
    "tuple of inputs": Case(
        lambda: Written(two_inputs, drop=nn.Dropout(0.3)),
        {("drop", 0): 0.3},
        lambda: (torch.randn(N, 5), torch.randn(N, 5)),
    ),
}


def run(model: nn.Module, inputs: Any) -> Tensor:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def model(case):
    built = case.build()
    for module in built.modules():
        if keeps_statistics(module):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return built.eval()


def test_sites_have_their_paths_rates_and_kinds(measured, case, model):
    found = measured(model, case.inputs(), [PairwiseKL], sub_models=2)
    assert {key: site.rate for key, site in found.plan.sites.items()} == case.sites
    for site in found.plan.sites.values():
        assert case.kind in site.kind
        assert site.fires_in_eval == (case.finding == "dirty_eval")
    assert set(found.findings) == ({case.finding} if case.finding else set())
    if case.finding == "dirty_eval":
        assert "at noisy" in found.findings["dirty_eval"]


def brute_force(model: nn.Module, inputs: Any, passes: int = 300) -> Tensor:
    """Log-probabilities [passes, N, C] of plain train mode, batch norm in eval, with torch's own randomness."""
    model.train()
    for module in model.modules():
        if keeps_statistics(module):
            module.eval()
    with torch.no_grad():
        log_p = torch.stack([run(model, inputs).double().log_softmax(-1) for _ in range(passes)])
    model.eval()
    return log_p


def mean_pairwise_kl(log_p: Tensor) -> float:
    """Mean over all ordered pairs, then over examples."""
    p, k = log_p.exp(), len(log_p)
    cross = torch.einsum("inc,jnc->ijn", p, log_p)  # [K, K, N]
    kl = cross.diagonal().T[:, None] - cross
    return float(kl.sum((0, 1)).mean() / (k * (k - 1)))


def with_standard_error(statistic: Callable[[Tensor], float], log_p: Tensor, blocks: int = 20) -> tuple[float, float]:
    """A statistic of independent passes, with its delete-a-block jackknife standard error."""
    parts = log_p.chunk(blocks)
    without = np.array([statistic(torch.cat(parts[:i] + parts[i + 1 :])) for i in range(blocks)])
    return statistic(log_p), float(np.sqrt((blocks - 1) / blocks * ((without - without.mean()) ** 2).sum()))


def test_the_numbers_are_those_of_plain_train_mode(measured, case, model):
    inputs = case.inputs()
    found = measured(model, inputs, [PairwiseKL, Gap], sub_models=64)
    log_p = brute_force(model, inputs)
    with torch.no_grad():
        log_p0 = run(model, inputs).double().log_softmax(-1)
    wanted = {
        "epkl": mean_pairwise_kl,
        "kl_sub_to_eval": lambda log_p: float((log_p.exp() * (log_p - log_p0)).sum(-1).mean()),
        "kl_eval_to_sub": lambda log_p: float((log_p0.exp() * (log_p0 - log_p)).sum(-1).mean()),
    }
    if case.finding == "dirty_eval":
        wanted = {"epkl": mean_pairwise_kl}  # its eval model is one draw
    for name, statistic in wanted.items():
        expected, error = with_standard_error(statistic, log_p)
        column = found.columns[name]
        own = mask_spread(column, shared_masks=found.shared_masks).variance
        # 4 standard errors, and the rounding of float32 logits where there is no noise
        assert abs(column.values.mean() - expected) < 4 * (own + error**2) ** 0.5 + 1e-7, name
    if 1.0 in case.sites.values():
        assert abs(found.columns["epkl"].values).max() < 1e-12  # all sub-models are the same
        assert found.columns["kl_sub_to_eval"].values.mean() > 1e-3
    elif case.sites:
        assert found.columns["epkl"].values.mean() > 1e-6


def test_vmap_and_loop_draw_the_same_masks(measured, case, model):
    inputs = case.inputs()
    loop, auto = (measured(model, inputs, [PairwiseKL, Gap], sub_models=6, strategy=s) for s in ("loop", "auto"))
    for name, column in loop.columns.items():
        # float32 logits of one size: 1e-6 of each, in divergences of the order of 0.01 to 1
        np.testing.assert_allclose(auto.columns[name].values, column.values, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["modules", "functional", "feature maps beside batch norm", "weights"])
def test_common_models_run_under_vmap(measured, name):
    case = CASES[name]
    found = measured(case.build().eval(), case.inputs(), [PairwiseKL], sub_models=4)
    assert found.strategy.startswith("vmap"), found.strategy


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that a measurement must leave alone."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    return {
        "flags": [m.training for m in model.modules()],
        "hooks": [{name: dict(getattr(m, name)) for name in hooks} for m in model.modules()],
        "buffers": {name: (id(b), b.tolist()) for name, b in model.named_buffers()},
        "parameters": {name: (id(p), p.tolist(), p.requires_grad, p.grad) for name, p in model.named_parameters()},
        "torch": torch.random.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global state is what is checked
        "grad": torch.is_grad_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "attention kernels": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
    }


@pytest.mark.parametrize("training", [False, True])
def test_everything_is_left_as_it_was_found(measured, case, model, training):
    inputs = case.inputs()
    model.train(training)
    next(model.children()).eval()
    before = state_of(model)
    measured(model, inputs, [PairwiseKL, Gap, Jacobian, Prediction], sub_models=3, batch=5)
    assert state_of(model) == before


class Fails(nn.Module):
    """Raises in its n-th pass."""

    def __init__(self, passes: int) -> None:
        super().__init__()
        self.passes = passes
        self.left = passes

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise ArithmeticError("as asked")
        return x


@pytest.mark.parametrize("passes", [0, 1, 3, 6, 7, 9, 12])
def test_everything_is_left_as_it_was_found_when_the_model_raises(measured, passes):
    fails = Fails(passes)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), fails, nn.Linear(8, C)).train()
    x = torch.randn(N, 5)
    before = state_of(model)
    with pytest.raises(ArithmeticError, match="as asked"):
        measured(model, x, [PairwiseKL, Gap, Jacobian, Prediction], sub_models=20, strategy="loop")
    assert state_of(model) == before


class Centred(nn.Module):
    """Learns a centre in train mode and subtracts it always, as codebooks and spectral norms do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(8))

    def forward(self, x):
        if self.training:
            self.centre.lerp_(x.mean(0), 0.9)
        return x - self.centre


def test_looking_for_sites_does_not_move_the_buffers_that_the_eval_model_computes_with(measured):
    model = nn.Sequential(nn.Linear(5, 8), Centred(), nn.Dropout(0.3), nn.Linear(8, C)).eval()
    x, labels = torch.randn(N, 5), torch.randint(0, C, (N,))
    found = measured(model, x, [Gap], labels, sub_models=2)
    expected = F.cross_entropy(model(x), labels, reduction="none")
    assert found.columns["nll_eval"].values == pytest.approx(expected.tolist(), rel=1e-5)  # float32 logits


def test_randomised_leaky_units_do_not_stand_in_the_way_of_eval(measured):
    model = nn.Sequential(nn.Linear(5, 8), nn.Identity(), nn.Dropout(0.3), nn.Linear(8, C))
    model[1].register_forward_hook(lambda _m, _a, out: F.rrelu(out, training=False))
    assert set(measured(model, torch.randn(N, 5), [PairwiseKL], sub_models=2).plan.sites) == {("2", 0)}


MLP = CASES["modules"]


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_shared_masks_are_one_for_all_examples_and_all_batches(measured, strategy):
    model, x = MLP.build().eval(), torch.randn(1, 5).expand(8, -1)
    shared = measured(model, x, [PairwiseKL], batch=5, sub_models=6, masks="shared", strategy=strategy)
    own = measured(model, x, [PairwiseKL], batch=5, sub_models=6, strategy=strategy)
    values = shared.columns["epkl"].values
    assert values == pytest.approx(values[0], rel=1e-4)  # float32 logits from matrices of two shapes
    assert values[0] > 0
    assert len(set(own.columns["epkl"].values.tolist())) == 8


@pytest.mark.parametrize("name", ["transformer encoder", "lstm", "feature maps beside batch norm", "stochastic depth"])
def test_shared_masks_are_shared_whatever_the_mask_looks_like(measured, name):
    case = CASES[name]
    model, x = case.build().eval(), case.inputs()
    x = x[:1].expand(6, *x.shape[1:])
    values = measured(model, x, [PairwiseKL], sub_models=6, masks="shared").columns["epkl"].values
    assert values == pytest.approx(values[0], rel=1e-3)  # float32 logits
    assert values[0] > 1e-6


def columns_of(found) -> dict[str, list[float]]:
    return {name: column.values.tolist() for name, column in found.columns.items()}


def test_the_seed_alone_decides_the_numbers(measured):
    model, x, labels = MLP.build().eval(), torch.randn(N, 5), torch.randint(0, C, (N,))
    probes = [PairwiseKL, Gap, Jacobian, Prediction]
    first = columns_of(measured(model, x, probes, labels, batch=5, sub_models=5, seed=3))
    torch.manual_seed(99)
    random.seed(99)
    assert columns_of(measured(model, x, probes, labels, batch=5, sub_models=5, seed=3)) == first
    other = columns_of(measured(model, x, probes, labels, batch=5, sub_models=5, seed=4))
    assert other["epkl"] != first["epkl"]
    assert other["jacobian_logits"] == first["jacobian_logits"]


def test_a_batch_has_the_same_masks_whatever_comes_after_it(measured):
    model, x = MLP.build().eval(), torch.randn(N, 5)
    whole = measured(model, x, [PairwiseKL], batch=4, sub_models=5).columns["epkl"].values
    alone = measured(model, x[:4], [PairwiseKL], batch=4, sub_models=5).columns["epkl"].values
    assert whole[:4].tolist() == alone.tolist()


def test_another_model_of_the_same_shape_gets_the_same_masks(measured):
    x = torch.randn(N, 5)
    first, second = MLP.build().eval(), MLP.build().eval()
    second.load_state_dict(first.state_dict())
    pair = [columns_of(measured(m, x, [PairwiseKL], sub_models=5)) for m in (first, second)]
    assert pair[0] == pair[1]


@pytest.mark.parametrize("masks", ["per-example", "shared"])
def test_chunks_and_strategies_change_nothing_but_rounding(measured, masks):
    model, x = MLP.build().eval(), torch.randn(N, 5)
    expected = measured(model, x, [PairwiseKL, Gap], sub_models=11, strategy="loop", masks=masks).columns
    for chunk in (1, 2, 5, 11, 50):
        found = measured(model, x, [PairwiseKL, Gap], sub_models=11, strategy="vmap", chunk=chunk, masks=masks).columns
        for name, column in expected.items():
            # float32 logits: 1e-6 each
            np.testing.assert_allclose(found[name].values, column.values, rtol=1e-3, atol=1e-6)


class ShowsMask(nn.Module):
    """Its logits are the mask: 1 where kept, 0 where dropped."""

    def __init__(self, rate: float, width: int) -> None:
        super().__init__()
        self.rate = rate
        self.ones = nn.Parameter(torch.ones(width))

    def forward(self, x):
        kept = F.dropout(x * 0 + self.ones, self.rate, self.training)
        return (kept > 0).float() if self.training else kept


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_masks_keep_with_the_site_s_probability_and_are_independent(measured, collected, strategy, rate):
    model = ShowsMask(rate, 40)
    found = collected(model, torch.zeros(50, 40), sub_models=30, strategy=strategy)  # [K, N, C]
    deviation = found - (1 - rate)
    error = (rate * (1 - rate)) ** 0.5
    assert abs(float(deviation.mean())) < 4 * error / found.numel() ** 0.5
    for shift in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):  # neighbours in sub-model, example, unit
        products = deviation * deviation.roll(shift, (0, 1, 2))
        assert abs(float(products.mean())) < 4 * error**2 / found.numel() ** 0.5


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_shared_masks_keep_with_the_site_s_probability_too(collected, strategy):
    found = collected(ShowsMask(0.3, 400), torch.zeros(5, 400), sub_models=30, strategy=strategy, masks="shared")
    assert (found == found[:, :1]).all()
    one = found[:, 0] - 0.7
    assert abs(float(one.mean())) < 4 * (0.21 / one.numel()) ** 0.5
    assert len({tuple(row.tolist()) for row in one}) == 30


@pytest.fixture
def collected(measured):
    """Logits [K, N, C] of all sub-models."""
    parts: list[Tensor] = []

    def keep(_batch, logits, _log_p):
        parts.append(logits)
        return logits[..., 0]

    class Keep(Gap):
        terms = (*Gap.terms, keep)

    def run(model, x, **settings):
        parts.clear()
        measured(model, x, [Keep], **settings)
        return torch.cat(parts)

    return run


class BreaksWhenTrained(nn.Module):
    """NaN for inputs above 100 while its dropout is on."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(5, C)

    def forward(self, x):
        z = self.head(self.drop(x))
        return torch.where((x[:, :1] > 100) & torch.tensor(self.drop.training), torch.nan, z)


def test_nan_logits_name_the_example_and_the_sub_model(measured):
    x = torch.randn(N, 5)
    x[9, 0] = 1000
    with pytest.raises(NotFiniteError, match="logits of example 9 are not finite under sub-model 0"):
        measured(BreaksWhenTrained(), x, [PairwiseKL], batch=4, sub_models=3)
    x[5, 1] = torch.nan
    with pytest.raises(NotFiniteError, match="logits of example 5 are not finite under the eval model"):
        measured(BreaksWhenTrained(), x, [PairwiseKL], batch=4, sub_models=3)


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_an_infinite_logit_is_refused_and_a_ruled_out_class_is_not(measured, bad):
    model, x = nn.Sequential(nn.Identity(), nn.Dropout(0.0)), torch.randn(N, C)
    x[3, 0] = -torch.inf
    measured(model, x, [PairwiseKL, Gap], sub_models=2)
    x[4, 0] = bad
    with pytest.raises(NotFiniteError, match="example 4"):
        measured(model, x, [PairwiseKL], sub_models=2)


def only_small_batches(m, x):
    return m.head(F.dropout(m.body(x), 0.3, m.training and len(x) < 4))


def test_dropout_that_stays_silent_on_the_data_is_an_error(measured):
    with pytest.raises(SilentSiteError, match="never drew"):
        measured(Written(only_small_batches), torch.randn(N, 5), [PairwiseKL], sub_models=4, strategy="loop")


class FirstPassesOnly(nn.Module):
    """Draws in its first training passes and never again."""

    def __init__(self):
        super().__init__()
        self.body, self.passes = nn.Linear(5, C), 0

    def forward(self, x):
        self.passes += self.training
        return F.dropout(self.body(x), 0.3, self.training and self.passes <= 5)


def test_dropout_that_cannot_be_activated_again_is_an_error(measured):
    with pytest.raises(SilentSiteError, match=r"dropout at \(root\) draws in train mode but not"):
        measured(FirstPassesOnly(), torch.randn(N, 5), [PairwiseKL], sub_models=4)


def large_inputs_only(m, x):
    return m.head(F.dropout(m.body(x), 0.3, m.training and bool(x.abs().max() > 10)))


def test_dropout_on_some_of_the_data_only_is_never_taken_for_none(measured):
    x = torch.randn(80, 5)
    x[20, 0] = 11.0  # seen when sites are looked for
    found = measured(Written(large_inputs_only), x, [PairwiseKL], sub_models=4)
    assert found.columns["epkl"].values.mean() > 1e-6
    x = torch.randn(80, 5)
    x[70, 0] = 11.0
    with pytest.raises(SilentSiteError, match="draws on examples 40 to 79 but not on the first"):
        measured(Written(large_inputs_only), x, [PairwiseKL], sub_models=4, batch=40)


def test_masks_from_numpys_global_generator_are_seen_and_follow_from_the_seed(measured):
    model, x = Written(from_numpy).eval(), torch.randn(N, 5)
    runs = []
    for seed in (0, 0, 1):
        np.random.seed(len(runs))  # noqa: NPY002 - the state that a user may have left
        runs.append(measured(model, x, [PairwiseKL], sub_models=16, seed=seed).columns["epkl"].values)
    assert runs[0].mean() > 1e-6
    assert runs[0].tolist() == runs[1].tolist() != runs[2].tolist()


def test_a_generator_of_the_models_own_is_reported(measured):
    generator = np.random.default_rng(0)

    def own(m, x):
        h = F.relu(m.body(x))
        return m.head(h * torch.from_numpy(generator.random(h.shape) > 0.3).to(h)) if m.training else m.head(h)

    found = measured(Written(own), torch.randn(N, 5), [PairwiseKL], sub_models=8)
    assert "uncontrolled_randomness" in found.findings
    assert found.columns["epkl"].values.mean() > 1e-6


@pytest.mark.parametrize("build", [BatchNormByHand, Counting])
@pytest.mark.parametrize("batch", [3, 1000])
def test_the_eval_model_computes_with_the_buffers_it_came_with(measured, build, batch):
    model, x, labels = build().eval(), torch.randn(N, 5), torch.randint(0, C, (N,))
    with torch.no_grad():
        expected = F.cross_entropy(model(x).double(), labels, reduction="none")
    found = measured(model, x, [Gap], labels, sub_models=4, batch=batch)
    # float32 logits of other batch sizes
    assert found.columns["nll_eval"].values == pytest.approx(expected.numpy(), abs=1e-6)
    assert ("buffers_change" in found.findings) == (build is Counting)


def test_functional_batch_norm_beside_dropout_stays_in_eval(measured):
    model, x = BatchNormByHand().eval(), torch.randn(N, 5)
    model.running_mean.normal_()

    def by_hand(m, x):  # what it is with dropout alone turned on
        h = F.batch_norm(m.body(x), model.running_mean, model.running_var)
        return m.head(F.dropout(F.relu(h), 0.3, m.training))

    oracle = Written(by_hand)
    oracle.body, oracle.head = model.body, model.head
    settings = {"sub_models": 8, "strategy": "loop"}
    expected = measured(oracle.eval(), x, [Gap, Jacobian], **settings).columns
    found = measured(model, x, [Gap, Jacobian, Prediction], **settings)
    for name in ("kl_sub_to_eval", "jacobian_logits"):
        assert found.columns[name].values == pytest.approx(expected[name].values, rel=1e-5)  # float32
    assert "shares its training flag" in found.findings["not_predicted"]


def test_train_and_eval_as_the_model_overrides_them(measured):
    class KeepsPartInEval(Written):
        def train(self, mode=True):
            super().train(mode)
            self.frozen.train(False)
            return self

    def forward(m, x):
        return m.head(m.drop(m.frozen(F.relu(m.body(x)))))

    model = KeepsPartInEval(forward, frozen=nn.Dropout(0.5), drop=nn.Dropout(0.2))
    found = measured(model, torch.randn(N, 5), [PairwiseKL], sub_models=4)
    assert set(found.plan.sites) == {("drop", 0)}

    class AlwaysOn(Written):
        def eval(self):
            return self.train(True)

        def train(self, mode=True):
            return super().train(True)

    found = measured(AlwaysOn(dropped, drop=nn.Dropout(0.3)), torch.randn(N, 5), [PairwiseKL], sub_models=4)
    assert "dirty_eval" in found.findings


def test_a_probe_of_gradients_alone_runs_no_sub_models_and_misses_none(measured):
    model = MLP.build().eval()
    assert set(measured(model, torch.randn(N, 5), [Jacobian, Prediction], sub_models=2).columns) >= {
        "jacobian_logits",
        "predicted_epkl",
    }


def rates_one_and_half(m, x):
    return m.head(F.dropout(m.body(x), 0.5, m.training) + F.dropout(m.body(x), 1.0, m.training))


def test_a_certain_dropout_beside_another_in_the_same_module_is_a_site_of_its_own(measured):
    found = measured(Written(rates_one_and_half), torch.randn(N, 5), [PairwiseKL], sub_models=4)
    assert {key: site.rate for key, site in found.plan.sites.items()} == {("", 0): 0.5, ("", 1): 1.0}


def test_one_sub_model_is_refused(measured):
    with pytest.raises(ValueError, match="no pairs"):
        measured(MLP.build(), torch.randn(N, 5), [PairwiseKL], sub_models=1)


def test_no_data_is_an_error(measured):
    with pytest.raises(ValueError, match="no examples"):
        measured(MLP.build(), torch.randn(0, 5), [PairwiseKL], sub_models=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_measured(measured, dtype):
    model = MLP.build().to(dtype).eval()
    found = measured(model, torch.randn(N, 5, dtype=dtype), [PairwiseKL, Gap], sub_models=8)
    assert all(np.isfinite(column.values).all() for column in found.columns.values())
    assert found.columns["epkl"].values.mean() > 0


def test_a_last_batch_of_one_is_measured(measured):
    found = measured(cnn().eval(), torch.randn(5, 1, 4, 4), [PairwiseKL], batch=4, sub_models=4)
    assert len(found.columns["epkl"].values) == 5


def test_a_single_class_is_consistent(measured):
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 1))
    found = measured(model, torch.randn(N, 5), [PairwiseKL, Gap], sub_models=4)
    assert found.columns["epkl"].values.tolist() == [0.0] * N
    assert found.columns["disagreement"].values.tolist() == [0.0] * N


class LayerDrop(nn.Module):
    """Layers left out at random, decided by torch or by Python."""

    def __init__(self, choose: Callable[[], Any]) -> None:
        super().__init__()
        self.choose = choose
        self.first, self.head = nn.Linear(5, 8), nn.Linear(8, C)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(q)) for q in (0.2, 0.3, 0.4))

    def forward(self, x):
        h = self.first(x)
        for layer in self.layers:
            if not self.training or self.choose() > 0.6:
                h = h + layer(h)
        return self.head(h)


@pytest.mark.parametrize("choose", [lambda: torch.rand([]), random.random], ids=["torch", "python"])
def test_layers_dropped_by_chance_are_found_shared_reproducible_and_as_in_train_mode(measured, choose):
    model, x = LayerDrop(choose).eval(), torch.randn(N, 5)
    found = measured(model, x, [PairwiseKL, Gap], sub_models=128)
    assert {site.rate for site in found.plan.sites.values()} - {None} == {0.2, 0.3, 0.4}
    assert found.shared_masks
    assert "masks_shared" in found.findings
    assert found.strategy == "loop: what the model runs is decided at random"
    random.seed(1)
    torch.manual_seed(1)
    assert columns_of(measured(model, x, [PairwiseKL, Gap], sub_models=128)) == columns_of(found)
    expected, error = with_standard_error(mean_pairwise_kl, brute_force(model, x))
    column = found.columns["epkl"]
    own = mask_spread(column, shared_masks=True).variance
    assert abs(column.values.mean() - expected) < 4 * (own + error**2) ** 0.5


def test_layers_dropped_by_python_alone_are_not_taken_for_no_dropout(measured):
    model = LayerDrop(random.random).eval()
    for layer in model.layers:
        layer[2].p = 0.0
    found = measured(model, torch.randn(N, 5), [PairwiseKL], sub_models=32)
    assert found.columns["epkl"].values.mean() > 1e-6
    assert "no_dropout" not in found.findings


class InPlaceAfterRelu(nn.Sequential):
    """Dropout in place on what ReLU needs for its derivative: trains no better than it is predicted."""

    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3, inplace=True), nn.Linear(8, 3))


def test_dropout_that_cannot_be_differentiated_is_not_predicted(measured):
    found = measured(InPlaceAfterRelu(), torch.randn(20, 6), [PairwiseKL, Jacobian, Prediction], sub_models=4)
    assert "cannot be differentiated" in found.findings["not_predicted"]
    assert set(Jacobian.units) < set(found.columns)
    assert not {"predicted_epkl", "epkl_over_predicted"} & set(found.columns)


class Detached(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3))

    def forward(self, x):
        return super().forward(x).detach()


def test_a_model_without_a_derivative_loses_the_gradient_probes_only(measured):
    found = measured(Detached(), torch.randn(20, 6), [PairwiseKL, Jacobian, Prediction], sub_models=4)
    assert "jacobian, prediction left out" in found.findings["gradients_unavailable"]
    assert set(found.columns) == set(PairwiseKL.units)


@pytest.mark.parametrize("keep", [0.5, 0.2])
def test_layers_kept_by_a_bernoulli_draw_have_their_dropout_found(measured, keep):
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.drop = nn.Linear(5, 8), nn.Linear(8, C), nn.Dropout(0.4)

        def forward(self, x):
            h = F.relu(self.body(x))
            if not self.training or torch.empty(1).bernoulli_(keep).item():
                h = self.drop(h)
            return self.head(F.dropout(h, 0.1, self.training))

    found = measured(Kept(), torch.randn(N, 5), [PairwiseKL], sub_models=4)
    assert found.plan.erratic
    assert ("drop", 0) in found.plan.sites


def second_dropout_for_large_inputs(m, x):
    h = F.dropout(m.body(x), 0.1, m.training)
    return m.head(m.drop(h) if bool(x.abs().max() > 10) else h)


def test_further_dropout_on_later_data_is_an_error_too(measured):
    x = torch.randn(80, 5)
    x[70, 0] = 11.0
    with pytest.raises(SilentSiteError, match="dropout at drop draws on examples 40 to 79"):
        measured(
            Written(second_dropout_for_large_inputs, drop=nn.Dropout(0.6)), x, [PairwiseKL], sub_models=4, batch=40
        )


def test_jacobians_of_checkpointed_parts_are_those_of_the_eval_model(measured):
    def forward(m, x):
        part = lambda h: m.drop(F.relu(m.body(h)))  # noqa: E731 - what users pass to checkpoint
        return m.head(torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False))

    model, x = Written(forward, drop=nn.Dropout(0.5)), torch.randn(N, 5)
    plain = Written(dropped, drop=nn.Dropout(0.5))
    plain.body, plain.head = model.body, model.head
    expected = measured(plain, x, [Jacobian], sub_models=2).columns["jacobian_logits"].values
    for probes in ([Jacobian], [Jacobian, Prediction]):
        found = measured(model.train(), x, probes, sub_models=2).columns["jacobian_logits"].values
        assert found == pytest.approx(expected, rel=1e-5)  # float32


def test_rates_that_differ_between_elements_are_no_rate(measured):
    keep = torch.linspace(0.2, 0.9, 8)

    def forward(m, x):
        h = F.relu(m.body(x))
        return m.head(h * torch.bernoulli(keep.expand_as(h)) / keep) if m.training else m.head(h)

    found = measured(Written(forward), torch.randn(N, 5), [PairwiseKL, Prediction], sub_models=4)
    assert found.plan.sites["", 0].rate is None
    assert "predicted_epkl" not in found.columns
    assert found.columns["epkl"].values.mean() > 1e-6


class Scaled(Written):
    """Its own train() sets more than flags."""

    def train(self, mode=True):
        self.scale = 1.0 if mode else 0.7
        return super().train(mode)


def scaled(m, x):
    return m.head(m.drop(F.relu(m.body(x)))) * m.scale


@pytest.mark.parametrize("mode", [True, False])
def test_what_an_overridden_train_sets_is_eval_s_while_measured_and_as_found_afterwards(measured, mode):
    model, x, labels = Scaled(scaled, drop=nn.Dropout(0.3)), torch.randn(N, 5), torch.randint(0, C, (N,))
    with torch.no_grad():
        expected = F.cross_entropy(model.eval()(x).double(), labels, reduction="none")
    model.train(mode)
    scale, attributes = model.scale, {name: id(value) for name, value in vars(model).items()}
    found = measured(model, x, [Gap], labels, sub_models=4)
    assert found.columns["nll_eval"].values == pytest.approx(expected.numpy(), rel=1e-6)  # float32 logits
    assert model.scale == scale
    assert {name: id(value) for name, value in vars(model).items()} == attributes


def test_buffers_changed_behind_autograds_back_are_put_back(measured):
    class Lerp(Counting):
        def forward(self, x):
            if self.training:
                self.centre.data.lerp_(x.mean(0), 0.5)
            return self.head(F.dropout(F.relu(self.body(x - self.centre)), 0.3, self.training))

    model, x = Lerp(), torch.randn(N, 5)
    found = measured(model, x, [PairwiseKL], sub_models=4)
    assert model.centre.tolist() == [0.0] * 5
    assert "buffers_change" in found.findings
    assert "uncontrolled_randomness" not in found.findings


def test_the_input_of_a_token_model_is_the_tokens_embedding_whatever_runs_first(measured):
    def positions_first(m, ids):
        h = m.pos(torch.arange(ids.shape[1])) + m.tok(ids)
        return m.head(m.drop(F.relu(m.body(h.mean(1)))))

    def tokens_first(m, ids):
        h = m.tok(ids) + m.pos(torch.arange(ids.shape[1]))
        return m.head(m.drop(F.relu(m.body(h.mean(1)))))

    modules = {"tok": nn.Embedding(9, 5), "pos": nn.Embedding(N, 5), "drop": nn.Dropout(0.3)}
    model, ids = Written(positions_first, **modules), torch.randint(0, 9, (N, N))
    first = measured(model, ids, [Jacobian], sub_models=2).columns["jacobian_logits"].values
    model._written = tokens_first
    assert first == pytest.approx(measured(model, ids, [Jacobian], sub_models=2).columns["jacobian_logits"].values)


def test_floats_beside_integers_are_the_input_of_a_model_without_embeddings(measured):
    def lengths(m, x, n):
        return m.head(m.drop(F.relu(m.body(x)))) / n[:, None]

    model, inputs = Written(lengths, drop=nn.Dropout(0.3)), (torch.randn(N, 5), torch.full((N,), 2))
    assert "jacobian_logits" in measured(model, inputs, [Jacobian], sub_models=2).columns


def test_vmap_is_not_insisted_on_where_it_is_wrong(measured):
    for model in (Written(recurrent, rnn=nn.LSTM(8, 8, 2, dropout=0.4, batch_first=True)), Written(from_numpy)):
        with pytest.raises(StrategyError, match="vmap does not do for this model"):
            measured(model, torch.randn(N, 5), [PairwiseKL], sub_models=4, strategy="vmap")
