"""The processes that share a run: one alone, or those that torchrun starts. torch.distributed is spoken here only."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from rdrop_analysis.errors import DataError, RDropAnalysisError, UnexpectedError
from rdrop_analysis.files import printable

T = TypeVar("T")

LONGEST = timedelta(days=2)  # that a worker waits for the others' items: torchrun ends a run of which one has died
PATIENCE = timedelta(minutes=5)  # until all of them have begun
LAST_WORDS = timedelta(seconds=5)  # that the others give the leader to print how it ended


class Team:
    """The workers of a run: this process alone."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    @property
    def leads(self) -> bool:
        """Whether this is the worker that merges, prints and writes."""
        return self.rank == 0

    def share(self, make: Callable[[], T]) -> T:
        """What `make` returns on the leader."""
        return make()

    def gather(self, mine: T) -> list[T]:
        """Everybody's, in the order of ranks; nothing on the others than the leader."""
        return [mine]

    def meet(self, mine: Any = None) -> list[Any]:
        """Wait until all are here; everybody's value.

        Raises:
            RDropAnalysisError: somebody has failed; the same everywhere.
        """
        return [mine]

    def agree(self, problem: Exception) -> Exception:
        """Tell the others of a failure; the one that all take for their own."""
        return problem

    def heed(self) -> None:
        """Raise the failure of another worker, if there is one."""

    def count(self, name: str, n: int) -> int:
        """Add to a count that all keep together; its value."""
        self._counts[name] += n
        return self._counts[name]


class Torchrun(Team):
    """The workers that torchrun has started.

    All that they do together is one kind of meeting, so that a worker that fails is heard wherever the others are.
    """

    def __init__(self, *, cuda: bool = False) -> None:
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        super().__init__()
        try:
            store, self.rank, self.size = next(rendezvous("env://", timeout=PATIENCE))
        except (RuntimeError, ValueError) as problem:
            text = f"the other workers of torchrun were not found within {PATIENCE.seconds} seconds"
            raise DataError(f"{text}: start all of them, or unset TORCHELASTIC_RUN_ID to run alone") from problem
        store.set_timeout(LONGEST)
        prefix = f"rdrop-analysis/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        self._store = PrefixStore(prefix, store)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"  # items are sent from main memory
        dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size, timeout=LONGEST)
        self._dist = dist
        self._agreed: list[Exception] = []
        self._failures = 0
        atexit.register(self._leave)

    def share(self, make: Callable[[], T]) -> T:
        """What `make` returns on the leader, which alone calls it."""
        value: T = self.meet(make() if self.leads else None)[0]
        return value

    def gather(self, mine: T) -> list[T]:
        """Everybody's on the leader."""
        self.meet()
        everybody: list[Any] | None = [None] * self.size if self.leads else None
        self._dist.gather_object(mine, everybody, dst=0)
        return everybody or []

    def meet(self, mine: Any = None) -> list[Any]:
        """Wait until all are here; everybody's value."""
        return self._meet(None, mine)

    def agree(self, problem: Exception) -> Exception:
        """Tell the others of a failure, unless it is theirs; the one that all take for their own."""
        if any(problem is agreed for agreed in self._agreed):
            return problem
        self._store.set(f"failed/{self._failures}", "1")
        ours = _sendable(problem)
        try:
            self._meet(ours, None)
        except RDropAnalysisError as agreed:
            if str(agreed) != str(ours):
                return agreed  # the first of several; or nobody hears any more
        self._agreed.append(problem)
        return problem

    def heed(self) -> None:
        """Join the meeting of a worker that has failed."""
        if self._store.check([f"failed/{self._failures}"]):
            self.meet()

    def count(self, name: str, n: int) -> int:
        """Add to a count that all keep together."""
        return int(self._store.add(f"count/{name}", n))

    def _meet(self, problem: RDropAnalysisError | None, mine: Any) -> list[Any]:
        everybody: list[Any] = [None] * self.size
        try:
            self._dist.all_gather_object(everybody, (problem, mine))
        except RuntimeError as lost:  # there is nobody left to meet
            text = "another worker was killed or has ended: what was finished is kept"
            self._agreed.append(DataError(f"{text}, and the same command goes on from it"))
            raise self._agreed[-1] from lost
        problems = [theirs for theirs, _ in everybody if theirs is not None]
        if problems:
            self._failures += 1
            self._agreed.append(problems[0])
            raise problems[0]
        return [value for _, value in everybody]

    def _leave(self) -> None:
        """Let the leader print before torchrun ends everybody because one has ended."""
        with contextlib.suppress(Exception):  # whoever started this has gone first
            if not self.leads:
                self._store.wait(["over"], LAST_WORDS)
            self._dist.destroy_process_group()
            if self.leads:
                self._store.set("over", "1")


def started_by_torchrun() -> bool:
    """Whether this process is one of several that share a run.

    RANK and WORLD_SIZE alone say nothing: job schedulers set them as well, and shells keep them.
    """
    told = {"TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    return told and os.environ["WORLD_SIZE"].isdecimal() and int(os.environ["WORLD_SIZE"]) > 1


def is_follower() -> bool:
    """Whether this process is one of several, and not the one that prints."""
    return started_by_torchrun() and os.environ["RANK"] != "0"


def local_rank() -> int:
    """Which of the workers on this machine this one is."""
    rank = os.environ.get("LOCAL_RANK", "0")
    return int(rank) if rank.isdecimal() else 0


def _sendable(problem: Exception) -> RDropAnalysisError:
    """A failure as one of ours."""
    return problem if isinstance(problem, RDropAnalysisError) else unexpected(problem)


def unexpected(problem: Exception) -> UnexpectedError:
    """A fault of ours, in one line."""
    text = f"unexpected error: {type(problem).__name__}: {printable(problem, 200)}"
    return UnexpectedError(f"{text}; -v shows where; please report it")
