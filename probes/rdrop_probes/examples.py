"""The inputs of a pass: some examples, and copies of their own that a model may spoil."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rdrop_probes.batch import take


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs of `n` examples, of which the first is number `start`."""

    inputs: Any
    n: int
    start: int

    def folded(self, k: int) -> Any:
        """The inputs k times, one copy behind the other."""
        return mapped(self.inputs, lambda t: torch.cat([t] * k))

    def copied(self) -> Any:
        """The inputs in memory of their own."""
        return mapped(self.inputs, torch.clone)

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        return tensors(self.inputs)[0].device

    def first(self, n: int) -> Examples:
        """The first `n` of the examples."""
        return Examples(take(self.inputs, slice(0, n)), n, self.start) if n < self.n else self


class Given:
    """Inputs that a model may change in place, as some do with dropout on alone: they are put back after each pass.

    The caller's own tensors are never given to a model.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        with torch.inference_mode(mode=False):  # changes of inference tensors cannot be seen
            self.inputs = make()
        self._versions = self._now()

    def restore(self) -> None:
        """Put back what a pass has changed."""
        if self._now() != self._versions:
            for tensor, fresh in zip(tensors(self.inputs), tensors(self._make()), strict=True):
                tensor.copy_(fresh)
            self._versions = self._now()

    def _now(self) -> list[int]:
        return [tensor._version for tensor in tensors(self.inputs)]


def mapped(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Inputs, given as a tensor or a tuple or dict of tensors, with every tensor changed."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {key: change(value) for key, value in inputs.items()}
    return tuple(change(value) for value in inputs)


def tensors(inputs: Any) -> list[Tensor]:
    """All tensors among inputs given as a tensor or a tuple or dict of tensors."""
    found: list[Tensor] = []
    mapped(inputs, lambda t: found.append(t) or t)  # type: ignore[func-returns-value] # append gives None
    return found
