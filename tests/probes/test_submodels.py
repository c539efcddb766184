"""Every way of writing dropout: its sites are found and its sub-models are those of plain train mode."""

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by
import torch.utils.checkpoint
from hard_models import HARD_CASES
from model_zoo import CASES, MLP, C, N, brute_force, columns_of, mean_pairwise_kl, run, with_standard_error
from torch import Tensor, nn

from rdrop_probes.discovery import keeps_statistics
from rdrop_probes.gap import Gap
from rdrop_probes.jacobian import Jacobian
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.prediction import Prediction
from rdrop_probes.statistics import mask_spread
from rdrop_probes.summing import NotFiniteError

pytestmark = [
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),  # torch's, of reentrant checkpoints
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning"),  # users have such models still
]


@pytest.fixture(params=CASES | HARD_CASES)
def case(request):
    return (CASES | HARD_CASES)[request.param]


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
    alike = {"alike_sub_models"} if case.sites and set(case.sites.values()) == {1.0} else set()
    assert set(found.findings) == ({case.finding} if case.finding else set()) | alike
    if case.finding == "dirty_eval":
        assert "at noisy" in found.findings["dirty_eval"]


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
    found = measured(case.build().eval(), case.inputs(), [PairwiseKL], sub_models=4, strategy="vmap")
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


def test_the_seed_alone_decides_the_numbers(measured):
    model, x, labels = MLP.build().eval(), torch.randn(N, 5), torch.randint(0, C, (N,))
    probes = [PairwiseKL, Gap, Jacobian, Prediction]
    first = columns_of(measured(model, x, probes, labels, batch=5, sub_models=5, seed=3, strategy="fold"))
    torch.manual_seed(99)
    random.seed(99)
    assert columns_of(measured(model, x, probes, labels, batch=5, sub_models=5, seed=3, strategy="fold")) == first
    other = columns_of(measured(model, x, probes, labels, batch=5, sub_models=5, seed=4, strategy="fold"))
    assert other["epkl"] != first["epkl"]
    assert other["jacobian_logits"] == first["jacobian_logits"]


def test_a_batch_has_the_same_masks_whatever_comes_after_it(measured):
    model, x = MLP.build().eval(), torch.randn(N, 5)
    whole = measured(model, x, [PairwiseKL], batch=4, sub_models=5, strategy="loop").columns["epkl"].values
    alone = measured(model, x[:4], [PairwiseKL], batch=4, sub_models=5, strategy="loop").columns["epkl"].values
    assert whole[:4].tolist() == alone.tolist()


def test_another_model_of_the_same_shape_gets_the_same_masks(measured):
    x = torch.randn(N, 5)
    first, second = MLP.build().eval(), MLP.build().eval()
    second.load_state_dict(first.state_dict())
    pair = [columns_of(measured(m, x, [PairwiseKL], sub_models=5, strategy="loop")) for m in (first, second)]
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

    def keep(seen):
        parts.append(seen.logits)
        return seen.logits[..., 0]

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
