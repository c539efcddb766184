"""Leave out examples without a text, of which nothing can be measured, and say so."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

from rdrop_analysis.data.tables import Table
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import counted, printable

SHOWN = 5


def without_empty(table: Table, columns: Sequence[str]) -> Table:
    """Return the examples that have a text, or words, in each of the columns, with a note on the others.

    Raises:
        DataError: there is no such example.
    """
    empty = {row for column in columns for row, value in enumerate(table.columns[column]) if _is_empty(value)}
    if not empty:
        return table
    if len(empty) == table.n_examples:
        raise DataError(f"{printable(' or '.join(columns))} is empty at every example")
    kept = [row for row in range(table.n_examples) if row not in empty]
    return table.only(kept, {"texts_left_out": _note(table, sorted(empty))})


def _is_empty(value: Any) -> bool:
    """Tell whether there is no text, or a list without words."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Sized) and not len(value))


def _note(table: Table, rows: Sequence[int]) -> str:
    """Return how many examples were left out, and the places of the first."""
    lines = [table.line(row) for row in rows[:SHOWN]]
    kind, numbers = ("example", rows[:SHOWN]) if None in lines else ("line", lines)
    more = ", ..." if len(rows) > SHOWN else ""
    places = f"{kind}{'s' * (len(rows) > 1)} {', '.join(map(str, numbers))}{more}"
    return f"{counted(len(rows), 'example')} with an empty text left out: {places}"
