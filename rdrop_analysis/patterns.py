"""`NAME=GLOB`: which files belong to a group of training seeds, before anything slow is imported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path

from rdrop_analysis.errors import UsageError
from rdrop_analysis.files import printable

FORM = "--group takes NAME=GLOB, such as baseline='runs/base-*.pt'"


def split(text: str) -> tuple[str, str]:
    """Name and pattern.

    Raises:
        UsageError: one of them is not there.
    """
    name, _, pattern = text.partition("=")
    if not name.strip() or not pattern.strip():
        raise UsageError(f"{FORM}, not {printable(text)!r}")
    return name.strip(), pattern.strip()


def expand(group: str, pattern: str) -> list[str]:
    """Files and directories that a pattern matches, in the order a reader counts: seed2 before seed10.

    A path that is there is taken as it is, whatever its letters. `**` stands for any directories.

    Raises:
        UsageError: it matches nothing.
    """
    path = Path(pattern).expanduser()
    found = [str(path)] if path.exists() else sorted(glob(str(path), recursive=True), key=_by_number)
    if not found:
        raise UsageError(f"the group {printable(group)} is empty: nothing matches {printable(pattern)!r}")
    return found


def expand_all(texts: Sequence[str]) -> tuple[str, ...]:
    """`NAME=PATH` for every file that each `NAME=GLOB` matches."""
    return tuple(f"{name}={path}" for name, pattern in map(split, texts) for path in expand(name, pattern))


def _by_number(path: str) -> list[tuple[int, str]]:
    """Digits are compared as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path)]
