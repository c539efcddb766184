"""What a probe computes on before the pass over the data: some examples, all of them together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rdrop_probes.batch import Batch, take
from rdrop_probes.families import CATEGORICAL, Family
from rdrop_probes.sites import Forward, SitePlan

Stage = Callable[[str, int, int], None]
"""Told what is being computed, how many steps of it are done, and of how many at most."""


@dataclass(frozen=True)
class Selection:
    """Examples from all over the data.

    Attributes:
        batches: they, in the order of the data.
        indices: the place of each of them in the data.
        n: how many examples the data have.
    """

    batches: Sequence[Batch]
    indices: Sequence[int]
    n: int

    def parts(self, size: int) -> Iterator[Batch]:
        """They in batches of at most `size`."""
        for batch in self.batches:
            for first in range(0, batch.n, size):
                yield batch.part(slice(first, first + size))

    def thinned(self, step: int) -> Selection:
        """Every `step`-th of them."""
        kept, first = [], 0
        for batch in self.batches:
            if len(places := torch.arange(-first % step, batch.n, step)):
                of = [None if t is None else t[places] for t in (batch.labels, batch.places)]
                kept.append(Batch(take(batch.inputs, places), len(places), batch.start, *of))
            first += batch.n
        return Selection(kept, self.indices[::step], self.n)


@dataclass(frozen=True)
class Case:
    """A model and the examples selected for it; `forward` calls `model`, random numbers follow from `seed`.

    Who computes for long says so to `stage`.
    """

    model: nn.Module
    forward: Forward
    plan: SitePlan
    selection: Selection
    seed: int = 0
    family: Family = CATEGORICAL
    stage: Stage = lambda *_: None
