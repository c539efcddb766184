"""What gradients with respect to the input are taken of: a floating-point input, or what token ids are embedded as."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Leaf:
    """While entered, makes the first floating-point input a leaf, or the embedding of the model's own ids.

    Attributes:
        inputs: what the model is to be called with.
        tensor: the leaf [N, ...]; None as long as there is none.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        embeds = any(isinstance(module, nn.Embedding) for module in model.modules())
        self.inputs, self.tensor = _differentiable(inputs, only_floats=embeds)
        self._model = model
        self._ids = [tensor for tensor in _items(inputs).values() if not tensor.is_floating_point()]
        self._handles: list[Any] = []

    def __enter__(self) -> Leaf:
        for module in self._model.modules() if self.tensor is None else ():
            if isinstance(module, nn.Embedding):
                self._handles.append(module.register_forward_hook(self._capture))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _capture(self, _module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.tensor is not None or not any(_same_ids(args[0], ids) for ids in self._ids):
            return None
        self.tensor = output.detach().requires_grad_()
        return self.tensor


def _differentiable(inputs: Any, *, only_floats: bool) -> tuple[Any, Tensor | None]:
    """Inputs with the first floating-point tensor made a leaf, and that leaf (None: there is none).

    With `only_floats` nothing is done if one of the inputs is of integers: token ids, whose embedding is taken.
    """
    items = _items(inputs)
    floating = [key for key, value in items.items() if value.is_floating_point()]
    if not floating or (only_floats and len(floating) < len(items)):
        return inputs, None
    leaf = items[floating[0]].detach().clone().requires_grad_()
    items[floating[0]] = leaf
    if isinstance(inputs, Tensor):
        return leaf, leaf
    return (items if isinstance(inputs, dict) else tuple(items.values())), leaf


def _items(inputs: Any) -> dict[Any, Tensor]:
    """Tensors of the inputs by name or place."""
    if isinstance(inputs, Tensor):
        return {0: inputs}
    return dict(inputs) if isinstance(inputs, dict) else dict(enumerate(inputs))


def _same_ids(used: Tensor, given: Tensor) -> bool:
    """Whether an embedding looks up the ids that the model was given, perhaps changed on the way; not positions."""
    return used.data_ptr() == given.data_ptr() or (used.dim() > 1 and used.shape[0] == given.shape[0] > 1)
