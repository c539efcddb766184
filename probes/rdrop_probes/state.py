"""Leave a model exactly as it was found: training flags, buffers and random state."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Training flags, attributes, buffers and global random state are afterwards as before, whatever happens.

    Inside, the fused path of `nn.TransformerEncoder` and `nn.MultiheadAttention`, which skips dropout, is off,
    and so are the fused attention kernels, whose masks cannot be supplied and which have no second derivative.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(model)))
        stack.enter_context(buffers_kept(model))
        stack.enter_context(attributes_kept(model))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(flags(model, [m for m in model.modules() if m.training]))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002 - the global one


@contextmanager
def flags(model: nn.Module, training: Iterable[nn.Module]) -> Iterator[None]:
    """Set `training` on exactly these modules of `model`; on exit every flag is as it was found."""
    before = {module: module.training for module in model.modules()}
    wanted = set(training)
    try:
        for module in before:
            module.training = module in wanted
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


class Buffers:
    """The buffers of a model as they were found, to be put back when a pass has changed them."""

    def __init__(self, model: nn.Module) -> None:
        self.changed: set[str] = set()
        self._found = [
            (f"{path}.{name}".lstrip("."), module, name, buffer, buffer.clone())
            for path, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    def restore(self) -> None:
        """Put back every tensor and value; `changed` remembers the names of those that needed it."""
        for path, module, name, buffer, value in self._found:
            if module._buffers.get(name) is not buffer:
                self.changed.add(path)
                module._buffers[name] = buffer
            if not torch.equal(buffer, value):  # by value: changes through .data leave no other trace
                self.changed.add(path)
                with torch.no_grad():
                    buffer.copy_(value)


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Every module's attributes are on exit the objects that they were, also those that a pass or `eval()` sets."""
    found = [(module, dict(vars(module))) for module in model.modules()]
    was_training = model.training
    overridden = any(type(m).train is not nn.Module.train for m in model.modules())
    try:
        yield
    finally:
        if overridden:  # what train() does may reach further than attributes
            model.train(was_training)
        for module, attributes in found:
            vars(module).clear()
            vars(module).update(attributes)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[Buffers]:
    """Every buffer of `model` is on exit the tensor that it was, with the values that it had."""
    buffers = Buffers(model)
    try:
        yield buffers
    finally:
        buffers.restore()


def foreign_state() -> tuple[object, ...]:
    """State of the generators outside torch that a model may draw from: Python's and NumPy's global ones."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the state of the legacy global generator it is
    return random.getstate(), kind, bytes(np.asarray(keys)), *rest


def seed_foreign(*key: int) -> None:
    """Seed Python's and NumPy's global generators."""
    random.seed(repr(key))
    np.random.seed(zlib.crc32(repr(key).encode()))  # noqa: NPY002 - models that use it use the global one


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
