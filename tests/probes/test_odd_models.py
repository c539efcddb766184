"""Models that do unusual things: branches, buffers, generators of their own, overridden train(), no derivative."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by
import torch.utils.checkpoint
from model_zoo import (
    MLP,
    BatchNormByHand,
    C,
    Counting,
    N,
    Written,
    brute_force,
    cnn,
    columns_of,
    dropped,
    from_numpy,
    mean_pairwise_kl,
    recurrent,
    with_standard_error,
)
from torch import nn

from rdrop_probes.gap import Gap
from rdrop_probes.jacobian import Jacobian
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.prediction import Prediction
from rdrop_probes.sites import SilentSiteError
from rdrop_probes.statistics import mask_spread
from rdrop_probes.strategies import StrategyError


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
    assert {*found.columns, *found.metrics} == set(PairwiseKL.units)


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


class Wordless(torch.autograd.Function):
    @staticmethod
    def forward(_ctx, x):
        return x * 1.0

    @staticmethod
    def backward(_ctx, _gradient):
        raise NotImplementedError


def test_an_error_without_words_in_the_backward_pass_loses_no_more_than_its_probes(measured):
    model = Written(lambda m, x: Wordless.apply(m.head(m.drop(m.body(x)))), drop=nn.Dropout(0.3))
    found = measured(model, torch.randn(20, 5), [PairwiseKL, Jacobian], sub_models=4, strategy="loop")
    assert found.findings["gradients_unavailable"] == "jacobian left out: NotImplementedError"
    assert {*found.columns, *found.metrics} == set(PairwiseKL.units)


class Refuses(nn.Module):
    def forward(self, x):
        raise NotImplementedError


def test_a_part_that_raises_and_is_caught_does_not_pass_for_the_module_that_draws(measured):
    def forward(m, x):
        try:
            h = m.part(x)
        except NotImplementedError:
            h = m.body(x)
        return m.head(F.dropout(h, 0.3, m.training))

    found = measured(Written(forward, part=nn.Sequential(nn.Identity(), Refuses())), torch.randn(N, 5), [PairwiseKL])
    assert set(found.plan.sites) == {("", 0)}
