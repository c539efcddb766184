"""From what was measured to the parts of a record: comparisons, the per-example table, data and environment."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pandas as pd
import torch

from rdrop_analysis.data import Data
from rdrop_analysis.measuring import Measured
from rdrop_probes.records import Comparison, DataRecord, Finding
from rdrop_probes.statistics import adjust, compare


def tool_version() -> str:
    """Version of the installed package."""
    try:
        return version("rdrop-analysis")
    except PackageNotFoundError:
        return "unknown"


def choose_reference(measured: Sequence[Measured], name: str | None) -> Measured:
    """The one named if it was measured, else the first trained with alpha 0, else the first."""
    wanted = [m for m in measured if m.result.name == name]
    baselines = [m for m in measured if m.result.training.get("alpha") == 0]
    return (wanted or baselines or list(measured))[0]


def run_findings(measured: Sequence[Measured], reference: str | None) -> list[Finding]:
    """What the reader has to know of the run as a whole."""
    findings = []
    if reference is not None and reference not in [m.result.name for m in measured]:
        chosen = choose_reference(measured, reference).result.name
        text = f"the reference {reference} was not measured: {chosen} takes its place"
        findings.append(Finding(code="reference_replaced", message=text))
    if len(classes := {m.n_classes for m in measured}) > 1:
        text = f"the checkpoints have different numbers of classes ({', '.join(map(str, sorted(classes)))})"
        findings.append(Finding(code="different_classes", message=text))
    return findings


def comparisons(reference: Measured, measured: Sequence[Measured]) -> list[Comparison]:
    """Every other checkpoint against the reference, on every metric that both have."""
    candidates = [m for m in measured if m is not reference]
    return [comparison for candidate in candidates for comparison in adjust(_pairs(reference, candidate))]


def _pairs(reference: Measured, candidate: Measured) -> list[Comparison]:
    return [
        compare(
            name,
            (reference.result.name, reference.columns[name]),
            (candidate.result.name, candidate.columns[name]),
            unit=candidate.measurement.units[name],
            shared_masks=reference.measurement.shared_masks or candidate.measurement.shared_masks,
        )
        for name in candidate.result.metrics
        if name in reference.columns
    ]


def per_example_table(measured: Sequence[Measured], data: Data) -> pd.DataFrame:
    """One row a checkpoint and example."""
    labels = np.concatenate([_labels(piece.labels, len(piece)) for piece in data.pieces])
    frames = []
    for m in measured:
        columns = {
            name: m.columns[name].values
            for name in m.result.metrics
            if m.columns[name].tabulated and len(m.columns[name].values) == len(labels)
        }
        fixed = {
            "checkpoint": m.result.name,
            "example": np.arange(len(labels)),
            "label": pd.array(labels, dtype="Int64"),
            "prediction": m.measurement.predictions.numpy(),
        }
        frames.append(pd.DataFrame({**fixed, **columns}))
    return pd.concat(frames, ignore_index=True)


def _labels(labels: torch.Tensor | None, n: int) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    values = np.full(n, None, dtype=object)
    if labels is not None:
        values[:] = [None if label < 0 else label for label in labels.tolist()]
    return values


def data_record(data: Data, n_classes: int) -> DataRecord:
    """What the record says of the data."""
    return DataRecord(
        source=data.source,
        n_examples=data.n_examples,
        n_classes=n_classes,
        has_labels=data.has_labels,
        fingerprint=data.fingerprint,
        class_names=data.class_names,
    )


def environment(device: torch.device) -> dict[str, str | int | float | bool | None]:
    """What the record says of the machine and the libraries."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
    }
