"""Measure one checkpoint on the data: from a loaded model to its `CheckpointResult` and evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from rdrop_analysis.data.examples import Data, check_labels, with_whole_labels
from rdrop_analysis.errors import DataError, UsageError
from rdrop_analysis.reading import Reader, recognise
from rdrop_analysis.tasks import AUTO, Targets
from rdrop_probes.columns import Column
from rdrop_probes.footprint import largest_tensor
from rdrop_probes.measure import Batch, Measurement, NotFiniteError, Settings, measure
from rdrop_probes.records import CheckpointResult, Finding
from rdrop_probes.registry import choose
from rdrop_probes.sites import SilentSiteError
from rdrop_probes.state import flags, preserved
from rdrop_probes.statistics import metric
from rdrop_probes.submodels import StrategyError
from rdrop_probes.terms import rows_that_fit

NUMBERS_A_TENSOR = 2**24  # in the largest tensor of a batch, before sub-models multiply it
MAX_BATCH = 256
CHUNK = 8  # sub-models at a time at most, of a batch whose largest tensor is as large as may be
SAMPLE = 8  # examples that a model is looked at with before it is measured

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
    """What was found on one checkpoint, and the evidence behind it: `reader` says how its outputs were read."""

    result: CheckpointResult
    measurement: Measurement
    findings: list[Finding]
    reader: Reader

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
) -> Measured:
    """Run the probes on one model.

    Raises:
        DataError: the model and the data do not go together, or the logits are not finite.
        UsageError: an unknown probe, or one that needs labels that are not there.
    """
    reader = recognise(subject.model, next(data.batches(SAMPLE)), task, Targets.of(data))
    if reader.task.name != "regression":
        data = with_whole_labels(data)
        check_labels(data, 2 if reader.task.per == "label" else reader.n_outputs)
    numbers = numbers_per_example(reader, data)
    size = batch_size or automatic_batch_size(reader, data, numbers)
    settings = replace(settings, chunk=max(1, min(settings.chunk, int(CHUNK * NUMBERS_A_TENSOR // (numbers * size)))))
    try:
        chosen = choose(probes, labels=_has_labels(reader, data), family=reader.family.name)
    except ValueError as problem:
        raise UsageError(str(problem)) from problem
    try:
        found = measure(
            subject.model,
            _batches(reader, data, size),
            forward=reader,
            probes=chosen,
            settings=settings,
            family=reader.family,
            progress=progress,
        )
    except StrategyError as problem:
        raise UsageError(f"{subject.name}: {problem}") from problem
    except (NotFiniteError, SilentSiteError) as problem:
        raise DataError(f"{subject.name}: {problem}") from problem
    findings = [
        Finding(code=code, message=text, checkpoint=subject.name)
        for code, text in {**subject.notes, **found.findings, **reader.findings}.items()
    ]
    findings += [finding for name, column in found.columns.items() for finding in _infinite(subject.name, name, column)]
    return Measured(_result(subject, found), found, findings, reader)


def numbers_per_example(reader: Reader, data: Data) -> float:
    """Numbers of an example in the largest tensor of the eval pass, at least 1."""
    sample = next(data.batches(SAMPLE))
    inputs = reader.rows(sample).inputs
    with preserved(reader.model), flags(reader.model, ()):
        return max(1.0, largest_tensor(lambda: reader(inputs)) / len(sample))


def automatic_batch_size(reader: Reader, data: Data, numbers: float) -> int:
    """As many examples as keep the largest tensor of the eval pass under 2^24 numbers, at most 256.

    And as many as have sums over sub-models that fit into memory, if one does.
    """
    places = reader.rows(next(data.batches(SAMPLE))).places
    rows = 1 if places is None else max(1, places[0].numel())
    classes = 2 if reader.task.per == "label" else reader.n_outputs
    return max(1, min(MAX_BATCH, int(NUMBERS_A_TENSOR // numbers), rows_that_fit(classes) // rows))


def _has_labels(reader: Reader, data: Data) -> bool:
    """Whether rows have labels; the next tokens of a causal language model are its own."""
    return reader.rows(next(data.batches(1))).labels is not None


def _batches(reader: Reader, data: Data, size: int) -> Iterator[Batch]:
    return (reader.rows(batch) for batch in data.batches(size))


def _result(subject: Subject, found: Measurement) -> CheckpointResult:
    metrics = {
        name: metric(column, unit=found.units[name], shared_masks=found.shared_masks)
        for name, column in found.columns.items()
    }
    return CheckpointResult(
        name=subject.name,
        path=subject.path,
        sha256=subject.sha256,
        n_parameters=sum(p.numel() for p in subject.model.parameters()),
        architecture=subject.architecture,
        training=dict(subject.training or {}),
        strategy=found.strategy,
        stochastic=found.plan.stochastic,
        sites=[site.record() for site in found.plan.sites.values()],
        metrics=dict(sorted(metrics.items(), key=lambda item: list(found.units).index(item[0]))),
        **found.tables,
    )


def _infinite(name: str, metric_name: str, column: Column) -> list[Finding]:
    """Infinite divergences are counted and named; the mean leaves them out."""
    infinite = np.flatnonzero(np.isinf(column.values))
    if not len(infinite):
        return []
    first = ", ".join(map(str, infinite[:5])) + (", ..." if len(infinite) > 5 else "")
    text = f"{metric_name} is infinite for {len(infinite)} example(s) ({first}), left out of its mean"
    return [Finding(code="infinite", message=text, checkpoint=name)]
