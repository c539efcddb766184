"""Whether another process is writing a file: what two runs in one directory know of each other.

Locks belong to a process and end with it, also where it was killed. Where the system has none, nobody is in the way.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment] # there is no module to be had

_HELD: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()


class Lock:
    """A file that says that a piece of work is being done; it goes when nobody in this process has the lock any more.

    Use :func:`lock`.
    """

    def __init__(self, path: Path, folders: Sequence[Path], file: FileIO) -> None:
        self._end = weakref.finalize(self, _remove, path, folders, file, os.getpid())

    def release(self) -> None:
        """The work is done."""
        self._end()


def lock(path: Path) -> Lock | None:
    """The lock of a piece of work, which this process may have already; None if another process has it.

    Raises:
        OSError: its file cannot be made.
    """
    path = path.absolute()
    if (held := _HELD.get(path)) is not None and held._end.alive:
        return held
    made_folders = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = FileIO(path, "a")
    except FileNotFoundError:  # who had it has just removed the folder
        return None
    if _is_taken(file, exclusive=True) or not _is_at(path, file):
        file.close()
        return None
    made = _HELD[path] = Lock(path, made_folders, file)
    return made


def hold(file: FileIO) -> None:
    """Keep the lock of a file that is open for writing until it is closed."""
    _is_taken(file, exclusive=True)


def held_elsewhere(path: Path) -> bool:
    """Whether another process that is alive holds the lock of a file."""
    try:
        with path.open("rb") as file:
            return _is_taken(file, exclusive=False)
    except OSError:  # it is gone, or not for us to read
        return False


def _is_taken(file: IO[bytes] | FileIO, *, exclusive: bool) -> bool:
    """Whether another process has the lock of an open file, which is ours if not."""
    if fcntl is None:
        return False
    try:
        fcntl.lockf(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # either, by POSIX
        return True
    except OSError:  # a file system without locks
        return False
    return False


def _is_at(path: Path, file: FileIO) -> bool:
    """Whether a file is still where it was opened: who had it may have removed it since."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _remove(path: Path, folders: Sequence[Path], file: FileIO, owner: int) -> None:
    """Remove a file whose lock is ours, and folders made for it that it leaves empty; a forked process does not."""
    if os.getpid() == owner:
        with contextlib.suppress(OSError):  # left over, it is in nobody's way
            path.unlink()
            for folder in folders:
                folder.rmdir()
    file.close()
