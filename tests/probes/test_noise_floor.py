"""The noise floor against passes made by hand; what cannot be had is said, and nothing is left behind."""

import numpy as np
import pytest
import torch
import torch._dynamo as dynamo
from torch import nn

from rdrop_probes import repeats
from rdrop_probes.batch import Batch
from rdrop_probes.discovery import find_sites
from rdrop_probes.distributions import EvalBatch
from rdrop_probes.families import Gaussian
from rdrop_probes.measure import measure
from rdrop_probes.noise_floor import NAMES, NoiseFloors
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.regression import GaussianPairwise
from rdrop_probes.settings import Settings
from rdrop_probes.state import preserved

N, C = 40, 5
COMPILED = "eager vs compiled"


def noisy(scale):
    """A compiler whose code is off by a factor."""

    def compile_graph(graph, _inputs):
        return lambda *args: tuple(scale * out for out in graph(*args))

    return compile_graph


@pytest.fixture(autouse=True)
def _compiler(monkeypatch):
    monkeypatch.setattr(dynamo, "lookup_backend", lambda _: noisy(1.01))
    yield
    torch.compiler.reset()


class ByBatch(nn.Module):
    """Gives other numbers to an example that is alone."""

    def __init__(self):
        super().__init__()
        self.first, self.dropout, self.last = nn.Linear(6, 16), nn.Dropout(0.3), nn.Linear(16, C)

    def forward(self, x):
        return self.last(self.dropout(self.first(x).tanh())) * (1.02 if len(x) == 1 else 1.0)


def kl(a, b):
    p, q = (z.double().softmax(-1).numpy() for z in (a, b))
    return (p * (np.log(p) - np.log(q))).sum(-1)


def floors(found):
    return {line.name: line for line in found.tables["noise_floor"]}


def test_each_way_is_the_divergence_of_a_pass_made_by_hand(measured):
    model, x = ByBatch(), torch.randn(N, 6)
    found = measured(model, x, [PairwiseKL, NoiseFloors], sub_models=6)
    with torch.no_grad():
        own = model.eval()(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(x)
        places = torch.linspace(0, N - 1, repeats.MOST_ALONE).long()
        alone = torch.cat([model(x[i : i + 1]) for i in places])
    lines, epkl = floors(found), found.columns["epkl"].values
    expected = {
        "float32 vs bfloat16": (kl(own, half), slice(None), half.argmax(-1) != own.argmax(-1)),
        COMPILED: (kl(own, 1.01 * own), slice(None), torch.zeros(N)),
        "batch vs one by one": (kl(own[places], alone), places.numpy(), alone.argmax(-1) != own.argmax(-1)[places]),
    }
    for name, (values, where, flips) in expected.items():
        assert lines[name].divergence.estimate == pytest.approx(values.mean(), rel=1e-3)  # float32 logits
        assert lines[name].divergence.n == len(values)
        assert lines[name].ratio == pytest.approx(epkl[where].mean() / values.mean(), rel=1e-3)
        assert lines[name].flip_rate == pytest.approx(flips.double().mean().item())
    assert lines["plain vs fused kernels"].divergence.estimate == pytest.approx(0, abs=1e-12)  # there are none in it
    assert "noise_floor_incomplete" not in found.findings


def test_fused_kernels_are_those_that_users_run(measured):
    layer = nn.TransformerEncoderLayer(16, 4, 32, 0.1, batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(16, C))
    seen = []
    model[0].register_forward_pre_hook(lambda *_: seen.append(torch.backends.mha.get_fastpath_enabled()))
    measured(model, torch.randn(N, 16), [NoiseFloors], sub_models=2)
    assert set(seen) == {False, True}
    assert torch.backends.mha.get_fastpath_enabled()


def test_compiled_code_is_run_on_batches_of_the_first_ones_shape(measured):
    found = measured(ByBatch(), torch.randn(N, 6), [NoiseFloors], sub_models=2, batch=16)
    assert floors(found)[COMPILED].divergence.n == 32
    assert floors(found)["float32 vs bfloat16"].divergence.n == N


def test_a_model_without_code_of_its_own_is_compiled_too(measured):
    """Torch compiles no frame of its own classes, and would run `nn.Sequential` as it is."""
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.Linear(16, C))
    found = measured(model, torch.randn(N, 6), [NoiseFloors], sub_models=2)
    assert floors(found)[COMPILED].divergence.estimate > 1e-6


