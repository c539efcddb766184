"""How time and peak memory grow with K, N and C; each measured in a fresh process."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pace.document import Document, megabytes, number, seconds, times
from pace.models import GPT2_VOCABULARY, find

HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Alone:
    """One measurement in a process of its own: seconds, peak bytes, those before, shares of passes and planning."""

    sub_models: int
    batches: int
    classes: int
    seconds: float
    peak: int
    before: int
    passes: float
    planning: float

    @property
    def sums(self) -> float:
        """The share of all the rest."""
        return 1 - self.passes - self.planning

    @property
    def own(self) -> int:
        """Bytes that measuring took beyond libraries, model and a batch."""
        return self.peak - self.before


def alone(name: str, sub_models: int, batches: int, runs: int = 3) -> Alone:
    """Run `pace.alone` on a model."""
    options = {"sub-models": sub_models, "batches": batches, "runs": runs, "threads": torch.get_num_threads()}
    given = [part for option, value in options.items() for part in (f"--{option}", str(value))]
    command = [sys.executable, "-m", "pace.alone", name, *given]
    done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - ours
    return Alone(sub_models, batches, find(name).classes, **json.loads(done.stdout))


def growth(document: Document, *, quick: bool) -> None:
    """The tables for K, N and C."""
    document.section(
        "Growing K, N and C",
        "The probe `pairwise_kl`, each row in a fresh process, the fastest of three runs. Peak memory is that of the",
        "whole process, and beside it what lies above libraries, model and one batch. Batches are made when needed.",
    )
    _grow_k(document, "mlp", (8, 32, 64) if quick else (8, 32, 128, 256))
    if not quick:
        _grow_k(document, "cnn-last", (8, 32, 128, 256))
    _grow_n(document, "mlp", (1, 10) if quick else (4, 40))
    _grow_c(document, (10, 1000, 10_000) if quick else (10, 100, 1000, 10_000, GPT2_VOCABULARY))


def _grow_k(document: Document, name: str, counts: Sequence[int]) -> None:
    case = find(name)
    found = [alone(name, count, case.batches) for count in counts]
    document.say(f"### K: {case.title}, N = {case.batches * case.batch_size}", "")
    rows = ([run.sub_models, *_measured(run), added] for run, added in zip(found, _added(found), strict=True))
    document.table(["K", "seconds", "peak", "above the start", "per added sub-model"], rows)
    document.sentences([*_linear(found), _memory(found, "K")])


def _grow_n(document: Document, name: str, batches: Sequence[int]) -> None:
    case = find(name)
    found = [alone(name, 32, count) for count in batches]
    document.say(f"### N: {case.title}, K = 32", "")
    rows = ([run.batches * case.batch_size, *_measured(run)] for run in found)
    document.table(["N", "seconds", "peak", "above the start"], rows)
    growth_in_time = found[-1].seconds / found[0].seconds
    document.sentences([f"Time grows {times(growth_in_time)} with N x 10.", _memory(found, "N")])


def _grow_c(document: Document, classes: Sequence[int]) -> None:
    found = [alone(f"classes-{count}", 32, 1) for count in classes]
    document.say("### C: one hidden layer of 128, dropout, linear; N = 64, K = 32", "")
    rows = ([run.classes, *_measured(run), _by_logit(run), f"{run.sums:.0%}"] for run in found)
    document.table(["C", "seconds", "peak", "above the start", "per logit", "sums"], rows)
    last = found[-1].seconds / found[-2].seconds / (found[-1].classes / found[-2].classes)
    span = f"From C = {found[-2].classes} to {found[-1].classes}"
    document.sentences([f"{span} the time of a logit becomes {times(last)} what it was."])


def _measured(run: Alone) -> list[str]:
    return [seconds(run.seconds), megabytes(run.peak), megabytes(run.own)]


def _by_logit(run: Alone) -> str:
    return f"{number(run.seconds / (64 * 32 * run.classes) * 1e9)} ns"


def _added(found: Sequence[Alone]) -> list[str]:
    slopes = [_slope(a, b) for a, b in itertools.pairwise(found)]
    return ["", *map(seconds, slopes)]


def _slope(first: Alone, second: Alone) -> float:
    return (second.seconds - first.seconds) / (second.sub_models - first.sub_models)


def _linear(found: Sequence[Alone]) -> Iterator[str]:
    slopes = [_slope(a, b) for a, b in itertools.pairwise(found)]
    parts = ", ".join(map(seconds, slopes))
    yield f"A further sub-model takes {parts} from one row to the next: were time linear in K, these would be equal."


def _memory(found: Sequence[Alone], what: str) -> str:
    grown = max(run.peak for run in found) / min(run.peak for run in found) - 1
    own = max(run.own for run in found) / min(run.own for run in found) - 1
    return f"Peak memory differs by {grown:.0%} over {what}, and by {own:.0%} of what lies above the start."


def share_of_sums(document: Document, names: Sequence[str], *, quick: bool) -> None:
    """How much of a run lies outside the passes at the vocabulary of GPT-2."""
    document.section(
        f"What sums cost at C = {GPT2_VOCABULARY}",
        "Shares of a run with `pairwise_kl`: passes of eval model and sub-models; planning, which is done once a",
        "run (finding sites, choosing a strategy); and sums, which is all the rest: EPKL, jackknife, columns.",
    )
    found = {name: alone(name, 8 if quick else 32, 1 if quick else 2, runs=1) for name in names}
    rows = ([find(name).title, run.sub_models, *_measured(run), *_shares(run)] for name, run in found.items())
    document.table(["model", "K", "seconds", "peak", "above the start", "passes", "planning", "sums"], rows)


def _shares(run: Alone) -> list[str]:
    return [f"{share:.1%}" for share in (run.passes, run.planning, run.sums)]
