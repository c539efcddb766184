"""Read tables of examples from text files: csv, tsv, json lines, and plain lines of text."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rdrop_analysis.data.layouts import SECOND_TEXT, TAGS, TARGET, TEXT, WORDS
from rdrop_analysis.data.tables import Table
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable

if TYPE_CHECKING:
    import pandas as pd

SEPARATORS = {".csv": ",", ".tsv": "\t"}
KEPT_AS_TEXT = {*TEXT, *SECOND_TEXT, *WORDS, *TAGS, *TARGET}


def read_table(path: Path, limit: int | None) -> Table:
    """Return the first `limit` examples of a text file, reading no more of it than that takes.

    Raises:
        DataError: there is no such file, or its content is not what its name says.
    """
    try:
        return READERS[path.suffix.lower()](path, limit)
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} is not UTF-8 text (byte {problem.start}): save it as UTF-8") from problem
    except FileNotFoundError as problem:
        raise DataError(f"{path}: there is no such file") from problem
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror or problem}") from problem


def _read_separated(path: Path, limit: int | None) -> Table:
    columns = _columns(_separated(path, nrows=limit))
    if columns and all(map(_is_number, columns)):
        raise DataError(f"{path} has no header: name its columns in the first line, such as text,label")
    return Table(str(path), columns, read_column=lambda name: _columns(_separated(path, usecols=[name]))[name])


def _separated(path: Path, **options: Any) -> pd.DataFrame:
    """Return a file with a separator as a frame; only an empty field is a missing value, not "NA" or "null"."""
    import pandas as pd

    form: dict[str, Any] = {
        "sep": SEPARATORS[path.suffix.lower()],
        "encoding": "utf-8-sig",
        "index_col": False,
        "low_memory": False,
    }
    try:
        header = pd.read_csv(path, nrows=0, **form)
        texts: dict[Any, type[str]] = {
            name: str for name in header.columns if str(name).strip().lower() in KEPT_AS_TEXT
        }
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # more fields in a line than in the header
            frame: pd.DataFrame = pd.read_csv(
                path, dtype=texts, keep_default_na=False, na_values=[""], **form, **options
            )
            return frame
    except pd.errors.EmptyDataError as problem:
        raise DataError(f"{path} is empty") from problem
    except (pd.errors.ParserError, pd.errors.ParserWarning) as problem:
        reason = printable(str(problem).strip().splitlines()[0], 120)
        raise DataError(
            f"{path} cannot be read as a table: {reason}; put fields with separators in quotes"
        ) from problem


def _columns(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of a frame: arrays where all are numbers, else lists with None for what is missing."""
    return {str(name): _values(frame[name]) for name in frame.columns}


def table_of_frame(source: str, frame: pd.DataFrame) -> Table:
    """Return a DataFrame as a table."""
    return Table(source, _columns(frame))


def _values(column: pd.Series[Any]) -> Any:
    if column.dtype.kind in "iufb" and not column.hasnans:
        return column.to_numpy()
    if column.dtype.kind == "f" and (column.dropna() % 1 == 0).all():
        return [None if value != value else int(value) for value in column]  # whole numbers, but for some missing
    return [None if value != value or value is None else value for value in column]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_json(path: Path, limit: int | None) -> Table:
    rows = list(islice(_objects(path), limit))
    return table_of_rows(str(path), rows, lambda name: (row.get(name) for row in _objects(path)))


def table_of_rows(
    source: str, rows: list[Mapping[str, Any]], read_column: Callable[[str], Iterable[Any]] | None = None
) -> Table:
    """Return examples, each a mapping with the same names, as a table; a name that is not there means missing."""
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    return Table(source, {name: [row.get(name) for row in rows] for name in names}, read_column=read_column)


def _objects(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects in a file: one a line, or a list of them."""
    with path.open(encoding="utf-8-sig") as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        file.seek(0)
        items = enumerate(_list(path, file), 1) if start == "[" else _lines(path, file)
        for number, item in items:
            if not isinstance(item, Mapping):
                raise DataError(f'{path}: {type(item).__name__} {number} is not an object such as {{"text": ...}}')
            yield item


def _lines(path: Path, file: IO[str]) -> Iterator[tuple[int, Any]]:
    """Yield the values on the lines that are not empty, with their numbers."""
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, _decoded(path, line, f"line {number}")


def _list(path: Path, file: IO[str]) -> list[Any]:
    content: list[Any] = _decoded(path, file.read(), "the list")
    return content


def _decoded(path: Path, text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        reason = printable(str(problem).splitlines()[0], 120)
        raise DataError(f"{path}: {place} is not JSON ({reason}): write one object a line, or a list") from problem


def _read_lines(path: Path, limit: int | None) -> Table:
    with path.open(encoding="utf-8-sig") as file:
        texts = list(islice((line.strip() for line in file if line.strip()), limit))
    return Table(str(path), {"text": texts})


READERS: Mapping[str, Callable[[Path, int | None], Table]] = {
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".txt": _read_lines,
}
