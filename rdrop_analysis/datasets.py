"""Turn whatever `--data` or `analyze(..., data)` is given into `Data`, or into a `Table` of raw examples.

A data set is a built-in name, a file or folder, a callable of the user's, an `(inputs, labels)` pair, or an
iterable of batches. All are read into memory once, so that every checkpoint sees the same examples in the same
order.
"""

from __future__ import annotations

import difflib
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdrop_analysis import factories
from rdrop_analysis.data.arrow_data import is_saved_dataset, read_parquet, read_saved_dataset
from rdrop_analysis.data.batches import batch_from, joined
from rdrop_analysis.data.builtin import BUILT_IN
from rdrop_analysis.data.examples import Batch, Data, Inputs, check_labels
from rdrop_analysis.data.image_folders import read_image_folder
from rdrop_analysis.data.raw_values import raw_table
from rdrop_analysis.data.table_files import READERS, read_table
from rdrop_analysis.data.tables import Table, data_or_table
from rdrop_analysis.errors import DataError, RDropAnalysisError
from rdrop_analysis.files import check_name, printable
from rdrop_analysis.loading.safe_io import first_bytes, read_tensors

__all__ = ["Batch", "Data", "Inputs", "Table", "check_labels", "load_data"]

MAX_COMPRESSION = 100  # times, beyond which gigabytes of arrays are nothing but repetition
MAX_UNPACKED = 2**30  # bytes, up to which any compression will do
_IN_MEMORY = "in memory"
_TENSOR_FILES = (".pt", ".pth", ".safetensors")


def load_data(spec: object, limit: int | None = None) -> Data | Table:
    """Return the data that `spec` names or is, at most `limit` examples of it.

    A string or path is a built-in name (`digits`, `digits:train`, `fashion-mnist`, `fashion-mnist:train`), a
    file of arrays (`.npz`, `.pt`, `.safetensors`), a file of examples (`.csv`, `.tsv`, `.jsonl`, `.json`,
    `.txt`, `.parquet`), a folder of images, a data set that Hugging Face's `datasets` saved (`folder:split` for
    one of its splits), or a callable (`pkg.mod:callable`, `path/file.py:callable`) that takes nothing and
    returns any of the following. From Python: `Data`; an `(inputs, labels)` tuple; a tensor or array of inputs;
    a mapping of the arguments of `forward` with, if any, `labels` (or `y`); an iterable of batches, such as a
    DataLoader, each of them inputs, `(inputs, labels)` or such a mapping; or raw examples: a DataFrame, a
    `Dataset`, a list of texts, `(texts, labels)`, or a list of mappings. Inputs may be a tuple of tensors or a
    dict of them.

    A file of arrays holds `inputs` (or `x`, or one array per argument of `forward`) and, if any, `labels` (or
    `y`). The columns of raw examples are known by their usual names. Texts, words and images are returned as a
    `Table`, which the checkpoint's own tokenizer or image processor makes `Data` of; numbers are `Data`. Examples
    with an empty text are left out, which the notes of the data say.

    NumPy float64 becomes torch's default type and integers become int64, whatever their width: images stored
    as bytes are not scaled, store them as the model was trained on them. Labels are integers [N] or, per
    token, [N, L]; -100 marks positions to ignore. Targets are floating point [N] or [N, D]; NaN is not known.

    Raises `DataError` if there is nothing, the lengths differ, an input is NaN, labels are no numbers, or a
    file cannot be read; `UsageError` if a callable cannot be found; `UnsafeFileError` if a file would run
    code.
    """
    if isinstance(spec, str | Path):
        check_name(spec, DataError)
    data = _from_string(str(spec), limit) if isinstance(spec, str | Path) else _from_value(spec, _IN_MEMORY, limit)
    return data if limit is None else data.head(limit)


