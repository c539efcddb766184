"""Data sets of Hugging Face's `datasets`, saved on disk or in memory, as a table of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rdrop_analysis.data.image_folders import SPLITS
from rdrop_analysis.data.pictures import first_line
from rdrop_analysis.data.tables import Table
from rdrop_analysis.errors import DataError, UsageError
from rdrop_analysis.files import printable

MARKS = ("dataset_dict.json", "state.json", "dataset_info.json")


def is_saved_dataset(folder: Path) -> bool:
    """Tell whether `save_to_disk` has written a folder."""
    return any((folder / mark).is_file() for mark in MARKS)


def read_saved_dataset(folder: Path, split: str | None, limit: int | None) -> Table:
    """Return the first `limit` examples of a data set that `save_to_disk` has written; no code in it is run.

    Of several splits `split` is taken, else the test split, else the validation split.

    Raises:
        UsageError: `datasets` is not installed.
        DataError: the files are damaged, or there is no such split.
    """
    try:
        from datasets import load_from_disk
    except ImportError as problem:
        raise UsageError(f"{folder} needs datasets: pip install 'rdrop-analysis[hf]'") from problem
    try:
        loaded = load_from_disk(str(folder))
    except Exception as problem:  # what datasets and pyarrow raise on damaged files is not documented
        raise DataError(f"cannot read the data set in {folder}: {first_line(problem)}") from problem
    return table_of_dataset(str(folder), loaded, split, limit)


def read_parquet(path: Path, limit: int | None) -> Table:
    """Return the first `limit` examples of a parquet file, as data sets are published.

    Raises:
        UsageError: `datasets` is not installed.
        DataError: there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    try:
        from datasets import Dataset
        from datasets.table import InMemoryTable

        parquet = import_module("pyarrow.parquet")  # it has no types
    except ImportError as problem:
        raise UsageError(f"{path} needs datasets: pip install 'rdrop-analysis[hf]'") from problem
    try:
        loaded = Dataset(InMemoryTable(parquet.read_table(path)))
    except Exception as problem:  # what datasets and pyarrow raise on damaged files is not documented
        raise DataError(f"cannot read {path}: {first_line(problem)}") from problem
    return table_of_dataset(str(path), loaded, None, limit)


def is_dataset(value: object) -> bool:
    """Tell whether a value is a `Dataset` or `DatasetDict`, without importing them."""
    kind = type(value)
    return kind.__module__.partition(".")[0] == "datasets" and kind.__name__ in ("Dataset", "DatasetDict")


def table_of_dataset(source: str, loaded: Any, split: str | None, limit: int | None) -> Table:
    """Return the first `limit` examples of a `Dataset`, or of one split of a `DatasetDict`."""
    part = _split(source, loaded, split)
    rows = part if limit is None else part.select(range(min(limit, len(part))))
    own = {name: list(names) for name, names in map(_names, part.features.items()) if names}
    return Table(
        source, _columns(rows), own_names=own, read_column=lambda name: _columns(part.select_columns(name))[name]
    )


def _split(source: str, loaded: Any, split: str | None) -> Any:
    """Return the data set to measure on."""
    if not isinstance(loaded, Mapping):
        if split is not None:
            raise DataError(f"{source} has no splits: leave out :{printable(split)}")
        return loaded
    chosen = split or next((name for name in SPLITS if name in loaded and name != "train"), None)
    if chosen not in loaded:
        wanted = f"no split {printable(split)!r}" if split else "no test or validation split"
        names = ", ".join(map(printable, loaded))
        raise DataError(f"{source} has {wanted}: name one of {names}, as in {source}:{next(iter(loaded), 'train')}")
    return loaded[chosen]


def _names(feature: tuple[str, Any]) -> tuple[str, Sequence[str] | None]:
    """Return the names of the numbers in a column, or in its lists, if they have names."""
    column, kind = feature
    return column, getattr(kind, "names", None) or getattr(getattr(kind, "feature", None), "names", None)


def _columns(rows: Any) -> dict[str, Any]:
    """Return values by column: arrays of numbers, lists of all else; images as they are stored."""
    columns: dict[str, Any] = {}
    for name, kind in rows.features.items():
        read: Callable[[Any], Any] = _array if _is_numeric(kind) else _listed
        columns[name] = read(_undecoded(rows.select_columns(name), name, kind).with_format(None))[name]
    return columns


def _array(column: Any) -> Any:
    return column.with_format("numpy")[:]


def _listed(column: Any) -> Any:
    return column[:]


def _undecoded(column: Any, name: str, kind: Any) -> Any:
    """Return a column of images with their bytes, so that they are opened one by one."""
    return column.cast_column(name, type(kind)(decode=False)) if hasattr(kind, "decode") else column


def _is_numeric(kind: Any) -> bool:
    """Tell whether a feature is numbers, or lists or arrays of them."""
    inner = getattr(kind, "feature", None)
    if inner is not None:
        return _is_numeric(inner)
    dtype = str(getattr(kind, "dtype", ""))
    return dtype.startswith(("int", "uint", "float", "bool"))
