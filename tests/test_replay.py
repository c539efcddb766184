"""What comes before the first draw is replayed through the whole tool without changing a number, or not replayed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rdrop_analysis import analyze
from rdrop_probes import strategies
from rdrop_probes.divergences import agree

N, D, H, C = 96, 8, 64, 4


class Net(nn.Module):
    """Two layers and what a case does between them."""

    def __init__(self, written: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(D, H), nn.Linear(H, H), nn.Linear(H, C)
        self.d = nn.Dropout(0.4)
        self.u, self.v = torch.zeros(H), torch.ones(H)
        self._written = written

    def forward(self, x: Tensor) -> Tensor:
        return self._written(self, x)


def drop(m: Any, h: Tensor) -> Tensor:
    return functional.dropout(h, 0.4, m.training)


def eval_clamps(m: Any, x: Tensor) -> Tensor:
    return m.o(drop(m, torch.relu(m.a(x if m.training else x.clamp(-1, 1)))))


def eval_tries(m: Any, x: Tensor) -> Tensor:
    if not m.training:
        with contextlib.suppress(RuntimeError):
            x = torch.tanh(x) * 2
    return m.o(drop(m, torch.relu(m.a(x))))


def read_by_numpy(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    scale = float(abs(h.numpy()).mean()) + 1 if not h.requires_grad else 2.0
    del h
    return m.o(m.d(m.b(torch.relu(m.a(x))))) * scale


def written_constants(m: Any, x: Tensor) -> Tensor:
    return m.o(drop(m, m.a(x) / torch.tensor(1.0 if m.training else 2.0)))


def plain_attributes(m: Any, x: Tensor) -> Tensor:
    return m.o(drop(m, torch.relu(m.a(x)) + (m.u if m.training else m.v)))


def eval_uses_what_training_drops(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.a(x))
    y = m.b(h)
    if m.training:
        del h
        return m.o(drop(m, y))
    return m.o(y + h)


def last_in_place(m: Any, x: Tensor) -> Tensor:
    return functional.dropout(m.o(torch.relu(m.a(x))), 0.4, m.training, inplace=True)


def through_data(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    mask = m.d(torch.ones_like(h))
    h.data.mul_(mask)
    return m.o(h)


def recurrent(m: Any, x: Tensor) -> Tensor:
    return m.o(m.lstm(x.unflatten(1, (4, 2)))[0][:, -1])


def own_path_dropping(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    if m.training:
        h = h * torch.bernoulli(torch.full((len(x), 1), 0.7)) / 0.7
    return m.o(torch.relu(h))


CASES = {
    case.__name__: case
    for case in (
        *(eval_clamps, eval_tries, read_by_numpy, written_constants, plain_attributes, eval_uses_what_training_drops),
        *(last_in_place, through_data, recurrent, own_path_dropping),
    )
}


def built(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(2)
    model = Net(CASES[name])
    if name == "recurrent":
        model.lstm = nn.LSTM(2, H, 2, dropout=0.4, batch_first=True)
    return model.eval(), 2 * torch.randn(N, D), torch.randint(0, C, (N,))


@pytest.mark.parametrize("strategy", ["auto", "loop"])
@pytest.mark.parametrize("name", CASES)
def test_replayed_or_not_the_numbers_are_those_of_whole_passes(name, strategy, monkeypatch):
    model, x, y = built(name)
    given: dict[str, Any] = {"sub_models": 6, "probes": "pairwise_kl,gap", "batch_size": 48}
    found = analyze(model, (x, y), strategy=strategy, **given).record.checkpoints[0]
    monkeypatch.setattr(strategies, "_replays", lambda *_: False)
    whole = analyze(model, (x, y), strategy="loop", **given).record.checkpoints[0]
    with torch.no_grad():
        logits = torch.cat([model(part.clone()) for part in x.split(48)])
        truth = float(functional.cross_entropy(logits, y))
    assert found.metrics["nll_eval"].estimate == pytest.approx(truth, rel=1e-5)
    for metric, value in whole.metrics.items():
        assert found.metrics[metric].estimate == pytest.approx(value.estimate, rel=1e-4, abs=1e-7), metric


def changed_always(m: Any, x: Tensor) -> Tensor:
    return m.o(m.d(torch.relu(m.a(x.mul_(2)))))


def changed_always_apart(m: Any, x: Tensor) -> Tensor:
    return m.o(m.d(torch.relu(m.a(x * 2))))


def changed_by_dropout(m: Any, x: Tensor) -> Tensor:
    return m.o(m.d(torch.relu(m.a(functional.dropout(x, 0.4, m.training, inplace=True)))))


def changed_by_dropout_apart(m: Any, x: Tensor) -> Tensor:
    return m.o(m.d(torch.relu(m.a(functional.dropout(x, 0.4, m.training)))))


def changed_afterwards(m: Any, x: Tensor) -> Tensor:
    h = m.d(torch.relu(m.a(x)))
    return m.o(h + x.mul_(0.5 if m.training else 0.8).sum(-1, keepdim=True))


def changed_afterwards_apart(m: Any, x: Tensor) -> Tensor:
    h = m.d(torch.relu(m.a(x)))
    return m.o(h + (x * (0.5 if m.training else 0.8)).sum(-1, keepdim=True))


IN_PLACE = [
    (changed_always, changed_always_apart),
    (changed_by_dropout, changed_by_dropout_apart),
    (changed_afterwards, changed_afterwards_apart),
]


def numbers(written: Any, **given: Any) -> tuple[dict[str, float | None], Tensor, Tensor]:
    CASES["written"] = written
    try:
        model, x, y = built("written")
        before = x.clone()
        found = analyze(model, (x, y), sub_models=4, probes="pairwise_kl,gap", batch_size=32, **given)
        return {k: v.estimate for k, v in found.record.checkpoints[0].metrics.items()}, before, x
    finally:
        del CASES["written"]


@pytest.mark.parametrize("strategy", ["auto", "loop"])
@pytest.mark.parametrize(("written", "apart"), IN_PLACE)
def test_a_model_that_changes_its_inputs_is_measured_on_the_same_ones_in_every_pass(written, apart, strategy):
    expected, *_ = numbers(apart, strategy=strategy)
    found, before, after = numbers(written, strategy=strategy)
    assert found == pytest.approx(expected, rel=1e-5)
    assert after.equal(before)


@pytest.mark.parametrize(("written", "apart"), IN_PLACE)
def test_a_run_that_goes_on_keeps_the_inputs_of_such_a_model_as_well(written, apart, tmp_path):
    del apart
    expected, *_ = numbers(written, strategy="loop")
    seen: list[int] = []

    def interrupt(_name: str, done: int, _of: int) -> None:
        seen.append(done)
        if done == 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        numbers(written, strategy="loop", resume=tmp_path, progress=interrupt)
    found, *_ = numbers(written, strategy="loop", resume=tmp_path)
    assert seen
    assert found == expected


def eval_ends_early(m: Any, x: Tensor) -> Tensor:
    z = m.o(x.repeat(1, H // D))
    sure = float(x.max()) > 50
    if sure and not m.training:
        return z
    return functional.dropout(z.mul_(2), 0.3, m.training)


def test_a_pass_may_end_before_the_recorded_first_draw():
    CASES["early"] = eval_ends_early
    try:
        model, x, y = built("early")
    finally:
        del CASES["early"]
    x[32, 0] = 100.0  # in the second batch
    found = analyze(model, (x, y), sub_models=4, strategy="loop", probes="gap", batch_size=32).record.checkpoints[0]
    with torch.no_grad():
        truth = float(functional.cross_entropy(torch.cat([model(part) for part in x.split(32)]), y))
    assert found.metrics["nll_eval"].estimate == pytest.approx(truth, rel=1e-5)


def test_rates_are_an_examples_own_where_masks_are_shared():
    model, x, y = built("own_path_dropping")
    model._written = lambda m, x: m.o(m.a(x) * (torch.bernoulli(torch.sigmoid(m.b(m.a(x)))) if m.training else 0.5))
    found = [
        analyze(model, (x, y), sub_models=4, masks="shared", strategy="loop", probes="gap", batch_size=size)
        .record.checkpoints[0]
        .metrics["kl_sub_to_eval"]
        .estimate
        for size in (96, 16, 1)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)


def test_models_that_rule_classes_out_with_large_numbers_are_told_apart():
    a = torch.randn(4, 5)
    a[:, 0] = -1e9
    b = a.clone()
    assert agree(a, b)
    b[2, 3] += 0.1
    assert not agree(a, b)


def test_memory_that_runs_out_takes_fewer_sub_models_at_a_time():
    def tight(m: Any, x: Tensor) -> Tensor:
        if len(x) > 48:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return m.o(m.d(torch.relu(m.a(x))))

    CASES["tight"] = tight
    try:
        model, x, y = built("tight")
        given: dict[str, Any] = {"sub_models": 8, "probes": "pairwise_kl"}
        found = analyze(model, (x, y), strategy="fold", batch_size=20, **given).record.checkpoints[0]
        assert "2 sub-models" in found.strategy
        expected = analyze(model, (x, y), strategy="loop", batch_size=20, **given).record.checkpoints[0]
        assert found.metrics["epkl"].estimate == pytest.approx(expected.metrics["epkl"].estimate, rel=1e-5)
        with pytest.raises(Exception, match="smaller --batch-size"):
            analyze(model, (x, y), strategy="loop", batch_size=64, **given)
    finally:
        del CASES["tight"]
