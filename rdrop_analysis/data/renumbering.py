"""Follow a checkpoint's order of classes where a data set names the same classes in another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from rdrop_analysis.data.class_numbers import matched
from rdrop_analysis.data.examples import Batch, Data


def renumbered(data: Data, class_names: list[str]) -> Data:
    """Return data with the checkpoint's class names and, where it knows all of the data's names, its numbers.

    Names that it does not know are said in the notes, and the numbers stay.
    """
    if data.class_names == class_names:
        return data
    numbers, notes = matched(data.class_names, class_names)
    if all(old == new for old, new in numbers.items()):
        return replace(data, class_names=class_names, notes={**data.notes, **notes})
    pieces = tuple(Batch(piece.inputs, _mapped(piece.labels, numbers), piece.start) for piece in data.pieces)
    return replace(data, pieces=pieces, class_names=class_names)


def _mapped(labels: Tensor | None, numbers: Mapping[int, int]) -> Tensor | None:
    if labels is None or labels.is_floating_point():
        return labels
    mapped = labels.clone()
    for old, new in numbers.items():
        mapped[labels == old] = new
    return mapped
