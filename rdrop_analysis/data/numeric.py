"""Tables whose columns are numbers already: arguments of `forward` by name, or one number a feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rdrop_analysis.data.batches import batch_from
from rdrop_analysis.data.examples import Data
from rdrop_analysis.data.labelling import Labels, plain, read_labels
from rdrop_analysis.data.layouts import (
    ARRAYS,
    BESIDE_ARRAYS,
    LABEL,
    TABULAR_LABEL,
    TEXT,
    first,
    known_columns,
    unknown_layout,
)
from rdrop_analysis.data.padding import LABELS, padded_batches
from rdrop_analysis.data.places import ExampleError
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable

if TYPE_CHECKING:
    from rdrop_analysis.data.tables import Table

ROW_NUMBERS = ("", "unnamed: 0", "__index_level_0__")
"""What pandas calls the column of row numbers that it writes."""


def data_of_numbers(table: Table) -> Data:
    """Return the numbers in a table as data: arguments of `forward`, or features [N, D] in floating point.

    Raises:
        DataError: the columns are not numbers, or no arguments that are known.
    """
    known = known_columns(table.columns)
    if any(name in table.columns for name in ARRAYS):
        return _arguments(table, first(known, LABEL))
    return _features(table, first(known, TABULAR_LABEL), skipped={known.get(name) for name in ROW_NUMBERS})


def _arguments(table: Table, label: str | None) -> Data:
    """Return each known column as the argument of that name."""
    names = [name for name in table.columns if name in (*ARRAYS, *BESIDE_ARRAYS)]
    labels = _labels_of_tokens(table, label) or _labels(table, label)
    columns: dict[str, Sequence[Any]] = {name: table.columns[name] for name in names}
    if labels.values is not None:
        columns[LABELS] = labels.values
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    pieces = padded_batches(rows)
    texts = next((list(map(str, table.columns[name])) for name in TEXT if name in table.columns), None)
    notes = {**table.unused([*names, label]), **labels.notes}
    return Data(table.source, pieces, class_names=labels.class_names, texts=texts, notes=notes)


def _features(table: Table, label: str | None, skipped: set[str | None]) -> Data:
    """Return all columns but the label as inputs [N, D]."""
    features = {name: values for name, values in table.columns.items() if name != label and name not in skipped}
    if not features or not all(are_numbers(values) for values in features.values()):
        raise unknown_layout(table.columns)
    inputs = torch.tensor(_matrix(features), dtype=torch.get_default_dtype())
    labels = _labels(table, label)
    target = {} if labels.values is None else {LABELS: torch.tensor(labels.values)}
    return Data(
        table.source,
        (batch_from({"inputs": inputs, **target}, 0),),
        class_names=labels.class_names,
        notes={**table.unused([*features, label]), **labels.notes},
    )


def _matrix(features: Mapping[str, Sequence[Any]]) -> np.ndarray[Any, Any]:
    """Return features as [N, D], none of which may be missing."""
    columns = []
    for name, values in features.items():
        listed = values if isinstance(values, np.ndarray) else [np.nan if v is None else v for v in values]
        try:
            column = np.asarray(listed, dtype=np.float64)
        except OverflowError as problem:
            raise DataError(f"{printable(name)} has a number that is too large") from problem
        if np.isnan(column).any():
            raise ExampleError(f"{printable(name)} is missing at", int(np.isnan(column).argmax()))
        columns.append(column)
    return np.stack(columns, axis=1)


def are_numbers(values: Sequence[Any]) -> bool:
    """Tell whether a column has a number, or nothing, an example."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        return values.ndim == 1 and values.dtype.kind in "iufb"
    return all(value is None or isinstance(value, int | float | np.number) for value in values)


def _labels_of_tokens(table: Table, column: str | None) -> Labels | None:
    """Return the labels in a column if each example has as many as tokens."""
    if column is None or "input_ids" not in table.columns:
        return None
    values = [plain(value) for value in table.columns[column]]
    per_token = all(
        isinstance(value, list) and isinstance(ids, list | np.ndarray) and len(value) == len(ids)
        for value, ids in zip(values, table.columns["input_ids"], strict=True)
    )
    return Labels(values, _listed(table.own_names.get(column))) if per_token else None


def _labels(table: Table, column: str | None) -> Labels:
    """Return the labels in a column, if there is one."""
    if column is None:
        return Labels(None)
    return read_labels(table.columns[column], None, table.names(column, None))


def _listed(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)
