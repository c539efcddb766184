"""Notice dropout at rate 1: it zeroes its input without drawing anything, so no interceptor of draws sees it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rdrop_probes.interception import ModulePaths


@dataclass(frozen=True)
class CertainDropout:
    """Dropout at rate 1: the module that calls it, its kind, the shape of what it zeroes."""

    path: str
    kind: str
    shape: tuple[int, ...]


class CertainDropouts(TorchFunctionMode):
    """Context that notes in `found` each call of a function that drops with certainty."""

    def __init__(self, paths: ModulePaths) -> None:
        super().__init__()
        self.found: list[CertainDropout] = []
        self._paths = paths

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Note the call if it drops with certainty, then run it."""
        kwargs = kwargs or {}
        if func in _SHAPES:
            names, kind, shapes = _SHAPES[func]
            self._note(dict(zip(names(args), args, strict=False)) | kwargs, kind, shapes)
        return func(*args, **kwargs)

    def _note(self, call: dict[str, Any], kind: str, shapes: Callable[..., list[tuple[int, ...]]]) -> None:
        rate = call.get("p", call.get("dropout", call.get("dropout_p", 0)))
        if rate == 1 and call.get("train", call.get("training", kind == _ATTENTION)):
            self.found += [CertainDropout(self._paths.current, kind, shape) for shape in shapes(call)]


def _of_input(call: dict[str, Any]) -> list[tuple[int, ...]]:
    return [tuple(call["input"].shape)]


def _of_attention(call: dict[str, Any]) -> list[tuple[int, ...]]:
    query, key = call["query"], call["key"]
    return [(*query.shape[:-1], key.shape[-2])]


def _of_heads(call: dict[str, Any]) -> list[tuple[int, ...]]:
    """Query and key of `F.multi_head_attention_forward` are [length, examples, features]."""
    query, key = call["query"], call["key"]
    return [(math.prod(query.shape[1:-1]) * call["num_heads"], len(query), len(key))]


def _of_layers(call: dict[str, Any]) -> list[tuple[int, ...]]:
    """One mask between each two layers; states are [layers x directions, examples, features]."""
    hidden: Tensor = call["hx"][0] if isinstance(call["hx"], list | tuple) else call["hx"]
    width = hidden.shape[-1] * (1 + bool(call["bidirectional"]))
    return [(*call["input"].shape[:-1], width)] * (call["num_layers"] - 1)


_ATTENTION, _RECURRENT = "attention dropout", "recurrent dropout"
_DROPOUT_NAMES = ("input", "p", "train")
_SDPA_NAMES = ("query", "key", "value", "attn_mask", "dropout_p")
_HEADS_NAMES = (
    *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v"),
    *("add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias", "training"),
)
_LAYER_NAMES = ("params", "has_biases", "num_layers", "dropout", "train", "bidirectional")


def _recurrent_names(args: tuple[Any, ...]) -> tuple[str, ...]:
    packed = len(args) > 3 and isinstance(args[3], list | tuple)  # (input, sizes of the batches, hx, params, ...)
    return ("input", "batch_sizes", "hx", *_LAYER_NAMES) if packed else ("input", "hx", *_LAYER_NAMES)


_Shapes = Callable[[dict[str, Any]], list[tuple[int, ...]]]
_SHAPES: dict[Any, tuple[Callable[[tuple[Any, ...]], tuple[str, ...]], str, _Shapes]] = {
    getattr(namespace, name): (lambda _: _DROPOUT_NAMES, "dropout", _of_input)
    for namespace in (torch, nn.functional)  # those of nn.functional come with their defaults filled in
    for name in (
        *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "alpha_dropout_"),
        *("feature_dropout", "feature_dropout_", "feature_alpha_dropout", "feature_alpha_dropout_"),
    )
    if hasattr(namespace, name)
}
_SHAPES |= {
    nn.functional.scaled_dot_product_attention: (lambda _: _SDPA_NAMES, _ATTENTION, _of_attention),
    nn.functional.multi_head_attention_forward: (lambda _: _HEADS_NAMES, _ATTENTION, _of_heads),
}
_SHAPES |= {
    getattr(torch, name): (_recurrent_names, _RECURRENT, _of_layers) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
}
