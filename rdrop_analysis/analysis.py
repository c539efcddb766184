"""The main job: measure every checkpoint on the same data and compare them with the reference."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import get_args

import torch
from torch import nn

from rdrop_analysis.assembling import (
    choose_reference,
    comparisons,
    data_record,
    environment,
    per_example_table,
    run_findings,
    tool_version,
)
from rdrop_analysis.data import Data
from rdrop_analysis.datasets import load_data
from rdrop_analysis.errors import INTERRUPTED, DataError, RDropAnalysisError, UsageError
from rdrop_analysis.files import printable
from rdrop_analysis.gallery import most_inconsistent
from rdrop_analysis.measuring import Measured, measure_subject
from rdrop_analysis.results import Results
from rdrop_analysis.subjects import Entry, Models, entries
from rdrop_analysis.tasks import TASKS
from rdrop_probes.masks import Masks
from rdrop_probes.measure import Settings
from rdrop_probes.records import SCHEMA_VERSION, Failure, RunRecord, Unit
from rdrop_probes.registry import choose
from rdrop_probes.statistics import LEVEL
from rdrop_probes.submodels import Strategy

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]


def analyze(
    models: Models,
    data: object = None,
    *,
    sub_models: int = 32,
    probes: str | Sequence[str] | None = None,
    seed: int = 0,
    masks: Masks = "per-example",
    strategy: Strategy = "auto",
    model: Callable[[], nn.Module] | None = None,
    task: str = "classification",
    reference: str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    device: str = "cpu",
    unit: Unit = "nats",
    keep_going: bool = False,
    progress: Progress = lambda *_: None,
) -> Results:
    """Measure the train/inference inconsistency of models trained with dropout.

    Args:
        models: a checkpoint's path, a module, a sequence of these, or a mapping of names to them.
        data: a built-in name (`digits`), a file, `mod:callable`, an `(inputs, labels)` pair, or an iterable of
            batches; None takes the data that a self-describing checkpoint names.
        sub_models: K, how many sub-models to sample, at least 2.
        probes: names of the probes to run; None runs all that fit the data.
        seed: every mask follows from it; the same masks serve all checkpoints of one architecture.
        masks: "per-example" as in training, or "shared" by all examples, so that a sub-model is one network.
        strategy: "auto", or "vmap" or "loop" to insist on how sub-models are run.
        model: builds the module that plain state dicts are loaded into, strictly.
        task: only "classification" so far.
        reference: name of the checkpoint the others are compared with; None takes the first trained with
            alpha 0, else the first.
        batch_size: examples at a time; None chooses by the size of an example.
        limit: use only the first examples.
        device: where to run, such as "cpu" or "cuda".
        unit: what divergences are shown in.
        keep_going: collect the failures of single checkpoints in `Results.record.failures` and go on.
        progress: called with (checkpoint, examples done, examples in all).

    Returns:
        Results, with the numbers of every checkpoint and their paired comparisons.

    Raises:
        UsageError: arguments that make no sense.
        CheckpointError, DataError, UnsafeFileError: see these; with `keep_going` only if nothing was measured.
    """
    settings = _settings(sub_models, seed, masks, strategy)
    for name, value, allowed in (("task", task, TASKS), ("unit", unit, get_args(Unit))):
        if value not in allowed:
            raise UsageError(f"unknown {name} {value!r}: choose from {', '.join(allowed)}")
    probes = probes.split(",") if isinstance(probes, str) else probes
    named = entries(models)
    if reference is not None and reference not in (known := [entry.name for entry in named]):
        raise UsageError(f"there is no checkpoint {reference!r} to be the reference: choose from {', '.join(known)}")
    run = _Run(settings, _device(device), model, probes, batch_size, limit, progress, keep_going=keep_going)
    started = time.monotonic()
    given = None if data is None else load_data(data, limit)
    run.measure_all(named, given)
    config: dict[str, object] = {
        "sub_models": sub_models,
        "seed": seed,
        "masks": masks,
        "strategy": strategy,
        "batch_size": batch_size,
        "limit": limit,
        "task": task,
        "probes": list(probes) if probes is not None else run.probes_run(),
        "unit": unit,
        "level": LEVEL,
    }
    return run.results(reference, config, time.monotonic() - started)


@dataclass
class _Run:
    """What grows while checkpoints are measured one after the other."""

    settings: Settings
    device: torch.device
    factory: Callable[[], nn.Module] | None
    probes: Sequence[str] | None
    batch_size: int | None
    limit: int | None
    progress: Progress
    keep_going: bool
    data: Data | None = None
    measured: list[Measured] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    first: RDropAnalysisError | None = None

    def measure_all(self, named: Sequence[Entry], given: Data | None) -> None:
        self.data = given
        for place, entry in enumerate(named):
            try:
                self.measured.append(self._measure(entry))
            except RDropAnalysisError as problem:
                self._failed(entry, problem)
            except KeyboardInterrupt:
                if not self.keep_going or not self.measured:
                    raise
                self.failures += [
                    Failure(checkpoint=e.name, message="interrupted", exit_code=INTERRUPTED) for e in named[place:]
                ]
                return
            except Exception as problem:  # a fault of ours must not lose what was measured before
                if not self.keep_going:
                    raise
                text = (
                    f"unexpected {type(problem).__name__}: {printable(problem, 200)}; -v shows where, please report it"
                )
                self._failed(entry, DataError(text), problem)

    def _failed(self, entry: Entry, problem: RDropAnalysisError, cause: Exception | None = None) -> None:
        """Remember that a checkpoint could not be measured; raise if there is nothing else to deliver."""
        logger.debug("%s was not measured", entry.name, exc_info=cause or problem)
        self.failures.append(Failure(checkpoint=entry.name, message=str(problem), exit_code=problem.exit_code))
        self.first = self.first or problem
        if not self.keep_going:
            raise problem from cause

    def _measure(self, entry: Entry) -> Measured:
        subject, checkpoint = entry.load(self.factory)
        if self.data is None:
            self.data = self._named_by(checkpoint.data if checkpoint else None, entry.name)
        data = self.data
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            self.progress(entry.name, done, data.n_examples)

        self.progress(entry.name, 0, data.n_examples)
        subject.model.to(self.device)
        return measure_subject(
            subject,
            data,
            self.settings,
            probes=None if self.probes is None else list(self.probes),
            batch_size=self.batch_size,
            progress=advance,
        )

    def _named_by(self, name: str | None, checkpoint: str) -> Data:
        if name is None:
            raise UsageError(
                f"{checkpoint} does not name its data: pass --data with a built-in name, a file or file.py:callable"
            )
        return load_data(name, self.limit)

    def probes_run(self) -> list[str]:
        """Names of the probes that fitted the data."""
        return [probe.name for probe in choose(None, labels=self.data is not None and self.data.has_labels)]

    def results(self, reference: str | None, config: dict[str, object], seconds: float) -> Results:
        if self.data is None or not self.measured:
            raise self.first or UsageError("nothing was measured")
        chosen = choose_reference(self.measured, reference)
        record = RunRecord(
            schema_version=SCHEMA_VERSION,
            tool={"name": "rdrop-analysis", "version": tool_version()},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            environment=environment(self.device),
            config=config,
            data=data_record(self.data, max(m.n_classes for m in self.measured)),
            checkpoints=[m.result for m in self.measured],
            reference=chosen.result.name if len(self.measured) > 1 else None,
            comparisons=comparisons(chosen, self.measured),
            examples=most_inconsistent(self.measured, self.data),
            warnings=[*run_findings(self.measured, reference), *(f for m in self.measured for f in m.findings)],
            failures=self.failures,
        )
        return Results(record, per_example_table(self.measured, self.data))


def _settings(sub_models: int, seed: int, masks: Masks, strategy: Strategy) -> Settings:
    for name, number in (("sub_models", sub_models), ("seed", seed)):
        if not isinstance(number, int) or number < 0:
            raise UsageError(f"{name} must be a whole number from 0 up, not {number!r}")
    for name, value, allowed in (("masks", masks, get_args(Masks)), ("strategy", strategy, get_args(Strategy))):
        if value not in allowed:
            raise UsageError(f"unknown {name} {value!r}: choose from {', '.join(allowed)}")
    try:
        return Settings(sub_models=sub_models, seed=seed, masks=masks, strategy=strategy)
    except ValueError as problem:
        raise UsageError(str(problem)) from problem


def _device(name: str) -> torch.device:
    try:
        if (device := torch.device(name)).type not in ("cpu", "cuda"):
            raise UsageError(f"device {name!r} is not supported: choose cpu or cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise UsageError(f"device {name!r} is not available here: {str(problem).splitlines()[0]}") from problem
    return device
