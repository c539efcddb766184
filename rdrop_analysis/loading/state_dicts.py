"""Find the state dict in what a file held, and fit it into a model, strictly.

Checkpoints nest their weights under a handful of usual keys, and wrappers (DataParallel, torch.compile,
averaged models, Lightning) put prefixes before the parameters' names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from rdrop_analysis.errors import CheckpointError
from rdrop_analysis.files import printable

StateDict = dict[str, Tensor]

NESTED_UNDER = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "ema",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema_model",
)
"""Keys that weights are looked for under, in this order: a plain model is preferred to its moving average."""

WRAPPERS = frozenset({"module", "_orig_mod", "model", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts of a parameter's name that wrappers add."""

_SHOWN = 3  # names of each kind listed in an error message


AVERAGES = tuple(key for key in NESTED_UNDER if "ema" in key)


def find_state_dict(path: Path, content: object) -> StateDict:
    """Return the state dict in a file's content: the content itself, or what is under one of `NESTED_UNDER`.

    Raises `CheckpointError` if there is none, or if its values are not all tensors.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict: save model.state_dict()")
    found = _with_tensors(content)
    if found is None:
        raise CheckpointError(f"{path} holds no tensors{_keys_found(content)}: save model.state_dict()")
    return {_checked_name(path, name): _checked_tensor(path, name, value) for name, value in found.items()}


def ignored_average(content: object) -> str | None:
    """Return the key of a moving average that stands beside the plain weights, which are preferred to it."""
    if not isinstance(content, Mapping):
        return None
    used = next((key for key in NESTED_UNDER if _with_tensors(content.get(key), 2) is not None), None)
    return next((key for key in AVERAGES if key != used and _with_tensors(content.get(key), 2) is not None), None)


def _with_tensors(content: object, depth: int = 3) -> Mapping[object, object] | None:
    """Return the mapping that has tensors for values: nested under a usual key, or the content itself."""
    if not isinstance(content, Mapping) or depth == 0:
        return None
    for key in NESTED_UNDER:
        inner = _with_tensors(content.get(key), depth - 1)
        if inner is not None:
            return inner
    return content if any(isinstance(value, Tensor) for value in content.values()) else None


def fit(
    path: Path, model: nn.Module, state: StateDict, *, assign: bool = False, partial: bool = False
) -> Sequence[str]:
    """Load a state dict into a model, strictly, with the floating-point types of the file.

    Prefixes are removed or added if that makes the names agree. `assign` puts the file's tensors in place of the
    model's, which need then hold no memory (device "meta"). With `partial` the model may be one part of what the
    file holds; the names of the rest are returned.

    Raises `CheckpointError` naming the missing, unexpected and ill-shaped entries.
    """
    state, rest = without_transient(model, state)
    renamed = rename_to_fit(state, model.state_dict())
    if renamed.keys() != model.state_dict().keys():
        part = part_that_fits(renamed, model.state_dict())
        outside = [name for name in renamed if name not in part.values()]
        if part and (partial or not outside):
            renamed, rest = {name: renamed[inside] for name, inside in part.items()}, [*rest, *outside]
    renamed = _with_tied(model, renamed)
    check_fit(path, model, renamed)
    _adopt_dtypes(model, renamed)
    model.load_state_dict(renamed, strict=True, assign=assign)
    return rest


def without_transient(model: nn.Module, state: StateDict) -> tuple[StateDict, list[str]]:
    """Split off what the model makes anew and does not save: buffers that older versions of its code did save."""
    saved = {_unwrapped(name) for name in model.state_dict()}
    transient = {_unwrapped(name) for name, _ in model.named_buffers()} - saved
    left = [name for name in state if _unwrapped(name) in transient]
    return {name: tensor for name, tensor in state.items() if name not in left}, left


def rename_to_fit(state: StateDict, expected: Collection[str]) -> StateDict:
    """Return the state dict under the expected names, if they pair up once `WRAPPERS` are dropped."""
    names = {_unwrapped(name): name for name in expected}
    by_name = {_unwrapped(name): tensor for name, tensor in state.items() if name != "n_averaged"}
    complete = len(names) == len(expected) and len(by_name) == len(state) - ("n_averaged" in state)
    if set(state) == set(expected) or not complete or by_name.keys() != names.keys():
        return state
    return {names[name]: tensor for name, tensor in by_name.items()}


def part_that_fits(state: StateDict, expected: Collection[str]) -> dict[str, str]:
    """Return for each expected name its name in the file, where all stand there behind one prefix; else nothing.

    Where several prefixes do (a model and its moving average), the one that `NESTED_UNDER` names first is taken.
    """
    first = next(iter(expected), "")
    prefixes = [name.removesuffix(first) for name in state if first and name.endswith(f".{first}")]
    whole = [prefix for prefix in prefixes if all(prefix + name in state for name in expected)]
    prefix = min(whole, key=_rank, default=None)
    return {} if prefix is None else {name: prefix + name for name in expected}


def _rank(prefix: str) -> tuple[int, int]:
    """How far from the plain model a prefix leads."""
    known = [NESTED_UNDER.index(part) for part in prefix.split(".") if part in NESTED_UNDER]
    return max(known, default=len(NESTED_UNDER)), len(prefix)


def check_fit(path: Path, model: nn.Module, state: StateDict) -> None:
    """Raise `CheckpointError`, in one line, unless names and shapes are exactly the model's."""
    expected = model.state_dict()
    shapes = [
        f"{printable(name)} is {_shape(state[name])} in the file, {_shape(tensor)} in the model"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    missing = [printable(name) for name in expected if name not in state]
    unexpected = [printable(name) for name in state if name not in expected]
    found = [
        f"{len(names)} {kind} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if found:
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(found)}")


def _with_tied(model: nn.Module, state: StateDict) -> StateDict:
    """Return the state dict with tensors that the model has under several names, and the file under one, under all.

    Safetensors files hold no tensor twice.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    tied = {name: other for group in names.values() for name in group for other in group if other in state}
    return {name: state[other] for name, other in tied.items() if name not in state} | state


def _adopt_dtypes(model: nn.Module, state: StateDict) -> None:
    """Give the model's floating-point parameters and buffers the types they have in the file."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and state[name].is_floating_point():
            tensor.data = tensor.data.to(state[name].dtype)


def _unwrapped(name: str) -> str:
    """Return a parameter's name without the parts that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _checked_name(path: Path, name: object) -> str:
    """Return a key of a state dict, which must be a string."""
    if not isinstance(name, str):
        raise CheckpointError(f"{path} has the key {printable(name)}, not a parameter's name: save model.state_dict()")
    return name


def _checked_tensor(path: Path, name: object, value: object) -> Tensor:
    """Return a value of a state dict, which must be a tensor."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise CheckpointError(f"{path}: {printable(name)} is a {kind}, not a tensor: save model.state_dict()")
    return value.detach()


def _keys_found(content: Mapping[object, object]) -> str:
    """Return the first keys of a dictionary, in brackets."""
    keys = ", ".join(printable(key, 30) for key in list(content)[:5])
    return f" (its keys: {keys})" if keys else ""


def _shape(tensor: Tensor) -> str:
    """Return a shape as 3x2; a scalar's is "scalar"."""
    return "x".join(map(str, tensor.shape)) or "scalar"
