"""What tools that patch modules would reach of a model's dropout, held against running their recipe plainly."""

import pytest
import torch
from hard_models import HARD_CASES
from model_zoo import CASES, run
from torch import nn

from rdrop_probes.discovery import find_sites
from rdrop_probes.state import preserved

ALL = CASES | HARD_CASES
NONE = (
    *("functional", "transformer encoder", "multi-head attention", "lstm", "scaled dot product attention"),
    *("stochastic depth", "weights", "padded encoder", "parametrized weight", "weight-dropped lstm", "scripted part"),
    *("depth by floor", "gaussian noise", "autograd function", "rate 1 in an lstm", "rate 1 in multi-head attention"),
)
EVERY = (
    *("modules", "input dropout", "alpha dropout", "feature maps beside batch norm", "unguarded", "adapter"),
    *("checkpointed", "data parallel", "dropout 1d", "vmap in the model", "rate 1"),
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad"),  # torch's, of reentrant checkpoints
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning"),  # users have such models still
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype"),  # the recipe's
]


def reached(case):
    model, inputs = case.build().eval(), case.inputs()
    with preserved(model):
        plan = find_sites(model, lambda n: run(model, _first(inputs, n)))
    return {key: site.found_by_patching for key, site in plan.sites.items()}


def _first(inputs, n):
    if isinstance(inputs, dict):
        return {name: tensor[:n] for name, tensor in inputs.items()}
    return tuple(tensor[:n] for tensor in inputs) if isinstance(inputs, tuple) else inputs[:n]


@pytest.mark.parametrize("name", NONE)
def test_patching_misses_all_of_it(name):
    assert set(reached(ALL[name]).values()) == {False}


@pytest.mark.parametrize("name", EVERY)
def test_patching_reaches_all_of_it(name):
    assert set(reached(ALL[name]).values()) == {True}


def test_of_a_transformer_patching_reaches_the_decoder_s_modules_and_nothing_of_the_fused_encoder():
    found = {path for (path, _), yes in reached(ALL["transformer"]).items() if yes}
    assert found == {f"transformer.decoder.layers.0.{name}" for name in ("dropout", "dropout1", "dropout2", "dropout3")}


@pytest.mark.parametrize("name", ALL)
def test_the_recipe_run_plainly_varies_where_a_site_is_said_to_be_reached(name):
    case = ALL[name]
    model, inputs = case.build().eval(), case.inputs()
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__.startswith("Dropout"):
            module.train()
    with torch.no_grad():
        first, second = run(model, inputs), run(model, inputs)
    varies = not torch.allclose(first, second)
    assert varies == any(yes and case.sites[key] != 1 for key, yes in reached(case).items())


class Both(nn.Module):
    """Draws in train mode, then always, in one module."""

    def forward(self, x):
        x = nn.functional.dropout(x, 0.3, self.training)
        return nn.functional.dropout(x, 0.2)


def test_the_draw_that_fires_is_told_from_the_other_of_the_same_module():
    model = nn.Sequential(nn.Linear(5, 8), Both())
    with preserved(model):
        plan = find_sites(model, lambda n: model(torch.ones(n, 5)))
    fires = {site.rate: (site.fires_in_eval, site.found_by_patching) for site in plan.sites.values()}
    assert fires == {0.3: (False, False), 0.2: (True, True)}
