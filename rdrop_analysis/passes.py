"""Run a model several times over the same examples in training mode, as R-Drop does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rdrop_analysis.calling import call
from rdrop_analysis.data.examples import Inputs, map_tensors


def concatenated_forward(model: nn.Module, inputs: Inputs, passes: int = 2) -> Tensor:
    """Return outputs [m, N, ...] of one forward on the inputs repeated m times, [x; x; ...], as the paper does.

    Each copy draws its own dropout masks. Inputs are a tensor [N, ...], a tuple or a dict of them, the
    positional or keyword arguments of `forward`. Where examples of a batch influence one another (BatchNorm),
    this differs from `separate_forward`.

    Raises `ValueError` for fewer than two passes, `TypeError` if the model returns no tensor and no `logits`.
    """
    _check_passes(passes)
    repeated = map_tensors(lambda tensor: torch.cat([tensor] * passes), inputs)
    return split_passes(_outputs(call(model, repeated)), passes)


def separate_forward(model: nn.Module, inputs: Inputs, passes: int = 2) -> Tensor:
    """Return outputs [m, N, ...] of m forwards, one after the other; else as `concatenated_forward`."""
    _check_passes(passes)
    return torch.stack([_outputs(call(model, inputs)) for _ in range(passes)])


def split_passes(outputs: Tensor, passes: int = 2) -> Tensor:
    """Return [m·N, ...] as [m, N, ...]: the first N rows are the first pass.

    Raises `ValueError` if the rows are not so many passes, or those are fewer than two.
    """
    _check_passes(passes)
    if outputs.shape[0] % passes:
        raise ValueError(f"{outputs.shape[0]} rows are not {passes} passes over the same examples")
    return outputs.reshape(passes, -1, *outputs.shape[1:])


def _check_passes(passes: int) -> None:
    """Raise `ValueError` unless there are passes to compare."""
    if passes < 2:
        raise ValueError(f"R-Drop needs at least two passes, not {passes}")


def _outputs(output: Any) -> Tensor:
    """Return a model's output tensor, which may be under `logits`."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise TypeError(f"the model returned a {type(output).__name__}, neither a tensor nor something with logits")
    return logits
