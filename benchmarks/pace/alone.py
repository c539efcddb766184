"""One measurement in a process of its own, so that its peak memory is its own: `python -m pace.alone --help`.

Prints one line of JSON: seconds of the fastest run (slopes are taken of them), bytes at the peak and before the first
measurement, and the share of the seconds that went into passes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch

from pace.clock import timed
from pace.contenders import make_batch
from pace.models import Case, find
from rdrop_probes.batch import Batch
from rdrop_probes.measure import measure
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
    case = find(name)
    model, settings = case.model(), Settings(sub_models=sub_models)
    case.inputs(0)
    before = peak_bytes()

    def run() -> tuple[float, ...]:
        measure(model, made_up(case, batches), forward=model, probes=[PairwiseKL], settings=settings)
        return ()

    run()
    with in_passes() as passes:
        taken = [timed(run)().seconds for _ in range(runs)]
    share = sum(passes) / sum(taken)
    found = {"seconds": min(taken), "peak": peak_bytes(), "before": before, "passes": share}
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
def in_passes() -> Iterator[list[float]]:
    """Seconds spent in the passes of eval model and sub-models, one number a call."""
    spent: list[float] = []
    evaluate, sample = SubModels.eval_logits, SubModels.logits

    def eval_logits(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return evaluate(*given, **named)
        finally:
            spent.append(time.perf_counter() - started)

    def logits(*given: Any, **named: Any) -> Any:
        chunks = sample(*given, **named)
        while True:
            started = time.perf_counter()
            chunk = next(chunks, None)
            spent.append(time.perf_counter() - started)
            if chunk is None:
                return
            yield chunk

    SubModels.eval_logits, SubModels.logits = eval_logits, logits  # type: ignore[method-assign] # put back below
    try:
        yield spent
    finally:
        SubModels.eval_logits, SubModels.logits = evaluate, sample  # type: ignore[method-assign] # as they were


if __name__ == "__main__":
    main()
