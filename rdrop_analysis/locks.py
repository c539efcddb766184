"""Whether another process is writing a file: what two runs in one directory know of each other.

Locks belong to a process and end with it, also where it was killed. Where the system has none, nobody is in the way.
"""

from __future__ import annotations

import contextlib
from io import FileIO
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment] # there is no module to be had


def hold(file: FileIO) -> None:
    """Keep the lock of a file that is open for writing until it is closed."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def held_elsewhere(path: Path) -> bool:
    """Whether another process that is alive holds the lock of a file."""
    if fcntl is None:
        return False
    try:
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # either, by POSIX
        return True
    except OSError:  # it is gone, or the file system has no locks
        return False
    return False
