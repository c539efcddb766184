"""Read files of tensors without running code from them.

Checkpoints and data sets come from strangers: every read here is `torch.load(weights_only=True)` or
safetensors, with no fallback, and the sizes a file declares are compared with the file before memory is
taken.
"""

from __future__ import annotations

import contextlib
import io
import pickletools
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch

from rdrop_analysis.errors import RDropAnalysisError, UnsafeFileError
from rdrop_analysis.files import printable

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_TENSOR_MODULES = frozenset({"collections", "torch", "torch._utils"})
_LEGACY_PICKLES = 5  # magic number, protocol, machine, object, storage keys; then raw bytes


def read_tensors(path: Path, error: type[RDropAnalysisError]) -> object:
    """Return what a `.pt`, `.pth`, `.bin`, `.ckpt` or `.safetensors` file holds, with tensors on the CPU.

    Raises `UnsafeFileError` if reading would need code (pickled modules, TorchScript), and `error` if there
    is no such file or it is empty, damaged, of another kind, or declares more bytes than it has.
    """
    head = first_bytes(path, error)
    if head.startswith(_ZIP_MAGIC):
        _check_archive(path, error)
        return _torch_load(path, error)
    if head[8:9] == b"{":  # after the length of the header, 8 bytes, safetensors has JSON
        return _read_safetensors(path, error)
    if head.startswith(_PICKLE_MAGIC):  # torch compares the sizes in this older format itself
        return _torch_load(path, error)
    raise error(f"{path} is neither a PyTorch nor a safetensors file{_resembles(head)}")


def first_bytes(path: Path, error: type[RDropAnalysisError]) -> bytes:
    """Return the first bytes of a file that exists and is not empty."""
    if path.is_dir():
        raise error(f"{path} is a directory: name the file in it")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise error(f"{path}: there is no such file") from None
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror or problem}") from problem
    if not head:
        raise error(f"{path} is empty: copy or save it again")
    return head


def _resembles(head: bytes) -> str:
    """Say what a file looks like from its first bytes, for an error message."""
    if head.lstrip()[:1] in (b"{", b"["):
        return ": it looks like JSON, name the file with the weights or arrays"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return ": it looks like text"
    return ", or it is damaged"


def _damaged(path: Path, error: type[RDropAnalysisError]) -> RDropAnalysisError:
    """Return the error for a file whose bytes make no sense."""
    return error(f"{path} is truncated or damaged: copy or save it again")


def _check_archive(path: Path, error: type[RDropAnalysisError]) -> None:
    """Refuse a zip archive that is not one of plain tensors, or that unpacks to more bytes than it has."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as problem:
        raise _damaged(path, error) from problem
    inside = {entry.filename.partition("/")[2] for entry in entries}
    if "constants.pkl" in inside:
        raise UnsafeFileError(f"{path} is a TorchScript archive, which holds code: {_SAVE_STATE_DICT}")
    if {"models/model.json", "serialized_exported_program.json", "archive_format"} & inside:
        raise error(f"{path} is a torch.export file, fixed in the mode it was exported in: {_SAVE_STATE_DICT}")
    if "data.pkl" not in inside:
        raise error(f"{path} is a zip archive, but not one that torch.save wrote")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise error(f"{path} declares more bytes than it has: save it again with torch.save")


_SAVE_STATE_DICT = "save model.state_dict() instead, and name the model with --model pkg.mod:callable"


def _torch_load(path: Path, error: type[RDropAnalysisError]) -> object:
    """Call `torch.load(weights_only=True)` quietly and sort its failures."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols it then refuses anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as problem:
        # torch.load raises whatever damaged bytes lead to: KeyError, IndexError, EOFError, RuntimeError, ...
        names = _unsafe_globals(path)
        if names:
            needed = ", ".join(printable(name) for name in names[:3])
            message = f"{path} needs {needed} to be read, which would run code: {_SAVE_STATE_DICT}"
            raise UnsafeFileError(message) from problem
        raise _damaged(path, error) from problem


def _unsafe_globals(path: Path) -> list[str]:
    """Return the names a file's pickles would import beyond those of plain tensors, without running them."""
    with contextlib.suppress(Exception):  # a damaged file: the readers raise whatever its bytes lead to
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return _imported(file)
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("/data.pkl"):
                    return _imported(io.BytesIO(archive.read(name)))
    return []


def _imported(file: IO[bytes]) -> list[str]:
    """Return the names imported by the whole pickles at the start of a file, other than those of plain tensors."""
    names: list[str] = []
    with contextlib.suppress(Exception):  # pickletools raises whatever damaged bytes lead to; what was found stands
        for _ in range(_LEGACY_PICKLES):
            names += _imported_by(list(pickletools.genops(file)))
    return sorted({name for name in names if name.rpartition(".")[0] not in _TENSOR_MODULES})


def _imported_by(operations: list[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Iterator[str]:
    """Yield the dotted names that a pickle imports."""
    strings: list[str] = []
    for opcode, argument, _position in operations:
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)


def _read_safetensors(path: Path, error: type[RDropAnalysisError]) -> dict[str, torch.Tensor]:
    """Read a safetensors file, whose declared offsets the library compares with the file before reading."""
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, KeyError) as problem:
        raise _damaged(path, error) from problem
