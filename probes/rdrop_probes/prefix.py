"""Run what lies before the first draw once: operators are recorded in one pass and their results given back in others.

Sub-models of a batch, and its eval model, do the same until the first draw. So the operators of one pass up to
there are noted with their results; in later passes, while the same operators come with the same arguments, their
results are handed out and nothing is computed. It works for any architecture, because it happens below modules,
autograd and vmap. Results that nobody holds any more when the first draw comes are handed out as empty shells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


class PrefixMismatch(BaseException):
    """A pass did not do what the recorded pass did before its first draw; no Exception, lest a model catches it."""


class EndOfPrefix(BaseException):
    """The first draw of a pass that is run for its prefix only; no Exception, lest a model catches it."""


@dataclass(frozen=True)
class _Shell:
    """What a result that nobody holds any more looked like."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(tensor: Tensor) -> _Shell:
        return _Shell(tensor.size(), tensor.stride(), tensor.dtype, tensor.device)

    @property
    def extent(self) -> int:
        """Numbers between its first and its last, these included."""
        return 1 + sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))


@dataclass
class _Step:
    """One operator: its name and arguments, and for each result where it is: an argument, a tensor, or a value.

    Views have no results here: they are made again, because autograd wants every view to be new.
    """

    operator: Any
    arguments: Any
    results: list[Any]
    single: bool

    @property
    def view(self) -> bool:
        return bool(self.operator.is_view)


class Prefix:
    """The operators before the first draw of a pass over one batch.

    Args:
        known: tensors that exist before the pass (parameters, buffers, inputs), by which arguments are told.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._known = list(known)
        self._unknown: list[Tensor] = []  # kept, so that no other tensor takes their identity
        self._versions = list(map(_version, self._known))
        self._steps: list[_Step] = []
        self._held: list[tuple[Tensor, int, Tensor | None]] = []
        self.frozen = False
        self.reshaped = False  # whether a result changed its shape after it was made

    def freeze(self, guarded: frozenset[int]) -> None:
        """The first draw has come: hold what is still alive, with copies of those that suffixes will change."""
        self.frozen = True
        while self._steps and self._steps[-1].operator.overloadpacket.__name__ in _EMPTY:
            self._steps.pop()  # the mask to be drawn, which an eval pass does without
        for step in self._steps:
            step.results = [] if step.view else [self._settled(result, guarded) for result in step.results]
        self._lend_shells()

    @property
    def usable(self) -> bool:
        """Whether the recorded pass left what it did not make as it was, and changes of its results can be seen."""
        unseen = any(held.is_inference() for held, *_ in self._held)
        return not unseen and not self.reshaped and list(map(_version, self._known)) == self._versions

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor shares its memory with a result that is held."""
        memory = tensor.untyped_storage().data_ptr()
        return any(held.untyped_storage().data_ptr() == memory for held, *_ in self._held)

    def changed(self) -> frozenset[int]:
        """Numbers of the held results that a suffix has changed in place and that cannot be restored."""
        held = enumerate(self._held)
        return frozenset(i for i, (tensor, version, copy) in held if tensor._version != version and copy is None)

    def restore(self) -> None:
        """Give the held results that suffixes change their recorded values back."""
        for number, (held, version, copy) in enumerate(self._held):
            if copy is not None and held._version != version:
                held.copy_(copy)
                self._held[number] = (held, held._version, copy)

    def _settled(self, result: Any, guarded: frozenset[int]) -> Any:
        if not isinstance(result, _Weak):
            return result
        tensor = result.reference()
        if tensor is None:
            return result.shell
        number = len(self._held)
        self._held.append((tensor, _version(tensor), tensor.clone() if number in guarded else None))
        return tensor

    def _lend_shells(self) -> None:
        """Give shells the same memory, which is full of NaN: whoever reads one all the same will show it."""
        shells = [result for step in self._steps for result in step.results if isinstance(result, _Shell)]
        lent: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        for shell in sorted(shells, key=lambda s: -s.extent):
            kind = (shell.dtype, shell.device)
            if kind not in lent:
                lent[kind] = torch.full((shell.extent,), torch.nan, dtype=shell.dtype, device=shell.device)
        for step in self._steps:
            step.results = [
                lent[r.dtype, r.device].as_strided(r.size, r.stride) if isinstance(r, _Shell) else r
                for r in step.results
            ]


