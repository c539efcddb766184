"""What can be told of files that are not read, because that would run code or because a part of them is missing."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rdrop_analysis.errors import CheckpointError, RDropAnalysisError, UnsafeFileError
from rdrop_analysis.loading.archives import EXPORTED, kind_of_program
from rdrop_analysis.loading.json_files import MAX_BYTES
from rdrop_analysis.loading.safe_io import first_bytes, needed_code, needs
from rdrop_analysis.loading.sharded import INDEX_SUFFIX, missing_shards, read_places, shards_of

_GRAPHS = ("models/model.json", "/serialized_exported_program.json")
_OF_TORCH = ".debug_pkl"


@dataclass(frozen=True)
class Unread:
    """What is known of a file all the same.

    Attributes:
        kind: what it is, in words.
        files: those that are there.
        description: what it says of itself.
        code: what it holds or needs that would be run, by name.
        problem: why it is not read; None for programs, whose archive is read.
    """

    kind: str
    files: tuple[Path, ...]
    description: Mapping[str, str] = field(default_factory=dict)
    code: Sequence[str] = ()
    problem: RDropAnalysisError | None = None


def look_over(weights: Path) -> Unread | None:
    """Return what can be told of weights, or their index, that are not read; None for those that can be.

    Raises:
        CheckpointError: nothing can be told.
    """
    if weights.name.endswith(INDEX_SUFFIX):
        places = read_places(weights)
        shards = shards_of(weights, places)
        return _incomplete(weights, places, shards) or _with_code(weights, *shards)
    first_bytes(weights, CheckpointError)
    kind = kind_of_program(weights)
    return _with_code(weights) if kind is None else _program(weights, kind)


def _incomplete(index: Path, places: Mapping[str, str], shards: list[Path]) -> Unread | None:
    """An index of which files are missing."""
    problem = missing_shards(index, shards)
    if problem is None:
        return None
    held = {shard: sum(place == shard.name for place in places.values()) for shard in shards}
    told = {shard.name: f"{n} tensors{'' if shard.is_file() else ', missing'}" for shard, n in held.items()}
    there = tuple(shard for shard in shards if shard.is_file())
    return Unread(f"index of {len(shards)} files", (index, *there), told, problem=CheckpointError(problem))


def _with_code(*files: Path) -> Unread | None:
    """A file, or an index and its files, of which one needs code to be read."""
    shards = [file for file in files if not file.name.endswith(INDEX_SUFFIX)]
    found = {shard: needed_code(shard, CheckpointError) for shard in shards}
    unsafe = next((shard for shard in shards if found[shard]), None)
    if unsafe is None:
        return None
    names = list(dict.fromkeys(name for needed in found.values() for name in needed))
    problem = UnsafeFileError(f"{needs(unsafe, found[unsafe])}: save model.state_dict() instead")
    return Unread("pickle that needs code", files, code=names, problem=problem)


def _program(path: Path, kind: str) -> Unread:
    """An archive with a program in it, of which the directory is read."""
    with zipfile.ZipFile(path) as archive:
        inside = {entry.filename.partition("/")[2]: entry.file_size for entry in archive.infolist()}
        graph = next((name for name in archive.namelist() if name.endswith(_GRAPHS)), None)
        operators = _operators(archive, graph) if graph and kind == EXPORTED else []
    code = operators or [name for name in inside if name.startswith("code/") and not name.endswith(_OF_TORCH)]
    stored = sum(size for name, size in inside.items() if name.startswith(("data/", "constants/")))
    told = {"stored values": f"{stored:,} bytes", "to be measured": "with --trust-code, if it is your own"}
    return Unread(kind, (path,), told, code)


def _operators(archive: zipfile.ZipFile, graph: str) -> list[str]:
    """The operators that an exported program calls, each once; none where its graph cannot be read."""
    try:
        with archive.open(graph) as file:
            nodes = json.loads(file.read(MAX_BYTES))["graph_module"]["graph"]["nodes"]
        return list(dict.fromkeys(str(node["target"]) for node in nodes))
    except (ValueError, KeyError, TypeError, RecursionError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
        return []  # the archive is told of all the same
