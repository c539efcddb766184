"""Put examples of several lengths together in batches that a model can be run on, in their order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rdrop_analysis.data.batches import batch_from, joined
from rdrop_analysis.data.examples import IGNORED, Batch
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable

PIECE = 256
"""Examples that are padded to one length."""

LABELS = "labels"
MASK = "attention_mask"

Row = Mapping[str, Any]
"""One example: numbers, nested lists or arrays by the name of the argument; under `labels` what is known of it."""

Tensors = Mapping[str, Tensor]


def padded_batches(rows: Sequence[Row], pad_id: int = 0) -> tuple[Batch, ...]:
    """Return the examples in order, in one piece if they have one shape.

    Where lengths differ and an attention mask tells padding apart, every 256 examples are padded to the longest
    of them: `input_ids` with `pad_id`, labels with -100 (NaN in floating point), all else with 0. Without a
    mask nothing is padded: neighbours of one shape make a piece.

    Raises:
        DataError: an input is NaN, or labels are neither classes nor targets.
    """
    tensors = [{name: _tensor(value, name) for name, value in row.items()} for row in rows]
    groups = _pieces(tensors) if MASK in rows[0] else _runs(tensors)
    batches, start = [], 0
    for group in groups:
        batches.append(batch_from({name: _padded(group, name, pad_id) for name in rows[0]}, start))
        start += len(group)
    return joined(batches)


def _pieces(rows: Sequence[Tensors]) -> Iterator[Sequence[Tensors]]:
    return (rows[first : first + PIECE] for first in range(0, len(rows), PIECE))


def _runs(rows: Sequence[Tensors]) -> Iterator[Sequence[Tensors]]:
    """Yield neighbours of one shape, at most 256 at a time."""
    for _, run in groupby(rows, key=lambda row: [tensor.shape for tensor in row.values()]):
        yield from _pieces(list(run))


def _padded(rows: Sequence[Tensors], name: str, pad_id: int) -> Tensor:
    """Return one argument of all rows, padded at the end to the longest."""
    tensors = [row[name] for row in rows]
    if len({tensor.shape for tensor in tensors}) == 1:
        return torch.stack(tensors)
    if not all(tensor.ndim for tensor in tensors) or len({tensor.shape[1:] for tensor in tensors}) > 1:
        raise DataError(f"{printable(name)} has several shapes: {list(tensors[0].shape)} and others")
    fill: float = pad_id if name == "input_ids" else 0
    if name == LABELS:
        fill = torch.nan if tensors[0].is_floating_point() else IGNORED
    return pad_sequence(tensors, batch_first=True, padding_value=fill)


def _tensor(value: Any, name: str) -> Tensor:
    """Return a number, nested lists or an array as a tensor; floating point of NumPy in torch's default type."""
    if isinstance(value, Tensor):
        return value
    try:
        tensor = torch.tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as problem:
        raise DataError(f"{printable(name)} is not made of numbers: {printable(problem)}") from problem
    return tensor.to(torch.get_default_dtype()) if tensor.dtype == torch.float64 else tensor


def check_memory(needed: int) -> None:
    """Raise `DataError` if inputs of so many bytes would fill more than half of this machine's memory."""
    if not hasattr(os, "sysconf"):  # Windows does not say
        return
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > whole / 2:
        raise DataError(f"the inputs take {needed / 2**30:.0f} GiB of {whole / 2**30:.0f}: use fewer with --limit")
