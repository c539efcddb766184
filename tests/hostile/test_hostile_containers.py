"""A file that is damaged, or made to look different to each of its readers, is refused and nothing else happens."""

import contextlib
import io
import os
import random
import socket
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from containers import entries, honest, in_tar, in_zip, saved, written, zipped
from payloads import payloads
from pickle_assembler import by_reduce, program, push
from torch import nn

from rdrop_analysis.checkpoints import load_checkpoint
from rdrop_analysis.errors import CheckpointError, RDropAnalysisError, UnsafeFileError

FORMATS: dict[str, Callable[[], bytes]] = {
    "zip": lambda: saved(honest()),
    "legacy": lambda: saved(honest(), legacy=True),
    "safetensors": lambda: safetensors.torch.save(honest()),
}
EVIL = program(by_reduce(payloads("/nowhere/canary")["os.system"], 2), 2)


def net() -> nn.Module:
    return nn.Linear(3, 2)


def unreadable(path: Path) -> str:
    """Load a file that must be refused with exit 4, and return the message, one line."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, net)
    message = str(caught.value)
    assert message.startswith((str(path), f"cannot read {path}"))
    assert message.isprintable()
    return message


def survives(path: Path) -> bool:
    """Whether a file is read; where it is not the error must be ours."""
    with contextlib.suppress(RDropAnalysisError):
        load_checkpoint(path, net)
        return True
    return False


@pytest.mark.parametrize("kind", FORMATS)
def test_the_honest_files_are_read(tmp_path: Path, kind: str) -> None:
    loaded = load_checkpoint(written(tmp_path / "m.pt", FORMATS[kind]()), net).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in honest().items())


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_short_anywhere_is_unreadable(tmp_path: Path, kind: str) -> None:
    content = FORMATS[kind]()
    for length in np.linspace(0, len(content) - 1, 64, dtype=int):
        unreadable(written(tmp_path / "m.pt", content[:length]))


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_bytes_never_end_in_a_traceback(tmp_path: Path, kind: str) -> None:
    rng, content = random.Random(0), FORMATS[kind]()  # noqa: S311 - which bytes are damaged is no secret
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 4, 16])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        survives(written(tmp_path / "m.pt", bytes(damaged)))


def test_a_damaged_weight_in_an_archive_is_noticed(tmp_path: Path) -> None:
    content = saved(honest())
    at = content.index(struct.pack("<f", 5.0))
    message = unreadable(written(tmp_path / "m.pt", content[:at] + b"\xff" + content[at + 1 :]))
    assert "the checksum of archive/data/0 is wrong" in message


def test_an_archive_without_checksums_is_read_as_torch_does(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        content = saved(honest())
    finally:
        torch.serialization.set_crc32_options(True)
    assert survives(written(tmp_path / "m.pt", content))
    files = {"archive/data.pkl": EVIL}
    evil = rewritten(zipped(entries(saved(honest())) | files), central=lambda header: header.update(crc=0))
    with pytest.raises(UnsafeFileError, match=r"os\.system"):
        load_checkpoint(written(tmp_path / "m.pt", evil), net)


def rewritten(archive: bytes, *, central: Callable[[dict[str, int]], object]) -> bytes:
    """The archive with the fields of its central directory changed, and no local header."""
    content = bytearray(archive)
    at = content.index(b"PK\x01\x02")
    while content[at : at + 4] == b"PK\x01\x02":
        fields = dict(
            zip(
                ("flags", "method", "time", "crc", "packed", "size"),
                struct.unpack_from("<HHIIII", content, at + 8),
                strict=True,
            )
        )
        central(fields)
        struct.pack_into("<HHIIII", content, at + 8, *fields.values())
        lengths = struct.unpack_from("<HHH", content, at + 28)
        at += 46 + sum(lengths)
    return bytes(content)


def renamed(archive: bytes, old: str, new: str, *, which: int) -> bytes:
    """The archive with one of the two places of an entry's name changed: 0 before the entry, 1 in the directory."""
    assert len(old) == len(new)
    header = [b"PK\x03\x04", b"PK\x01\x02"][which]
    at = archive.index(header)
    while not archive[at + (30 if which == 0 else 46) :].startswith(old.encode()):
        at = archive.index(header, at + 1)
    at = archive.index(old.encode(), at)
    return archive[:at] + new.encode() + archive[at + len(old) :]


