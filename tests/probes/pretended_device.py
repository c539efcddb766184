"""A device that only pretends: tensors on it have shapes and no values, so that whoever reads one is found out.

It stands for a GPU where there is none. On it an operator that has to wait for the device (`item`, `nonzero`,
`equal`), one that mixes devices, and every copy between it and the processor are errors. Registering a device is for
a whole process: run this file, with names of cases; it prints what was done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from rdrop_probes import prefix
from rdrop_probes.batch import Batch
from rdrop_probes.discovery import find_sites
from rdrop_probes.distributions import EvalBatch
from rdrop_probes.examples import Examples
from rdrop_probes.families import CATEGORICAL
from rdrop_probes.passes import Passes
from rdrop_probes.registry import choose
from rdrop_probes.state import preserved
from rdrop_probes.strategies import Choice
from rdrop_probes.submodels import SubModels
from rdrop_probes.summing import Summing

DEVICE = "pretended"
N, TOKENS, CLASSES, K = 6, 5, 4, 8


class WaitedError(AssertionError):
    """Something was copied between the device and the processor."""


class Watch(TorchDispatchMode):
    """Runs what is the processor's own for real, and refuses copies."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for a in (*args, *kwargs.values()) for t in (a if isinstance(a, list | tuple) else [a])]
        tensors = [t for t in tensors if isinstance(t, Tensor)]
        there = torch.device(kwargs.get("device") or "cpu").type == DEVICE
        if not there and not any(isinstance(t, FakeTensor) for t in tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if there and tensors and not any(isinstance(t, FakeTensor) for t in tensors):
            raise WaitedError(f"{func} copies to the device")
        result = func(*args, **kwargs)
        for out in result if isinstance(result, list | tuple) else [result]:
            if isinstance(out, Tensor) and out.device.type != DEVICE:
                raise WaitedError(f"{func} copies from the device")
        return result


@contextmanager
def on_device(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Inside, the model is on the device, and nothing may wait for it; yields what puts a tensor there."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, ExitStack() as stack:

        def put(tensor: Tensor) -> Tensor:
            return mode.from_tensor(tensor.detach()).to(DEVICE)

        for module in model.modules():
            for name, parameter in module._parameters.items():
                module._parameters[name] = None if parameter is None else nn.Parameter(put(parameter))
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else put(buffer)
        stack.enter_context(torch.no_grad())
        yield put


class Encoder(nn.Module):
    """A transformer, with dropout on its attention, and a path that is dropped in whole."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.norm = nn.BatchNorm1d(TOKENS)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.layer(nn.functional.dropout1d(self.embedding(ids), 0.2, self.training)))
        if self.training:
            x = x * (torch.rand(len(x), 1, 1, device=x.device) < 0.9)
        return self.head(x)


class Waiting(nn.Module):
    """Looks at numbers of its own, or moves them."""

    def __init__(self, look: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.look, self.drop, self.head = look, nn.Dropout(0.3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        self.look(x)
        return self.head(x)


def case(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor | None]:
    """Model, inputs, labels, and which rows count."""
    g = torch.Generator().manual_seed(0)
    single = {
        "mlp": nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES)),
        "reading": Waiting(lambda x: x.sum().item()),
        "copying": Waiting(lambda x: x.cpu()),
    }
    if name in single:
        return single[name], torch.randn(N, 3, generator=g), torch.zeros(N, dtype=torch.long), None
    places = torch.rand(N, TOKENS, generator=g) < 0.7
    return Encoder(), torch.randint(11, (N, TOKENS), generator=g), torch.zeros(N, TOKENS, dtype=torch.long), places


def run(name: str) -> None:
    """All ways to run sub-models, and the sums of all probes over them."""
    model, inputs, labels, places = case(name)
    with preserved(model):
        plan = find_sites(model.eval(), lambda n: model(inputs[torch.arange(n) % N]), N)
    batch = Batch(inputs, N, 0, labels, places)
    with on_device(model) as put:
        there = put(inputs)
        with preserved(model):
            passes = Passes(model, model, plan, seed=0, masks="per-example")
            passes.replay = True
            one_by_one(passes, Examples(there, N, 0), name)
            for strategy, chunk in (("loop", 1), ("vmap", 3), ("fold", 3)):
                sub_models = SubModels(model, model, plan, count=K, choice=Choice(strategy, chunk, replay=True))
                summed(Batch(there, N, 0, labels, places), batch, sub_models, plan, put)
                print(name, strategy)  # noqa: T201 - a script


def one_by_one(passes: Passes, examples: Examples, name: str) -> None:
    """Whether prefixes are replayed there."""
    passes.buffers._look = False  # what passes change is looked at after the first only
    with Watch():
        passes.eval_model(examples)
        for k in range(2):
            assert passes.one(examples, k).device.type == DEVICE
        assert passes._prefixes["plain", 1] is not None
    print(name, "replayed")  # noqa: T201 - a script


def summed(batch: Batch, here: Batch, sub_models: SubModels, plan: Any, put: Callable[[Tensor], Tensor]) -> None:
    """The loop over sub-models, with what is found of a batch before it."""
    sub_models._passes.buffers._look = False
    probes = [kind() for kind in choose(None, labels=True, family="categorical")]
    with unset_fake_temporarily():
        owners, row_labels = here.owners, here.row_labels
        summing = Summing(here, plan, sub_models, probes, CATEGORICAL)
    summing._batch = batch
    if summing._places is not None:
        summing._there = put(summing._places)
    assert row_labels is not None
    rows = slice(0, len(row_labels))
    outputs = sub_models.eval_logits(batch.inputs, N, 0).flatten(0, -2)[rows]
    owned = None if owners is None else put(owners)
    n = None if owners is None else N
    seen = EvalBatch(0, batch.inputs, outputs, put(row_labels), owned, n, True, CATEGORICAL)
    with Watch():
        _, check = summing._sum(seen, rows, exact=False)
    assert check.device.type == DEVICE


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend(DEVICE)
    prefix._ASIDE |= {"prim"}  # which tensors without values ask for their device by
    for wanted in sys.argv[1:]:
        run(wanted)
