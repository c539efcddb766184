"""Recognise raw examples among the values that Python code hands over."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from pathlib import Path
from typing import Any

from rdrop_analysis.data.arrow_data import is_dataset, table_of_dataset
from rdrop_analysis.data.frames import table_of_frame
from rdrop_analysis.data.table_files import table_of_rows
from rdrop_analysis.data.tables import Table
from rdrop_analysis.errors import DataError


def raw_table(value: Any, source: str, limit: int | None) -> Table | None:
    """Return raw examples as a table: a DataFrame, a `Dataset`, texts with or without labels, a list of mappings.

    None if the value is something else.

    Raises:
        DataError: there are not as many labels as texts, or a data set has no split to take.
    """
    if _is_frame(value):
        return table_of_frame(source, value)
    if is_dataset(value):
        return table_of_dataset(source, value, None, limit)
    if _are_texts(value):
        return Table(source, {"text": list(value)})
    if isinstance(value, tuple | list) and len(value) == 2 and _are_texts(value[0]):
        return _labelled(source, *value)
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value) and any(map(_is_example, value)):
        return table_of_rows(source, value)
    return None


def _is_frame(value: object) -> bool:
    """Tell whether a value is a DataFrame, without importing pandas."""
    return type(value).__name__ == "DataFrame" and type(value).__module__.partition(".")[0] == "pandas"


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _labelled(source: str, texts: list[str], labels: Any) -> Table:
    listed = list(labels)
    if len(listed) != len(texts):
        raise DataError(f"{source}: there are {len(texts)} texts but {len(listed)} labels")
    return Table(source, {"text": texts, "label": listed})


def _is_example(value: Mapping[Any, Any]) -> bool:
    """Tell whether a value is one example by name, as opposed to a batch of tensors."""
    return any(map(_is_of_one_example, value.values()))


def _is_of_one_example(part: object) -> bool:
    """Tell whether a value cannot be of a batch: a text, a file, a number, or a list of words."""
    return isinstance(part, str | Path | Number) or (isinstance(part, list) and any(isinstance(p, str) for p in part))
