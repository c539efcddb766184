"""How contenders are timed: in turns, so that a busy moment of the machine falls on all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

MOST_RUNS = 15
FEWEST_RUNS = 3


@dataclass(frozen=True)
class Run:
    """Seconds of one run, and the EPKL that it found: nats by example, or one mean, or nothing."""

    seconds: float
    epkl: tuple[float, ...] = ()


@dataclass
class Times:
    """The runs of one contender."""

    runs: list[Run] = field(default_factory=list)

    def enough(self, seconds: float) -> bool:
        """Whether there are enough runs: about `seconds` of them, and fewer than three only if these are long."""
        spent = sum(run.seconds for run in self.runs)
        if len(self.runs) < FEWEST_RUNS:
            return spent >= 2 * seconds
        return spent >= seconds or len(self.runs) >= MOST_RUNS

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(run.seconds for run in self.runs)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds."""
        seconds = [run.seconds for run in self.runs]
        if len(seconds) == 1:
            return seconds[0], seconds[0]
        first, _, third = statistics.quantiles(seconds, method="inclusive")
        return first, third


def timed(function: Callable[[], tuple[float, ...]]) -> Callable[[], Run]:
    """A contender from a function that returns an EPKL: garbage is collected before, not while it runs."""

    def run() -> Run:
        gc.collect()
        gc.disable()
        try:
            started = time.perf_counter()
            epkl = function()
            return Run(time.perf_counter() - started, epkl)
        finally:
            gc.enable()

    return run


def in_turns(contenders: Mapping[str, Callable[[], Run]], seconds: float) -> dict[str, Times]:
    """Run all contenders once, again and again; each until it took about so many seconds."""
    times = {name: Times() for name in contenders}
    while waiting := [name for name in contenders if not times[name].enough(seconds)]:
        for name in waiting:
            times[name].runs.append(contenders[name]())
    return times
