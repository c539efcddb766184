"""From pandas' frames to columns of plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rdrop_analysis.data.tables import Table
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable

if TYPE_CHECKING:
    import pandas as pd


def table_of_frame(source: str, frame: pd.DataFrame) -> Table:
    """Return a DataFrame as a table.

    Raises:
        DataError: two columns have the same name.
    """
    names = list(map(str, frame.columns))
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise two_columns(source, twice)
    return Table(source, columns_of_frame(frame))


def two_columns(source: object, name: str) -> DataError:
    """Return the error on two columns of one name."""
    return DataError(f"{source}: two columns are called {printable(name)}: keep one of them, or rename one")


def columns_of_frame(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of a frame: arrays where all are numbers, else lists with None for what is missing."""
    return {str(name): _values(frame[name]) for name in frame.columns}


def _values(column: pd.Series[Any]) -> Any:
    if column.dtype.kind in "iufb" and not column.hasnans:
        return column.to_numpy()
    if column.dtype.kind == "f" and (column.dropna() % 1 == 0).all():
        return [None if value != value else int(value) for value in column]  # whole numbers, but for some missing
    return [None if value != value or value is None else value for value in column]
