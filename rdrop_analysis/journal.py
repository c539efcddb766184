"""Journals: what was measured so far, in files that a killed run leaves readable.

A journal is an append-only file of one worker: a header that says what it belongs to, then one record a work item, each
with its length and checksum. A record that was cut off ends the journal. Records are MessagePack with arrays as raw
numbers: reading one runs no code and takes no more memory than the file has bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from rdrop_analysis.errors import DataError
from rdrop_probes.columns import State

FOLDER = ".rdrop-partial"
SUFFIX = ".journal"
MAGIC = b"rdrop-journal-1\n"
HEADER = -1  # the place of a start in the header's record

_FRAME = struct.Struct("<qQ16s")  # index of the first example, length, checksum
_ARRAY = 1
_KINDS = "biuf"  # of numbers


class JournalError(DataError):
    """A journal cannot be written: what is in it stays, and nothing more can be kept."""


class Header(msgspec.Struct, frozen=True):
    """What a journal belongs to.

    `key` says by name what its numbers follow from, `facts` what was found on the first batch, `decisions` what was
    decided once for all workers. `starts` are the first examples of all work items. `shard` is (number, of how many).
    `options` are those of the command, from which a merge begins.
    """

    checkpoint: str
    key: dict[str, str]
    facts: dict[str, Any]
    decisions: dict[str, dict[str, Any]]
    starts: list[int]
    shard: tuple[int, int]
    options: dict[str, Any]


class Journal:
    """The journal that one worker writes; the file is made with the first item."""

    def __init__(self, directory: Path, checkpoint: str) -> None:
        self._path = _folder(directory, checkpoint) / f"{secrets.token_hex(8)}{SUFFIX}"
        self._begun = False

    def put(self, header: Header, start: int, record: bytes) -> None:
        """Append the record of an item; it is with the operating system when this returns.

        Raises:
            JournalError: it cannot be written.
        """
        try:
            if not self._begun:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._append(MAGIC + _framed(HEADER, encode(header)))
                self._begun = True
            self._append(_framed(start, record))
        except OSError as problem:
            text = f"cannot write {self._path}: {problem.strerror or problem}"
            raise JournalError(f"{text}; what was finished is kept, and the same command goes on from it") from problem

    def _append(self, content: bytes) -> None:
        with FileIO(self._path, "a" if self._begun else "x") as file:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]


@dataclass(frozen=True)
class Stored:
    """A journal that was found: its header, and where in the file the record of each item is."""

    path: Path
    header: Header
    places: dict[int, tuple[int, int]]

    def load(self, start: int) -> bytes:
        """The record of the item that begins with this example."""
        offset, length = self.places[start]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


def journals(directory: Path, checkpoint: str | None = None) -> list[Stored]:
    """The journals of one checkpoint, or of all, that a directory holds; what is no journal is passed over."""
    pattern = f"*/*{SUFFIX}" if checkpoint is None else f"{_folder(directory, checkpoint).name}/*{SUFFIX}"
    found = [read_journal(path) for path in sorted((directory / FOLDER).glob(pattern)) if path.is_file()]
    return [stored for stored in found if stored and (checkpoint in (None, stored.header.checkpoint))]


def read_journal(path: Path) -> Stored | None:
    """A journal up to its first damaged record; None if not even the header is whole."""
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return None
            header, places = None, {}
            for start, offset, payload in _records(file, path.stat().st_size):
                if header is None:
                    header = msgspec.convert(decode(payload), Header) if start == HEADER else None
                    if header is None:
                        return None
                else:
                    places[start] = (offset, len(payload))
    except (OSError, ValueError):  # of which msgspec's errors are
        return None
    return None if header is None else Stored(path, header, places)


def discard(directory: Path) -> None:
    """Remove the journals of a run that is complete, and nothing else."""
    with contextlib.suppress(OSError):  # left over, they only take space
        for path in (directory / FOLDER).glob(f"*/*{SUFFIX}"):
            path.unlink()
        for folder in (*(directory / FOLDER).iterdir(), directory / FOLDER):
            folder.rmdir()


def encode(state: Any) -> bytes:
    """Plain data, or a header, as MessagePack."""
    return msgspec.msgpack.encode(state, enc_hook=_packed)


def decode(content: bytes) -> State:
    """Plain data from :func:`encode`.

    Raises:
        ValueError: it is not that.
    """
    try:
        state = msgspec.msgpack.decode(content, ext_hook=_unpacked)
    except (ValueError, RecursionError, TypeError) as problem:
        raise ValueError(f"not a record: {problem}") from problem
    if not isinstance(state, dict):
        raise ValueError("not a record")
    return state


def _packed(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS:
        described = (value.dtype.str, value.shape, value.tobytes())
        return msgspec.msgpack.Ext(_ARRAY, msgspec.msgpack.encode(described))
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no plain data")


def _unpacked(code: int, data: memoryview) -> Any:
    if code != _ARRAY:
        raise ValueError(f"unknown extension {code}")
    dtype, shape, raw = msgspec.msgpack.decode(data, type=tuple[str, tuple[int, ...], bytes])
    if not re.fullmatch(rf"[<>|][{_KINDS}]\d+", dtype) or any(size < 0 for size in shape):
        raise ValueError("not an array of numbers")
    return np.frombuffer(raw, np.dtype(dtype)).reshape(shape).copy()


def _framed(start: int, payload: bytes) -> bytes:
    return _FRAME.pack(start, len(payload), _checksum(start, payload)) + payload


def _checksum(start: int, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16, key=struct.pack("<q", start)).digest()


def _records(file: BinaryIO, size: int) -> Iterator[tuple[int, int, bytes]]:
    """Start, offset and content of every record that is whole."""
    while len(frame := file.read(_FRAME.size)) == _FRAME.size:
        start, length, checksum = _FRAME.unpack(frame)
        offset = file.tell()
        if length > size - offset:
            return
        payload = file.read(length)
        if _checksum(start, payload) != checksum:
            return
        yield start, offset, payload


def _folder(directory: Path, checkpoint: str) -> Path:
    """Where the journals of a checkpoint are: a readable name, and one that no other has."""
    digest = hashlib.sha256(checkpoint.encode(errors="surrogateescape")).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", checkpoint)[-40:].strip("-")
    return directory / FOLDER / f"{readable}-{digest}"
