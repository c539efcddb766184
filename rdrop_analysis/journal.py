"""Journals: what was measured so far, in files that a killed run leaves readable.

A journal is an append-only file of one worker: a header that says what it belongs to, then one record a work item, each
with its length and checksum. A record that was cut off ends the journal. Records are MessagePack with arrays as raw
numbers: reading one runs no code and takes no more memory than the file has bytes. What is no journal, or has a header
that makes no sense, is passed over. Whoever writes a journal holds its lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import struct
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np

from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable
from rdrop_analysis.locks import Lock, held_elsewhere, hold
from rdrop_probes.columns import State

FOLDER = ".rdrop-partial"
SUFFIX = ".journal"
MAGIC = b"rdrop-journal-1\n"
HEADER = -1  # the place of a start in the header's record
LONGEST_HEADER = 2**26  # bytes
LONGEST_RECORD = 2**31

_FRAME = struct.Struct("<qQ16s")  # index of the first example, length, checksum
_ARRAY = 1
_KINDS = "biuf"  # of numbers
_PIECE = 2**20  # bytes that are looked at together

Start = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
Part = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]


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
    starts: list[Start]
    shard: tuple[Part, Part]
    options: dict[str, str | list[str]]

    def check(self) -> None:
        """See that one part fits to the other.

        Raises:
            ValueError: it does not.
        """
        if self.shard[0] > self.shard[1]:
            raise ValueError("no part of a whole")
        if any(one >= other for one, other in pairwise(self.starts)):
            raise ValueError("starts do not follow each other")
        texts = (self.checkpoint, *self.options, *self.options.values())
        if any("\0" in part for text in texts for part in ([text] if isinstance(text, str) else text)):
            raise ValueError("no text")


class Journal:
    """The journal that one worker writes; the file is made with the first item, and never made again."""

    def __init__(self, directory: Path, checkpoint: str) -> None:
        self._path = _folder(directory, checkpoint) / f"{secrets.token_hex(8)}{SUFFIX}"
        self._file: FileIO | None = None

    def put(self, header: Header, start: int, record: bytes) -> None:
        """Append the record of an item; it is with the operating system when this returns.

        Raises:
            JournalError: it cannot be written, or somebody has removed the file.
        """
        try:
            if self._file is None:
                self._file = self._made()
                _append(self._file, MAGIC + _framed(HEADER, encode(header)))
            _append(self._file, _framed(start, record))
            removed = os.fstat(self._file.fileno()).st_nlink == 0
        except OSError as problem:
            text = f"cannot write {self._path}: {problem.strerror or problem}"
            raise JournalError(f"{text}; what was finished is kept, and the same command goes on from it") from problem
        if removed:
            raise JournalError(f"{self._path} was removed while it was being written: run the same command again")

    def close(self) -> None:
        """Let others have the file; nothing more is put into it."""
        if self._file is not None:
            self._file.close()

    def _made(self) -> FileIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = FileIO(self._path, "x")
        weakref.finalize(self, file.close)
        hold(file)
        return file


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
    """The journals of one checkpoint, or of all, that a directory holds."""
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
            for start, offset, length in _records(file, path.stat().st_size):
                if header is None:
                    if start != HEADER or length > LONGEST_HEADER:
                        return None
                    header = _header(file, offset, length)
                else:
                    places[start] = (offset, length)
    except (OSError, ValueError):  # of which msgspec's errors are
        return None
    return None if header is None else Stored(path, header, places)


@dataclass(frozen=True)
class Spent:
    """What is of no more use once a run is saved: its locks, and the journals of its works, by checkpoint and key."""

    directory: Path
    works: Sequence[tuple[str, Mapping[str, str]]]
    locks: Sequence[Lock] = ()

    def discard(self) -> None:
        """Remove them, but no shards, nothing of other runs, and nothing that somebody is writing."""
        for checkpoint, key in self.works:
            for stored in journals(self.directory, checkpoint):
                if stored.header.key == key and stored.header.shard == (1, 1) and not held_elsewhere(stored.path):
                    with contextlib.suppress(OSError):  # left over, they only take space
                        stored.path.unlink()
        for lock in self.locks:
            lock.release()
        for folder in (*(self.directory / FOLDER).glob("*"), self.directory / FOLDER):
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def lock_path(directory: Path, header: Header) -> Path:
    """The file that is locked by who does a piece of work: one shard of what a key says."""
    work = encode([sorted(header.key.items()), header.shard])
    return _folder(directory, header.checkpoint) / f"{hashlib.sha256(work).hexdigest()[:16]}.lock"


def check_place(directory: Path) -> None:
    """See that journals can be there.

    Raises:
        JournalError: something else is in their place.
    """
    folder = directory / FOLDER
    if folder.exists() and not folder.is_dir():
        raise JournalError(f"{printable(folder)} is no directory: remove it, or name another with --output")


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


def _header(file: BinaryIO, offset: int, length: int) -> Header:
    file.seek(offset)
    header = msgspec.convert(decode(file.read(length)), Header)
    header.check()
    return header


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


def _append(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _framed(start: int, payload: bytes) -> bytes:
    checksum = _hash(start)
    checksum.update(payload)
    return _FRAME.pack(start, len(payload), checksum.digest()) + payload


def _hash(start: int) -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16, key=struct.pack("<q", start))


def _records(file: BinaryIO, size: int) -> Iterator[tuple[int, int, int]]:
    """Start, offset and length of every record that is whole, none of which is held in memory."""
    while len(frame := file.read(_FRAME.size)) == _FRAME.size:
        start, length, expected = _FRAME.unpack(frame)
        offset = file.tell()
        if length > min(size - offset, LONGEST_RECORD):
            return
        checksum = _hash(start)
        for begin in range(0, length, _PIECE):
            checksum.update(file.read(min(_PIECE, length - begin)))
        if checksum.digest() != expected:
            return
        yield start, offset, length
        file.seek(offset + length)


def _folder(directory: Path, checkpoint: str) -> Path:
    """Where the journals of a checkpoint are: a readable name, and one that no other has."""
    digest = hashlib.sha256(checkpoint.encode(errors="surrogateescape")).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", checkpoint)[-40:].strip("-")
    return directory / FOLDER / f"{readable}-{digest}"
