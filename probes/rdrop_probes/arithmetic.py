"""In which precision a model computes: that of its parameters, or another one that is asked for.

Half precision is torch's autocast around every forward pass: of the eval model, of sub-models and of gradients. Sums
over sub-models do not go by it. Inside :func:`rdrop_probes.state.preserved` nothing else turns it on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rdrop_probes.sites import Forward

Precision = Literal["fp32", "bf16", "fp16"]

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def computing(model: nn.Module, forward: Forward, precision: Precision | None) -> Iterator[Forward]:
    """Inside, what is yielded does as `forward`, in a precision; None leaves it to the model.

    With "fp32" parameters and buffers are float32 inside, and afterwards the tensors that they were. With "bf16" and
    "fp16" autocast chooses for each operator; a pass casts what it needs of the weights again.
    """
    if precision in _HALVES:
        yield _autocast(model, forward, _HALVES[precision])
    elif precision == "fp32":
        with _single(model):
            yield forward
    else:
        yield forward


def _autocast(model: nn.Module, forward: Forward, dtype: torch.dtype) -> Forward:
    device = next(model.parameters(), torch.empty(0)).device.type

    def run(inputs: Any) -> Tensor:
        with torch.autocast(device, dtype=dtype):
            return forward(inputs)

    return run


@contextmanager
def _single(model: nn.Module) -> Iterator[None]:
    """Parameters and buffers in float32, the same objects as before."""
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() and t.dtype != torch.float32]
    found = [t.data for t in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in zip(tensors, found, strict=True):
            tensor.data = data
