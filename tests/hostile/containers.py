"""Puts a pickle where torch would look for one: an archive, the older format, the oldest, or nothing around it."""

import functools
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch


def honest() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}


def saved(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def entries(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@functools.cache
def honest_entries() -> dict[str, bytes]:
    return entries(saved(honest()))


def in_zip(pickled: bytes) -> bytes:
    return zipped(honest_entries() | {"archive/data.pkl": pickled})


def in_legacy(pickled: bytes) -> bytes:
    header = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in header) + pickled + pickle.dumps([], 2)


def in_legacy_header(pickled: bytes) -> bytes:
    header = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION]
    return b"".join(pickle.dumps(part, 2) for part in header) + pickled + pickle.dumps({}, 2) + pickle.dumps([], 2)


def in_tar(pickled: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (("storages", pickle.dumps(0, 2)), ("tensors", pickle.dumps(0, 2)), ("pickle", pickled)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def bare(pickled: bytes) -> bytes:
    return pickled


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "zip": in_zip,
    "legacy": in_legacy,
    "legacy header": in_legacy_header,
    "tar": in_tar,
    "bare": bare,
}


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
