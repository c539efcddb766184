"""Read files with a separator between fields: csv and tsv, and those of other programs that are called so."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdrop_analysis.data.frames import columns_of_frame, two_columns
from rdrop_analysis.data.layouts import KNOWN, SECOND_TEXT, TAGS, TARGET, TEXT, WORDS, unknown_layout
from rdrop_analysis.data.numeric import are_numbers
from rdrop_analysis.data.tables import Table
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable

if TYPE_CHECKING:
    import pandas as pd

USUAL = {".csv": ",", ".tsv": "\t"}
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
KEPT_AS_TEXT = {*TEXT, *SECOND_TEXT, *WORDS, *TAGS, *TARGET}


def read_separated(path: Path, limit: int | None) -> Table:
    """Return the first `limit` examples of a file, whose first line names the columns.

    Raises:
        DataError: the first line does not name the columns, or a line has more fields than it.
    """
    separator = _separator(path)
    header = next((fields for _, fields in _records(path, separator)), [])
    _check_header(path, header)
    columns = _without_ends(columns_of_frame(_frame(path, separator, nrows=limit)))
    if not _are_named(columns):
        raise DataError(f"{path}: the first line must name the columns, as in text,label: {unknown_layout(columns)}")
    unusual = separator != USUAL[path.suffix.lower()]
    return Table(
        str(path),
        columns,
        read_column=lambda name: columns_of_frame(_frame(path, separator, usecols=[name]))[name],
        lines=lambda: _lines(path, separator, limit, n_examples=len(next(iter(columns.values()), ()))),
        notes={"separator": f"fields are separated by {SEPARATORS[separator]}"} if unusual else {},
    )


def _separator(path: Path) -> str:
    """Return what separates the names in the first line: what the file's name says, if it is there at all."""
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    names = re.sub('"[^"]*"', "", first)
    usual = USUAL[path.suffix.lower()]
    return usual if usual in names else max((usual, *SEPARATORS), key=names.count)


def _check_header(path: Path, names: list[str]) -> None:
    """Refuse a first line that is an example, or that has a name twice."""
    stripped = [name.strip() for name in names if name.strip()]
    twice = next((name for name in stripped if stripped.count(name) > 1), None)
    if names and (all(map(_is_number, names)) or (twice and _is_number(twice))):
        raise DataError(f"{path} has no header: the first line must name the columns, as in text,label")
    if twice:
        raise two_columns(path, twice)


def _without_ends(columns: dict[str, Any]) -> dict[str, Any]:
    """Return columns without those that separators at the ends of lines make, which have no name and no values."""
    return {
        name: values
        for name, values in columns.items()
        if not name.startswith("Unnamed: ") or any(value is not None for value in values)
    }


def _are_named(columns: dict[str, Any]) -> bool:
    """Tell whether there is a name that is known, or nothing but numbers, which may have any name."""
    known = any(name.strip().lower() in KNOWN for name in columns)
    return known or all(map(are_numbers, columns.values()))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _frame(path: Path, separator: str, **options: Any) -> pd.DataFrame:
    """Return a file as a frame; only an empty field is a missing value, not "NA" or "null"."""
    import pandas as pd

    form: dict[str, Any] = {"sep": separator, "encoding": "utf-8-sig", "index_col": False, "low_memory": False}
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
        raise DataError(f"{path} cannot be read as a table: {_misread(path, separator, str(problem))}") from problem


def _lines(path: Path, separator: str, limit: int | None, n_examples: int) -> list[int]:
    """Return the line that each example begins in; none if the file can be read in more than one way."""
    end = None if limit is None else limit + 1
    try:
        lines = [line for line, _ in islice(_records(path, separator), 1, end)]
    except (OSError, UnicodeDecodeError):  # the file has gone meanwhile, or is broken beyond the examples read
        return []
    return lines if len(lines) == n_examples else []


def _misread(path: Path, separator: str, reason: str) -> str:
    """Return what is wrong with a file that pandas cannot read, and in which line."""
    width, line, fields = 0, 0, list[str]()
    for line, fields in _records(path, separator):
        width = width or len(fields)
        if len(fields) > width:
            return (
                f"line {line} has {len(fields)} fields, the first line {width}: "
                f"put texts with {SEPARATORS[separator]} in quotes"
            )
    if "EOF inside string" in reason:
        return f"the quote that opens in line {line} does not close"
    return printable(reason.strip().splitlines()[0], 120)


def _records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the fields of each record that is not blank, none of one that is too long."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error:  # a field of over 128 KiB
                yield line, []
                return
            if fields and not (len(fields) == 1 and fields[0].isspace()):
                yield line, fields
