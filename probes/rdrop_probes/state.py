"""Leave a model exactly as it was found: training flags, buffers and random state."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Training flags, buffers and global random state are afterwards as before, whatever happens inside.

    Inside, the fused path of `nn.TransformerEncoder` and `nn.MultiheadAttention`, which skips dropout, is off,
    and so are the fused attention kernels, whose masks cannot be supplied and which have no second derivative.
    """
    python_state = random.getstate()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(model)))
        stack.enter_context(buffers_kept(model))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(flags(model, [m for m in model.modules() if m.training]))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)
            random.setstate(python_state)


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


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Every buffer of `model` is on exit the tensor that it was, with the values that it had."""
    buffers = [(m, name, b, b.clone()) for m in model.modules() for name, b in m._buffers.items() if b is not None]
    try:
        yield
    finally:
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            with torch.no_grad():
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
