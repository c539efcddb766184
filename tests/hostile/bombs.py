"""Small files that ask for much: memory, time, or depth. Each is to be refused before it gets any."""

import json
import pickle
import struct
from collections.abc import Callable
from typing import Any

from containers import in_legacy, in_zip, zipped
from pickle_assembler import Call, Name, program, push

HUGE = 10**12


def call(path: str, *arguments: Any) -> bytes:
    return push(Call(Name(path), arguments), 2)


def storage(length: int, key: str = "0") -> bytes:
    reference = push(("storage", Name("torch.FloatStorage"), key, "cpu", length), 2)
    return reference + pickle.BINPERSID


def legacy_storage(length: int, key: str = "0") -> bytes:
    reference = push(("storage", Name("torch.FloatStorage"), key, "cpu", length, None), 2)
    return reference + pickle.BINPERSID


def tensor(stored: bytes, *rest: Any, function: str = "_rebuild_tensor_v2") -> bytes:
    arguments = pickle.MARK + stored + b"".join(push(item, 2) for item in rest) + pickle.TUPLE
    return push(Name(f"torch._utils.{function}"), 2) + arguments + pickle.REDUCE


def in_dict(value: bytes) -> bytes:
    return pickle.EMPTY_DICT + push("weight", 2) + value + pickle.SETITEM


def doubled(start: bytes, join: bytes, times: int = 60) -> bytes:
    """A thing that holds itself twice, `times` over, by way of the memo."""
    return start + b"".join(pickle.BINPUT + b"\x01" + pickle.BINGET + b"\x01" + join for _ in range(times))


