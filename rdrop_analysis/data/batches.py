"""Turn one batch, in any of the shapes that users and files have it, into a checked `Batch`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdrop_analysis.data.examples import IGNORED, Batch, Inputs, named_tensors
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable

_INPUT_NAMES = ("inputs", "x")
_LABEL_NAMES = ("labels", "label", "y")


def batch_from(item: Any, start: int) -> Batch:
    """Return a batch from inputs, an `(inputs, labels)` pair, or a mapping of arguments with optional labels.

    A list of mappings is examples one by one, as a DataLoader's `collate_fn` may leave them. `start` is the
    index of the first example, for messages too. Raises `DataError` if the lengths differ, an input is NaN, or
    labels are not numbers.
    """
    given, given_labels = _parts(item)
    inputs = _inputs(given)
    rows = _common_length(inputs)
    _refuse_nan(inputs, start)
    labels = None if given_labels is None else _labels(given_labels, rows, start)
    return Batch(inputs, labels, start)


def joined(batches: Sequence[Batch]) -> tuple[Batch, ...]:
    """Return the batches as one, if shapes and types allow, else as they are, without empty ones."""
    batches = [batch for batch in batches if len(batch)]
    if not batches:
        return ()
    if len({batch.labels is None for batch in batches}) > 1:
        raise DataError("some batches have labels and some have none")
    if len({tuple(named_tensors(batch.inputs)) for batch in batches}) > 1:
        raise DataError("the batches do not all have the same inputs")
    if len({batch.labels.is_floating_point() for batch in batches if batch.labels is not None}) > 1:
        raise DataError("the labels are integers in some batches and floating-point in others: give one of them")
    if len({_layout(batch) for batch in batches}) > 1:
        return tuple(batches)
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return (Batch(_concatenated([batch.inputs for batch in batches]), torch.cat(labels) if labels else None, 0),)


def _parts(item: Any) -> tuple[Any, Any]:
    """Split a batch into inputs and labels, either of which is not checked yet."""
    if isinstance(item, Mapping):
        return _parts_of_mapping(item)
    if isinstance(item, list) and item and all(isinstance(example, Mapping) for example in item):
        return _parts_of_mapping(_stacked(item))
    if isinstance(item, tuple | list):
        if not 1 <= len(item) <= 2:
            raise DataError(
                f"a batch of {len(item)} parts: give (inputs, labels), where inputs may be a tuple, or a dict"
            )
        return (item[0], item[1] if len(item) == 2 else None)
    return item, None


def _stacked(examples: list[Mapping[Any, Any]]) -> dict[Any, Any]:
    """Return examples, each a mapping, as one mapping of arrays."""
    if len({tuple(example) for example in examples}) > 1:
        raise DataError("the examples of a batch do not all have the same names")
    return {name: _stack([example[name] for example in examples], name) for name in examples[0]}


def _stack(values: list[Any], name: object) -> Tensor:
    """Return the values that examples have for one name as one tensor."""
    tensors = [value if isinstance(value, Tensor) else _from_numpy(np.asarray(value), str(name)) for value in values]
    if len({tensor.shape for tensor in tensors}) > 1:
        raise DataError(f"{printable(name)} has several shapes in one batch: pad it in the collate_fn")
    return torch.stack(tensors)


def _parts_of_mapping(item: Mapping[Any, Any]) -> tuple[Any, Any]:
    """Split a mapping into inputs and labels; a lone `inputs` or `x` is the model's only argument."""
    label_names = [name for name in _LABEL_NAMES if name in item]
    if len(label_names) > 1:
        raise DataError(f"there are both {' and '.join(label_names)}: keep one of them")
    inputs = {str(name): value for name, value in item.items() if name not in label_names}
    if not inputs:
        raise DataError("there are no inputs: give inputs, x, or one array for each argument of forward")
    labels = item[label_names[0]] if label_names else None
    if len(inputs) == 1 and next(iter(inputs)) in _INPUT_NAMES:
        return next(iter(inputs.values())), labels
    return inputs, labels


def _inputs(given: Any) -> Inputs:
    """Return inputs as a tensor, a tuple or a dict of tensors."""
    if isinstance(given, Mapping):
        return {str(name): _tensor(_from_list(value), printable(name)) for name, value in given.items()}
    if isinstance(given, tuple | list):
        return tuple(_tensor(value, f"inputs[{index}]") for index, value in enumerate(given))
    return _tensor(given, "inputs")


