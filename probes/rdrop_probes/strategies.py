"""How sub-models are run: vmap, folded into the batch, or one at a time; decided by trying on the user's own model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from rdrop_probes.divergences import agree
from rdrop_probes.examples import Examples
from rdrop_probes.memory import is_out_of_memory
from rdrop_probes.passes import Passes, Suffix

Strategy = Literal["auto", "vmap", "fold", "loop"]
NUMBERS_AT_A_TIME = 2**20  # in the largest tensor of a chunk: on CPU it should stay in the cache
NUMBERS_ON_A_DEVICE = 2**28
TRIED = 8  # sub-models that a strategy is timed with at most
LOOKED_AT = 4  # examples whose replayed passes are compared with whole ones
START = 3e-5  # seconds for an operator to start, with its share of hooks and Python: what many at a time save on CPU
WORTH = 0.2  # share of a pass, from which that is worth trying
SHORT = 0.02  # seconds: shorter passes are always tried, matrices of many sub-models may multiply faster


class StrategyError(ValueError):
    """The strategy that was insisted on cannot run the model, or not rightly."""


Run = Callable[[Examples], Tensor]


@dataclass(frozen=True)
class Choice:
    """A strategy, how many sub-models it runs at a time, why, and what was timed: seconds a sub-model by strategy.

    `replay` is whether what comes before the first draw is run once a batch.
    """

    strategy: Literal["vmap", "fold", "loop"]
    chunk: int = 1
    reason: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    replay: bool = False

    def __str__(self) -> str:
        at_a_time = f", {self.chunk} sub-models at a time" if self.chunk > 1 else ""
        return f"{self.strategy}{at_a_time}" + (f": {self.reason}" if self.reason else "")

    def plain(self) -> dict[str, Any]:
        """As plain data, from which `Choice(**data)` makes it again."""
        return {**asdict(self), "seconds": dict(self.seconds)}


def choose(
    passes: Passes, examples: Examples, *, wanted: Strategy, count: int, needs_loop: str, chunk: int | None
) -> Choice:
    """Try the strategies on a batch and take the fastest of those that give what the loop gives.

    `wanted` insists on one, `chunk` on so many sub-models at a time. `needs_loop` says why only the loop can do.

    Raises:
        StrategyError: what is insisted on does not give what the loop gives.
    """
    passes.replay = _replays(passes, examples)
    choice = _chosen(passes, examples, wanted, count, needs_loop, chunk)
    return replace(choice, replay=passes.replay)


def _chosen(
    passes: Passes, examples: Examples, wanted: Strategy, count: int, needs_loop: str, chunk: int | None
) -> Choice:
    if wanted == "loop" or needs_loop:
        if wanted not in ("loop", "auto"):
            raise StrategyError(f"the strategy {wanted} does not do for this model: {needs_loop}")
        return Choice("loop", reason=needs_loop)
    suffix = passes.weigh_suffix(examples)
    chunk = chunk or _fitting(suffix, count, examples.device)
    if wanted == "auto" and (reason := _not_worth_it(passes, examples, suffix, chunk)):
        return Choice("loop", reason=reason)
    return _fastest_that_fits(passes, examples, wanted, max(chunk, 2), count)


def _fastest_that_fits(passes: Passes, examples: Examples, wanted: Strategy, chunk: int, count: int) -> Choice:
    """The fastest with as many sub-models at a time as memory allows."""
    while True:
        try:
            return _fastest(passes, examples, wanted, chunk, count)
        except Exception as error:
            if not is_out_of_memory(error) or chunk == 1:
                raise
            passes.forget()
            chunk //= 2


def _fastest(passes: Passes, examples: Examples, wanted: Strategy, chunk: int, count: int) -> Choice:
    tried = min(chunk, TRIED)
    expected: list[Tensor] = []
    seconds = {"loop": _time(lambda: expected.extend(passes.one(examples, k) for k in range(2)), examples) / 2}
    prefix = _prefix_seconds(passes, examples, seconds["loop"])
    ways = {"vmap": passes.vmapped, "fold": passes.folded}
    problems: dict[str, str] = {}
    for name, run in ways.items():
        own_prefix = prefix * chunk / count if name == "fold" else 0.0  # of as many examples as are folded
        if wanted not in ("auto", name) or (wanted == "auto" and own_prefix > min(seconds.values())):
            continue
        way = partial(run, examples, range(tried))
        if problem := problem_with(name, way, expected):
            problems[name] = problem
        else:
            seconds[name] = min(_time(way, examples) for _ in range(2)) / tried + own_prefix
    if wanted != "auto":
        if wanted in problems:
            raise StrategyError(f"the strategy {wanted} does not do for this model: {problems[wanted]}")
        return Choice(wanted, chunk, "as asked", seconds)
    best = min(seconds, key=lambda name: seconds[name])
    reason = "; ".join(["the fastest on the first batch" if len(seconds) > 1 else "", *problems.values()]).strip("; ")
    return Choice(best, 1 if best == "loop" else chunk, reason, seconds)  # type: ignore[arg-type] # one of the names


def _prefix_seconds(passes: Passes, examples: Examples, suffix: float) -> float:
    """What a pass takes that is not spared its prefix, beyond the seconds of one that is."""
    if not passes.replay:
        return 0.0
    passes.forget()
    return max(0.0, _time(lambda: passes.one(examples, 0), examples) - suffix)


def problem_with(name: str, run: Callable[[], Tensor], expected: list[Tensor]) -> str:
    """Why a strategy does not do; empty if it does."""
    try:
        found = run()
    except Exception as error:  # whatever a model does that a strategy cannot, the loop can
        if is_out_of_memory(error):
            raise
        return f"{name} cannot run this model: {first_line(error.__cause__ or error)}"
    if found.dtype == expected[0].dtype and agree(found[: len(expected)], torch.stack(expected)):
        return ""
    return f"{name} does not reproduce the loop on the first batch"


def _replays(passes: Passes, examples: Examples) -> bool:
    """Whether passes that are spared what comes before the first draw give what whole passes give."""
    if not passes.replayable:
        return False
    few = examples.first(LOOKED_AT)
    runs: list[Run] = [passes.eval_model, *(partial(passes.one, sub_model=k) for k in (0, 1))]
    passes.replay = False
    whole = [run(few).clone() for run in runs]
    passes.replay = True
    again = (0, 1, 2, 1, 0)  # once more after others: they must leave nothing behind
    same = all(agree(runs[number](few), whole[number]) for number in again)
    passes.forget()
    return same


def _not_worth_it(passes: Passes, examples: Examples, suffix: Suffix, chunk: int) -> str:
    """Why running many sub-models at a time has nothing to save; empty if it may have."""
    if chunk == 1:
        return "one sub-model at a time fills the cache"
    if examples.device.type != "cpu":
        return ""
    seconds = _time(lambda: passes.one(examples, 0), examples)
    little = seconds > SHORT and suffix.operators * START < WORTH * seconds
    return "its passes are long beside the time to start their operators" * little


def _fitting(suffix: Suffix, count: int, device: torch.device) -> int:
    """How many sub-models to run at a time: what they make after the first draw should stay in the cache."""
    numbers = NUMBERS_AT_A_TIME if device.type == "cpu" else NUMBERS_ON_A_DEVICE
    most = max(1, min(count, numbers // suffix.largest))
    chunks = -(-count // most)
    return -(-count // chunks)  # chunks of nearly equal size


def _time(run: Callable[[], object], examples: Examples) -> float:
    device = examples.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def first_line(error: BaseException) -> str:
    """What went wrong in one line; the kind of error where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
