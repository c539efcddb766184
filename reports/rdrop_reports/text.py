"""Names and texts from outside, made fit to stand in a line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

_WORDS = re.compile(r".*[-_./ ]", re.DOTALL)  # up to the end of the last whole word


def elide(text: object, limit: int = 24) -> str:
    """Text on one line, without control characters, cut in the middle where it is long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    if len(line) <= limit:
        return line or "(no name)"
    head = (limit - 1) // 2 + 1
    return f"{line[:head]}…{line[head + 1 - limit :]}"


def short_name(name: str, names: Sequence[str], limit: int) -> str:
    """One of several names; where it is long without the words that all begin with, for the end tells them apart."""
    if len(name) > limit and len(names) > 1:
        alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
        common = _WORDS.match("".join(letters[0] for letters in alike))
        name = f"…{name[common.end() :]}" if common else name
    return elide(name, limit)


def short_paths(paths: Sequence[str], limit: int) -> list[str]:
    """Dotted paths without the parts that all begin with, cut at the front where they are long.

    The end of a path, with the layer's number, is what tells modules apart.
    """
    parts = [path.split(".") for path in paths]
    common = 0
    while len(parts) > 1 and all(len(p) > common + 1 for p in parts) and len({p[common] for p in parts}) == 1:
        common += 1
    lines = [elide(".".join(p[common:]), 400) for p in parts]
    return [line if len(line) <= limit else f"…{line[1 - limit :].lstrip('.')}" for line in lines]


def called(name: object) -> str:
    """A checkpoint's name as it stands in a sentence."""
    return elide(name, 48)


def listed(parts: Sequence[str]) -> str:
    """Parts as one would say them: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""
