"""Measure one checkpoint on the data: from a loaded model to its `CheckpointResult` and evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from torch import nn

from rdrop_analysis.batching import Batching, batching
from rdrop_analysis.data.examples import Data, check_labels, with_whole_labels
from rdrop_analysis.errors import DataError, UsageError
from rdrop_analysis.files import counted
from rdrop_analysis.identity import key_of
from rdrop_analysis.reading import Reader
from rdrop_analysis.recognising import recognise
from rdrop_analysis.tasks import AUTO, Targets
from rdrop_analysis.work import Place
from rdrop_probes.arithmetic import computing
from rdrop_probes.batch import LayoutError
from rdrop_probes.columns import Column
from rdrop_probes.items import Work
from rdrop_probes.measure import measure
from rdrop_probes.measurement import Measurement
from rdrop_probes.memory import is_out_of_memory
from rdrop_probes.precision import LADDER, PILOT, PILOT_EXAMPLES, PILOT_NUMBERS, USUAL, Pilot
from rdrop_probes.probe import Probe
from rdrop_probes.records import CheckpointResult, Finding
from rdrop_probes.registry import choose
from rdrop_probes.selection import Selection, Stage
from rdrop_probes.settings import Settings
from rdrop_probes.sites import SilentSiteError
from rdrop_probes.statistics import metric
from rdrop_probes.strategies import StrategyError
from rdrop_probes.summing import NotFiniteError

SAMPLE = 32  # examples that a model is looked at with at most before it is measured
CUT = "the batch size was cut to the examples whose sums over sub-models fit into memory"

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Subject:
    """A model to measure, with what is known of where it comes from; `notes` are findings, message by code."""

    name: str
    model: nn.Module
    architecture: str
    path: str | None = None
    sha256: str | None = None
    training: Mapping[str, Scalar] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What was found on one checkpoint, and the evidence behind it.

    `reader` says how its outputs were read, `probes` which probes were run.
    """

    result: CheckpointResult
    measurement: Measurement
    findings: list[Finding]
    reader: Reader
    probes: list[str]

    @property
    def columns(self) -> Mapping[str, Column]:
        """Evidence by metric."""
        return self.measurement.columns


def measure_subject(
    subject: Subject,
    data: Data,
    settings: Settings,
    *,
    task: str = AUTO,
    probes: list[str] | None,
    batch_size: int | None,
    progress: Callable[[int], None],
    place: Place | None = None,
    known: int | None = None,
    stage: Stage = lambda *_: None,
) -> Measured:
    """Run the probes on one model; `place` says which work items are measured here, `known` K if it is decided.

    Raises:
        DataError: the model and the data do not go together, or the logits are not finite.
        UsageError: an unknown probe, or one that needs labels that are not there.
        PartDone: the numbers come together in another process.
    """
    reader = recognise(subject.model, next(data.batches(SAMPLE)), task, Targets.of(data))
    if reader.task.name != "regression" and reader.task.per != "label":
        data = with_whole_labels(data)
    check_labels(data, reader.n_classes)
    try:
        labels, sweep = _has_labels(reader, data), settings.dropout is not None
        chosen = choose(probes, labels=labels, family=reader.family.name, sweep=sweep)
    except ValueError as problem:
        raise UsageError(str(problem)) from problem
    work = Work()
    if place is not None and place.shares_or_keeps:
        key = key_of(reader, data, settings, chosen, file_digest=subject.sha256, batch_size=batch_size)
        if known is not None and settings.tolerance is not None:
            key["sub models"] = str(known)
        work = place.work(subject.name, key, chosen, progress)
    plan = _decided(work, reader, data, batch_size, settings.memory)
    try:
        with computing(subject.model, reader, settings.precision) as forward:
            found = measure(
                subject.model,
                plan.batches(reader, data),
                forward=forward,
                probes=chosen,
                settings=settings,
                family=reader.family,
                progress=progress,
                work=work,
                pilot=None if settings.tolerance is None else _pilot(reader, data, known),
                selection=_selection(reader, data, chosen),
                stage=stage,
            )
    except StrategyError as problem:
        raise UsageError(f"{subject.name}: {problem}") from problem
    except (MemoryError, RuntimeError) as problem:
        if isinstance(problem, SilentSiteError) or not is_out_of_memory(problem):
            raise
        text = "memory ran out in a pass over one batch: give a smaller --batch-size"
        raise DataError(f"{subject.name}: {text}") from problem
    except (NotFiniteError, SilentSiteError, LayoutError) as problem:
        raise DataError(f"{subject.name}: {problem}{_hint(problem, reader)}") from problem
    measured = _measured(subject, found, reader, chosen, cut=plan.cut)
    return measured if settings.tolerance is None else _with_precision(measured, settings.tolerance)


