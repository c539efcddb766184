"""What lies at the path that a user names: one file, an index of shards, or a directory of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from rdrop_analysis.errors import CheckpointError, UnsafeFileError
from rdrop_analysis.files import check_name, printable, sha256_of
from rdrop_analysis.loading.json_files import read_json
from rdrop_analysis.loading.safe_io import read_tensors
from rdrop_analysis.loading.sharded import INDEX_SUFFIX, read_shards

CONFIG = "config.json"
USUAL_NAMES = (
    "model.safetensors",
    f"model.safetensors{INDEX_SUFFIX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX_SUFFIX}",
)
"""What weights in a directory are called, in the order in which they are preferred."""

_OF_MODELS = frozenset({"architectures", "model_type"})
SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt"})
_FOREIGN = ("tf_model.h5", "flax_model.msgpack", "model.onnx")
_NOT_WEIGHTS = frozenset({"training_args", "optimizer", "scheduler", "rng_state", "scaler", "adapter_model"})


@dataclass(frozen=True)
class Stored:
    """What was read.

    Attributes:
        path: what the user named.
        content: what the file held, or the tensors of all shards together.
        files: everything that was read.
        config: the `config.json` of transformers beside the weights, if there is one.
    """

    path: Path
    content: object
    files: tuple[Path, ...]
    config: Path | None

    @property
    def n_shards(self) -> int:
        """How many files hold the weights."""
        return sum(not file.name.endswith(INDEX_SUFFIX) for file in self.files)


def read_stored(path: Path, *, trust_code: bool = False) -> Stored:
    """Read what lies at a path; only with `trust_code` is code in it run, where it is nothing without.

    Raises:
        CheckpointError: there is nothing that can be read.
        UnsafeFileError: reading it would run code.
    """
    check_name(path, CheckpointError)
    weights = find_weights(path) if path.is_dir() else path
    content, files = _read(weights, trust_code=trust_code)
    config = weights.with_name(CONFIG)
    return Stored(path, content, files, config if (path.is_dir() and config.is_file()) or _is_model(config) else None)


def find_weights(directory: Path) -> Path:
    """Return the file of weights in a directory, or their index.

    Raises:
        CheckpointError: there is none, or several to choose from.
    """
    for name in USUAL_NAMES:
        if (directory / name).is_file():
            return directory / name
    try:
        others = sorted(p for p in directory.iterdir() if p.suffix in SUFFIXES and p.stem not in _NOT_WEIGHTS)
    except OSError as problem:
        raise CheckpointError(f"cannot read {directory}: {problem.strerror or problem}") from problem
    if len(others) == 1 and others[0].is_file():
        return others[0]
    raise CheckpointError(f"{directory} is a directory {_what_is_wrong(directory, others)}")


def digest(files: tuple[Path, ...]) -> str:
    """Return the SHA-256 of a file, or of the names and hashes of several."""
    if len(files) == 1:
        return sha256_of(files[0])
    lines = "".join(f"{sha256_of(file)}  {file.name}\n" for file in sorted(files))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _is_model(config: Path) -> bool:
    """Whether a `config.json` that lies beside a file is one of transformers': other programs write them too."""
    try:
        return config.is_file() and not _OF_MODELS.isdisjoint(read_json(config))
    except CheckpointError:
        return False


def _read(weights: Path, *, trust_code: bool) -> tuple[object, tuple[Path, ...]]:
    if weights.name.endswith(INDEX_SUFFIX):
        tensors, shards = read_shards(weights)
        return tensors, (weights, *shards)
    if trust_code:
        from rdrop_analysis.loading.trusted import read_trusted

        return read_trusted(weights), (weights,)
    try:
        return read_tensors(weights, CheckpointError), (weights,)
    except UnsafeFileError as problem:
        raise UnsafeFileError(f"{problem}; --trust-code reads it, if it is your own") from problem


def _what_is_wrong(directory: Path, others: list[Path]) -> str:
    if others:
        names = ", ".join(printable(other.name, 40) for other in others[:3])
        return f"of several files: name one of {names}{', ...' if len(others) > 3 else ''}"
    if (directory / "adapter_config.json").is_file():
        return "with an adapter, not a model: merge it into its model and save that"
    if (directory / ".metadata").is_file():
        return "of a distributed checkpoint: write one file with torch.distributed.checkpoint.format_utils"
    foreign = next((name for name in _FOREIGN if (directory / name).is_file()), None)
    if foreign:
        return f"with weights of another framework ({foreign}): save them from PyTorch"
    return f"without weights: there is no {USUAL_NAMES[0]} and no {USUAL_NAMES[2]} in it"