def many_with_one_name(files: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files:
            archive.NameToInfo.pop(name, None)  # or it warns of a name that is there already
            archive.writestr(name, content)
    return buffer.getvalue()


def with_zip64(archive: bytes, offset: int) -> bytes:
    """The archive with a 64-bit end that says the directory is elsewhere."""
    end = archive.rindex(b"PK\x05\x06")
    (count,) = struct.unpack_from("<H", archive, end + 10)
    (size,) = struct.unpack_from("<I", archive, end + 12)
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
    return archive[:end] + record + locator + archive[end : end + 10] + b"\xff\xff\xff\xff" + b"\xff" * 8 + b"\0\0"


HONEST = entries(saved(honest()))
INFECTED = in_zip(EVIL)
LIES: dict[str, tuple[bytes, str]] = {
    "password": (rewritten(saved(honest()), central=lambda f: f.update(flags=f["flags"] | 1)), "password"),
    "password over evil": (rewritten(INFECTED, central=lambda f: f.update(flags=f["flags"] | 1)), "password"),
    "checksum": (rewritten(saved(honest()), central=lambda f: f.update(crc=f["crc"] ^ 1)), "checksum"),
    "checksum of evil": (rewritten(INFECTED, central=lambda f: f.update(crc=f["crc"] ^ 1)), "checksum"),
    "a size of 4 GB": (rewritten(saved(honest()), central=lambda f: f.update(size=4_000_000_000)), "more bytes than"),
    "a packed size of 4 GB": (rewritten(saved(honest()), central=lambda f: f.update(packed=2**32 - 2)), "damaged"),
    "an unknown method": (rewritten(saved(honest()), central=lambda f: f.update(method=99)), "compressed"),
    "a name that differs before the entry": (
        renamed(INFECTED, "archive/data.pkl", "archive/good.txt", which=0), "damaged"),
    "a name that differs in the directory": (
        renamed(in_zip(EVIL), "archive/data.pkl", "archive/good.txt", which=1), "not one that torch.save wrote"),
    "compressed": (zipped(HONEST, zipfile.ZIP_DEFLATED), "compressed"),
    "a bomb": (zipped(HONEST | {"archive/data/0": bytes(20_000_000)}, zipfile.ZIP_DEFLATED), "more bytes than"),
    "a bomb in its pickle": (zipped(HONEST | {"archive/data.pkl": bytes(20_000_000)}, zipfile.ZIP_LZMA), "more bytes"),
    "a path out of it": (zipped(HONEST | {"archive/../../../tmp/canary": b"x"}), "../../../tmp/canary"),
    "an absolute path": (zipped(HONEST | {"/etc/canary": b"x"}), "/etc/canary"),
    "a path of Windows": (zipped(HONEST | {"archive/..\\..\\canary": b"x"}), "canary"),
    "a control character in a name": (zipped(HONEST | {"archive/..\\\x1b[31m": b"x"}), r"\x1b[31m"),
    "two directories": (zipped(HONEST | {"evil/data.pkl": EVIL}), "in several directories"),
    "two pickles of one name": (many_with_one_name([*HONEST.items(), ("archive/data.pkl", EVIL)]), "of one name"),
    "an honest pickle behind": (many_with_one_name([("archive/data.pkl", EVIL), *HONEST.items()]), "of one name"),
    "two archives": (INFECTED + saved(honest()), "in front of"),
    "two archives, evil last": (saved(honest()) + INFECTED, "in front of"),
    "a tar in front": (b"PK\x03\x04" + in_tar(EVIL) + saved(honest()), "in front of"),
    "a directory elsewhere": (with_zip64(saved(honest()), 0), "damaged"),
    "a directory out of the file": (with_zip64(saved(honest()), 2**63), "damaged"),
    "no directory": (saved(honest())[:200] + bytes(100), "damaged"),
    "no entries": (b"PK\x03\x04" + zipped({}), "not one that torch.save wrote"),
    "another archive": (zipped({"a/b.txt": b"x"}), "not one that torch.save wrote"),
    "arrays": (zipped({"x.npy": b"\x93NUMPY"}), "not one that torch.save wrote"),
    "a size that is no number": (zipped(HONEST | {"archive/.storage_alignment": b"x"}), "damaged"),
    "an unknown byte order": (zipped(HONEST | {"archive/byteorder": b"middle"}), "damaged"),
    "no storages": (zipped({"archive/data.pkl": HONEST["archive/data.pkl"]}), "damaged"),
    "a bare pickle of data": (program(push({"a": 1}, 2), 2), "bare pickle"),
    "the tar of 2016": (in_tar(program(push({"a": 1}, 2), 2)), "tar format of 2016"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(64), "neither"),
    "a program": (b"\x7fELF" + bytes(64), "neither"),
    "a script": (b"#!/bin/sh\ntouch canary\n", "looks like text"),
    "a page": (b"<script>alert(1)</script>", "looks like text"),
    "JSON": (b'{"weight": [1, 2]}', "looks like JSON"),
    "an array": (b"\x93NUMPY\x01\0" + bytes(64), "neither"),
    "compressed by gzip": (b"\x1f\x8b\x08" + bytes(64), "neither"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_a_container_that_lies_is_unreadable_and_says_why(tmp_path: Path, lie: str, name: str) -> None:
    content, reason = LIES[lie]
    message = unreadable(written(tmp_path / name, content))
    assert reason in message
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_evil_behind_an_older_pickle_is_not_what_is_read(tmp_path: Path) -> None:
    """The zip at the end of such a file is not looked at by torch, so it must not be what is checked."""
    infected = saved(honest(), legacy=True) + INFECTED
    assert survives(written(tmp_path / "m.pt", infected))
    with pytest.raises(UnsafeFileError, match=r"posix\.system|os\.system"):
        load_checkpoint(written(tmp_path / "m.pt", EVIL + saved(honest())), net)


@pytest.mark.parametrize("garbage", [b"\0", b"garbage" * 10, bytes(70_000), b"PK\x05\x06" + bytes(18)])
@pytest.mark.parametrize("kind", FORMATS)
def test_appended_bytes_are_harmless_or_refused(tmp_path: Path, kind: str, garbage: bytes) -> None:
    survives(written(tmp_path / "m.pt", FORMATS[kind]() + garbage))
    if kind != "zip":
        return
    with pytest.raises(RDropAnalysisError):
        load_checkpoint(written(tmp_path / "m.pt", INFECTED + garbage), net)


@pytest.mark.parametrize("name", ["m.safetensors", "m.npz", "m.txt", "m", "m.PT", "m.zip", "m.json"])
@pytest.mark.parametrize("kind", FORMATS)
def test_the_name_of_a_file_says_nothing_of_its_format(tmp_path: Path, kind: str, name: str) -> None:
    assert survives(written(tmp_path / name, FORMATS[kind]()))
    with pytest.raises(UnsafeFileError):
        load_checkpoint(written(tmp_path / name, INFECTED), net)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    (tmp_path / "random.pt").symlink_to("/dev/urandom")
    (tmp_path / "terminal.pt").symlink_to("/dev/tty")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.pt"))
        for name in ("pipe.pt", "zero.pt", "random.pt", "terminal.pt", "socket.pt"):
            assert "is not a regular file" in unreadable(tmp_path / name)


def test_links_lead_somewhere_or_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    (tmp_path / "nothing.pt").symlink_to(tmp_path / "gone.pt")
    (tmp_path / "good.pt").symlink_to(written(tmp_path / "m.pt", saved(honest())))
    assert "Too many levels of symbolic links" in unreadable(tmp_path / "loop.pt")
    assert "there is no such file" in unreadable(tmp_path / "nothing.pt")
    assert survives(tmp_path / "good.pt")


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "m.pt", saved(honest()))

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")  # a superuser may read all, so the mode would not do

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in unreadable(path)