def _tensor(value: Any, name: str) -> Tensor:
    """Return an array as a CPU tensor: integers as int64, NumPy's floats as torch's default type."""
    if isinstance(value, np.ndarray):
        value = _from_numpy(value, name)
    if not isinstance(value, Tensor):
        hint = ": pad it, and give a tensor" if isinstance(value, list) else ""
        raise DataError(f"{name} must be a tensor or an array, not {type(value).__name__}{hint}")
    if value.ndim == 0:
        raise DataError(f"{name} is a single number: its first dimension must count examples")
    if value.is_complex():
        raise DataError(f"{name} is complex: give real numbers")
    tensor = value.detach().cpu()
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.to(torch.int64)


def _from_list(value: Any) -> Any:
    """Return nested lists of numbers, as a tokenizer returns them, as an array; anything else as it is."""
    if not isinstance(value, list) or any(isinstance(part, Tensor) for part in value):
        return value
    try:
        return np.asarray(value)
    except ValueError:  # of several lengths
        return value


def _from_numpy(array: np.ndarray[Any, Any], name: str) -> Tensor:
    """Return a copy of a NumPy array, of whatever byte order, as a tensor."""
    if array.dtype.kind in "iu":
        return torch.tensor(array.astype(np.int64))
    if array.dtype.kind == "b":
        return torch.tensor(array)
    if array.dtype.kind != "f":
        raise DataError(f"{name} holds {array.dtype}, not numbers")
    if array.dtype.itemsize == 2:
        return torch.tensor(array.astype(np.float16))
    return torch.tensor(array.astype(np.float64)).to(torch.get_default_dtype())


def _common_length(inputs: Inputs) -> int:
    """Return the number of examples, on which all inputs must agree."""
    lengths = {name: tensor.shape[0] for name, tensor in named_tensors(inputs).items()}
    if len(set(lengths.values())) != 1:
        said = ", ".join(f"{printable(name)} has {length}" for name, length in lengths.items())
        raise DataError(f"the inputs differ in the number of examples: {said or 'there are none'}")
    return next(iter(lengths.values()))


def _refuse_nan(inputs: Inputs, start: int) -> None:
    """Raise `DataError` naming the first example with a NaN."""
    for name, tensor in named_tensors(inputs).items():
        rows = tensor.isnan().reshape(len(tensor), -1).any(dim=1) if tensor.numel() else torch.zeros(1)
        if rows.any():
            raise DataError(f"{printable(name)} is NaN at example {start + int(rows.nonzero()[0])}")


def _labels(given: Any, rows: int, start: int) -> Tensor:
    """Return classes as int64, targets as floating point, [rows] or [rows, L]."""
    labels = _tensor(_array(given) if isinstance(given, list | tuple) else given, "labels")
    if labels.ndim > 2:
        raise DataError(f"labels have {labels.ndim} dimensions: give one an example, or [examples, tokens]")
    if len(labels) != rows:
        raise DataError(f"there are {rows} inputs but {len(labels)} labels")
    if labels.dtype == torch.bool:
        labels = labels.to(torch.int64)
    wrong = labels.isinf() if labels.is_floating_point() else (labels < 0) & (labels != IGNORED)
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        value = labels[place].item()
        raise DataError(
            f"label {value} at example {start + place[0]}: labels are 0, 1, ... or {IGNORED} to ignore, "
            "or finite targets in floating point"
        )
    return labels


def _array(given: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Return a list of labels as an array."""
    try:
        return np.asarray(given)
    except ValueError as problem:
        raise DataError("labels are lists of several lengths: pad them, with -100 for positions to ignore") from problem


def _layout(batch: Batch) -> tuple[object, ...]:
    """Return what must agree for batches to be concatenated."""
    inputs = named_tensors(batch.inputs).values()
    tensors = [*inputs, *([] if batch.labels is None else [batch.labels])]
    return tuple((tensor.dtype, tensor.shape[1:]) for tensor in tensors)


def _concatenated(parts: Sequence[Inputs]) -> Inputs:
    """Concatenate inputs of one structure along the examples."""
    joined = {name: torch.cat([named_tensors(part)[name] for part in parts]) for name in named_tensors(parts[0])}
    if isinstance(parts[0], dict):
        return joined
    return tuple(joined.values()) if isinstance(parts[0], tuple) else joined["inputs"]
