"""Read the JSON that lies beside weights, which is as little to be trusted as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rdrop_analysis.errors import CheckpointError
from rdrop_analysis.files import printable

MAX_BYTES = 32 << 20  # the index of the largest public models takes 10 MB


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        CheckpointError: there is no such file, it is too large, or it is no JSON object, or names a key twice.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is not a regular file: name one")
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_BYTES >> 20} MB, too much for a description of weights")
        found = json.loads(text, object_pairs_hook=_each_key_once)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such file") from None
    except OSError as problem:
        raise CheckpointError(f"cannot read {path}: {problem.strerror or problem}") from problem
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path} is not JSON: {printable(problem)}") from problem
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a JSON {type(found).__name__}, not an object")
    return found


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # remembers
        raise ValueError(f"the key {twice} stands in it twice")
    return found
