"""Files on their way out, whole or not at all, and names from files made fit to be printed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import reprlib
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from rdrop_analysis.errors import DataError, RDropAnalysisError, UsageError

PICTURES = ("png", "svg", "pdf")
FORMATS = ("html", *PICTURES, "json", "csv", "parquet", "latex", "markdown")


def check_formats(formats: Collection[str]) -> None:
    """See that results can be written in these formats, before any work is done for them.

    Raises:
        UsageError: one of them is unknown, or needs a package that is not installed.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UsageError(f"unknown format {unknown[0]!r}: choose from {', '.join(FORMATS)}")
    if "parquet" in formats and find_spec("pyarrow") is None:
        raise UsageError("the format parquet needs pyarrow: pip install 'rdrop-analysis[parquet]', or write csv")


def check_writable(directory: Path, option: str = "--output") -> None:
    """See that files can be made in a directory that may not be there yet, before any work is done for it.

    Nothing is left behind: where it is not there, its nearest parent is tried.

    Args:
        directory: where files are to be.
        option: that names it, for the error.

    Raises:
        DataError: it cannot be made or written.
    """
    nearest = directory.absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        with TemporaryDirectory(dir=nearest, prefix=".rdrop-"):
            pass
    except OSError as problem:
        raise DataError(f"cannot write to {directory}: {problem.strerror}; name another with {option}") from problem


def write_whole(path: Path, content: bytes, error: type[RDropAnalysisError]) -> None:
    """Write a file by renaming a finished one into place, so that no reader ever sees a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as problem:
        raise error(f"cannot write {path}: {problem.strerror or problem}") from problem
    finally:
        with contextlib.suppress(OSError):  # what went wrong above has been said; after a rename it is gone
            temporary.unlink()


def check_name(path: str | Path, error: type[RDropAnalysisError]) -> None:
    """See that a file's name is text, which libraries and results can be given.

    Raises:
        RDropAnalysisError: `error`, it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as problem:
        raise error(f"{printable(path)}: its name is not UTF-8: rename it, or make a link to it") from problem


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def counted(number: int, noun: str) -> str:
    """How many there are of something: `1 site`, `2 sites`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def printable(text: object, limit: int = 80) -> str:
    """Return text that came from a file on one line, its control characters escaped, cut to `limit` characters.

    Containers are shown in part, so that one that holds itself many times over is shown at once.
    """
    shown = reprlib.repr(text) if isinstance(text, Collection) and not isinstance(text, str) else str(text)
    escaped = visible(shown[: limit + 1]).replace("\n", "\\n")
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


def visible(text: str) -> str:
    """Return text as a terminal may be given it: lines and thin spaces stay, other control characters are escaped."""
    return "".join(c if c.isprintable() or c in "\n\u202f" else c.encode("unicode_escape").decode() for c in text)
