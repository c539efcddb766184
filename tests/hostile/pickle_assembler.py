"""Writes pickles instruction by instruction, as an attacker does: no module that they name need exist."""

import pickle
import struct
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Name:
    """A thing to import, `module.attribute`, or `module:dotted.attribute`."""

    path: str

    @property
    def parts(self) -> tuple[str, str]:
        module, _, attribute = self.path.partition(":") if ":" in self.path else self.path.rpartition(".")
        return module, attribute

    @property
    def dotted(self) -> str:
        return ".".join(self.parts)


@dataclass(frozen=True)
class Call:
    """A thing to call, with arguments that may be calls themselves."""

    function: Any
    arguments: tuple[Any, ...] = ()


def text(value: str, protocol: int) -> bytes:
    encoded = value.encode("utf-8")
    if protocol == 0:
        return b"V" + value.encode("raw_unicode_escape") + b"\n"
    if protocol >= 4 and len(encoded) < 256:
        return pickle.SHORT_BINUNICODE + bytes([len(encoded)]) + encoded
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def imported(name: Name, protocol: int) -> bytes:
    module, attribute = name.parts
    if protocol >= 4:
        return text(module, protocol) + text(attribute, protocol) + pickle.STACK_GLOBAL
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def push(value: Any, protocol: int) -> bytes:
    """The instructions that put a value on the stack."""
    if isinstance(value, Call):
        return push(value.function, protocol) + push(value.arguments, protocol) + pickle.REDUCE
    if isinstance(value, Name):
        return imported(value, protocol)
    if isinstance(value, str):
        return text(value, protocol)
    if isinstance(value, tuple):
        return pickle.MARK + b"".join(push(item, protocol) for item in value) + pickle.TUPLE
    if isinstance(value, list):
        return pickle.MARK + b"".join(push(item, protocol) for item in value) + pickle.LIST
    if isinstance(value, dict):
        items = [item for pair in value.items() for item in pair]
        return pickle.MARK + b"".join(push(item, protocol) for item in items) + pickle.DICT
    if isinstance(value, int | bytes | None):
        return (
            pickle.dumps(value, protocol if protocol < 4 else 3)
            .removeprefix(b"\x80\x02")
            .removeprefix(b"\x80\x03")[:-1]
        )
    raise TypeError(type(value))


def program(body: bytes, protocol: int) -> bytes:
    """A whole pickle that leaves what `body` pushes."""
    start = pickle.PROTO + bytes([protocol]) if protocol >= 2 else b""
    if protocol >= 4:
        start += pickle.FRAME + struct.pack("<Q", len(body) + 1)
    return start + body + pickle.STOP


def by_reduce(call: Call, protocol: int) -> bytes:
    return push(call, protocol)


def by_inst(call: Call, protocol: int) -> bytes:
    """INST takes the class as text and the arguments from the stack."""
    module, attribute = call.function.parts
    pushed = b"".join(push(item, protocol) for item in call.arguments)
    return pickle.MARK + pushed + pickle.INST + f"{module}\n{attribute}\n".encode()


def by_obj(call: Call, protocol: int) -> bytes:
    pushed = b"".join(push(item, protocol) for item in (call.function, *call.arguments))
    return pickle.MARK + pushed + pickle.OBJ


def by_newobj(call: Call, protocol: int) -> bytes:
    return push(call.function, protocol) + push(call.arguments, protocol) + pickle.NEWOBJ


def by_newobj_ex(call: Call, protocol: int) -> bytes:
    return push(call.function, protocol) + push(call.arguments, protocol) + push({}, protocol) + pickle.NEWOBJ_EX


def by_build(call: Call, protocol: int) -> bytes:
    """BUILD gives the arguments as a state to the class itself."""
    return push(call.function, protocol) + push(call.arguments, protocol) + pickle.BUILD


def by_memo(call: Call, protocol: int) -> bytes:
    """The strings of STACK_GLOBAL come out of the memo, in another order than they were read."""
    module, attribute = call.function.parts
    stored = text(attribute, protocol) + pickle.BINPUT + b"\x01" + text("harmless", protocol) + pickle.BINPUT + b"\x02"
    stored += text(module, protocol) + pickle.BINPUT + b"\x03" + pickle.POP * 3
    fetched = pickle.BINGET + b"\x03" + pickle.BINGET + b"\x01" + pickle.STACK_GLOBAL
    return stored + fetched + push(call.arguments, protocol) + pickle.REDUCE


def by_decoy(call: Call, protocol: int) -> bytes:
    """Strings between those that STACK_GLOBAL takes, pushed and taken away again."""
    module, attribute = call.function.parts
    decoy = text("collections", protocol) + text("OrderedDict", protocol) + pickle.POP * 2
    named = text(module, protocol) + decoy + text(attribute, protocol) + decoy + pickle.STACK_GLOBAL
    return named + push(call.arguments, protocol) + pickle.REDUCE


FORMS = (by_reduce, by_inst, by_obj, by_newobj, by_newobj_ex, by_build, by_memo, by_decoy)