NESTED = doubled(push("x", 2), pickle.TUPLE2)
LAUGHS = pickle.EMPTY_LIST + b"".join(
    pickle.BINPUT + bytes([i]) + pickle.POP + pickle.EMPTY_LIST + (pickle.BINGET + bytes([i]) + pickle.APPEND) * 10
    for i in range(40)
)
BODIES: dict[str, bytes] = {
    "a key that takes for ever to hash": pickle.EMPTY_DICT + NESTED + pickle.NONE + pickle.SETITEM,
    "keys that take for ever to hash": pickle.EMPTY_DICT + pickle.MARK + NESTED + pickle.NONE + pickle.SETITEMS,
    "a set that takes for ever to hash": push(Name("builtins.set"), 2) + pickle.EMPTY_LIST + NESTED + pickle.APPEND
    + pickle.TUPLE1 + pickle.REDUCE,
    "a counter that takes for ever to hash": push(Name("collections.Counter"), 2) + pickle.EMPTY_LIST + NESTED
    + pickle.APPEND + pickle.TUPLE1 + pickle.REDUCE,
    "an OrderedDict that takes for ever to hash": push(Name("collections.OrderedDict"), 2) + pickle.EMPTY_LIST + NESTED
    + pickle.NONE + pickle.TUPLE2 + pickle.APPEND + pickle.TUPLE1 + pickle.REDUCE,
    "lists of lists": in_dict(LAUGHS),
    "tuples of tuples": in_dict(NESTED),
    "a deep list": in_dict(pickle.EMPTY_LIST * 100_000 + pickle.APPEND * 99_999),
    "a deep tuple": in_dict(pickle.NONE + pickle.TUPLE1 * 300_000),
    "a list that contains itself": in_dict(
        pickle.EMPTY_LIST + pickle.BINPUT + b"\x01" + pickle.BINGET + b"\x01" + pickle.APPEND),
    "a memo of 2**31 places": in_dict(pickle.NONE + pickle.LONG_BINPUT + struct.pack("<I", 2**31 - 1)),
    "an integer of 2 GB": in_dict(pickle.LONG4 + struct.pack("<i", 2**31 - 1)),
    "an integer of a million digits": in_dict(pickle.LONG + b"9" * 10**6 + b"L\n"),
    "text of 40 GB": in_dict(pickle.BINUNICODE8 + struct.pack("<Q", 40 * 10**9)),
    "text of 4 GB": in_dict(pickle.BINUNICODE + struct.pack("<I", 2**32 - 1)),
    "bytes of 40 GB": in_dict(pickle.BINBYTES8 + struct.pack("<Q", 40 * 10**9)),
    "a bytearray of 40 GB": in_dict(pickle.BYTEARRAY8 + struct.pack("<Q", 40 * 10**9)),
    "a frame of 2**63": pickle.FRAME + struct.pack("<Q", 2**63) + in_dict(pickle.NONE),
    "a buffer from elsewhere": in_dict(pickle.NEXT_BUFFER),
    "a call for 100 GB": in_dict(call("builtins.bytearray", 10**11)),
    "a call for 100 GB by Python 2": in_dict(call("__builtin__.bytearray", 10**11)),
    "a call for a tensor": in_dict(call("torch.Tensor", 10**6, 10**6)),
    "a call for a storage": in_dict(call("torch.FloatStorage", HUGE)),
    "a call for an untyped storage": in_dict(call("torch.storage.UntypedStorage", HUGE)),
    "an object out of a class": in_dict(push(Name("torch.Tensor"), 2) + push((HUGE,), 2) + pickle.NEWOBJ),
    "slow text": in_dict(call("_codecs.encode", "\u0100a" * 200_000, "punycode")),
    "a sparse tensor": in_dict(call("torch._utils._rebuild_sparse_tensor", None, (None, None, (HUGE, HUGE)))),
    "a tensor without values": in_dict(
        call("torch._utils._rebuild_meta_tensor_no_storage", Name("torch.float32"), (2, 3), (3, 1), False)),
    "a nested tensor": in_dict(call("torch._utils._rebuild_nested_tensor", None, None, None, None)),
    "a subclass of tensors": in_dict(
        call("torch._utils._rebuild_wrapper_subclass", Name("torch.Tensor"), None, (HUGE,))),
    "a view of 4 TB": in_dict(tensor(storage(6), 0, (HUGE,), (0,), False, {})),
    "a view of many dimensions": in_dict(tensor(storage(6), 0, (2,) * 10_000, (0,) * 10_000, False, {})),
    "a view of astronomical size": in_dict(tensor(storage(6), 0, (2**600,) * 60, (0,) * 60, False, {})),
    "a view out of the storage": in_dict(tensor(storage(6), 10**9, (2, 3), (3, 1), False, {})),
    "a view before the storage": in_dict(tensor(storage(6), -10**9, (2, 3), (3, 1), False, {})),
    "a negative size": in_dict(tensor(storage(6), 0, (-2, -3), (3, 1), False, {})),
    "a storage of 4 TB": in_dict(tensor(storage(HUGE), 0, (2, 3), (3, 1), False, {})),
    "a storage of 4 TB of the old format": in_dict(tensor(legacy_storage(HUGE), 0, (2, 3), (3, 1), False, {})),
    "storages that are too much together": in_dict(
        pickle.MARK + b"".join(legacy_storage(10**5, str(i)) for i in range(20_000)) + pickle.LIST),
    "a storage of negative length": in_dict(tensor(storage(-1), 0, (2, 3), (3, 1), False, {})),
    "a storage whose key is a puzzle": pickle.EMPTY_DICT + push("w", 2) + pickle.MARK + push("storage", 2)
    + push(Name("torch.FloatStorage"), 2) + NESTED + push("cpu", 2) + push(1, 2) + pickle.TUPLE + pickle.BINPERSID
    + pickle.SETITEM,
    "a quantised tensor": in_dict(
        tensor(storage(6), 0, (HUGE,), (1,), (None, 1, 0), False, {}, function="_rebuild_qtensor")),
    "three million values": in_dict(pickle.MARK + pickle.NONE * 3_000_000 + pickle.LIST),
    "three million references": in_dict(pickle.EMPTY_LIST + pickle.BINPUT + b"\x01" + pickle.MARK
    + (pickle.BINGET + b"\x01") * 3_000_000 + pickle.APPENDS),
    "three million marks": pickle.MARK * 3_000_000,
    "three million dictionaries": in_dict(pickle.MARK + pickle.EMPTY_DICT * 3_000_000 + pickle.TUPLE),
    "a method in place of get": push(Call(Name("collections.OrderedDict")), 2) + push({"get": 5, "items": 5}, 2)
    + pickle.BUILD + push("weight", 2) + pickle.NONE + pickle.SETITEM,
    "an attribute in place of detach": in_dict(push(Name("torch._tensor._rebuild_from_type_v2"), 2) + pickle.MARK
    + push(Name("torch._utils._rebuild_tensor_v2"), 2) + push(Name("torch.Tensor"), 2)
    + pickle.MARK + storage(6) + push((0, (2, 3), (3, 1), False, {}), 2)[1:-1] + pickle.TUPLE
    + push({"detach": 5, "shape": 7}, 2) + pickle.TUPLE + pickle.REDUCE),
    "a description of lists of lists": pickle.EMPTY_DICT + pickle.MARK
    + b"".join(push(key, 2) + push(value, 2) for key, value in (
        ("format", "rdrop-analysis/checkpoint"), ("version", 1), ("architecture", "mlp"), ("state_dict", {}),
        ("training", {}), ("data", None))) + push("arguments", 2) + pickle.EMPTY_DICT + push("hidden", 2) + LAUGHS
    + pickle.SETITEM + pickle.SETITEMS,
}  # fmt: skip


