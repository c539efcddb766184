"""Where the time of a measurement goes, by operator."""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch.profiler import ProfilerActivity, profile

from pace.contenders import Contenders
from pace.document import Document, seconds
from pace.models import find
from rdrop_probes.pairwise_kl import PairwiseKL

OPERATORS = 10


def show_profile(document: Document, name: str, count: int) -> None:
    """The operators that take most of a second measurement, the first being there to warm up."""
    contenders = Contenders(find(name), count)
    contenders.engine([PairwiseKL])
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        contenders.engine([PairwiseKL])
        taken = time.perf_counter() - started
    document.say(f"### {find(name).title}, K = {count}: where the time of `ours, pairwise_kl` goes", "")
    document.table(["operator", "its own time", "share", "calls"], _rows(recorded, taken))


def _rows(recorded: profile, taken: float) -> Iterator[list[str]]:
    """Operators with the most time of their own; then what no operator takes, which the profiler itself enlarges."""
    operators = sorted(recorded.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    for event in operators[:OPERATORS]:
        spent = event.self_cpu_time_total / 1e6
        yield [event.key, seconds(spent), f"{spent / taken:.0%}", str(event.count)]
    rest = taken - sum(event.self_cpu_time_total for event in operators) / 1e6
    yield ["between operators: Python, and the profiler", seconds(rest), f"{rest / taken:.0%}", ""]
