"""Programs of torch.export, which are fixed in the mode that they were exported in.

Exported in train mode, a program holds the operators of dropout, each with its flag: turned off they are the eval
model. Exported in eval mode, what train mode would do is not in the file any more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from rdrop_analysis.errors import CheckpointError
from rdrop_analysis.files import printable
from rdrop_analysis.loading.archives import SAVE_STATE_DICT

_FLAGS = ("train", "training")
_ATTENTION = "dropout_p"
_RATES = ("p", "dropout", _ATTENTION)


class Switched(nn.Module):
    """One operator of a program, whose flag follows the module's mode.

    Attributes:
        operator: what is called.
        flag: the argument that dropout hangs on, by name.
        on: its value in training mode; otherwise it is 0 or False.
    """

    def __init__(self, operator: Any, flag: str, on: Any) -> None:
        super().__init__()
        self.operator, self.flag, self.on = operator, flag, on

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the operator."""
        return self.operator(*args, **kwargs, **{self.flag: self.on if self.training else type(self.on)(0)})


def reopen(path: Path, program: ExportedProgram) -> nn.Module:
    """Return a program exported in train mode as a module with both modes; batch normalisation stays in eval mode.

    Raises:
        CheckpointError: it was exported in eval mode, for one size of batch, or draws what has no eval mode.
    """
    traced = program.module(check_guards=False)
    module = fx.GraphModule(traced, traced.graph)  # that of torch.export refuses to change its mode
    modes = [_switch(path, module, node) for node in list(module.graph.nodes) if _is_operator(node)]
    if True not in modes or False in modes:
        raise CheckpointError(
            f"{path} was exported in eval mode, without what train mode does: there is nothing to compare;"
            f" {SAVE_STATE_DICT}"
        )
    _check_batch(path, program)
    module.graph.lint()
    module.recompile()
    return module


def _is_operator(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def _check_batch(path: Path, program: ExportedProgram) -> None:
    """Refuse a program that runs on one size of batch only."""
    inputs = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT}
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.name in inputs and isinstance(value, torch.Tensor) and value.dim() and isinstance(value.shape[0], int):
            raise CheckpointError(
                f"{path} is for batches of {value.shape[0]} only: export it with dynamic_shapes; or {SAVE_STATE_DICT}"
            )


def _switch(path: Path, module: fx.GraphModule, node: fx.Node) -> bool | None:
    """Let an operator follow the mode of the module; return whether it is dropout that was on, None for others."""
    operator: Any = node.target
    names = [argument.name for argument in operator._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    flag = next((name for name in (*_FLAGS, _ATTENTION) if name in names), None)
    if "running_mean" in names:
        node.update_arg(names.index(flag or _FLAGS[0]), False)  # batch normalisation stays in eval mode
        return None
    if _counts_batches(node):
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]  # a node, as seen
        module.graph.erase_node(node)
        return None
    is_random = torch.Tag.nondeterministic_seeded in operator.tags
    if flag is None and is_random:
        raise CheckpointError(f"{path} draws with {printable(operator)}, which has no eval mode: {SAVE_STATE_DICT}")
    on = given.get(flag or "")
    if flag is not None and on:
        _replace(module, node, given, flag, on)
    has_rate = any(given.get(name) for name in _RATES)
    return bool(on) if is_random and has_rate else None


def _counts_batches(node: fx.Node) -> bool:
    """Whether an operator counts the batches that a normalisation has seen."""
    counter = node.args[0] if node.args else None
    is_buffer = isinstance(counter, fx.Node) and str(counter.target).endswith("num_batches_tracked")
    return node.target is torch.ops.aten.add_.Tensor and is_buffer


def _replace(module: fx.GraphModule, node: fx.Node, given: dict[str, Any], flag: str, on: Any) -> None:
    """Put a module in the place of an operator."""
    name = f"switched_{node.name}"
    module.add_submodule(name, Switched(node.target, flag, on))
    with module.graph.inserting_before(node):
        called = module.graph.call_module(name, kwargs={key: value for key, value in given.items() if key != flag})
    node.replace_all_uses_with(called)
    module.graph.erase_node(node)