def safetensors(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    encoded = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def entry(shape: list[int], begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def many_entries(count: int) -> str:
    return "{" + ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(count)) + "}"


HEADERS: dict[str, Callable[[], bytes]] = {
    "40 GB": lambda: safetensors(json.dumps({"w": entry([10**10], 0, 4 * 10**10)}), bytes(16)),
    "40 GB in 16 bytes": lambda: safetensors(json.dumps({"w": entry([10**10], 0, 16)}), bytes(16)),
    "a shape that overflows": lambda: safetensors(json.dumps({"w": entry([2**63, 2**63], 0, 16)}), bytes(16)),
    "a negative shape": lambda: safetensors(json.dumps({"w": entry([-1], 0, 4)}), bytes(4)),
    "overlapping tensors": lambda: safetensors(
        json.dumps({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}), bytes(24)),
    "the same bytes twice": lambda: safetensors(
        json.dumps({str(i): entry([4], 0, 16) for i in range(1000)}), bytes(16)),
    "a hole": lambda: safetensors(json.dumps({"a": entry([1], 0, 4), "b": entry([1], 12, 16)}), bytes(16)),
    "backward offsets": lambda: safetensors(json.dumps({"a": entry([4], 16, 0)}), bytes(16)),
    "a header of 2**63": lambda: safetensors(b'{"a', length=2**63),
    "a header of 2**64 - 1": lambda: safetensors(b'{"a', length=2**64 - 1),
    "a header past the end": lambda: safetensors(b'{"a', length=100),
    "a header of nothing": lambda: safetensors(b"{", length=0),
    "10 million entries": lambda: safetensors(b'{"a":', length=600_000_000),
    "700 thousand entries": lambda: safetensors(many_entries(700_000)),
    "200 thousand entries": lambda: safetensors(many_entries(200_000), b"\0"),
    "deep JSON": lambda: safetensors('{"a":' + "[" * 10**6 + "]" * 10**6 + "}"),
    "a deep dictionary": lambda: safetensors('{"a":' * 10**5 + "1" + "}" * 10**5),
    "a number of a million digits": lambda: safetensors('{"w":{"dtype":"F32","shape":[' + "9" * 10**6 + "]}}"),
    "text that is not UTF-8": lambda: safetensors(b'{"\xff\xfe": 1}'),
    "an unknown type": lambda: safetensors(json.dumps({"w": entry([1], 0, 4, "OBJECT")}), bytes(4)),
    "a list": lambda: safetensors('{"a": [1, 2, 3]}'),
    "strange metadata": lambda: safetensors('{"__metadata__": {"a": {"b": 1}}}'),
    "a name of control characters": lambda: safetensors('{"\\u001b[31m": 5}'),
}  # fmt: skip


def npy(shape: str, kind: str = "'<f4'", data: bytes = bytes(16)) -> bytes:
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x02\0" + struct.pack("<I", len(header)) + header + data


ARRAYS: dict[str, Callable[[], bytes]] = {
    "an array of 40 GB": lambda: zipped({"inputs.npy": npy("(10000000000,)")}),
    "an array that overflows": lambda: zipped({"inputs.npy": npy(f"({2**63}, {2**63})")}),
    "an array of a negative shape": lambda: zipped({"inputs.npy": npy("(-1,)")}),
    "an array of objects": lambda: zipped({"inputs.npy": npy("(1,)", "'|O'")}),
    "an array of a code shape": lambda: zipped({"inputs.npy": npy("__import__('os')")}),
    "an array of a deep shape": lambda: zipped({"inputs.npy": npy("(" * 9000 + ")" * 9000)}),
    "an array with a header of 4 GB": lambda: zipped({"inputs.npy": b"\x93NUMPY\x02\0\xff\xff\xff\xff"}),
    "an array of version 9": lambda: zipped({"inputs.npy": b"\x93NUMPY\x09\0\xff\xff"}),
}


def write_all() -> dict[str, bytes]:
    """Return all bombs, each under the name of a file to write."""
    made = {}
    for name, body in BODIES.items():
        made[f"{name}.zip.pt"] = in_zip(program(body, 2))
        if len(body) < 10**6:  # the larger ones take as long in either
            made[f"{name}.old.pt"] = in_legacy(program(body, 2))
    made |= {f"{name}.safetensors": make() for name, make in HEADERS.items()}
    return made | {f"{name}.npz": make() for name, make in ARRAYS.items()}
