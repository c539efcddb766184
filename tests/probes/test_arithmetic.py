"""Passes compute in the precision that is asked for: what comes out is torch's autocast, and near to what it was."""

import pytest
import torch
from torch import nn

from rdrop_analysis import analyze
from rdrop_analysis.errors import UsageError
from rdrop_probes.arithmetic import computing
from rdrop_probes.discovery import find_sites
from rdrop_probes.examples import Examples
from rdrop_probes.passes import Passes
from rdrop_probes.state import preserved
from rdrop_probes.strategies import StrategyError
from rdrop_probes.submodels import SubModels

N = 24


class Tied(nn.Module):
    """Uses one weight before the first draw and after it, so that its cast is in the recorded prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.same, self.head = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 5)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        x = self.drop(self.same(self.lift(x)).relu())
        return self.head(self.drop(self.same(x).relu()))


def model():
    torch.manual_seed(0)
    return Tied().eval()


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 5)).eval()


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Linear(2, 8), layer, nn.Flatten(), nn.Linear(24, 5)).eval()


def inputs():
    return torch.randn(N, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_eval_model_and_sub_models_are_those_of_autocast(precision, dtype):
    net, x = model(), inputs()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        expected = net(x)
    with preserved(net), computing(net, net, precision) as forward:
        plan = find_sites(net, lambda n: forward(x[:n]), N)
        passes, examples = Passes(net, forward, plan, seed=0, masks="per-example"), Examples(x, N, 0)
        passes.replay = True
        found = passes.eval_model(examples)
        for k in range(3):  # replayed after the prefix with its casts, and whole
            assert torch.equal(passes.one(examples, k), passes.one(examples, k, replay=False))
        assert passes._prefixes["plain", 1] is not None
    assert expected.dtype == dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("strategy", ["auto", "loop", "fold"])
@pytest.mark.parametrize("build", [model, encoder])
def test_every_strategy_computes_in_bf16(build, strategy):
    net, x = build(), inputs()
    with preserved(net), computing(net, net, "bf16") as forward:
        plan = find_sites(net, lambda n: forward(x[:n]), N)
        sub_models = SubModels(net, forward, plan, count=4, strategy=strategy)
        for chunk in sub_models.logits(x, N, 0):
            assert chunk.logits.dtype == torch.bfloat16


@pytest.mark.parametrize("build", [model, plain])
def test_vmap_does_not_because_autocast_passes_by_what_it_batches(build):
    net, x = build(), inputs()
    with preserved(net), computing(net, net, "bf16") as forward:
        plan = find_sites(net, lambda n: forward(x[:n]), N)
        with pytest.raises(StrategyError, match="vmap does not do for this model"):
            SubModels(net, forward, plan, count=4, strategy="vmap").choose(x, N, 0)


@pytest.mark.parametrize("build", [model, encoder])
def test_epkl_in_bf16_is_near_that_in_fp32(build):
    data = (inputs(), torch.arange(N) % 5)
    found = {
        p: analyze(build(), data, precision=p, sub_models=32, probes=["pairwise_kl", "gap"]) for p in (None, "bf16")
    }
    single, half = (found[p].record.checkpoints[0].metrics["epkl"].estimate for p in (None, "bf16"))
    assert half != single
    assert half == pytest.approx(single, rel=0.05)
    assert found["bf16"].record.config["precision"] == "bf16"
    assert found["bf16"].record.checkpoints[0].strategy.endswith("; passes in bf16")
    assert found[None].record.config["precision"] is None


def test_gradients_are_taken_in_bf16_too():
    data = (inputs(), torch.arange(N) % 5)
    found = {
        p: analyze(model(), data, precision=p, sub_models=4, probes=["jacobian", "prediction"]) for p in (None, "bf16")
    }
    for name in ("jacobian_logits", "predicted_epkl"):
        single, half = (found[p].record.checkpoints[0].metrics[name].estimate for p in (None, "bf16"))
        assert half != single
        assert half == pytest.approx(single, rel=0.05)


def test_fp32_of_a_half_precision_checkpoint_leaves_it_as_it_was():
    net = model().bfloat16()
    before = {name: (t, t.data_ptr(), t.dtype) for name, t in net.named_parameters()}
    data = (inputs(), torch.arange(N) % 5)
    wide = analyze(model().bfloat16().float(), data, sub_models=8, probes=["pairwise_kl"])
    found = analyze(net, data, precision="fp32", sub_models=8, probes=["pairwise_kl"])
    epkl = found.record.checkpoints[0].metrics["epkl"].estimate
    assert epkl == wide.record.checkpoints[0].metrics["epkl"].estimate
    assert (
        epkl != analyze(net, data, sub_models=8, probes=["pairwise_kl"]).record.checkpoints[0].metrics["epkl"].estimate
    )
    for name, t in net.named_parameters():
        assert (t, t.data_ptr(), t.dtype) == before[name]


def fail(net):
    assert net.head.weight.dtype == torch.float32
    raise RuntimeError("stop")


def test_what_fp32_changed_is_put_back_when_something_fails():
    net = model().bfloat16()
    with pytest.raises(RuntimeError, match="stop"), computing(net, net, "fp32"):
        fail(net)
    assert net.head.weight.dtype == torch.bfloat16


def test_an_unknown_precision_is_refused():
    with pytest.raises(UsageError, match="unknown precision 'fp8': choose from None, fp32, bf16, fp16"):
        analyze(model(), (inputs(), torch.arange(N) % 5), precision="fp8")
