"""Examples in memory, in a fixed order: what every checkpoint of an analysis is run on."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from rdrop_analysis.data.places import ExampleError, Place, by_number
from rdrop_analysis.errors import DataError

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""What a model is called with: `model(x)`, `model(*x)` or `model(**x)`; dimension 0 counts examples."""

IGNORED = -100
"""The label of a position that does not count, as in `torch.nn.functional.cross_entropy`."""

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Some examples: `inputs` [B, ...], their `labels` or None, `start` the first's index.

    Labels are int64, classes [B], [B, L] for tokens, 0 and 1 [B, C] for several labels at once; or floating
    point, targets [B] or [B, D] where NaN is not known, or 0 and 1 [B, C].
    """

    inputs: Inputs
    labels: Tensor | None
    start: int

    def __len__(self) -> int:
        """Return the number of examples."""
        return n_rows(self.inputs)


@dataclass(frozen=True)
class Data:
    """A data set: `source` says where it came from, `pieces` hold the examples in order.

    There is one piece when all examples have one shape; examples of several shapes (sequences padded batch by
    batch) stay in the batches they came in, as several pieces. `class_names` names the classes, `image_shape`
    is how to show one input as a picture, `texts` has one text an example, `notes` say by code what a reader
    has to know of how the data were prepared, `place` what an example is called in messages.
    """

    source: str
    pieces: tuple[Batch, ...]
    class_names: list[str] | None = None
    image_shape: tuple[int, ...] | None = None
    texts: list[str] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    place: Place = by_number

    @property
    def n_examples(self) -> int:
        """Return the number of examples."""
        return sum(map(len, self.pieces))

    @property
    def has_labels(self) -> bool:
        """Tell whether the examples have labels."""
        return all(piece.labels is not None for piece in self.pieces)

    @cached_property
    def fingerprint(self) -> str:
        """Return "sha256:..." over the names, types, shapes and bytes of inputs and labels."""
        return _sha256(named for piece in self.pieces for named in _named_tensors(piece))

    @cached_property
    def inputs_fingerprint(self) -> str:
        """Return "sha256:..." over the inputs alone, which are the same whatever the classes are called."""
        return _sha256(named for piece in self.pieces for named in named_tensors(piece.inputs).items())

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all examples in order, at most `batch_size` at a time; no batch spans two pieces."""
        if batch_size < 1:
            raise DataError(f"the batch size must be at least 1, not {batch_size}")
        for piece in self.pieces:
            for first in range(0, len(piece), batch_size):
                yield _rows(piece, first, first + batch_size)

    def head(self, n: int) -> Data:
        """Return the first `n` examples (all, if there are fewer)."""
        if n < 1:
            raise DataError(f"the number of examples must be at least 1, not {n}")
        pieces = tuple(_rows(piece, 0, n - piece.start) for piece in self.pieces if piece.start < n)
        return replace(self, pieces=pieces, texts=self.texts and self.texts[:n])

    def spread(self, n: int) -> list[Batch]:
        """Return some `n` examples (all, if there are fewer) at equal distances, a batch for each piece they are in."""
        step = max(1, self.n_examples // n)
        taken = ((piece, operator.itemgetter(slice(-piece.start % step, None, step))) for piece in self.pieces)
        parts = (
            Batch(map_tensors(of, piece.inputs), None if piece.labels is None else of(piece.labels), piece.start)
            for piece, of in taken
        )
        return [part for part in parts if len(part)]

    def example_input(self, index: int) -> Inputs:
        """Return the input of one example, without the dimension that counts examples."""
        for piece in self.pieces:
            row = index - piece.start
            if 0 <= row < len(piece):
                return map_tensors(operator.itemgetter(row), piece.inputs)
        raise IndexError(f"example {index} of {self.n_examples}")


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Apply a function to each tensor of an input."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(function(tensor) for tensor in inputs)


def named_tensors(inputs: Inputs) -> dict[str, Tensor]:
    """Return the tensors of an input by name: `inputs`, `inputs[0]`, ... or the names in a dictionary."""
    if isinstance(inputs, Tensor):
        return {"inputs": inputs}
    if isinstance(inputs, dict):
        return inputs
    return {f"inputs[{index}]": tensor for index, tensor in enumerate(inputs)}


def n_rows(inputs: Inputs) -> int:
    """Return the number of examples in an input."""
    return next(iter(named_tensors(inputs).values())).shape[0]


def with_whole_labels(data: Data) -> Data:
    """Return the data with labels that are whole numbers in floating point made int64, as classes must be.

    Raises `DataError` if one is not whole, is negative (other than -100, which marks positions to ignore), or
    is not known.
    """
    try:
        pieces = tuple(replace(piece, labels=_whole(piece)) for piece in data.pieces)
    except ExampleError as problem:
        raise DataError(problem.at(data.place)) from problem
    return replace(data, pieces=pieces)


def _whole(piece: Batch) -> Tensor | None:
    """Return the labels of a piece as int64."""
    if piece.labels is None or not piece.labels.is_floating_point():
        return piece.labels
    whole = piece.labels.to(torch.int64)
    wrong = (whole != piece.labels) | ((whole < 0) & (whole != IGNORED))
    if wrong.any():
        place = tuple(wrong.nonzero()[0].tolist())
        value, example = piece.labels[place].item(), piece.start + place[0]
        raise ExampleError(f"label {value} at", example, f"is no class: classes are 0, 1, ... or {IGNORED} to ignore")
    return whole


def check_labels(data: Data, n_classes: int) -> None:
    """Raise `DataError` if a class is not in 0..n_classes-1 (or -100, which marks positions to ignore).

    Targets in floating point are not classes, and not looked at.
    """
    for piece in data.pieces:
        if piece.labels is None or piece.labels.is_floating_point():
            continue
        wrong = (piece.labels != IGNORED) & ((piece.labels < 0) | (piece.labels >= n_classes))
        if wrong.any():
            place = tuple(wrong.nonzero()[0].tolist())
            label, example = int(piece.labels[place]), piece.start + place[0]
            raise DataError(
                f"{data.source}: label {label} at {data.place(example)} is out of range for {n_classes} classes"
                f"{_counted_from_one(data, n_classes)}"
            )


def _counted_from_one(data: Data, n_classes: int) -> str:
    """Return what to do with labels 1..n_classes; nothing if there are others."""
    given = torch.cat([piece.labels.flatten() for piece in data.pieces if piece.labels is not None])
    known = given[given != IGNORED]
    return ": labels start at 1, subtract 1" if (int(known.min()), int(known.max())) == (1, n_classes) else ""


def _sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def _named_tensors(piece: Batch) -> Iterator[tuple[str, Tensor]]:
    """Yield the inputs by name, then the labels."""
    yield from named_tensors(piece.inputs).items()
    if piece.labels is not None:
        yield "labels", piece.labels


def _rows(piece: Batch, first: int, end: int) -> Batch:
    """Return the examples first..end-1 of a piece, which may have fewer."""
    inputs = map_tensors(lambda tensor: tensor[first:end], piece.inputs)
    labels = None if piece.labels is None else piece.labels[first:end]
    return Batch(inputs, labels, piece.start + first)
