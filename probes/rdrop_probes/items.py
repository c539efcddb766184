"""Work items: what one batch contributes, in a form that can be stored, sent, and merged in the order of the data.

Whoever measured an item, and when, leaves no trace in it: a run is the merge of its items, so that resumed runs, shards
and several processes give what one process gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from rdrop_probes.columns import State
from rdrop_probes.probe import Probe
from rdrop_probes.sites import SiteKey

MOST_VOTED = 4  # classes of which votes are kept: as many as a reader is shown

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Votes:
    """The most voted classes of each example, `classes` and their `counts` [N, at most 4], the most voted first."""

    classes: Numbers
    counts: Numbers

    @classmethod
    def of(cls, votes: Tensor) -> Votes:
        """From how many sub-models voted for each class [N, C]."""
        n_classes = votes.shape[-1]
        rank = votes.long() * n_classes + torch.arange(n_classes - 1, -1, -1, device=votes.device)  # without ties
        classes = rank.topk(min(MOST_VOTED, n_classes)).indices
        counts = votes.gather(-1, classes)
        return cls(classes.to("cpu", torch.int32).numpy(), counts.to("cpu", torch.int32).numpy())


@dataclass
class Item:
    """What one batch, or the merge of several, contributes.

    Attributes:
        start: index of the first example. n: number of examples.
        probes: fed with it and with nothing else.
        rows: how many rows (examples, tokens, labels) count.
        predictions: pieces of [N], the eval model's classes or numbers; none where examples have several rows.
        votes: pieces of the votes; none unless a probe counts them and each example is one row.
        failures: by probe, why it is left out.
        buffers: names of the buffers that changed with dropout on. fired: the sites that drew.
        ran: whether sub-models were run.
    """

    start: int
    n: int
    probes: list[Probe]
    rows: int = 0
    predictions: list[Numbers] = field(default_factory=list)
    votes: list[Votes] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    buffers: set[str] = field(default_factory=set)
    fired: set[SiteKey] = field(default_factory=set)
    ran: bool = False

    def merge(self, other: Item) -> None:
        """Take over an item whose examples follow the own."""
        for mine, theirs in zip(self.probes, other.probes, strict=True):
            mine.merge(theirs)
        self.n += other.n
        self.rows += other.rows
        self.predictions += other.predictions
        self.votes += other.votes
        self.failures = {**other.failures, **self.failures}  # the first to fail says why
        self.buffers |= other.buffers
        self.fired |= other.fired
        self.ran |= other.ran

    def state(self) -> State:
        """The item as plain data."""
        return {
            "start": self.start,
            "n": self.n,
            "probes": [[probe.name, probe.state()] for probe in self.probes],
            "rows": self.rows,
            "predictions": self.predictions,
            "votes": [[votes.classes, votes.counts] for votes in self.votes],
            "failures": self.failures,
            "buffers": sorted(self.buffers),
            "fired": [list(key) for key in sorted(self.fired)],
            "ran": self.ran,
        }

    @classmethod
    def restored(cls, state: State, probes: Sequence[Probe]) -> Self:
        """An item from its :meth:`state`, into probes that are fresh.

        Raises:
            ValueError: the state is not one of these probes.
        """
        try:
            for probe, (name, kept) in zip(probes, state["probes"], strict=True):
                if probe.name != name:
                    raise ValueError(f"{name} is not {probe.name}")
                probe.restore(kept)
            return cls(
                probes=list(probes),
                votes=[Votes(*votes) for votes in state["votes"]],
                buffers=set(state["buffers"]),
                fired={(path, ordinal) for path, ordinal in state["fired"]},
                **{name: state[name] for name in ("start", "n", "rows", "predictions", "failures", "ran")},
            )
        except (KeyError, TypeError, AttributeError, IndexError) as problem:
            raise ValueError(f"not the state of these probes: {type(problem).__name__}: {problem}") from problem


class Work:
    """Which items are measured here, and what becomes of them: all of them, and they stay in memory.

    Whoever shares the items among processes, or stores them, overrides this.
    """

    def __init__(self) -> None:
        self._items: list[Item] = []

    def decide(self, _name: str, decision: Callable[[], State]) -> State:
        """What `decision` returns, or what was decided before where the same work was begun elsewhere."""
        return decision()

    def lay_out(self, starts: Sequence[int], n_examples: int) -> None:
        """Learn where each item starts, and how many examples there are."""

    def begin(self, facts: State) -> None:
        """Learn what was found on the first batch; equal work has equal facts."""

    def wants(self, start: int) -> bool:
        """Whether the item that begins with this example is to be measured here."""
        return True

    def put(self, item: Item) -> None:
        """Take a measured item; items that follow each other from the first on become one, and less memory."""
        if self._items:
            self._items[0].merge(item)
        else:
            self._items.append(item)

    def items(self, fresh: Callable[[], list[Probe]]) -> Iterator[Item]:
        """All items of the work, in the order of the data; `fresh` makes probes to restore stored ones into."""
        while self._items:
            yield self._items.pop()  # kept no longer than needed


class PartDone(Exception):  # noqa: N818 - no error: the work is done, as far as it is done here
    """The items that are measured here are; the others, and the merge, are another worker's."""


def unstorable(probes: Sequence[type[Probe]]) -> list[str]:
    """Names of the probes that merge in a way of their own, and do not say how what they keep is stored."""
    return [p.name for p in probes if not issubclass(_definer(p, "state"), _definer(p, "merge"))]


def _definer(kind: type[Probe], method: str) -> type:
    """The class that a method is taken from."""
    return next(base for base in kind.__mro__ if method in vars(base))
