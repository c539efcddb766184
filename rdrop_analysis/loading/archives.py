"""Look over the zip archives that torch.save writes, before torch reads them.

torch trusts the directory of an archive and ignores passwords, checksums and the headers of entries; other
programs do not, and a file made to look different to each gets past whoever checks it. So an archive is read
only if it is laid out as torch.save does it and Python's reader agrees with torch's.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path

import torch

from rdrop_analysis.errors import RDropAnalysisError, UnsafeFileError
from rdrop_analysis.files import printable
from rdrop_analysis.loading.plain_values import DAMAGED

SAVE_STATE_DICT = "save model.state_dict() instead, and name the model with --model pkg.mod:callable"
TORCH_SCRIPT = "TorchScript archive"
EXPORTED = "torch.export program"

_MARKS = {
    "constants.pkl": TORCH_SCRIPT,
    "models/model.json": EXPORTED,
    "serialized_exported_program.json": EXPORTED,
    "archive_format": EXPORTED,
}
_ENCRYPTED = 1
_LARGEST_PICKLE = 256 * 2**20


def kind_of_program(path: Path) -> str | None:
    """Return which kind of program an archive is, `TORCH_SCRIPT` or `EXPORTED`; None for all other files."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _kind({name.partition("/")[2] for name in archive.namelist()})
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None


def _kind(inside: Collection[str]) -> str | None:
    return next((kind for mark, kind in _MARKS.items() if mark in inside), None)


def pickle_in(path: Path, error: type[RDropAnalysisError]) -> bytes:
    """Return the pickle of an archive that torch.save wrote, in the bytes that torch will see.

    Raises `UnsafeFileError` for programs, and `error` for every other archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            _check_kind(path, entries, error)
            _check_layout(path, archive, error)
            _check_content(path, archive, error)
        return _as_torch_sees_it(path, entries, error)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError, EOFError) as problem:
        raise error(f"{path} {DAMAGED}") from problem


def _check_kind(path: Path, inside: dict[str, zipfile.ZipInfo], error: type[RDropAnalysisError]) -> None:
    """Refuse archives of other kinds, with what to do about each."""
    kind = _kind(inside)
    if kind == TORCH_SCRIPT:
        raise UnsafeFileError(f"{path} is a {kind}, which holds code: {SAVE_STATE_DICT}")
    if kind == EXPORTED:
        raise UnsafeFileError(
            f"{path} is a {kind}, which holds code (one exported in train mode can be measured): {SAVE_STATE_DICT}"
        )
    if "data.pkl" not in inside:
        raise error(f"{path} is a zip archive, but not one that torch.save wrote")


def _check_layout(path: Path, archive: zipfile.ZipFile, error: type[RDropAnalysisError]) -> None:
    """Refuse entries that torch.save never writes: it stores all of them as they are, once, in one directory."""
    entries = archive.infolist()
    size = path.stat().st_size
    if any(entry.flag_bits & _ENCRYPTED for entry in entries):
        raise error(f"{path} is protected with a password: save it again with torch.save")
    if sum(entry.file_size for entry in entries) > size:
        raise error(f"{path} declares more bytes than it has: save it again with torch.save")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise error(f"{path} has been compressed after torch.save: save it again")
    if min(entry.header_offset for entry in entries) != 0:
        raise error(f"{path} has something else in front of its archive: save it again with torch.save")
    _check_names(path, [entry.filename for entry in entries], error)


def _check_names(path: Path, names: list[str], error: type[RDropAnalysisError]) -> None:
    """Refuse names that lead out of the archive, and those that two readers may understand differently."""
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise error(f"{path} has an entry {printable(name)}, which torch.save never writes: save it again")
    if len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
        raise error(f"{path} has entries of one name or in several directories, which torch.save never writes")


def _check_content(path: Path, archive: zipfile.ZipFile, error: type[RDropAnalysisError]) -> None:
    """Compare the checksums; `torch.serialization.set_crc32_options(False)` leaves them all out."""
    if not any(entry.CRC for entry in archive.infolist()):
        return
    bad = archive.testzip()
    if bad is not None:
        raise error(f"{path} is damaged: the checksum of {printable(bad)} is wrong; copy or save it again")


def _as_torch_sees_it(path: Path, entries: dict[str, zipfile.ZipInfo], error: type[RDropAnalysisError]) -> bytes:
    """Return the pickle that torch's reader finds, which must have the same directory before it."""
    if entries["data.pkl"].file_size > _LARGEST_PICKLE:
        raise error(f"{path} holds too many pickled values: save model.state_dict() alone")
    reader = torch._C.PyTorchFileReader(str(path))
    pickled = reader.get_record("data.pkl") if set(reader.get_all_records()) == entries.keys() else b""
    if len(pickled) != entries["data.pkl"].file_size:
        raise error(f"{path} {DAMAGED}")
    return bytes(pickled)
