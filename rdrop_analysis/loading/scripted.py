"""TorchScript modules, made to look like modules of Python: their flag in one place, their buffers found.

A scripted module takes no hooks, so all that it draws counts as its root's. Its draws pass through the dispatcher
like any others: seeded alike, it gives the numbers of the module that it was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rdrop_analysis.errors import CheckpointError


class Scripted(nn.Module):
    """A TorchScript module whose dropout follows one `training` flag; batch normalisation stays in eval mode.

    Raises:
        CheckpointError: the mode is fixed, as it is in traced and frozen modules.
    """

    _script: Any  # its class declares little of what it can do
    _on: bool

    def __init__(self, path: Path, script: torch.jit.ScriptModule) -> None:
        _check_switchable(path, script)
        object.__setattr__(self, "_script", script)  # not as a part: what walks over parts expects Python's
        super().__init__()
        for name, buffer in script.named_buffers():
            self._buffers[name] = buffer
        self.training = False

    @property
    def training(self) -> bool:
        """Whether dropout is on."""
        return self._on

    @training.setter
    def training(self, on: bool) -> None:
        object.__setattr__(self, "_on", on)
        for module in self._script.modules():
            if hasattr(module, "training"):
                module.training = on and not hasattr(module, "running_mean")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the script."""
        return self._script(*args, **kwargs)

    def named_parameters(self, *_args: Any, **_kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of the script, which are not of Python's class."""
        found: Iterator[tuple[str, nn.Parameter]] = self._script.named_parameters()
        return found

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state dict of the script."""
        return self._script.state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Scripted:
        """Move the script, and look its buffers up again."""
        self._script._apply(fn, recurse)
        self._buffers.update(self._script.named_buffers())
        return self


def _check_switchable(path: Path, script: torch.jit.ScriptModule) -> None:
    """Refuse a script that does not ask for its mode, or that has dropout that does not."""
    graph: Any = script.inlined_graph
    reads_mode = any(node.s("name") == "training" for node in graph.findAllNodes("prim::GetAttr"))
    if not reads_mode or any(_is_fixed(node) for node in _dropout(graph)):
        raise CheckpointError(
            f"{path} is TorchScript in a fixed mode (traced, or frozen): its dropout cannot be turned on and off;"
            " pass --model as well to take only its weights, or script the model instead"
        )


def _dropout(graph: Any) -> Iterator[Any]:
    for name in ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"):
        for suffix in ("", "_"):
            yield from graph.findAllNodes(f"aten::{name}{suffix}")


def _is_fixed(node: Any) -> bool:
    return bool(list(node.inputs())[2].node().kind() == "prim::Constant")
