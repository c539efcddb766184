"""What a differentiable pass holds, counted on a few examples, and how many examples and directions fit from that."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rdrop_probes.divergences import agree
from rdrop_probes.gradients import MAX_EXACT_CLASSES, SAMPLED_CLASSES, GradientPass
from rdrop_probes.sites import SiteKey

DEFAULT_MEMORY = 2**30  # bytes
NUMBERS_AT_A_TIME = 2**21  # in the largest tensor of a pass: on CPU fresh memory beyond costs more than it saves
NUMBERS_TOGETHER = 2**20  # in that of directions pulled back together: beyond, their overhead is not what costs
NUMBERS_ON_A_DEVICE = 2**28
ROWS_IN_DOUBLE = 6  # tensors like the logits, in double precision, of which directions are made


@dataclass(frozen=True)
class GradientChoice:
    """How gradients are taken, for all workers alike.

    Attributes:
        examples: at most in a differentiable pass. directions: how many are pulled back at a time.
        entangled: sites whose masks cannot be told apart by example.
    """

    examples: int
    directions: int = 1
    entangled: tuple[SiteKey, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As plain data, from which :meth:`made` makes it again."""
        return asdict(self) | {"entangled": [list(key) for key in self.entangled]}

    @classmethod
    def made(cls, data: dict[str, Any]) -> GradientChoice:
        """The choice from its plain data."""
        return cls(**data | {"entangled": tuple((str(path), int(i)) for path, i in data["entangled"])})


@dataclass(frozen=True)
class Weight:
    """What one example holds.

    Attributes:
        held: bytes in all, while one direction is pulled back. each: bytes more for every further direction.
        largest: numbers in one tensor.
    """

    held: float
    each: float
    largest: float

    def examples(self, n: int, memory: int, device: torch.device) -> int:
        """How many of `n` examples to take in one pass, in passes of nearly equal size."""
        numbers = NUMBERS_AT_A_TIME if device.type == "cpu" else NUMBERS_ON_A_DEVICE
        most = int(max(1, min(n, memory / self.held, numbers / self.largest)))
        return -(-n // -(-n // most))

    def directions(self, wanted: int, examples: int, memory: int, device: torch.device) -> int:
        """How many directions are worth trying to pull back together."""
        numbers = NUMBERS_TOGETHER if device.type == "cpu" else NUMBERS_ON_A_DEVICE
        room = max(memory - self.held * examples, 0)
        return int(max(1, min(wanted, numbers / self.largest / examples, 1 + room / (self.each * examples))))


def weigh(model: nn.Module, run: Callable[[], GradientPass], *, inputs: bool) -> Weight:
    """What a pass holds for each of its examples; `inputs`: gradients with respect to the input are wanted too."""
    saved = _Saved(model)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        gradients = run()
        if inputs and gradients.sampled:
            _double_backward(gradients)
    n, logits = gradients.n, gradients.logits
    outs = [noted.out for noted in gradients.sites.values()]
    leaf = [] if gradients.leaf is None else [gradients.leaf]
    each = 2 * sum(map(_bytes, outs + leaf)) + 8 * logits.numel()  # gradients, and what they are multiplied by
    held = sum(saved.bytes.values()) + each + 8 * ROWS_IN_DOUBLE * logits.numel()
    if inputs and not gradients.sampled:
        held += 2 * logits.shape[-1] * sum(map(_bytes, leaf))  # every row of the Jacobian is kept
    largest = max([saved.largest, logits.numel(), *(tensor.numel() for tensor in outs + leaf)])
    return Weight(held / n, max(each / n, 1.0), max(largest / n, 1.0))


def directions_wanted(gradients: GradientPass) -> int:
    """How many directions there are to pull back for one expectation."""
    return SAMPLED_CLASSES if gradients.sampled else min(gradients.logits.shape[-1], MAX_EXACT_CLASSES)


def pays_together(gradients: GradientPass, directions: int, *, timed: bool = True) -> bool:
    """Whether so many directions pulled back together give what they give one by one, and sooner where `timed`."""
    shape = (directions, *gradients.logits.shape)
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(gradients.logits)
    together, apart = replace(gradients, directions=directions), replace(gradients, directions=1)
    expected, slow = _timed(lambda: apart.everywhere(w))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # vmap warns of operators that it runs one by one
            found, fast = _timed(lambda: together.everywhere(w))
    except Exception:  # whatever vmap cannot do, one by one is done
        return False
    if timed and fast >= slow:
        return False
    pairs = zip(found, expected, strict=True)
    return all(a is b is None or (a is not None and b is not None and agree(a, b)) for a, b in pairs)


def _timed(run: Callable[[], list[Tensor | None]]) -> tuple[list[Tensor | None], float]:
    """A result, and the shorter of two times that it took."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        found = run()
        for tensor in found[-1:]:
            if tensor is not None and tensor.device.type == "cuda":
                torch.cuda.synchronize(tensor.device)
        times.append(time.perf_counter() - started)
    return found, min(times)


def _double_backward(gradients: GradientPass) -> None:
    if gradients.leaf is not None and len(gradients.logits):
        w = torch.zeros_like(gradients.logits, requires_grad=True)
        torch.autograd.grad(gradients.logits, gradients.leaf, w, create_graph=True, allow_unused=True)


class _Saved:
    """Counts the storages that autograd saves, but for those of the model itself."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes: dict[int, int] = {}
        self.largest = 0
        self._own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self._kept: list[Tensor] = []  # or a storage could be freed and its address used again

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own and storage.data_ptr() not in self.bytes:
            self.bytes[storage.data_ptr()] = storage.nbytes()
            self.largest = max(self.largest, storage.nbytes() // tensor.element_size())
            self._kept.append(tensor.detach())
        return tensor


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