class Recorder:
    """Notes the operators of a pass in a prefix, and ends the pass at the first draw."""

    def __init__(self, prefix: Prefix, guarded: frozenset[int] = frozenset()) -> None:
        self._prefix = prefix
        self._guarded = guarded
        self._tokens = _Tokens(prefix._known, prefix._unknown)

    def __call__(self, run: Run, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator and note it."""
        if self._prefix.frozen or func.namespace in _ASIDE:
            return run(func, args, kwargs)
        self._prefix.reshaped |= torch.Tag.inplace_view in func.tags
        described = self._tokens.describe(func, args, kwargs)
        result = run(func, args, kwargs)
        outs, single = _listed(result)
        self._tokens.name(outs, len(self._prefix._steps))
        self._prefix._steps.append(_Step(func, described, [_noted(out, args) for out in outs], single))
        return result

    def first_draw(self) -> None:
        """End the pass, while what it made for its suffix is still held."""
        self._prefix.freeze(self._guarded)
        raise EndOfPrefix


class Player:
    """Hands out the results of a recorded prefix, as long as the pass does what was recorded."""

    def __init__(self, prefix: Prefix) -> None:
        self.failed = False  # remembered for models that catch whatever is raised
        self._steps = prefix._steps
        self._tokens = _Tokens(prefix._known, prefix._unknown)
        self._next = 0

    @property
    def done(self) -> bool:
        """Whether the pass has come to where the first draw was."""
        return self._next == len(self._steps)

    def first_draw(self) -> None:
        """Make sure that it comes where it came.

        Raises:
            PrefixMismatch: the recorded pass did more before.
        """
        if not self.done:
            self._fail("the first draw came earlier than in the recorded pass")

    def _fail(self, text: str) -> NoReturn:
        self.failed = True
        raise PrefixMismatch(text)

    def __call__(self, run: Run, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The recorded result of an operator.

        Raises:
            PrefixMismatch: another one was recorded here.
        """
        if func.namespace in _ASIDE:
            return run(func, args, kwargs)
        step = self._steps[self._next]
        if func is not step.operator or self._tokens.describe(func, args, kwargs) != step.arguments:
            self._fail(f"{func} came where {step.operator} was recorded")
        if step.view:
            result = run(func, args, kwargs)
            self._tokens.name(_listed(result)[0], self._next)
        else:
            outs = [_result(one, args) for one in step.results]
            self._tokens.name(outs, self._next)
            result = outs[0] if step.single else tuple(outs)
        self._next += 1
        return result


class _Tokens:
    """Names for tensors that say where they come from, alike in all passes."""

    def __init__(self, known: list[Tensor], unknown: list[Tensor]) -> None:
        self._known = {id(t): number for number, t in enumerate(known)}
        self._unknown = unknown
        self._names: dict[int, tuple[int, int]] = {}

    def name(self, results: list[Any], step: int) -> None:
        """Call the results of a step after it."""
        for place, result in enumerate(results):
            if isinstance(result, Tensor):
                self._names[id(result)] = (step, place)

    def describe(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the arguments of an operator are, to be compared with those of another pass."""
        fresh = func.overloadpacket.__name__ in _FRESH
        return tuple([self._one(a, fresh) for a in args]), {k: self._one(v, fresh) for k, v in kwargs.items()}

    def _told(self, value: Tensor, fresh: bool) -> Any:
        """Where a tensor comes from: from before the pass, from a step, from Python's numbers, or from elsewhere."""
        if fresh:
            return _contents(value)
        told = self._known.get(id(value), self._names.get(id(value)))
        if told is None:
            self._unknown.append(value)
            return "elsewhere", id(value)
        return told

    def _one(self, value: Any, fresh: bool) -> Any:
        if isinstance(value, Tensor):
            return self._told(value, fresh), value.shape, value.dtype
        if isinstance(value, list | tuple):
            return tuple([self._one(v, fresh) for v in value])
        return value if isinstance(value, _COMPARABLE) else type(value)


def _contents(tensor: Tensor) -> Any:
    """The bytes of a small tensor that was made outside of operators, from Python's numbers; else the tensor's own."""
    if tensor.device.type != "cpu" or tensor.numel() > _SMALL:
        return object()
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _listed(result: Any) -> tuple[list[Any], bool]:
    return (list(result), False) if isinstance(result, list | tuple) else ([result], True)


def _noted(out: Any, args: tuple[Any, ...]) -> Any:
    """What stands for a result: the place of an argument that it is, a reference that may die, or a value."""
    if not isinstance(out, Tensor):
        return _Value(out)
    if (alias := next((place for place, a in enumerate(args) if a is out), None)) is not None:
        return alias
    if not out.is_floating_point():  # indices and conditions are small, and not to be trifled with
        return _Weak(lambda: out, _Shell.of(out))
    return _Weak(TensorWeakRef(out), _Shell.of(out))


@dataclass(frozen=True)
class _Weak:
    """A result that may be given up before the first draw."""

    reference: Callable[[], Tensor | None]
    shell: _Shell


@dataclass(frozen=True)
class _Value:
    """A result that is no tensor."""

    value: Any


def _result(result: Any, args: tuple[Any, ...]) -> Any:
    if isinstance(result, int):
        return args[result]
    return result.value if isinstance(result, _Value) else result


_COMPARABLE = (int, float, complex, bool, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
_ASIDE = frozenset({"profiler"})  # namespaces of operators that compute nothing
_SMALL = 4096  # numbers
_FRESH = frozenset({"lift_fresh", "lift_fresh_copy"})  # of tensors made outside of operators
_EMPTY = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"})
