"""How much memory there is to work in, and how running out of it is told from other errors."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

SHARE_OF_GRADIENTS = 4  # likewise for what autograd saves
SHARE_OF_SUMS = 4  # a fourth of the memory is for sums over sub-models; models, data and passes need the rest
UNKNOWN = 2**32  # bytes, where the system does not tell

_KEPT = 2**30  # bytes that a process may hold on to
_LARGEST = 2**25  # bytes of a piece of memory that is kept: the most that glibc takes
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's names of the two

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def total_memory(device: torch.device | None = None) -> int:
    """Bytes of memory that this process may ever have on a device (the processor's by default).

    What there is, and not what is free at the moment: how data are cut into batches follows from it, and has to be the
    same in all workers and in a run that goes on after an interruption.
    """
    if device is not None and device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    found = [UNKNOWN]
    with suppress(ValueError, OSError, AttributeError):
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _LIMITS:
        with suppress(ValueError, OSError):  # "max" where there is no limit
            found.append(int(Path(path).read_text()))
    return min(found)


def keep_freed_memory() -> bool:
    """Let the process hold on to memory that it frees; whether that is possible here (glibc, nothing else asked for).

    By default glibc gives every tensor of some size back to the system when it dies, and the next one of its size
    costs a page fault for every 4 KB: in passes over a few MB at a time these take as long as the arithmetic. For
    whole programs, not for libraries: it holds for the process, and cannot be taken back.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _KEPT))


class Space:
    """Memory that is used again from batch to batch: to have it anew costs more than to work on it."""

    def __init__(self) -> None:
        self._held: dict[object, Tensor] = {}

    def take(self, name: object, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of any content; what had the same name is overwritten."""
        size = torch.Size(shape).numel()
        held = self._held.pop(name, None)
        if held is None or len(held) < size or (held.dtype, held.device) != (dtype, device):
            held = None  # before the new is taken
            held = torch.empty(size, dtype=dtype, device=device)
        self._held[name] = held
        return held[:size].view(shape)

    def clear(self) -> None:
        """Let go of the memory."""
        self._held.clear()
