"""Ours, the plain loop, the peer and the floor on one model after the other, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pace.clock import Run, Times, in_turns, timed
from pace.contenders import Contenders
from pace.document import Document, number, seconds, times
from pace.models import CASES, Case
from pace.peer_process import peer
from pace.profiling import show_profile

OURS, BOTH, LEAST = "ours, pairwise_kl", "ours, pairwise_kl and gap", "ours, K = 2, one batch"
LOOP = "plain loop, all pairs"
EVAL, FLOOR, PEER = "K eval passes", "floor", "baal + torchmetrics"
ORDER = (OURS, BOTH, LEAST, LOOP, PEER, EVAL, FLOOR)

INTRODUCTION = """\
`ours` is a whole `measure`: finding sites, trying and choosing a strategy, passes, sums, jackknife; with K = 2 on one
batch it shows what does not grow with K and N. The `plain loop` is what people write: train mode with batch
normalisation in eval, K passes, log-softmax once a pass, KL of every ordered pair, under `no_grad`. `K eval passes` are
of the whole model, and the `floor` is one eval pass of what lies before the first dropout and K of what follows:
neither draws or sums anything. Contenders take turns, warmed up on one batch. All in this process, the plain loop and
the passes alone as well, hold on to memory that was freed, as `rdrop-analyze` does (`keep_freed_memory`)."""

EVERYWHERE, IN_HEAD, LAST = 1.2, 1.3, 20  # what is wanted: of K eval passes, of the floor, of the loop


@dataclass(frozen=True)
class Comparison:
    """The times of every contender on one model."""

    name: str
    case: Case
    times: dict[str, Times]
    versions: dict[str, str] = field(default_factory=dict)

    def ratio(self, name: str, other: str) -> float | None:
        """Median of one contender as a multiple of another's; None where one of them was not run."""
        if name not in self.times or other not in self.times:
            return None
        return self.times[name].median / self.times[other].median

    @property
    def falls_short(self) -> bool:
        """Whether ours takes longer than is wanted."""
        if self.case.head_only:
            return (self.ratio(OURS, FLOOR) or 0) > IN_HEAD
        return (self.ratio(OURS, EVAL) or 0) > EVERYWHERE


def compare(name: str, count: int, budget: float, python: Path | None, *, small: bool) -> Comparison:
    """Time all contenders on a model, for about `budget` seconds each."""
    case = CASES[name].smaller() if small else CASES[name]
    contenders = Contenders(case, count)
    runs: dict[str, Callable[[], Run]] = {way: timed(function) for way, function in contenders.ways().items()}
    contenders.warm_up()
    with ExitStack() as stack:
        other = None if python is None else stack.enter_context(peer(python, name, contenders, count))
        if other is not None:
            runs[PEER] = other.run
        return Comparison(name, case, in_turns(runs, budget), other.versions if other else {})


def side_by_side(
    document: Document, names: Sequence[str], count: int, budget: float, python: Path | None, *, small: bool
) -> None:
    """The tables of all models, and what they amount to."""
    document.section(f"Side by side, K = {count}", *INTRODUCTION.splitlines())
    found = []
    for name in names:
        found.append(compare(name, count, budget, python, small=small))
        _one(document, found[-1])
    document.say("### All models", "")
    head = ["model", "ours / K eval passes", "ours / floor", "loop / ours", "peer / ours", "loop / K eval passes"]
    document.table(head, map(_summary, found))
    document.sentences(_sentences(found))
    for slow in (f for f in found if f.falls_short):
        show_profile(document, slow.name, count)


def _one(document: Document, found: Comparison) -> None:
    case = found.case
    document.say(f"### {case.title}", "", f"{case.batches} x {case.batch_size} examples, C = {case.classes}.", "")
    head = ["", "median", "quartiles", "runs", "x K eval passes", "x floor", "EPKL (nats)"]
    document.table(head, (_row(found, name) for name in ORDER))


def _row(found: Comparison, name: str) -> list[str]:
    if name not in found.times:
        return [name, "not run", "", "", "", "", ""]
    taken = found.times[name]
    low, high = taken.quartiles
    epkl = taken.runs[-1].epkl
    shown = number(statistics.fmean(epkl)) if epkl else ""
    spread = f"{seconds(low)} to {seconds(high)}"
    return [name, seconds(taken.median), spread, str(len(taken.runs)), *_ratios(found, name), shown]


def _ratios(found: Comparison, name: str) -> Iterator[str]:
    for other in (EVAL, FLOOR):
        ratio = found.ratio(name, other)
        yield "" if ratio is None else times(ratio)


def _summary(found: Comparison) -> list[str]:
    pairs = ((OURS, EVAL), (OURS, FLOOR), (LOOP, OURS), (PEER, OURS), (LOOP, EVAL))
    ratios = (found.ratio(name, other) for name, other in pairs)
    return [found.case.title, *("not run" if ratio is None else times(ratio) for ratio in ratios)]


def _sentences(found: Sequence[Comparison]) -> Iterator[str]:
    everywhere = {f.case.title: f.ratio(OURS, EVAL) for f in found if not f.case.head_only}
    in_head = {f.case.title: f.ratio(OURS, FLOOR) for f in found if f.case.head_only}
    if everywhere:
        yield _within(f"Dropout everywhere, at most {EVERYWHERE}x of K eval passes", everywhere, EVERYWHERE)
    if in_head:
        yield _within(f"Dropout in the head, at most {IN_HEAD}x of the floor", in_head, IN_HEAD)
    for f in found:
        if f.name == "cnn-last":
            yield f"{f.case.title}, at least {LAST}x faster than the loop: {times(f.ratio(LOOP, OURS) or 0)}."
    yield from _of_peer(found)


def _within(what: str, ratios: dict[str, float | None], limit: float) -> str:
    parts = [f"{name} {times(ratio)}" for name, ratio in ratios.items() if ratio is not None]
    met = sum(ratio is not None and ratio <= limit for ratio in ratios.values())
    return f"{what}: {met} of {len(parts)} ({'; '.join(parts)})."


def _of_peer(found: Sequence[Comparison]) -> Iterator[str]:
    """What the peer is, and where it measures something else."""
    versions = next((f.versions for f in found if f.versions), None)
    if versions is None:
        yield "baal + torchmetrics: not run, for want of an environment that has them (`--peer-python`)."
        return
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield f"The peer is {named}, in a process of its own on the same weights and inputs."
    for f in found:
        own, other = (statistics.fmean(f.times[name].runs[-1].epkl) for name in (OURS, PEER))
        if other < 0.9 * own:
            yield f"{f.case.title}: the peer draws less than training does; its EPKL is {other / own:.0%} of ours."
