"""Compiled and scripted models are measured as the code they were made from; a mode that is baked in is refused."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by
from model_zoo import C, N, columns_of
from torch import nn

from rdrop_probes.gap import Gap
from rdrop_probes.jacobian import Jacobian
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.sites import SilentSiteError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's own code compiling itself


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Sequential(nn.ReLU(), nn.Dropout(0.3)), nn.Linear(8, C)).eval()


def whole():
    return torch.compile(plain(), backend="aot_eager")


def in_place():
    model = plain()
    model.compile(backend="aot_eager")
    return model


def part():
    model = plain()
    model[1] = torch.compile(model[1], backend="aot_eager")
    return model


@pytest.mark.parametrize("build", [whole, in_place, part])
@pytest.mark.parametrize("warm", [False, True])
def test_compiled_models_have_the_sites_and_the_numbers_of_eager_ones(measured, build, warm):
    x, model = torch.randn(N, 5), build()
    if warm:  # code compiled before is not to be taken either
        with torch.no_grad():
            first, again = (model.train()(x) for _ in range(2))
        assert not torch.equal(first, again)
        model.eval()
    found = measured(model, x, [PairwiseKL, Gap, Jacobian], sub_models=4)
    expected = measured(plain(), x, [PairwiseKL, Gap, Jacobian], sub_models=4)
    assert columns_of(found) == columns_of(expected)
    assert {path.replace("_orig_mod.", "") for path, _ in found.plan.sites} == {"1.1"}
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_a_compiled_function_inside_forward_is_measured_too(measured):
    @torch.compile(backend="aot_eager")
    def compiled(x, training):
        return F.dropout(torch.relu(x), 0.3, training)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(5, 8), nn.Linear(8, C)

        def forward(self, x):
            return self.head(compiled(self.body(x), self.training))

    found = measured(Model().eval(), torch.randn(N, 5), [PairwiseKL], sub_models=16)
    assert {key: site.rate for key, site in found.plan.sites.items()} == {("", 0): 0.3}
    assert found.columns["epkl"].values.mean() > 1e-6


def test_nothing_is_compiled_while_a_model_is_measured(measured):
    compiled = []

    def backend(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    model = torch.compile(plain(), backend=backend)
    measured(model, torch.randn(N, 5), [PairwiseKL], sub_models=2)
    assert not compiled
    with torch.no_grad():
        model(torch.randn(N, 5))
    assert compiled


scripting = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # users have such models still


@scripting
def test_a_scripted_model_has_the_numbers_of_the_eager_one(measured):
    x, scripted = torch.randn(N, 5), torch.jit.script(plain())
    found, expected = (measured(model, x, [PairwiseKL, Gap], sub_models=4) for model in (scripted, plain()))
    assert [site.rate for site in found.plan.sites.values()] == [0.3]
    for name, column in expected.columns.items():
        assert found.columns[name].values == pytest.approx(column.values, rel=1e-4, abs=1e-9), name  # float32 logits


@scripting
@pytest.mark.parametrize("whole_model", [True, False])
def test_dropout_traced_in_eval_mode_is_an_error_and_not_consistency(measured, whole_model):
    model, x = plain(), torch.randn(N, 5)
    if whole_model:
        model = torch.jit.trace(model, x)
    else:
        model[1] = torch.jit.trace(model[1], torch.randn(N, 8))
    with pytest.raises(SilentSiteError, match="was traced in eval mode and stays off"):
        measured(model, x, [PairwiseKL], sub_models=4)


@scripting
def test_traced_code_without_dropout_is_no_error(measured):
    model, x = plain(), torch.randn(N, 5)
    model[0] = torch.jit.trace(model[0], x)
    assert set(measured(model, x, [PairwiseKL], sub_models=4).plan.sites) == {("1.1", 0)}


def test_data_parallel_runs_on_one_device_while_it_is_measured(measured):
    model, x = nn.DataParallel(plain()), torch.randn(N, 5)
    model.device_ids = [0, 1]  # as on a machine with two GPUs, where its threads would draw unseen
    found = measured(model, x, [PairwiseKL], sub_models=4)
    assert columns_of(found) == columns_of(measured(plain(), x, [PairwiseKL], sub_models=4))
    assert model.device_ids == [0, 1]