def test_without_a_compiler_that_works_it_is_said(measured, monkeypatch):
    def broken(_graph, _inputs):
        raise RuntimeError("no C++ compiler here")

    monkeypatch.setattr(dynamo, "lookup_backend", lambda _: broken)
    found = measured(ByBatch(), torch.randn(N, 6), [NoiseFloors], sub_models=2)
    assert floors(found)[COMPILED].divergence is None
    assert "it cannot be compiled here" in floors(found)[COMPILED].reason
    assert f"{COMPILED} (it cannot be compiled here" in found.findings["noise_floor_incomplete"]
    assert floors(found)["float32 vs bfloat16"].divergence is not None


def test_code_that_fell_back_to_eager_is_no_compiled_code(measured):
    class Uncompiled(ByBatch):
        @torch.compiler.disable
        def forward(self, x):
            return super().forward(x)

    found = measured(Uncompiled(), torch.randn(N, 6), [NoiseFloors], sub_models=2)
    assert floors(found)[COMPILED].reason == repeats.NOTHING_COMPILED


def test_a_model_that_draws_in_eval_mode_has_no_floor(measured):
    class Dirty(ByBatch):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.2, training=True)

    found = measured(Dirty(), torch.randn(N, 6), [NoiseFloors], sub_models=2)
    assert {line.reason for line in floors(found).values()} == {"the model draws randomness in eval mode"}


def test_a_model_in_double_precision_is_not_compared_with_bfloat16(measured):
    found = measured(ByBatch().double(), torch.randn(N, 6).double(), [NoiseFloors], sub_models=2)
    assert floors(found)["float32 vs bfloat16"].reason == "the passes are not in float32"


def test_a_compiled_model_is_named_as_such(measured):
    model = torch.compile(ByBatch(), backend="eager")
    found = measured(model, torch.randn(N, 6), [NoiseFloors], sub_models=2)
    assert "compiled already" in floors(found)[COMPILED].reason


def test_the_model_is_left_as_it_was(measured):
    model = ByBatch().train()
    before = set(vars(model))
    measured(model, torch.randn(N, 6), [NoiseFloors], sub_models=2)
    assert set(vars(model)) == before
    assert model.training


def test_halves_make_the_whole():
    model, x = ByBatch(), torch.randn(N, 6)
    parts = [Batch(x[i : i + 10], 10, i) for i in range(0, N, 10)]
    with preserved(model), torch.no_grad():
        model.eval()
        runs = repeats.Repeats(model, model, find_sites(model, lambda n: model(x[:n])), parts[0])

        def probe(batches):
            made = NoiseFloors()
            for batch in batches:
                made.update_repeats(runs, EvalBatch(batch.start, batch.inputs, model(batch.inputs)), batch)
            return made

        whole, first, second = probe(parts), probe(parts[:1]), probe(parts[1:])
    restored = NoiseFloors()
    restored.restore(first.state())
    restored.merge(second)
    assert restored.conclude({}, {}).tables == whole.conclude({}, {}).tables
    assert [line.name for line in whole.conclude({}, {}).tables["noise_floor"]] == list(NAMES.values())


def test_regression_has_a_floor_too():
    model, x = ByBatch(), torch.randn(N, 6)
    found = measure(
        model, [Batch(x, N, 0)], forward=model, probes=[GaussianPairwise, NoiseFloors],
        settings=Settings(sub_models=4), family=Gaussian(2.0),
    )  # fmt: skip
    with torch.no_grad():
        own = model.eval()(x).double()
    expected = (0.01 * own).square().sum(-1).mean().item() / 4
    assert floors(found)[COMPILED].divergence.estimate == pytest.approx(expected, rel=1e-3)
    assert {line.flip_rate for line in floors(found).values()} == {None}
    ratio = found.columns["epkl"].values.mean() / expected
    assert floors(found)[COMPILED].ratio == pytest.approx(ratio, rel=1e-3)


def test_tokens_are_averaged_by_example(measured):
    model, x = ByBatch(), torch.randn(8, 3, 6)
    places = torch.ones(8, 3, dtype=torch.bool)
    places[0, 1:] = False
    found = measure(
        model, [Batch(x, 8, 0, None, places)], forward=model, probes=[PairwiseKL, NoiseFloors],
        settings=Settings(sub_models=4),
    )  # fmt: skip
    with torch.no_grad():
        own = model.eval()(x)
    line = floors(found)["batch vs one by one"]
    assert line.divergence.estimate == pytest.approx(kl(own[places], 1.02 * own[places]).mean(), rel=1e-3)
    assert line.divergence.n == 8


def test_of_many_checkpoints_with_one_code_the_last_is_compiled_as_well(measured):
    for _ in range(10):  # torch gives up after 8 by default
        found = measured(ByBatch(), torch.randn(N, 6), [PairwiseKL, NoiseFloors], sub_models=2)
        assert floors(found)[COMPILED].divergence is not None
