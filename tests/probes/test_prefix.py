"""What comes before the first draw runs once a batch, for whatever a model does there, and changes no number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from rdrop_probes.discovery import find_sites
from rdrop_probes.examples import Examples
from rdrop_probes.passes import Passes
from rdrop_probes.state import preserved


class Counting(TorchDispatchMode):
    """Counts the operators that really run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Written(nn.Module):
    """A model of some parts and a forward function."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self._written = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self._written(self, x)


def convolutions(**more: nn.Module) -> dict[str, nn.Module]:
    return {
        "conv": nn.Conv2d(1, 4, 3),
        "norm": nn.BatchNorm2d(4),
        "pool": nn.MaxPool2d(2),
        "wide": nn.Linear(36, 16),
        "head": nn.Linear(16, 3),
        "drop": nn.Dropout(0.4),
        **more,
    }


def body(m: Any, x: Tensor) -> Tensor:
    return m.wide(m.pool(functional.relu(m.norm(m.conv(x)))).flatten(1))


def reads_numbers(m: Any, x: Tensor) -> Tensor:
    h = body(m, x)
    scale = 2.0 if max(h.detach().abs().max().item(), *x[:, 0, 0, 0].tolist()) > 0 else 1.0
    return m.head(m.drop(scale * h))


def views(m: Any, x: Tensor) -> Tensor:
    a, b = body(m, x).view(len(x), 2, 8).unbind(1)
    h = torch.cat([b, a], 1)
    return m.head(m.drop(h) + h.flip(1).t().t())


def training_differs(m: Any, x: Tensor) -> Tensor:
    h = body(m, x)
    h = h + 0.1 * h.square() if m.training else h
    return m.head(functional.dropout(h, 0.4, m.training))


def in_place_after(m: Any, x: Tensor) -> Tensor:
    h = body(m, x)
    y = m.head(m.drop(h))
    return y + m.head(h.mul_(2).relu_())


CASES: dict[str, Callable[[], nn.Module]] = {
    "dropout before the last layer": lambda: Written(lambda m, x: m.head(m.drop(body(m, x))), **convolutions()),
    "dropout in place": lambda: Written(
        lambda m, x: m.head(m.drop(body(m, x))), **convolutions(drop=nn.Dropout(0.4, inplace=True))
    ),
    "a shortcut past the draw": lambda: Written(
        lambda m, x: (h := body(m, x)).sum(1, keepdim=True) + m.head(m.drop(h)), **convolutions()
    ),
    "the result of before changed after": lambda: Written(in_place_after, **convolutions()),
    "numbers read in Python": lambda: Written(reads_numbers, **convolutions()),
    "views": lambda: Written(views, **convolutions()),
    "train mode that does more": lambda: Written(training_differs, **convolutions()),
    "uniform numbers": lambda: Written(
        lambda m, x: m.head(body(m, x) * (torch.rand(len(x), 16) < 0.7)) if m.training else m.head(body(m, x)),
        **convolutions(),
    ),
    "feature maps": lambda: Written(
        lambda m, x: m.head(m.wide(m.pool(m.drop(functional.relu(m.conv(x)))).flatten(1))),
        **convolutions(drop=nn.Dropout2d(0.4)),
    ),
}


CHANGED = ("dropout in place", "the result of before changed after")


@contextmanager
def passes_over(name: str, n: int = 6) -> Iterator[tuple[Passes, Examples]]:
    torch.manual_seed(0)
    model, x = CASES[name]().eval(), torch.randn(n, 1, 8, 8)
    with preserved(model):
        plan = find_sites(model, lambda few: model(x[torch.arange(few) % n]), n)
        passes = Passes(model, model, plan, seed=3, masks="per-example")
        passes.replay = True
        yield passes, Examples(x, n, 10)


@pytest.mark.parametrize("name", CASES)
def test_passes_are_those_of_whole_passes(name):
    with passes_over(name) as (passes, examples):
        whole = [passes.one(examples, k, replay=False) for k in range(4)]
        without = Passes(passes._model, passes._forward, passes._plan, seed=3, masks="per-example")
        without.replay = False
        for _ in range(2):
            assert torch.equal(passes.eval_model(examples), without.eval_model(examples))
            for k in (2, 0, 3, 1):
                assert torch.equal(passes.one(examples, k), whole[k])


@pytest.mark.parametrize("name", CASES)
def test_the_convolution_runs_once(name):
    """For eval model and sub-models; once more where the suffix changes what the prefix left, when that is found."""
    again = name in CHANGED
    differs = name == "train mode that does more"  # the eval model has to run by itself
    with passes_over(name) as (passes, examples):
        with Counting() as counting:
            passes.eval_model(examples)
            for k in range(5):
                passes.one(examples, k)
        assert counting.counts["convolution"] == 1 + again + differs
        passes.forget()
        with Counting() as counting:  # what was learnt holds for the next batch
            passes.eval_model(examples)
            for k in range(5):
                passes.one(examples, k)
        assert counting.counts["convolution"] == 1 + differs


@pytest.mark.parametrize("way", ["vmapped", "folded"])
@pytest.mark.parametrize("name", CASES)
def test_many_at_a_time_run_it_once_and_agree(name, way):
    with passes_over(name) as (passes, examples):
        whole = torch.stack([passes.one(examples, k, replay=False) for k in range(4)])
        run = getattr(passes, way)
        if (name, way) == ("dropout in place", "vmapped"):  # what has one value for all cannot become many in place
            with pytest.raises(RuntimeError, match="vmap"):
                run(examples, range(4))
            return
        torch.testing.assert_close(
            run(examples, range(4)), whole, rtol=1e-5, atol=1e-5
        )  # float32 sums in another order
        with Counting() as counting:
            run(examples, range(4))
            run(examples, range(4, 8))
        assert counting.counts["convolution"] <= (name in CHANGED)


def test_another_batch_has_another_prefix():
    with passes_over("views") as (passes, examples):
        other = Examples(torch.randn(6, 1, 8, 8), 6, 16)
        first = passes.one(examples, 0)
        second = passes.one(other, 0)
        assert torch.equal(second, passes.one(other, 0, replay=False))
        assert torch.equal(first, passes.one(examples, 0))


def test_a_pass_that_changes_what_it_did_not_make_is_not_replayed():
    counter = nn.Module()
    counter.register_buffer("seen", torch.zeros(1))

    def forward(m: Any, x: Tensor) -> Tensor:
        m.counter.seen.add_(1)
        return m.head(m.drop(body(m, x) * m.counter.seen))

    CASES["counter"] = lambda: Written(forward, **convolutions(counter=counter))
    try:
        with passes_over("counter") as (passes, examples):
            with Counting() as counting:
                found = [passes.one(examples, k) for k in range(3)]
            assert counting.counts["convolution"] >= 3
            assert all(torch.equal(one, passes.one(examples, k, replay=False)) for k, one in enumerate(found))
    finally:
        del CASES["counter"]
