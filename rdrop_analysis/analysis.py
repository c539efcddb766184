"""The main job: measure every checkpoint on the same data and compare them with the reference."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from rdrop_analysis.arms import arms, clustered, reference_among
from rdrop_analysis.assembling import (
    choose_reference,
    comparisons,
    data_findings,
    data_record,
    environment,
    per_example_table,
    run_findings,
    said_once,
)
from rdrop_analysis.axis import axis_of, check_axis, constant
from rdrop_analysis.errors import INTERRUPTED, CheckpointError, RDropAnalysisError, UsageError
from rdrop_analysis.gallery import most_inconsistent
from rdrop_analysis.grouping import Groups, Lineup, line_up
from rdrop_analysis.identity import tool_version
from rdrop_analysis.journal import JournalError
from rdrop_analysis.measuring import Measured, measure_subject
from rdrop_analysis.results import Results
from rdrop_analysis.sources import Source
from rdrop_analysis.subjects import Entry, Models
from rdrop_analysis.tasks import AUTO, TASKS
from rdrop_analysis.work import Place
from rdrop_analysis.workers import local_rank, unexpected
from rdrop_probes.arithmetic import Precision
from rdrop_probes.items import PartDone
from rdrop_probes.masks import Masks
from rdrop_probes.precision import USUAL
from rdrop_probes.rankings import rankings
from rdrop_probes.records import SCHEMA_VERSION, Failure, RunRecord, Unit
from rdrop_probes.settings import Settings
from rdrop_probes.statistics import LEVEL
from rdrop_probes.strategies import Strategy

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
DEFAULT_TOLERANCE = 0.05  # of the mean EPKL


def analyze(
    models: Models | None = None,
    data: object = None,
    *,
    sub_models: int | Literal["auto"] = 32,
    tolerance: float | None = None,
    probes: str | Sequence[str] | None = None,
    seed: int = 0,
    masks: Masks = "per-example",
    strategy: Strategy = "auto",
    model: Callable[..., nn.Module] | None = None,
    task: str = AUTO,
    reference: str | None = None,
    groups: Groups | None = None,
    over: str | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    memory: int | None = None,
    precision: Precision | None = None,
    dropout: float | Sequence[float] | None = None,
    device: str = "cpu",
    unit: Unit = "nats",
    trust_code: bool = False,
    keep_going: bool = False,
    resume: str | Path | None = None,
    progress: Progress = lambda *_: None,
    place: Place | None = None,
) -> Results:
    """Measure the train/inference inconsistency of models trained with dropout.

    Args:
        models: a checkpoint's path, a module, a sequence of these, or a mapping of names to them; None where `groups`
            names them all.
        data: a built-in name (`digits`), a file (arrays, or texts and images that the checkpoint's own tokenizer or
            processor reads), `mod:callable`, an `(inputs, labels)` pair, or an iterable of batches; None takes the
            data that a self-describing checkpoint names.
        sub_models: K, how many sub-models to sample, at least 2; "auto" lets a pilot choose as few as will do.
        tolerance: with "auto", how far the mean EPKL of these very examples may be from what infinitely many sub-models
            would give, with 95% confidence and relative to it; 0.05 by default.
        probes: names of the probes to run; None runs all that fit the data and are cheap, which `default` in a list
            stands for; `attribution`, `freedom` and `noise_floor` run on request.
        seed: every mask follows from it; the same masks serve all checkpoints of one architecture.
        masks: "per-example" as in training, or "shared" by all examples, so that a sub-model is one network.
        strategy: "auto" tries how sub-models are run fastest; "vmap", "fold" and "loop" insist, and then nothing
            goes by a clock: two runs give the same numbers bit for bit.
        model: builds the module that plain state dicts are loaded into, strictly.
        task: what the outputs are, a name in `rdrop_analysis.tasks.TASKS`; "auto" goes by what the checkpoint says,
            else by the shapes of outputs and labels.
        reference: name of the checkpoint (or group) the others are compared with; None takes the first trained with
            alpha 0, else the first.
        groups: checkpoints that differ in nothing but their training seed, by the name of the group: paths, patterns
            of paths, modules, or names of `models`. Groups are compared over seeds, paired where these are the same.
        over: a training setting (`alpha`, `epoch`, ...) that results are drawn over, read from the settings of the
            checkpoints or their names (`alpha-0.5.pt`).
        batch_size: examples at a time; None chooses by the size of an example.
        limit: use only the first examples.
        memory: bytes that sums over sub-models and gradients are kept within, about; a pass over a few examples takes
            what it takes. None for what the machine has.
        precision: what all passes compute in: "bf16" or "fp16" (torch's autocast), "fp32", or None for the
            checkpoint's own. Sums over sub-models do not go by it.
        dropout: rates to sweep: the EPKL with every dropout at each of them, measured and predicted, beside that at the
            model's own rates.
        device: where to run, such as "cpu" or "cuda".
        unit: what divergences are shown in.
        trust_code: read pickled modules and TorchScript, which run code of theirs when read.
        keep_going: collect the failures of single checkpoints in `Results.record.failures` and go on.
        resume: a directory in which finished work items are kept as the run goes; the same call goes on from there, to
            the same numbers bit for bit. They stay until `Results.save`.
        progress: called with (checkpoint, examples done, examples in all); and with (checkpoint and what is computed,
            steps done, steps at most) where a probe computes for long on some examples together.
        place: which work items this process measures, where several share them; it takes the place of `resume`.

    Returns:
        Results, with the numbers of every checkpoint and their paired comparisons.

    Raises:
        UsageError: arguments that make no sense.
        CheckpointError, DataError, UnsafeFileError: see these; with `keep_going` only if nothing was measured.
        PartDone: this process has done its part of the work, and the numbers come together in another.
    """
    settings = _settings(sub_models, tolerance, seed, masks, strategy, memory, precision, dropout)
    for name, value, allowed in (("task", task, (AUTO, *TASKS)), ("unit", unit, get_args(Unit))):
        if value not in allowed:
            raise UsageError(f"unknown {name} {value!r}: choose from {', '.join(allowed)}")
    probes = probes.split(",") if isinstance(probes, str) else probes
    lineup = line_up(models, groups)
    lineup.check_reference(reference)
    if resume is not None and (not isinstance(resume, str | Path) or not str(resume)):
        raise UsageError(f"resume must be a directory, not {resume!r}")
    place = place or Place(directories=() if resume is None else (Path(resume),))
    here = _device(device, shared=place.team.size > 1)
    options = Options(settings, here, model, probes, batch_size, limit, task, trust_code, keep_going)
    run = _Run(options, progress, Source(data, limit, task), place)
    if over is not None:
        check_axis(over, lineup.entries, trust_code=trust_code)
    started = time.monotonic()
    run.source.open()
    run.measure_all(lineup.entries)
    config: dict[str, object] = {
        "sub_models": sub_models,
        "tolerance": settings.tolerance,
        "seed": seed,
        "masks": masks,
        "strategy": strategy,
        "batch_size": batch_size,
        "limit": limit,
        "memory": memory,
        "precision": precision,
        "dropout": None if settings.dropout is None else list(settings.dropout),
        "over": over,
        "task": run.tasks,
        "probes": list(probes) if probes is not None else run.probes_run(),
        "unit": unit,
        "level": LEVEL,
    }
    return run.results(lineup, reference, config, time.monotonic() - started)


@dataclass(frozen=True)
class Options:
    """What holds for every checkpoint of a run."""

    settings: Settings
    device: torch.device
    factory: Callable[..., nn.Module] | None
    probes: Sequence[str] | None
    batch_size: int | None
    limit: int | None
    task: str
    trust_code: bool
    keep_going: bool


@dataclass
class _Run:
    """What grows while checkpoints are measured one after the other."""

    options: Options
    progress: Progress
    source: Source
    place: Place
    measured: list[Measured] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    first: RDropAnalysisError | None = None
    done: int = 0

    @property
    def tasks(self) -> str:
        """Names of the tasks that outputs were read for: one, unless checkpoints differ."""
        return ", ".join(dict.fromkeys(m.reader.task.name for m in self.measured))

    def measure_all(self, named: Sequence[Entry]) -> None:
        for number, entry in enumerate(named):
            try:
                self.measured += self._measure_together(entry)
            except JournalError:  # nothing more could be kept of the other checkpoints either
                raise
            except RDropAnalysisError as problem:
                self._failed(entry, problem)
            except KeyboardInterrupt:
                if not self.options.keep_going or not self.measured:
                    raise
                self.failures += [
                    Failure(checkpoint=e.name, message="interrupted", exit_code=INTERRUPTED) for e in named[number:]
                ]
                return
            except Exception as problem:  # a fault of ours must not lose what was measured before
                if not self.options.keep_going:
                    raise
                self._failed(entry, unexpected(problem), problem)

    def _failed(self, entry: Entry, problem: RDropAnalysisError, cause: Exception | None = None) -> None:
        """Remember that a checkpoint could not be measured; raise if there is nothing else to deliver."""
        logger.debug("%s was not measured", entry.name, exc_info=cause or problem)
        self.failures.append(Failure(checkpoint=entry.name, message=str(problem), exit_code=problem.exit_code))
        self.first = self.first or problem
        if not self.options.keep_going:
            raise problem from cause

    def _measure_together(self, entry: Entry) -> list[Measured]:
        """What was found, where it comes together; a failure of one worker is everybody's."""
        try:
            try:
                found = [self._measure(entry)]
            except PartDone:
                found = []
            self.place.team.meet()
            self.done += 1
        except Exception as problem:
            agreed = self.place.team.agree(problem)
            if agreed is problem:
                raise
            raise agreed from problem
        return found

    def _measure(self, entry: Entry) -> Measured:
        options = self.options
        subject, checkpoint = entry.load(options.factory, trust_code=options.trust_code)
        if checkpoint is not None and checkpoint.unsupported and options.task == AUTO:
            raise CheckpointError(checkpoint.unsupported)
        data = self.source.data_for(entry.name, checkpoint)

        def advance(n: int) -> None:
            done = self.place.team.count(entry.name, n)
            if self.place.team.leads:
                self.progress(entry.name, done, data.n_examples)

        def tell(what: str, done: int, most: int) -> None:
            if self.place.team.leads:
                self.progress(f"{entry.name}, {what}", done, most)

        advance(0)
        subject.model.to(options.device)
        measured = measure_subject(
            subject,
            data,
            options.settings,
            task=self.source.task_of(checkpoint),
            probes=None if options.probes is None else list(options.probes),
            batch_size=options.batch_size,
            progress=advance,
            place=self.place,
            known=self._sub_models_known,
            stage=tell,
        )
        self.source.keep(data)
        return measured

    @property
    def _sub_models_known(self) -> int | None:
        """K where masks are shared and the first checkpoint has chosen: they are compared sub-model by sub-model."""
        if self.place.sub_models is not None:
            return self.place.sub_models
        first = self.measured[0].measurement if self.measured else None
        return first.sub_models if first is not None and first.shared_masks else None

    def _end_of_part(self) -> Exception:
        """How it ends where numbers do not come together: as it does for the other workers of the same part."""
        of_shard = self.place.shard[1] > 1
        return self.first if self.first is not None and (of_shard or not self.done) else PartDone()

    def probes_run(self) -> list[str]:
        """Names of the probes that fitted the data."""
        return list(dict.fromkeys(name for m in self.measured for name in m.probes))

    def results(self, lineup: Lineup, wanted: str | None, config: dict[str, object], seconds: float) -> Results:
        if not self.place.keeps_results:
            raise self._end_of_part()
        data = self.source.data
        if data is None or not self.measured:
            raise self.first or UsageError("nothing was measured")
        reference = reference_among(self.measured, lineup.groups, wanted)
        chosen = choose_reference(self.measured, reference)
        checkpoints = [m.result for m in self.measured]
        over = config["over"]
        axis = None if over is None else axis_of(str(over), checkpoints)
        grouped = arms(self.measured, lineup.groups, wanted, axis)
        notes = run_findings(self.measured, reference) + grouped.findings + constant(axis)
        notes += data_findings(data, self.source.differing)
        record = RunRecord(
            schema_version=SCHEMA_VERSION,
            tool={"name": "rdrop-analysis", "version": tool_version()},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            environment=environment(self.options.device),
            config=config,
            data=data_record(data, self.measured),
            checkpoints=checkpoints,
            reference=chosen.result.name if len(self.measured) > 1 else None,
            comparisons=comparisons(chosen, self.measured),
            examples=most_inconsistent(self.measured, data),
            warnings=[*notes, *said_once([f for m in self.measured for f in m.findings], len(self.measured))],
            failures=self.failures,
            groups=grouped.groups,
            reference_group=grouped.reference_group,
            group_comparisons=grouped.group_comparisons,
            axis=axis,
            rankings=rankings(checkpoints, clustered=clustered(checkpoints, lineup.groups)),
        )
        journals = None if self.failures else self.place.spent_when_saved
        return Results(record, per_example_table(self.measured, data), journals)


def _settings(
    sub_models: int | Literal["auto"],
    tolerance: float | None,
    seed: int,
    masks: Masks,
    strategy: Strategy,
    memory: int | None,
    precision: Precision | None,
    dropout: float | Sequence[float] | None,
) -> Settings:
    if tolerance is not None and sub_models != "auto":
        raise UsageError("a tolerance goes with as many sub-models as it takes: make their number auto")
    if sub_models == "auto":
        tolerance = DEFAULT_TOLERANCE if tolerance is None else tolerance
    count = USUAL if sub_models == "auto" else sub_models
    for name, number in (("sub_models", count), ("seed", seed)):
        if not isinstance(number, int) or number < 0:
            raise UsageError(f"{name} must be a whole number from 0 up, not {number!r}")
    for name, value, allowed in (
        ("masks", masks, get_args(Masks)),
        ("strategy", strategy, get_args(Strategy)),
        ("precision", precision, (None, *get_args(Precision))),
    ):
        if value not in allowed:
            raise UsageError(f"unknown {name} {value!r}: choose from {', '.join(map(str, allowed))}")
    rates = None if dropout is None else tuple(dropout) if isinstance(dropout, Sequence) else (dropout,)
    try:
        return Settings(
            *(count, seed, masks, strategy), tolerance=tolerance, memory=memory, precision=precision, dropout=rates
        )
    except ValueError as problem:
        raise UsageError(str(problem)) from problem


def _device(name: str, *, shared: bool) -> torch.device:
    """The device named; where workers share the machine and no number is given, each takes one of its own."""
    try:
        if (device := torch.device(name)).type not in ("cpu", "cuda"):
            raise UsageError(f"device {name!r} is not supported: choose cpu or cuda")
        if shared and device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank() % max(torch.cuda.device_count(), 1))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        raise UsageError(f"device {name!r} is not available here: {str(problem).splitlines()[0]}") from problem
    return device
