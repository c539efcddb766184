"""What a pickle of plain tensors may import, call and contain, in symbols: the vocabulary of `pickles`.

It is stricter than torch's own list, whose functions can be called with arguments that exhaust the machine, and
whose objects can be given attributes in place of the methods that their readers call.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from rdrop_analysis.files import printable

_DEPTH = 64
_SCALARS = (str, bytes, int, float, complex)
_STORAGE = re.compile(r"torch\.(cuda\.|storage\.)?[A-Za-z0-9]*Storage")
_TYPES = {"torch.Tensor", "torch.nn.parameter.Parameter"}
_TEXT_ENCODINGS = {"latin1", "latin-1", "ascii", "utf-8", "utf8"}
_MOST_DIMENSIONS = 64  # torch's own limit

DAMAGED = "is truncated or damaged: copy or save it again"
TOO_LARGE = "declares more values than the file has bytes: save it again with torch.save"


class NotPlainError(ValueError):
    """The pickle holds more than tensors and plain data; the message completes "FILE ..."."""


@dataclass(frozen=True)
class Global:
    """An importable thing, by its dotted name."""

    name: str


@dataclass(eq=False, slots=True)
class Call:
    """The result of calling `function`."""

    function: object
    arguments: object


class OrderedItems(list[Any]):
    """The keys and values of an OrderedDict; those of other containers are in a plain list."""


@dataclass(eq=False, slots=True)
class Storage:
    """The numbers of tensors, which are elsewhere in the file."""

    key: str
    n_values: int

    @classmethod
    def named(cls, reference: Any) -> Storage:
        """Return the storage that a persistent id refers to: ("storage", type, key, location, length, ...)."""
        if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
            raise NotPlainError("refers to something that is not the values of a tensor: save model.state_dict()")
        key, length = reference[2], reference[4]
        if not isinstance(key, str | int) or not isinstance(length, int) or length < 0:
            raise NotPlainError(DAMAGED)
        return cls(str(key), length)


def permitted(name: str) -> bool:
    """Whether plain tensors may need a name."""
    modern = name.replace("__builtin__.", "builtins.", 1)
    constant = vars(torch).get(name.removeprefix("torch."))
    return (
        modern in _CALLS
        or name in _TYPES
        or bool(_STORAGE.fullmatch(name))
        or (name.startswith("torch.") and isinstance(constant, torch.dtype | torch.qscheme))
    )


def check_keys(keys: Iterable[object]) -> None:
    """Refuse keys that are not names, numbers or short rows of them: hashing others can take for ever."""
    for key in keys:
        parts = key if isinstance(key, tuple) else (key,)
        if not all(part is None or isinstance(part, (*_SCALARS, Global)) for part in parts):
            raise NotPlainError("has a dictionary with a key that is no name or number: save model.state_dict()")


def call(made: Call, room: int) -> object:
    """Return what a call makes, if its function is known and its arguments are harmless."""
    function = made.function
    if not isinstance(function, Global):
        raise NotPlainError("calls something that is not a function: save model.state_dict()")
    rule = _CALLS.get(function.name.replace("__builtin__.", "builtins.", 1))
    if rule is None:
        raise NotPlainError(
            f"calls {printable(function.name)}, which plain tensors do not need: save model.state_dict()"
        )
    if not isinstance(made.arguments, tuple):
        raise NotPlainError(DAMAGED)
    return rule(made, made.arguments, room)


def new(made: Call) -> object:
    """Refuse to make an object of a class without calling it: tensors have functions that make them."""
    raise NotPlainError("makes an object out of a class: save model.state_dict()")


def build(target: object, state: object) -> None:
    """Refuse to give an object attributes, but for what torch keeps beside the entries of a state dict."""
    if not isinstance(target, OrderedItems):
        raise NotPlainError("gives attributes to an object: save model.state_dict()")
    _check_attributes(OrderedDict, state)


def expanded(root: object, most: int) -> None:
    """Refuse containers that are nested too deep, contain themselves, or are too many when written out."""
    sizes: dict[int, tuple[int, int]] = {}

    def measure(value: object, depth: int) -> tuple[int, int]:
        if not isinstance(value, list | tuple):
            return 1, 0
        if depth > _DEPTH:
            raise NotPlainError(f"is nested more than {_DEPTH} deep, or contains itself: save model.state_dict()")
        if id(value) not in sizes:
            inner = [measure(item, depth + 1) for item in value]
            size = 1 + sum(size for size, _ in inner)
            sizes[id(value)] = size, 1 + max((height for _, height in inner), default=0)
        return sizes[id(value)]

    size, height = measure(root, 0)
    if size > most or height > _DEPTH:
        raise NotPlainError(f"holds more than {most:,} values when written out: save model.state_dict() alone")


def _check_attributes(kind: type, state: object) -> None:
    """Refuse attributes that would take the place of those that a class has."""
    if state is None:
        return
    if not isinstance(state, list):
        raise NotPlainError("gives attributes to an object: save model.state_dict()")
    for name in state[::2]:
        if not isinstance(name, str) or hasattr(kind, name):
            raise NotPlainError("gives an object other attributes in place of its own: save model.state_dict()")


def _check_size(size: object, room: int) -> None:
    if not isinstance(size, tuple) or not all(isinstance(length, int) and length >= 0 for length in size):
        raise NotPlainError(DAMAGED)
    if len(size) > _MOST_DIMENSIONS or max(size, default=0) > room or math.prod(size) > room:
        raise NotPlainError(TOO_LARGE)


def _ordered_dict(made: Call, arguments: tuple[Any, ...], room: int) -> object:
    pairs = arguments[0] if arguments else []
    if len(arguments) > 1 or not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) for pair in pairs):
        raise NotPlainError(DAMAGED)
    check_keys(pair[0] for pair in pairs)
    return OrderedItems(value for pair in pairs for value in pair)


def _of_scalars(made: Call, arguments: tuple[Any, ...], room: int) -> object:
    values = [value for argument in arguments for value in (argument if isinstance(argument, list) else [argument])]
    check_keys(values)
    return values


def _size(made: Call, arguments: tuple[Any, ...], room: int) -> object:
    lengths = arguments[0] if arguments else ()
    return tuple(lengths) if isinstance(lengths, list) else lengths


def _text(made: Call, arguments: tuple[Any, ...], room: int) -> object:
    if not all(isinstance(argument, str) for argument in arguments) or arguments[1:] not in [
        (encoding,) for encoding in _TEXT_ENCODINGS
    ]:
        raise NotPlainError("encodes text in an unusual way: save model.state_dict()")
    return str(arguments[0]).encode("latin-1", "replace")


def _bytearray(made: Call, arguments: tuple[Any, ...], room: int) -> object:
    if not all(isinstance(argument, str | bytes) for argument in arguments):
        raise NotPlainError("makes bytes out of something else: save model.state_dict()")
    return b""


def _tensor(made: Call, arguments: tuple[Any, ...], room: int) -> object:
    if not isinstance(arguments[0], Storage):
        raise NotPlainError("has a tensor without values: save model.state_dict()")
    _check_size(arguments[2], room)
    return made


def _parameter(made: Call, arguments: tuple[Any, ...], room: int) -> object:
    if not isinstance(arguments[0], Call):
        raise NotPlainError("has a parameter without a tensor: save model.state_dict()")
    _check_attributes(torch.nn.Parameter, arguments[3] if len(arguments) > 3 else None)
    return made


def _subclass(made: Call, arguments: tuple[Any, ...], room: int) -> object:
    function, _kind, inner, state = arguments
    _check_attributes(torch.Tensor, state)
    return call(Call(function, inner), room)


def _nothing_large(made: Call, arguments: tuple[Any, ...], room: int) -> object:
    check_keys(arguments)
    return made


def _unusual(made: Call, arguments: tuple[Any, ...], room: int) -> object:
    raise NotPlainError("has sparse, nested or other unusual tensors, or some without values: save dense ones")


_Rule = Callable[[Call, tuple[Any, ...], int], object]
_CALLS: dict[str, _Rule] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.Counter": _of_scalars,
    "builtins.set": _of_scalars,
    "builtins.complex": _nothing_large,
    "builtins.bytearray": _bytearray,
    "_codecs.encode": _text,
    "torch.Size": _size,
    "torch.device": _nothing_large,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_qtensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.serialization._get_layout": _nothing_large,
    "torch._utils._rebuild_sparse_tensor": _unusual,
    "torch._utils._rebuild_nested_tensor": _unusual,
    "torch._utils._rebuild_meta_tensor_no_storage": _unusual,
    "torch._utils._rebuild_wrapper_subclass": _unusual,
    "torch._utils._rebuild_device_tensor_from_numpy": _unusual,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _unusual,
}
