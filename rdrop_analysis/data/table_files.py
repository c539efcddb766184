"""Read tables of examples from text files: csv, tsv, json lines, and plain lines of text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from rdrop_analysis.data.separated import read_separated
from rdrop_analysis.data.tables import Table
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable


def read_table(path: Path, limit: int | None) -> Table:
    """Return the first `limit` examples of a text file, reading no more of it than that takes.

    Raises:
        DataError: there is no such file, or its content is not what its name says.
    """
    try:
        _refuse_utf16(path)
        return READERS[path.suffix.lower()](path, limit)
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} is not UTF-8 text (line {_line_not_utf8(path)}): save it as UTF-8") from problem
    except FileNotFoundError as problem:
        raise DataError(f"{path}: there is no such file") from problem
    except OSError as problem:
        raise DataError(f"cannot read {path}: {problem.strerror or problem}") from problem


def _refuse_utf16(path: Path) -> None:
    """Raise `DataError` if a file begins with a character of two bytes."""
    with path.open("rb") as file:
        if b"\0" in file.read(4):
            raise DataError(f"{path} is not UTF-8 but, it seems, UTF-16 text: save it as UTF-8")


def _line_not_utf8(path: Path) -> int:
    """Return the first line of a file that is not UTF-8."""
    with path.open("rb") as file:
        return next((number for number, line in enumerate(file, 1) if not _is_utf8(line)), 1)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_json(path: Path, limit: int | None) -> Table:
    numbered = list(islice(_objects(path), limit))
    table = table_of_rows(
        str(path), [row for _, row in numbered], lambda name: (row.get(name) for _, row in _objects(path))
    )
    lines = [line for line, _ in numbered if line]
    return replace(table, lines=lambda: lines)


def table_of_rows(
    source: str, rows: list[Mapping[str, Any]], read_column: Callable[[str], Iterable[Any]] | None = None
) -> Table:
    """Return examples, each a mapping with the same names, as a table; a name that is not there means missing."""
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    return Table(source, {name: [row.get(name) for row in rows] for name in names}, read_column=read_column)


def _objects(path: Path) -> Iterator[tuple[int | None, Mapping[str, Any]]]:
    """Yield the objects in a file with their lines: one a line; without, where the file is a list of them."""
    with path.open(encoding="utf-8-sig") as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        file.seek(0)
        is_list = start == "["
        for number, item in enumerate(_list(path, file), 1) if is_list else _lines(path, file):
            if not isinstance(item, Mapping):
                place = "item" if is_list else "line"
                raise DataError(f'{path}: {place} {number} is not an object such as {{"text": ...}}')
            yield (None if is_list else number), item


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
    ".csv": read_separated,
    ".tsv": read_separated,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".txt": _read_lines,
}
