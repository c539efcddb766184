"""One measurement in a process of its own, so that its peak memory is its own: `python -m pace.alone --help`.

Prints one line of JSON: seconds of the fastest run (slopes are taken of them), bytes at the peak and before the first
measurement, and the shares of the seconds that went into passes and into planning.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import torch

from pace.clock import timed
from pace.contenders import make_batch
from pace.models import Case, find
from rdrop_probes import planning
from rdrop_probes.batch import Batch
from rdrop_probes.measure import measure
from rdrop_probes.memory import keep_freed_memory
from rdrop_probes.pairwise_kl import PairwiseKL
from rdrop_probes.settings import Settings
from rdrop_probes.submodels import SubModels


@click.command()
@click.argument("name")
@click.option("--sub-models", type=int, required=True)
@click.option("--batches", type=int, required=True)
@click.option("--runs", type=int, default=3)
@click.option("--threads", type=int, required=True)
def main(name: str, sub_models: int, batches: int, runs: int, threads: int) -> None:
    """Measure the EPKL of the model NAME."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    case = find(name)
    model, settings = case.model(), Settings(sub_models=sub_models)
    case.inputs(0)
    before = peak_bytes()

    def run() -> tuple[float, ...]:
        measure(model, made_up(case, batches), forward=model, probes=[PairwiseKL], settings=settings)
        return ()

    run()
    with stopwatch() as spent:
        taken = [timed(run)().seconds for _ in range(runs)]
    shares = {what: seconds / sum(taken) for what, seconds in spent.items()}
    found = {"seconds": min(taken), "peak": peak_bytes(), "before": before, **shares}
    print(json.dumps(found))


def made_up(case: Case, batches: int) -> Iterator[Batch]:
    """Batches that are made when they are needed, so that the data take no memory."""
    for number in range(batches):
        yield make_batch(case, case.inputs(number), number * case.batch_size)


def peak_bytes() -> int:
    """The most memory that the process ever held."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Seconds spent in `passes` of eval model and sub-models, and in `planning`: finding sites, choosing a strategy."""
    spent = {"passes": 0.0, "planning": 0.0}
    logits = SubModels.logits

    def timed_logits(*given: Any, **named: Any) -> Any:
        chunks = logits(*given, **named)
        advance = _adding(spent, "passes", lambda: next(chunks, None))
        while (chunk := advance()) is not None:
            yield chunk

    with ExitStack() as stack:
        for owner, name, what in (
            (planning, "find_sites", "planning"),
            (SubModels, "choose", "planning"),
            (SubModels, "eval_logits", "passes"),
            (SubModels, "draws", "passes"),
        ):
            stack.enter_context(patch.object(owner, name, _adding(spent, what, getattr(owner, name))))
        stack.enter_context(patch.object(SubModels, "logits", timed_logits))
        yield spent


def _adding(spent: dict[str, float], what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with the seconds that it takes added to what is spent."""

    def run(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            spent[what] += time.perf_counter() - started

    return run


if __name__ == "__main__":
    main()
