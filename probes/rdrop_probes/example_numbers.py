"""Random numbers of gradient passes, which follow from (seed, example, purpose), however the data are cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Purpose = Literal["classes", "probabilities", "projections", "start"]
_STREAMS: dict[Purpose, int] = {"classes": 0, "probabilities": 1, "projections": 2, "start": 3}


class ExampleNumbers:
    """The streams of consecutive examples for one purpose; each call goes on in them.

    Args:
        seed: the run's.
        start: index of the first example.
        counts: how many rows each example has.
        purpose: what the numbers are for.
    """

    def __init__(self, seed: int, start: int, counts: Sequence[int], purpose: Purpose) -> None:
        self._counts = counts
        place = [0, 0, 0, _STREAMS[purpose]]
        keys = ([seed % 2**64, start + i] for i in range(len(counts)))
        self._streams = [np.random.Generator(np.random.Philox(counter=place, key=np.array(k, np.uint64))) for k in keys]

    def normal(self, times: int, width: int) -> Tensor:
        """Standard normal numbers [times, P, width], float32."""
        drawn = [
            stream.standard_normal((times, rows, width), np.float32)
            for stream, rows in zip(self._streams, self._counts, strict=True)
        ]
        return torch.from_numpy(np.concatenate(drawn, axis=1))

    def uniform(self, times: int) -> Tensor:
        """Numbers [times, P] between 0 and 1, 1 excluded, float64."""
        pairs = zip(self._streams, self._counts, strict=True)
        return torch.from_numpy(np.concatenate([stream.random((times, rows)) for stream, rows in pairs], axis=1))