def _pilot(reader: Reader, data: Data, known: int | None) -> Pilot:
    """Some examples from all over the data, as many as a pilot can keep the outputs of."""
    rows = reader.rows(next(data.batches(1))).places
    numbers = PILOT * reader.n_classes * (1 if rows is None else rows[0].numel())
    n = max(1, min(PILOT_EXAMPLES, PILOT_NUMBERS // numbers))
    return Pilot([reader.rows(batch) for batch in data.spread(n)], data.n_examples, known)


def _selection(reader: Reader, data: Data, chosen: Sequence[type[Probe]]) -> Selection | None:
    """Examples from all over the data for the probes that compute on some together; None if there are none."""
    most = max((probe.together for probe in chosen), default=0)
    if not most:
        return None
    wanted = max(1, data.n_examples // -(-data.n_examples // most))
    step = data.n_examples // wanted
    return Selection([reader.rows(b) for b in data.spread(wanted)], range(0, data.n_examples, step), data.n_examples)


def _with_precision(measured: Measured, tolerance: float) -> Measured:
    """With a finding that says how many sub-models a pilot chose, and what came of it."""
    found, epkl = measured.measurement, measured.result.metrics.get("epkl")
    if found.foreseen is None:
        return measured
    text, width = f"{found.sub_models} sub-models, by a pilot", 0.0
    if epkl is None or not epkl.estimate or epkl.mask_high is None:
        text += f", to know the mean EPKL to ±{tolerance:.2%}; how well it is known was not measured"
    else:
        width = (epkl.mask_high - epkl.estimate) / epkl.estimate
        text += f": the mean EPKL of these examples is known to ±{width:.2%} (asked for ±{tolerance:.2%})"
    if found.sub_models < USUAL:
        text += f"; the usual {USUAL} would have been {USUAL / found.sub_models:.1f} times as many"
    if width > tolerance:
        most = found.sub_models == LADDER[-1]
        text += "; more are not tried" if most else "; it came out wider than the pilot foretold: give a higher number"
    finding = Finding(code="sub_models_chosen", message=text, checkpoint=measured.result.name)
    return replace(measured, findings=[*measured.findings, finding])


def _decided(work: Work, reader: Reader, data: Data, batch_size: int | None, memory: int | None) -> Batching:
    """How the data are cut into work items, as it was decided for all workers and for runs that go on."""
    plan = Batching(**work.decide("batching", lambda: asdict(batching(reader, data, batch_size, memory))))
    if len(plan.sizes) != len(data.pieces):
        raise DataError("what is kept of this run was cut for other data: delete it, or give another --output")
    pieces = zip(data.pieces, plan.sizes, strict=True)
    starts = [start for piece, size in pieces for start in range(piece.start, piece.start + len(piece), size)]
    work.lay_out(starts, data.n_examples)
    return plan


def _measured(
    subject: Subject, found: Measurement, reader: Reader, probes: Sequence[type[Probe]], *, cut: bool
) -> Measured:
    """With the findings on the way from a model to its numbers."""
    if not found.rows:
        raise DataError(f"{subject.name}: no {reader.task.per} counts: every one is padding or has the label -100")
    notes = {"batch_size_cut": CUT} if cut else {}
    findings = [
        Finding(code=code, message=text, checkpoint=subject.name)
        for code, text in {**subject.notes, **found.findings, **reader.findings, **notes}.items()
    ]
    findings += [
        finding
        for name, column in found.columns.items()
        for finding in _infinite(subject.name, name, column, reader.task.per)
    ]
    return Measured(_result(subject, found), found, findings, reader, [probe.name for probe in probes])


def _hint(problem: Exception, reader: Reader) -> str:
    """What may be behind outputs that are not finite."""
    squashed = isinstance(problem, NotFiniteError) and reader.squashed
    return f"; its first outputs look like those of a {reader.squashed}: let it return logits" if squashed else ""


def _has_labels(reader: Reader, data: Data) -> bool:
    """Whether rows have labels; the next tokens of a causal language model are its own."""
    return reader.rows(next(data.batches(1))).labels is not None


def _result(subject: Subject, found: Measurement) -> CheckpointResult:
    metrics = {
        name: metric(column, unit=found.units[name], shared_masks=found.shared_masks)
        for name, column in found.columns.items()
    } | found.metrics
    return CheckpointResult(
        name=subject.name,
        path=subject.path,
        sha256=subject.sha256,
        n_parameters=sum(p.numel() for p in subject.model.parameters()),
        architecture=subject.architecture,
        training=dict(subject.training or {}),
        strategy=found.strategy,
        stochastic=found.plan.stochastic,
        sub_models=found.sub_models if found.plan.stochastic else None,
        sites=[site.record() for site in found.plan.sites.values()],
        metrics=dict(sorted(metrics.items(), key=lambda item: list(found.units).index(item[0]))),
        **found.tables,
    )


def _infinite(name: str, metric_name: str, column: Column, per: str) -> list[Finding]:
    """Infinite divergences are counted and named; the mean leaves them out."""
    counts = np.isinf(column.values) if column.infinite is None else column.infinite
    infinite = np.flatnonzero(counts)
    if not len(infinite):
        return []
    first = ", ".join(map(str, infinite[:5])) + (", ..." if len(infinite) > 5 else "")
    text = f"{metric_name} is infinite for {counted(int(counts.sum()), per)} (example {first}), left out of its mean"
    return [Finding(code="infinite", message=text, checkpoint=name)]
