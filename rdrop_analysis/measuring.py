"""Measure one checkpoint on the data: from a loaded model to its `CheckpointResult` and evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from rdrop_analysis.data import Data, check_labels
from rdrop_analysis.errors import DataError, UsageError
from rdrop_analysis.tasks import Classifier, recognise
from rdrop_probes.columns import Column
from rdrop_probes.footprint import largest_tensor
from rdrop_probes.measure import Batch, Measurement, NotFiniteError, Settings, measure
from rdrop_probes.records import CheckpointResult, Finding
from rdrop_probes.registry import choose
from rdrop_probes.sites import SilentSiteError
from rdrop_probes.state import flags, preserved
from rdrop_probes.statistics import metric
from rdrop_probes.submodels import StrategyError

NUMBERS_A_TENSOR = 2**24  # in the largest tensor of a batch, before sub-models multiply it
MAX_BATCH = 256
SAMPLE = 4  # examples that a model is looked at with before it is measured

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Subject:
    """A model to measure, with what is known of where it comes from."""

    name: str
    model: nn.Module
    architecture: str
    path: str | None = None
    sha256: str | None = None
    training: Mapping[str, Scalar] | None = None


@dataclass(frozen=True)
class Measured:
    """What was found on one checkpoint, and the evidence behind it."""

    result: CheckpointResult
    measurement: Measurement
    findings: list[Finding]
    n_classes: int

    @property
    def columns(self) -> Mapping[str, Column]:
        """Evidence by metric."""
        return self.measurement.columns


def measure_subject(
    subject: Subject,
    data: Data,
    settings: Settings,
    *,
    probes: list[str] | None,
    batch_size: int | None,
    progress: Callable[[int], None],
) -> Measured:
    """Run the probes on one model.

    Raises:
        DataError: the model and the data do not go together, or the logits are not finite.
        UsageError: an unknown probe, or one that needs labels that are not there.
    """
    classifier = recognise(subject.model, next(data.batches(SAMPLE)))
    size = batch_size or automatic_batch_size(classifier, data)
    check_labels(data, classifier.n_classes)
    check_label_shape(data)
    try:
        chosen = choose(probes, labels=data.has_labels)
    except ValueError as problem:
        raise UsageError(str(problem)) from problem
    try:
        found = measure(
            subject.model, _batches(data, size), forward=classifier, probes=chosen, settings=settings, progress=progress
        )
    except StrategyError as problem:
        raise UsageError(f"{subject.name}: {problem}") from problem
    except (NotFiniteError, SilentSiteError) as problem:
        raise DataError(f"{subject.name}: {problem}") from problem
    findings = [Finding(code=code, message=text, checkpoint=subject.name) for code, text in found.findings.items()]
    findings += [
        Finding(code=code, message=text, checkpoint=subject.name) for code, text in classifier.findings.items()
    ]
    findings += [finding for name, column in found.columns.items() for finding in _infinite(subject.name, name, column)]
    return Measured(_result(subject, found), found, findings, classifier.n_classes)


def automatic_batch_size(classifier: Classifier, data: Data) -> int:
    """As many examples as keep the largest tensor of the eval pass under 2^24 numbers, at most 256."""
    sample = next(data.batches(SAMPLE))
    with preserved(classifier.model), flags(classifier.model, ()):
        numbers = largest_tensor(lambda: classifier(sample.inputs)) / len(sample)
    return max(1, min(MAX_BATCH, int(NUMBERS_A_TENSOR // max(numbers, 1))))


def check_label_shape(data: Data) -> None:
    """Classification takes one label an example."""
    for piece in data.pieces:
        if piece.labels is not None and piece.labels.dim() != 1:
            raise DataError(f"labels are {list(piece.labels.shape)}, classification needs one label an example")


def _batches(data: Data, size: int) -> Iterator[Batch]:
    for batch in data.batches(size):
        yield Batch(batch.inputs, len(batch), batch.start, batch.labels)


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
