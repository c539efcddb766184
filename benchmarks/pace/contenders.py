"""What is timed side by side: the engine, the plain loop, and passes alone as the floor under both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by
from torch import Tensor, nn

from pace.models import Case
from rdrop_probes.batch import Batch
from rdrop_probes.discovery import keeps_statistics
from rdrop_probes.gap import Gap
from rdrop_probes.measure import measure
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.probe import Probe
from rdrop_probes.settings import Settings

Found = tuple[float, ...]


class Contenders:
    """All ways to measure one model with `count` sub-models, on the same batches."""

    def __init__(self, case: Case, count: int) -> None:
        self.case = case
        self.model = case.model()
        self.inputs = [case.inputs(number) for number in range(case.batches)]
        self.count = count

    def ways(self) -> dict[str, Callable[[], Found]]:
        """Every way by the name that tables give it."""
        return {
            "ours, pairwise_kl": lambda: self.engine([PairwiseKL]),
            "ours, pairwise_kl and gap": lambda: self.engine([PairwiseKL, Gap]),
            "ours, K = 2, one batch": self.least,
            "plain loop, all pairs": self.loop,
            "K eval passes": self.eval_passes,
            "floor": self.floor,
        }

    def warm_up(self) -> None:
        """Let every way run once, on little: what happens only once is over then."""
        with self._least():
            for way in self.ways().values():
                way()

    def least(self) -> Found:
        """The least that can be measured: what is left of it is the cost of finding sites and choosing a strategy."""
        with self._least():
            self.engine([PairwiseKL])
        return ()

    @contextmanager
    def _least(self) -> Iterator[None]:
        """One batch, two sub-models."""
        inputs, count = self.inputs, self.count
        self.inputs, self.count = inputs[:1], 2
        try:
            yield
        finally:
            self.inputs, self.count = inputs, count

    def engine(self, probes: Sequence[type[Probe]]) -> Found:
        """EPKL by example as this package measures it."""
        settings = Settings(sub_models=self.count)
        found = measure(self.model, list(self.batches()), forward=self.model, probes=probes, settings=settings)
        return tuple(found.columns["epkl"].values.tolist())

    def batches(self) -> Iterator[Batch]:
        """The examples with labels, as the engine takes them."""
        start = 0
        for inputs in self.inputs:
            yield make_batch(self.case, inputs, start)
            start += len(inputs)

    @torch.no_grad()
    def loop(self) -> Found:
        """EPKL by example as it is usually written: K train-mode passes, then every ordered pair."""
        found: list[float] = []
        with train_mode(self.model):
            for inputs in self.inputs:
                log_p = [F.log_softmax(self.model(inputs), -1) for _ in range(self.count)]
                found += _all_pairs(log_p).reshape(len(inputs), -1).mean(1).tolist()
        return tuple(found)

    @torch.no_grad()
    def eval_passes(self) -> Found:
        """K passes of the whole eval model."""
        for inputs in self.inputs:
            _passes(self.model, inputs, self.count)
        return ()

    @torch.no_grad()
    def floor(self) -> Found:
        """One eval pass of the prefix and K of what follows it."""
        for inputs in self.inputs:
            with prefix_done(self.model, self.case.prefix, inputs):
                _passes(self.model, inputs, self.count)
        return ()


def make_batch(case: Case, inputs: Tensor, start: int) -> Batch:
    """A batch with arbitrary labels; every token of a language model's examples is a row."""
    shape = inputs.shape if case.tokens else inputs.shape[:1]
    labels = torch.arange(shape.numel()).reshape(shape) % case.classes
    places = torch.ones(shape, dtype=torch.bool) if case.tokens else None
    return Batch(inputs, len(inputs), start, labels, places)


def _passes(model: nn.Module, inputs: Tensor, count: int) -> None:
    for _ in range(count):
        model(inputs)


def _all_pairs(log_p: Sequence[Tensor]) -> Tensor:
    """Mean KL over ordered pairs, by row."""
    total = torch.zeros(log_p[0].shape[:-1])
    for i, first in enumerate(log_p):
        for j, second in enumerate(log_p):
            if i != j:
                total += F.kl_div(second, first, reduction="none", log_target=True).sum(-1)
    return total / (len(log_p) * (len(log_p) - 1))


@contextmanager
def train_mode(model: nn.Module) -> Iterator[None]:
    """Train mode, with batch normalisation left in eval."""
    model.train()
    for module in model.modules():
        if keeps_statistics(module):
            module.eval()
    try:
        yield
    finally:
        model.eval()


@contextmanager
def prefix_done(model: nn.Module, path: str, inputs: Tensor) -> Iterator[None]:
    """Run the module at `path` once on what it is given for `inputs`, and let it return that from then on."""
    prefix = model.get_submodule(path)
    known = _output_of(model, prefix, inputs)
    prefix.__dict__["forward"] = lambda *_, **__: known  # of this one object: the class keeps its own
    try:
        yield
    finally:
        del prefix.__dict__["forward"]


class _Reached(Exception):  # noqa: N818 - no error: the rest of the pass is not wanted
    """The prefix has run."""


def _output_of(model: nn.Module, prefix: nn.Module, inputs: Tensor) -> Any:
    """What `prefix` returns in a pass of `model`, which ends there."""
    seen: list[Any] = []

    def stop(_module: nn.Module, _inputs: object, output: object) -> None:
        seen.append(output)
        raise _Reached

    handle = prefix.register_forward_hook(stop)
    try:
        model(inputs)
    except _Reached:
        return seen[0]
    finally:
        handle.remove()
    raise ValueError("the model did not run the module that was named as its prefix")
