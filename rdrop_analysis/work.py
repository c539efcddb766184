"""Which work items of a run this process measures: shared among workers and shards, and continued from journals."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdrop_analysis.belonging import DECISIONS, MACHINE, Belonging
from rdrop_analysis.errors import DataError, UsageError
from rdrop_analysis.files import printable
from rdrop_analysis.journal import Header, Journal, Spent, decode, encode
from rdrop_analysis.locks import Lock
from rdrop_analysis.workers import Team
from rdrop_probes.columns import State
from rdrop_probes.items import Item, PartDone, Work, unstorable
from rdrop_probes.probe import Probe

Records = dict[int, bytes]


@dataclass
class Place:
    """Where a run takes place.

    Attributes:
        team: the workers that share it.
        directories: where journals are looked for; they are written to the first. Without any, nothing is kept.
        shard: (i, n): only the items i - 1, i - 1 + n, ... are measured, and kept.
        stored_only: nothing is measured: every item is in the journals.
        options: of the command, for a merge to begin from.
        say: told in a line what the user has to know of all this.
        works: what has been begun: checkpoints, and what their numbers follow from.
        locks: by which no other process does the same meanwhile.
        sub_models: K where a pilot has chosen it for masks that examples share; it holds for all checkpoints, which
            are compared sub-model by sub-model.
    """

    team: Team = field(default_factory=Team)
    directories: Sequence[Path] = ()
    shard: tuple[int, int] = (1, 1)
    stored_only: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = lambda _: None
    works: list[tuple[str, dict[str, str]]] = field(default_factory=list, init=False)
    sub_models: int | None = field(default=None, init=False)
    locks: list[Lock] = field(default_factory=list, init=False)

    @property
    def keeps_results(self) -> bool:
        """Whether the numbers of whole checkpoints come together in this process."""
        return self.team.leads and self.shard[1] == 1

    @property
    def spent_when_saved(self) -> Spent | None:
        """The kept work items that are of no more use once the results of the whole run are saved."""
        if not self.directories or not self.keeps_results or self.stored_only:
            return None
        return Spent(self.directories[0], tuple(self.works), tuple(self.locks))

    @property
    def shares_or_keeps(self) -> bool:
        """Whether there is more to do than to measure everything in this process."""
        return bool(self.team.size > 1 or self.shard[1] > 1 or self.directories)

    def work(
        self, checkpoint: str, key: Mapping[str, str], probes: Sequence[type[Probe]], progress: Callable[[int], None]
    ) -> Work:
        """The work on one checkpoint, whose numbers follow from what `key` says by name.

        Raises:
            UsageError: a probe's items have to be sent or stored, and cannot be.
        """
        shared = self.team.size > 1 or self.shard[1] > 1 or self.stored_only
        if names := unstorable(probes):
            text = f"the probe {names[0]} does not say how it is stored (Probe.state)"
            if shared:
                raise UsageError(f"{text}: leave it out, or measure in one process")
            if self.directories:
                self.say(f"{text}: if this run is interrupted it begins anew")
            return Work()
        self.works.append((checkpoint, dict(key)))
        return SharedWork(self, checkpoint, dict(key), progress)


class SharedWork(Work):
    """The items of one checkpoint, of which some are done, some are this worker's, and some are others'."""

    def __init__(self, place: Place, checkpoint: str, key: dict[str, str], progress: Callable[[int], None]) -> None:
        super().__init__()
        self._place = place
        self._team = place.team
        self._name = printable(checkpoint)
        self._progress = progress
        self._todo: frozenset[int] = frozenset()
        self._n_examples = 0
        self._items: list[Item] = []
        self._records: Records = {}
        self._header = Header(checkpoint, key, {}, {}, [], place.shard, dict(place.options))
        self._journal = Journal(place.directories[0], checkpoint) if place.directories else None
        looked_in = place.directories if self._team.leads else ()
        self._earlier = Belonging(self._header, looked_in, merged=place.stored_only)
        if self._earlier.lock is not None:
            place.locks.append(self._earlier.lock)
        self._check_alike({name: value for name, value in key.items() if name not in MACHINE})

    def decide(self, name: str, decision: Callable[[], State]) -> State:
        """What the journals say, else what the leader decides."""

        def decided() -> State:
            before = self._earlier.decision(name)
            return decision() if before is None else before

        found = self._header.decisions[name] = self._team.share(decided)
        if name == "sub_models" and self._header.facts["shared_masks"] and self._place.sub_models is None:
            self._place.sub_models = found["sub_models"]
        return found

    def lay_out(self, starts: Sequence[int], n_examples: int) -> None:
        """Learn where each item starts, and how many examples there are."""
        self._header.starts.extend(starts)
        self._n_examples = n_examples

    def begin(self, facts: State) -> None:
        """Find out which items are done, and deal out the others."""
        self._header.facts.update(facts)
        self._check_alike({"model": facts["sites"]})
        starts = self._header.starts
        done = set(self._team.share(self._earlier.done))
        number, of = self._place.shard
        wanted = starts[number - 1 :: of]
        left = [start for start in wanted if start not in done]
        if self._team.leads:
            if self._place.stored_only:
                self._earlier.check_all_there(left)
            self._greet(len(wanted) - len(left), len(wanted))
            self._progress(sum(self._size(start) for start in done))
        self._todo = frozenset(left[self._team.rank :: self._team.size])

    def wants(self, start: int) -> bool:
        """Whether the item is this worker's; that another worker has failed is heard here."""
        self._team.heed()
        return start in self._todo

    def put(self, item: Item) -> None:
        """Write the item to the journal, and keep it for the merge."""
        record = b"" if self._team.leads and self._journal is None else encode(item.state())
        if self._journal is not None:
            self._journal.put(self._header, item.start, record)
        if self._place.keeps_results:
            self._keep(item)
        elif self._place.shard[1] == 1:
            self._records[item.start] = record

    def _keep(self, item: Item) -> None:
        """Keep an item; those that follow each other from the first of all on become one, and less memory."""
        first = self._items[0] if self._items else None
        if first and first.start == self._header.starts[0] and first.start + first.n == item.start:
            first.merge(item)
        else:
            self._items.append(item)

    def items(self, fresh: Callable[[], list[Probe]]) -> Iterator[Item]:
        """All items in the order of the data, on the leader.

        Raises:
            PartDone: the items of this shard, or of this worker, are where they are merged from.
            DataError: a journal does not hold what it says.
        """
        if self._journal is not None:
            self._journal.close()
        gathered = self._team.gather(self._records)
        if not self._place.keeps_results:
            raise PartDone
        records = {start: record for part in gathered for start, record in part.items()}
        mine = {item.start: item for item in self._items}
        self._items.clear()
        next_start = 0
        for start in self._header.starts:
            if start >= next_start:
                item = mine.pop(start, None) or self._restored(start, records.pop(start, None), fresh())
                next_start = start + item.n
                yield item

    def _restored(self, start: int, record: bytes | None, probes: list[Probe]) -> Item:
        """An item that another worker sent, or that a journal has."""
        if record is not None:
            return Item.restored(decode(record), probes)
        stored = self._earlier.holding(start)
        try:
            item = Item.restored(decode(stored.load(start)), probes)
            if (item.start, item.n) != (start, self._size(start)):
                raise ValueError(f"not the examples from {start} on")
        except (OSError, ValueError) as problem:
            if isinstance(problem, FileNotFoundError):
                text = f"{stored.path} was removed while this run needed it"
                raise DataError(f"{text}: run the same command again") from problem
            text = f"{stored.path} does not hold what it should ({printable(problem)}): delete it"
            raise DataError(f"{text} and run the same command again") from problem
        return item

    def _size(self, start: int) -> int:
        """How many examples an item has."""
        starts = self._header.starts
        following = bisect_right(starts, start)
        return (starts[following] if following < len(starts) else self._n_examples) - start

    def _check_alike(self, seen: Mapping[str, Any]) -> None:
        """Workers that are to share work see the same."""
        everybody = self._team.meet(dict(seen))
        for rank, theirs in enumerate(everybody):
            if other := sorted(name for name, value in theirs.items() if value != everybody[0].get(name)):
                text = f"worker {rank} has other {', '.join(other)} than worker 0 for {self._name}"
                raise DataError(f"{text}: to be shared out it must come in a fixed order, and from a fixed seed")

    def _greet(self, done: int, of: int) -> None:
        """Say what an earlier run left."""
        if self._place.stored_only:
            return
        if done:
            text = f"continuing: {done} of {of} work items of {self._name} were done"
            if DECISIONS in self._earlier.others:
                text += "; others, of workers that decided otherwise how passes are run, are measured again"
            self._place.say(text)
        elif self._earlier.others:
            where, what = self._place.directories[0], ", ".join(sorted(self._earlier.others))
            self._place.say(f"starting {self._name} afresh: the unfinished run in {where} was with other {what}")
