"""What becomes of a draw tells what it is: the operators between a random number and what it masks are followed.

`floor(keep + rand)` and `rand < keep` end in masks of zeros and ones although no Bernoulli operator ran, so that
their rate can be told; and a mask multiplied into the result of a softmax is dropout of attention probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from rdrop_probes.sites import SiteKey


@dataclass(frozen=True)
class _Drawn:
    """A tensor that hangs on one draw: `offset` plus uniform numbers, or nonzero with probability `share`."""

    key: SiteKey
    offset: float | None = None
    share: float | None = None


class Uses:
    """Follows draws through a pass: `note` each of them, `follow` every other operator."""

    def __init__(self) -> None:
        self.rates: dict[SiteKey, float] = {}
        self.attention: set[SiteKey] = set()
        self._drawn = WeakTensorKeyDictionary()
        self._softmax = WeakTensorKeyDictionary()

    def note(self, key: SiteKey, operator: str, keep: float | None, out: Tensor) -> None:
        """A draw with its result; `keep` is the probability of a 1 where there is one."""
        if keep is not None:
            self._drawn[out] = _Drawn(key, share=keep)
        elif operator in {"rand", "rand_like"}:
            self._drawn[out] = _Drawn(key, offset=0.0)

    def mask(self, tensor: Tensor) -> tuple[SiteKey, float] | None:
        """The draw that a mask of zeros and ones is of, with the probability of a one; None for other tensors."""
        drawn = self._drawn.get(tensor)
        return None if drawn is None or drawn.share is None else (drawn.key, drawn.share)

    def follow(self, operator: str, args: tuple[Any, ...], result: Any) -> None:
        """An operator that has run."""
        tensors = [a for a in args if isinstance(a, Tensor)]
        if not isinstance(result, Tensor) or not tensors:
            return
        operator = operator.removesuffix("_")
        if result.dim() > 2 and self._is_softmax(operator, args, tensors[0], result):
            self._softmax[result] = True
        for place, tensor in enumerate(args):
            if isinstance(tensor, Tensor) and tensor in self._drawn:
                drawn = self._drawn[tensor]
                if tensor is result:
                    del self._drawn[tensor]  # changed in place
                self._step(drawn, operator, args, place, result)

    def _is_softmax(self, operator: str, args: tuple[Any, ...], of: Tensor, result: Tensor) -> bool:
        """Whether an operator is a softmax over the last dimension, or rearranges the result of one."""
        if operator in _SOFTMAX:
            return args[1] in (-1, result.dim() - 1)
        return operator in _SAME and of in self._softmax

    def _step(self, drawn: _Drawn, operator: str, args: tuple[Any, ...], place: int, result: Tensor) -> None:
        other = args[1 - place] if len(args) > 1 and place < 2 else None
        if operator == "mul" and isinstance(other, Tensor) and other.dim() > 0:
            self._used(drawn, zero_where_drawn=False)
            if other in self._softmax:
                self.attention.add(drawn.key)
        elif operator == "where" and place == 0 and (_zero(args[1]) or _zero(args[2])):
            self._used(drawn, zero_where_drawn=_zero(args[1]))
        elif operator == "masked_fill" and place == 1 and _zero(args[2]):
            self._used(drawn, zero_where_drawn=True)
        elif operator in _SAME or (operator in {"mul", "div"} and _scales_zeros_and_ones(drawn, other)):
            self._drawn[result] = drawn
        elif place == 0 and (changed := _changed(drawn, operator, other)):
            self._drawn[result] = changed

    def _used(self, drawn: _Drawn, *, zero_where_drawn: bool) -> None:
        if drawn.share is not None:
            self.rates[drawn.key] = round(drawn.share if zero_where_drawn else 1 - drawn.share, 6)


def _changed(drawn: _Drawn, operator: str, other: Any) -> _Drawn | None:
    """What an operator with a number, or with nothing else, makes of a drawn tensor; None if it cannot be told."""
    if operator in {"bitwise_not", "logical_not"} and drawn.share is not None:
        return replace(drawn, share=1 - drawn.share)
    if drawn.offset is None:
        return None
    if operator == "floor" and 0 <= drawn.offset <= 1:
        return _Drawn(drawn.key, share=drawn.offset)
    if not isinstance(other, int | float):
        return None
    if operator in {"add", "sub"}:
        return replace(drawn, offset=drawn.offset + (other if operator == "add" else -other))
    below = min(max(other - drawn.offset, 0.0), 1.0)
    share = {"lt": below, "le": below, "gt": 1 - below, "ge": 1 - below}.get(operator)
    return None if share is None else _Drawn(drawn.key, share=share)


def _scales_zeros_and_ones(drawn: _Drawn, other: Any) -> bool:
    """Whether a mask is multiplied by a number; uniform numbers are then no longer between 0 and 1."""
    return drawn.share is not None and isinstance(other, int | float)


def _zero(value: Any) -> bool:
    """Whether a number, or every element of a tensor, is 0."""
    return not value.any() if isinstance(value, Tensor) else value == 0


_SOFTMAX = frozenset({"_softmax", "_safe_softmax"})
_SAME = frozenset(
    {"_to_copy", "clone", "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze", "alias", "detach"}
    | {"permute", "transpose", "contiguous", "lift_fresh", "slice", "select"}
)
