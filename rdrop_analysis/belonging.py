"""Which journals are of the very work that is done here: those of an interrupted run, or of the shards of one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from rdrop_analysis.decisions import are_sound
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable
from rdrop_analysis.journal import Header, JournalError, Stored, check_place, encode, journals, lock_path
from rdrop_analysis.locks import Lock, held_elsewhere, lock
from rdrop_probes.columns import State

T = TypeVar("T")

MACHINE = frozenset({"torch", "device", "threads", "cpu", "model"})  # what shards of one run may differ in, by rounding
SIZE = "batch size"  # likewise, as long as the batches are the same
DECISIONS = "decisions"  # by time, how sub-models and gradients are run
ROUNDING = 1e-3  # of the largest of a model's first outputs, by which they may differ between machines
SHOWN = 5
PATIENCE = 10.0  # seconds for the workers of a torchrun that was killed to find that out


class Belonging:
    """The journals in `directories` of the work that `ours` says.

    To go on from, journals must be equal to the bit in all that numbers follow from; to be `merged` they may be of
    different machines.

    Attributes:
        lock: by which no other process does the same work meanwhile; none where nothing is done.
        others: by what journals differ that do not belong.
    """

    def __init__(self, ours: Header, directories: Sequence[Path], *, merged: bool) -> None:
        self.others: set[str] = set()
        self._ours = ours
        self._merged = merged
        self._where = ", ".join(map(str, directories))
        self._name = printable(ours.checkpoint)
        self._cut_otherwise: list[Stored] = []
        self.lock = None if merged or not directories else self._locked(directories[0])
        found = [s for d in directories for s in self._sound(d) if self._is_same_work(s.header)]
        if merged:
            self._stored = self._most_of_one_cut(self._of_this_model(found))
        else:
            self._check_ended(found)
            self._stored = self._most_of_one_decision(found)

    def decision(self, name: str) -> State | None:
        """What was decided before under this name.

        Raises:
            DataError: shards are to be merged, and there are none.
        """
        for stored in self._stored:
            if name in stored.header.decisions:
                return stored.header.decisions[name]
        if self._merged:
            raise DataError(self._nothing())
        return None

    def done(self) -> list[int]:
        """Items that journals have of the very model that is measured here, known by its first outputs."""
        self._stored = [stored for stored in self._stored if self._is_alike(stored.header)]
        return sorted(set().union(*(stored.places for stored in self._stored)) & set(self._ours.starts))

    def holding(self, start: int) -> Stored:
        """A journal that has an item."""
        return next(stored for stored in self._stored if start in stored.places)

    def check_all_there(self, left: Sequence[int]) -> None:
        """No item of a merge is `left`.

        Raises:
            DataError: which are missing, and which shards measure them.
        """
        if left:
            raise DataError(self._missing(left) if self._stored else self._nothing())

    def _sound(self, directory: Path) -> list[Stored]:
        """The journals of this checkpoint whose decisions can be taken over."""
        check_place(directory)
        return [s for s in journals(directory, self._ours.checkpoint) if are_sound(s.header.decisions)]

    def _locked(self, directory: Path) -> Lock:
        """The lock of this very work.

        Raises:
            JournalError: another process has it, or nothing can be written there.
        """
        check_place(directory)
        path = lock_path(directory, self._ours)
        try:
            return self._patiently(lambda: lock(path))
        except OSError as problem:
            text = f"cannot write {printable(path.parent)}: {problem.strerror or problem}"
            raise JournalError(f"{text}; make it writable, or name another with --output") from problem

    def _check_ended(self, found: Sequence[Stored]) -> None:
        """No worker of a run that was killed is at this very work still.

        Raises:
            JournalError: one is.
        """
        ours = [s.path for s in found if s.header.shard == self._ours.shard]
        self._patiently(lambda: not any(map(held_elsewhere, ours)) or None)

    def _patiently(self, attempt: Callable[[], T | None]) -> T:
        """What an attempt gives as soon as no other process is in the way.

        Raises:
            JournalError: one stays.
        """
        until = time.monotonic() + PATIENCE
        while (got := attempt()) is None:
            if time.monotonic() > until:
                text = f"another process is measuring {self._name} in {self._where} with the same options"
                raise JournalError(f"{text}: let it end, or name another --output")
            time.sleep(PATIENCE / 50)
        return got

    def _is_same_work(self, theirs: Header) -> bool:
        names = {*self._ours.key, *theirs.key}
        other = {name for name in names if self._ours.key.get(name) != theirs.key.get(name)}
        other -= MACHINE | {SIZE} if self._merged else set()
        self.others |= other - {"model"} or other  # what it gives may follow from all the others
        return not other

    def _most_of_one_decision(self, found: Sequence[Stored]) -> list[Stored]:
        """Of the journals that were decided alike those that have most of what is wanted here, then of all items.

        Shards that begin together decide each for itself, and only items of one decision give the same bits.
        """
        alike = _grouped(found, lambda stored: encode(stored.header.decisions))
        alike.sort(key=lambda group: (self._wanted(group), _part_done(group)))
        if any(self._wanted(group) for group in alike[:-1]):
            self.others.add(DECISIONS)
        return alike[-1] if alike else []

    def _wanted(self, group: Sequence[Stored]) -> float:
        """Which part of the items of this shard some journals have that were cut alike."""
        number, of = self._ours.shard
        return _part_done(group, number - 1, of)

    def _of_this_model(self, found: Sequence[Stored]) -> list[Stored]:
        """Without the shards of other models, as far as those that were measured on a machine like this one tell."""
        known = [s.header.facts.get("sample") for s in found if s.header.key.get("model") == self._ours.key["model"]]
        if not known:
            return list(found)
        alike = [s for s in found if any(self._same_sample(s.header.facts.get("sample"), ours) for ours in known)]
        if len(alike) < len(found):
            self.others.add("model")
        return alike

    def _most_of_one_cut(self, found: Sequence[Stored]) -> list[Stored]:
        """Of the shards that were cut into the same batches those that have most of the items."""
        by_cut = _grouped(found, _cut)
        by_cut.sort(key=_part_done)
        self._cut_otherwise = [stored for group in by_cut[:-1] for stored in group]
        return by_cut[-1] if by_cut else []

    def _is_alike(self, theirs: Header) -> bool:
        """Whether a journal is of the same batches and of a model with the same sites and first outputs."""
        if theirs.starts != self._ours.starts:
            self.others.add("batches")
        elif theirs.facts.get("sites") == self._ours.facts["sites"] and self._same_sample(
            theirs.facts.get("sample"), self._ours.facts["sample"]
        ):
            return True
        else:
            self.others.add("model")
        return False

    def _same_sample(self, theirs: Any, ours: Any) -> bool:
        """Whether first outputs are the same: to the bit for a run that goes on, about so from another machine."""
        try:
            found, wanted = np.array(theirs, dtype=float), np.array(ours, dtype=float)
        except (TypeError, ValueError):
            return False
        if not self._merged:
            return np.array_equal(found, wanted, equal_nan=True)
        largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)
        return found.shape == wanted.shape and np.allclose(
            found, wanted, rtol=0, atol=ROUNDING * largest, equal_nan=True
        )

    def _nothing(self) -> str:
        of = f" with the same {', '.join(sorted(self.others))}" if self.others else ""
        return f"there are no work items of {self._name}{of} in {self._where}: run its shards first"

    def _missing(self, left: Sequence[int]) -> str:
        starts = self._ours.starts
        of = max(stored.header.shard[1] for stored in self._stored)
        shards = sorted({starts.index(start) % of + 1 for start in left})
        shown = ", ".join(map(str, left[:SHOWN])) + (", ..." if len(left) > SHOWN else "")
        text = f"{len(left)} of {len(starts)} work items of {self._name} are missing (from examples {shown})"
        again = ", ".join(f"--shard {shard}/{of}" for shard in shards[:SHOWN])
        if self.others:
            text += f", as others in {self._where} are with other {', '.join(sorted(self.others))}"
        text += f": run the command {f'with {again}' if of > 1 else 'again'}"
        return text + (self._size_to_give() if self._cut_otherwise else "")

    def _size_to_give(self) -> str:
        """How shards whose batches were of another size, or whose sub-models were more or fewer, come to be alike."""
        if all(stored.header.starts == self._stored[0].header.starts for stored in self._cut_otherwise):
            return " on the machine of the others, as another number of sub-models was chosen for it"
        sizes = set(self._stored[0].header.decisions["batching"]["sizes"])
        size = f" {sizes.pop()}" if len(sizes) == 1 else ""
        where = " and" if size else ", all of them with the same"
        return f"{where} --batch-size{size}, as shards were cut into other batches on another machine"


def _cut(stored: Stored) -> tuple[list[int], int]:
    """Where its items start, and how many sub-models a pilot chose."""
    chosen = stored.header.decisions.get("sub_models", {"sub_models": 0})
    return stored.header.starts, chosen["sub_models"]


def _grouped(found: Sequence[Stored], by: Callable[[Stored], Any]) -> list[list[Stored]]:
    """Journals that are alike in what `by` gives."""
    return [list(group) for _, group in groupby(sorted(found, key=by), key=by)]


def _part_done(group: Sequence[Stored], first: int = 0, step: int = 1) -> float:
    """Which part of all items, or of every so many of them, some journals have that were cut alike."""
    wanted = group[0].header.starts[first::step]
    return len(set().union(*(stored.places for stored in group)) & set(wanted)) / max(len(wanted), 1)
