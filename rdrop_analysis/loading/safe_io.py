"""Read files of tensors without running code from them.

Checkpoints and data sets come from strangers: every read here is `torch.load(weights_only=True)` or
safetensors, with no fallback, and what a file declares is compared with the file before memory is taken.
"""

from __future__ import annotations

import io
import stat
import tarfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from rdrop_analysis.errors import RDropAnalysisError, UnsafeFileError
from rdrop_analysis.files import printable
from rdrop_analysis.loading.archives import SAVE_STATE_DICT, pickle_in
from rdrop_analysis.loading.pickles import Scan, scan
from rdrop_analysis.loading.plain_values import DAMAGED

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_LEGACY_PICKLES = 5  # magic number, protocol, machine, object, storage keys; then raw bytes
_TAR_PICKLES = ("storages", "tensors", "pickle")
_LARGEST_HEADER = 16 * 2**20  # of safetensors, in bytes; a tensor takes about 100


def read_tensors(path: Path, error: type[RDropAnalysisError]) -> object:
    """Return what a `.pt`, `.pth`, `.bin`, `.ckpt` or `.safetensors` file holds, with tensors on the CPU.

    Raises `UnsafeFileError` if reading would need code (pickled modules, TorchScript), and `error` if there
    is no such file or it is empty, damaged, of another kind, or declares more bytes than it has.
    """
    head = first_bytes(path, error)
    if _is_safetensors(head):
        return _read_safetensors(path, error)
    _check(path, _scans(path, head, error), error)
    if head.startswith((_ZIP_MAGIC, _PICKLE_MAGIC)):
        return _torch_load(path, error)
    if tarfile.is_tarfile(path):
        raise error(f"{path} is in the tar format of 2016, which is no longer read: save it again with torch.save")
    raise error(f"{path} is neither a PyTorch nor a safetensors file{_resembles(head)}")


def needed_code(path: Path, error: type[RDropAnalysisError]) -> list[str]:
    """Return the names that reading a file would import beyond those of plain tensors: none in a file that is safe.

    Raises `UnsafeFileError` for programs, and `error` for what cannot be looked over.
    """
    head = first_bytes(path, error)
    return [] if _is_safetensors(head) else _imports(_scans(path, head, error))


def _is_safetensors(head: bytes) -> bool:
    """Whether there is JSON after the length of the header, 8 bytes."""
    return head[8:9] == b"{" and not head.startswith(_ZIP_MAGIC)


def _scans(path: Path, head: bytes, error: type[RDropAnalysisError]) -> list[Scan]:
    """Look over all pickles in a file."""
    if head.startswith(_ZIP_MAGIC):
        return [scan(io.BytesIO(pickle_in(path, error)), path.stat().st_size)]
    if head.startswith(_PICKLE_MAGIC):
        return _legacy_scans(path, error)
    return _text_scans(path) + (_tar_scans(path) if tarfile.is_tarfile(path) else [])


def _imports(scans: Iterable[Scan]) -> list[str]:
    return list(dict.fromkeys(name for found in scans for name in found.imports))


def first_bytes(path: Path, error: type[RDropAnalysisError]) -> bytes:
    """Return the first bytes of a file that exists and is not empty."""
    if path.is_dir():
        raise error(f"{path} is a directory: name the file in it")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device may never end
            raise error(f"{path} is not a regular file: name one")
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
    return error(f"{path} {DAMAGED}")


def _check(path: Path, scans: list[Scan], error: type[RDropAnalysisError]) -> None:
    """Refuse a file whose pickles import what plain tensors do not need, or else have a problem."""
    imports = _imports(scans)
    if imports:
        raise UnsafeFileError(f"{needs(path, imports)}: {SAVE_STATE_DICT}")
    for problem in (found.problem for found in scans if found.problem):
        raise error(f"{path} {problem}")


def needs(path: Path, imports: Sequence[str]) -> str:
    """Say that reading a file would import these names."""
    shown = ", ".join(printable(name) for name in imports[:3]) + (", ..." if len(imports) > 3 else "")
    return f"{path} needs {shown} to be read, which would run code"


def _legacy_scans(path: Path, error: type[RDropAnalysisError]) -> list[Scan]:
    """Look over the pickles in a row that torch.save wrote before it wrote archives."""
    scans: list[Scan] = []
    with path.open("rb") as file:
        while len(scans) < _LEGACY_PICKLES and all(found.complete for found in scans):
            scans.append(scan(file, path.stat().st_size))
    if len(scans) == 2 and not (scans[0].imports or scans[1].complete):
        raise error(f"{path} is a bare pickle, not a file of torch.save: save model.state_dict() with torch.save")
    return scans


def _text_scans(path: Path) -> list[Scan]:
    """Look over a file as a pickle of the oldest protocols, which have no mark to know them by."""
    with path.open("rb") as file:
        found = scan(file, path.stat().st_size)
    return [Scan(found.imports)] if found.complete else []


def _tar_scans(path: Path) -> list[Scan]:
    """Look over what torch.save wrote before 2017, for the names in it."""
    scans: list[Scan] = []
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name in _TAR_PICKLES else None
            if file is not None:
                scans.append(Scan(scan(io.BytesIO(file.read()), path.stat().st_size).imports))
    return scans


def _torch_load(path: Path, error: type[RDropAnalysisError]) -> object:
    """Call `torch.load(weights_only=True)` quietly."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols it then refuses anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as problem:
        # torch.load raises whatever damaged bytes lead to: KeyError, IndexError, EOFError, RuntimeError, ...
        raise _damaged(path, error) from problem


def _read_safetensors(path: Path, error: type[RDropAnalysisError]) -> dict[str, torch.Tensor]:
    """Read a safetensors file, whose declared offsets the library compares with the file before reading."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > path.stat().st_size:
        raise _damaged(path, error)
    if length > _LARGEST_HEADER:
        raise error(f"{path} has a header of {length / 2**20:,.0f} MiB, the limit is {_LARGEST_HEADER // 2**20}")
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except Exception as problem:  # the library raises ValueError, KeyError, ... beside its own errors
        raise error(f"{path} is damaged ({printable(problem)}): copy or save it again") from problem
