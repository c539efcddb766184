"""Read what a pickle asks for without doing it: which names it imports, and whether it is tensors and plain data.

A pickle is a program. torch's restricted reader refuses its worst instructions, but cannot name what they would
import, and still lets a small file hang or exhaust the machine (a tuple nested in itself 40 times as a key takes
years to hash, `bytearray(10**11)` is one call). Here the program is run on symbols first: nothing is imported,
called or allocated, and what is not a plain description of tensors is refused before torch sees it.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from rdrop_analysis.loading.plain_values import (
    DAMAGED,
    TOO_LARGE,
    Call,
    Global,
    NotPlainError,
    Storage,
    build,
    call,
    check_keys,
    expanded,
    new,
    permitted,
)

OPERATIONS = 1_000_000
"""The most instructions in one pickle; a tensor takes about 45."""

_NEWEST = 3
_TOO_NEW = (4, 5)  # written with instructions that torch.load(weights_only=True) does not read

_MARK = object()
_UNREAD = Global("a name computed by the file")
_EXTENSIONS = {"EXT1", "EXT2", "EXT4"}
_EMPTY = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


@dataclass
class Scan:
    """What a pickle would do.

    `imports` are the names beyond those of plain tensors, `problem` what else is wrong; `complete` tells a pickle
    that was read to its end from bytes that are none.
    """

    imports: list[str] = field(default_factory=list)
    problem: str | None = None
    complete: bool = False


def scan(file: IO[bytes], room: int) -> Scan:
    """Run the pickle at the position of a file on symbols; no tensor in it may have more than `room` numbers.

    The file is left behind the pickle, if that is whole.
    """
    found = Scan()
    machine = _Machine(found, room)
    instructions = machine.instructions
    try:
        for count, (opcode, argument, _position) in enumerate(pickletools.genops(file)):
            if count == OPERATIONS:
                raise NotPlainError(f"holds more than {OPERATIONS:,} pickled values: save model.state_dict() alone")
            instructions[opcode.name](argument)
        found.complete = True
        if sum(machine.lengths.values()) > room:
            raise NotPlainError(TOO_LARGE)
        expanded(machine.stack[-1], OPERATIONS)
    except NotPlainError as problem:
        found.problem = found.problem or str(problem)
    except Exception:  # damaged bytes lead to whatever they lead to; the names found so far stand
        found.problem = found.problem or DAMAGED
    return found


class _Machine:
    """A stack and a memo of symbols, as the pickle's instructions move them about."""

    def __init__(self, found: Scan, room: int) -> None:
        self.found = found
        self.room = room
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.lengths: dict[str, int] = {}
        self.instructions = {opcode.name: self._doing(opcode) for opcode in pickletools.opcodes}

    def _doing(self, opcode: pickletools.OpcodeInfo) -> Callable[[Any], object]:
        """Return what does an instruction, given its argument."""
        name = opcode.name
        own: Callable[[Any], object] | None = getattr(self, f"_{name.lower()}", None)
        if own is not None:
            return own
        if name in _CONSTANTS:
            return lambda _: self.stack.append(_CONSTANTS[name])
        if name in _EMPTY:
            return lambda _: self.stack.append([])
        if name in _EXTENSIONS:
            return lambda code: self._import(f"copyreg extension {code}")
        if not opcode.stack_before and opcode.arg is not None:
            return self.stack.append
        return lambda _: self._unusual(opcode)

    def _unusual(self, opcode: pickletools.OpcodeInfo) -> None:
        """Do an instruction that torch never writes, in as far as it moves the stack."""
        if pickletools.markobject in opcode.stack_before:
            self._to_mark()
        else:
            del self.stack[len(self.stack) - len(opcode.stack_before) :]
        self.stack.extend(_UNREAD for _ in opcode.stack_after)

    def _list(self, _: None) -> None:
        self.stack.append(self._to_mark())

    _frozenset = _list

    def _dict(self, _: None) -> None:
        items = self._to_mark()
        self.stack.append([])
        self._set(items)

    def _to_mark(self) -> list[Any]:
        taken: list[Any] = []
        while (top := self.stack.pop()) is not _MARK:
            taken.append(top)
        return taken[::-1]

    def _import(self, name: str) -> None:
        if not permitted(name) and name not in self.found.imports:
            self.found.imports.append(name)
        self.stack.append(Global(name))

    def _stop(self, _: None) -> None: ...

    def _proto(self, version: int) -> None:
        if version in _TOO_NEW and self.found.problem is None:
            self.found.problem = (
                f"is of pickle protocol {version}, read is {_NEWEST}: leave out pickle_protocol in torch.save"
            )

    def _frame(self, length: int) -> None: ...

    def _mark(self, _: None) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: None) -> None:
        self.stack.pop()

    def _dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def _memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _binput = _long_binput = _put
    _binget = _long_binget = _get

    def _global(self, pair: str) -> None:
        self._import(pair.replace(" ", ".", 1))

    def _stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        readable = isinstance(module, str) and isinstance(name, str)
        self._import(f"{module}.{name}" if readable else _UNREAD.name)

    def _inst(self, pair: str) -> None:
        self._to_mark()
        self._global(pair)

    def _obj(self, _: None) -> None:
        self._to_mark()
        self.stack.append(_UNREAD)

    def _tuple(self, _: None) -> None:
        self.stack.append(tuple(self._to_mark()))

    def _tuple1(self, _: None) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _tuple2(self, _: None) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self, _: None) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _append(self, _: None) -> None:
        self._add([self.stack.pop()])

    def _appends(self, _: None) -> None:
        self._add(self._to_mark())

    _additems = _appends

    def _add(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _setitem(self, _: None) -> None:
        self._set([self.stack.pop(), self.stack.pop()][::-1])

    def _setitems(self, _: None) -> None:
        self._set(self._to_mark())

    def _set(self, items: list[Any]) -> None:
        self._checked(check_keys, items[::2])
        self._add(items)

    def _reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self._checked(call, Call(function, arguments), self.room))

    def _newobj(self, _: None) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self.stack.append(self._checked(new, Call(kind, arguments)))

    def _build(self, _: None) -> None:
        state = self.stack.pop()
        self._checked(build, self.stack[-1], state)

    def _binpersid(self, _: None) -> None:
        self.stack.append(self._checked(self._storage, self.stack.pop()))

    def _storage(self, reference: object) -> Storage:
        storage = Storage.named(reference)
        self.lengths[storage.key] = storage.n_values
        return storage

    def _checked(self, check: Callable[..., object], *arguments: object) -> object:
        """Return what a check returns; when it fails note why and go on, for there may be names to be read."""
        try:
            return check(*arguments)
        except NotPlainError as problem:
            self.found.problem = self.found.problem or str(problem)
            return _UNREAD
