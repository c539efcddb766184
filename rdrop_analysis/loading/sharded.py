"""Weights that were split over several files, with an index that says which tensor is where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from rdrop_analysis.errors import CheckpointError
from rdrop_analysis.files import printable
from rdrop_analysis.loading.json_files import read_json
from rdrop_analysis.loading.safe_io import read_tensors
from rdrop_analysis.loading.state_dicts import find_state_dict

INDEX_SUFFIX = ".index.json"


def read_shards(index: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """Return all tensors that an index names, and the files that they are in, which lie beside it.

    Raises:
        CheckpointError: the index is malformed or names files elsewhere; a file, or a tensor in it, is missing;
            or two files hold the same tensor.
        UnsafeFileError: reading a file would run code.
    """
    places = read_places(index)
    shards = shards_of(index, places)
    if problem := missing_shards(index, shards):
        raise CheckpointError(problem)
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        found = find_state_dict(shard, read_tensors(shard, CheckpointError))
        if twice := sorted(tensors.keys() & found.keys()):
            raise CheckpointError(f"{shard} holds {printable(twice[0])}, which another file of {index.name} holds too")
        _check_complete(index, shard, places, found)
        tensors |= found
    return tensors, shards


def shards_of(index: Path, places: Mapping[str, str]) -> list[Path]:
    """Return the files that an index names."""
    return [index.with_name(name) for name in sorted(set(places.values()))]


def missing_shards(index: Path, shards: Sequence[Path]) -> str | None:
    """Say which of the files is not there, if there is one."""
    absent = [shard.name for shard in shards if not shard.is_file()]
    return f"{index} needs {printable(absent[0])}, which is not beside it: copy all {len(shards)}" if absent else None


def read_places(index: Path) -> Mapping[str, str]:
    """Return the file name of every tensor.

    Raises:
        CheckpointError: the index is malformed, or names files elsewhere.
    """
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} is not an index of weights: it has no weight_map")
    for name, file in places.items():
        if not _is_neighbour(file):
            raise CheckpointError(
                f"{index} places {printable(name)} in {printable(file)}: only files beside the index are read"
            )
    return places


def _is_neighbour(file: object) -> bool:
    """Whether this is the plain name of a file, on any system, and not a way to another directory."""
    return isinstance(file, str) and file not in ("", ".", "..") and not set(file) & set("/\\:\0")


def _check_complete(index: Path, shard: Path, places: Mapping[str, str], found: Mapping[str, Tensor]) -> None:
    """Check that a file holds what its index says."""
    missing = [name for name, file in places.items() if file == shard.name and name not in found]
    if missing:
        raise CheckpointError(
            f"{shard} does not hold {printable(missing[0])}, as {index.name} says"
            f" ({len(missing)} missing): the files do not belong together"
        )