def _from_string(spec: str, limit: int | None) -> Data | Table:
    """Return a built-in data set, one in a file or folder, or what the user's callable returns."""
    if spec in BUILT_IN:
        return BUILT_IN[spec]()
    path = Path(spec)
    if path.suffix == ".npz":
        return _from_value(_read_npz(path), spec, limit)
    if path.suffix in _TENSOR_FILES:
        return _from_value(read_tensors(path, DataError), spec, limit)
    if path.suffix.lower() in READERS:
        return _known(spec, read_table(path, limit))
    if path.suffix.lower() == ".parquet":
        return _known(spec, read_parquet(path, limit))
    folder, _, split = (spec, "", "") if path.is_dir() else spec.rpartition(":")
    if folder and Path(folder).is_dir():
        return _known(spec, _read_folder(Path(folder), split or None, limit))
    if ":" in spec and spec.partition(":")[0] not in BUILT_IN:
        return _from_value(factories.call(spec), spec, limit)
    raise _unknown(spec)


def _read_folder(folder: Path, split: str | None, limit: int | None) -> Table:
    """Return the examples in a folder."""
    read = read_saved_dataset if is_saved_dataset(folder) else read_image_folder
    return read(folder, split, limit)


def _unknown(spec: str) -> DataError:
    """Return the error that lists what is known."""
    near = difflib.get_close_matches(spec, BUILT_IN, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return DataError(
        f"unknown data {printable(spec)!r}: {meant}known are {', '.join(BUILT_IN)}, a .npz, .pt or .safetensors file, "
        f"a {', '.join(READERS)} or .parquet file, a folder that is there, file.py:callable"
    )


def _known(source: str, table: Table) -> Data | Table:
    """Return what a table holds, with the source in messages."""
    try:
        return data_or_table(table)
    except DataError as problem:
        raise DataError(f"{source}: {problem}") from problem


def _from_value(value: Any, source: str, limit: int | None) -> Data | Table:
    """Return the data that a value is or holds."""
    if isinstance(value, Data | Table):
        return value if source == _IN_MEMORY else replace(value, source=source)
    if (table := raw_table(value, source, limit)) is not None:
        return _known(source, table)
    try:
        with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed from the global generator
            pieces = joined(_read_batches(_items(value), limit))
    except RDropAnalysisError as problem:
        raise type(problem)(f"{source}: {problem}") from problem
    except Exception as problem:  # the user's own code may raise anything
        raise DataError(f"{source}: reading it failed: {type(problem).__name__}: {printable(problem)}") from problem
    if not pieces:
        raise DataError(f"{source}: the data set is empty")
    return Data(source, pieces)


def _items(value: Any) -> Iterable[Any]:
    """Return the batches in a value: one if it is arrays, else those it yields."""
    if isinstance(value, Tensor | np.ndarray | Mapping | tuple):
        return [value]
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        kind = type(value).__name__
        raise DataError(f"a {kind} is not data: give (inputs, labels) or an iterable of batches, such as a DataLoader")
    return value


def _read_batches(items: Iterable[Any], limit: int | None) -> list[Batch]:
    """Read batches until there are `limit` examples, without asking for more."""
    batches: list[Batch] = []
    start = 0
    for item in items:
        batches.append(batch_from(item, start))
        start += len(batches[-1])
        if limit is not None and start >= limit:
            break
    return batches


def _read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of a `.npz` file, none of which may be of Python objects."""
    first_bytes(path, DataError)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_unpacked(path, sum(member.file_size for member in archive.infolist()))
            for member in archive.infolist():
                _check_npy_header(path, archive, member)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, MemoryError) as problem:
        raise DataError(f"{path} is truncated or damaged: save it again with numpy.savez") from problem


def _check_unpacked(path: Path, size: int) -> None:
    """Refuse a small archive that unpacks to gigabytes."""
    if size > max(MAX_UNPACKED, MAX_COMPRESSION * path.stat().st_size):
        raise DataError(f"{path} unpacks to {size / 2**30:.0f} GiB: save it again with numpy.savez")


def _check_npy_header(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuse an array of Python objects, or one that declares more bytes than it has."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, _, dtype = read_header[version[0]](file)
    name = printable(member.filename.removesuffix(".npy"))
    if dtype.hasobject:
        raise DataError(f"{path}: {name} holds Python objects, which are not read: save an array of numbers")
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise DataError(f"{path}: {name} declares more bytes than it has")
