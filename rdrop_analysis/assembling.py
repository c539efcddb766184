"""From what was measured to the parts of a record: comparisons, the per-example table, data and environment."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from rdrop_analysis.data.examples import IGNORED, Data
from rdrop_analysis.files import counted
from rdrop_analysis.measuring import Measured
from rdrop_probes.groups import BIASED_IN_K, differ_in_k
from rdrop_probes.records import Comparison, DataRecord, Finding
from rdrop_probes.statistics import adjust, compare

FEW = 10  # examples
OF_THE_TASK = frozenset(
    {
        "task_guessed",
        "gaussian_surrogate",
        "outputs_are_probabilities",
        "one_output",
        "several_outputs",
        "freedom_examples",
        "sampled_classes",
    }
)


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
    if len(classes := {_n_outputs(m) for m in measured}) > 1:
        text = f"the checkpoints have different numbers of classes ({', '.join(map(str, sorted(classes)))})"
        findings.append(Finding(code="different_classes", message=text))
    if len(tasks := dict.fromkeys(m.reader.task.name for m in measured)) > 1:
        text = f"the checkpoints are for different tasks ({', '.join(tasks)}): measured, and not compared"
        findings.append(Finding(code="different_tasks", message=text))
    counts = sorted({m.result.sub_models for m in measured if m.result.sub_models is not None})
    if len(counts) > 1 and (names := sorted(BIASED_IN_K & {name for m in measured for name in m.columns})):
        text = f"the checkpoints were measured with different numbers of sub-models ({', '.join(map(str, counts))})"
        text += f", on which {', '.join(names)} depend: "
        text += "where these differ, neither checkpoints nor groups are compared on them"
        findings.append(Finding(code="different_sub_models", message=text))
    return findings


def said_once(findings: Sequence[Finding], checkpoints: int) -> list[Finding]:
    """Findings, where what is true of every checkpoint because of the task is said of the run."""
    counts = Counter((f.code, f.message) for f in findings)
    common = {key for key, count in counts.items() if count == checkpoints > 1 and key[0] in OF_THE_TASK}
    shared = [Finding(code=code, message=message) for code, message in counts if (code, message) in common]
    return shared + [f for f in findings if (f.code, f.message) not in common]


def data_findings(data: Data, differing: bool) -> list[Finding]:
    """What the reader has to know of the data."""
    findings = [Finding(code=code, message=text) for code, text in data.notes.items()]
    if data.n_examples < FEW:
        text = f"{counted(data.n_examples, 'example')}: intervals from so few are rough"
        findings.append(Finding(code="few_examples", message=text))
    if differing:
        text = "the checkpoints' own tokenizers or processors make different inputs of the same examples"
        findings.append(Finding(code="different_inputs", message=text))
    return findings


def comparisons(reference: Measured, measured: Sequence[Measured]) -> list[Comparison]:
    """Every other checkpoint against the reference, on every metric that both have."""
    candidates = [m for m in measured if m is not reference]
    return [comparison for candidate in candidates for comparison in adjust(_pairs(reference, candidate))]


def _n_outputs(m: Measured) -> int:
    """Classes, or labels, or numbers that the model gives for a row's example."""
    return max(m.reader.n_outputs, 2) if m.reader.task.name == "classification" else m.reader.n_outputs


def _pairs(reference: Measured, candidate: Measured) -> list[Comparison]:
    """Every metric that both have of rows of the same kind."""
    if reference.reader.task.per != candidate.reader.task.per or reference.reader.family != candidate.reader.family:
        return []
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
        and name in candidate.columns
        and not (name in BIASED_IN_K and differ_in_k([reference.result, candidate.result]))
    ]


def per_example_table(measured: Sequence[Measured], data: Data) -> pd.DataFrame:
    """One row a checkpoint and example: label and prediction where it has one, `rows` where it has several."""
    return pd.concat([_frame(m, data) for m in measured], ignore_index=True)


def _frame(m: Measured, data: Data) -> pd.DataFrame:
    n = data.n_examples
    found = {name: m.columns[name] for name in m.result.metrics if name in m.columns}
    columns = {name: c.values for name, c in found.items() if c.tabulated and len(c.values) == n}
    fixed: dict[str, object] = {"checkpoint": m.result.name, "example": np.arange(n)}
    if m.reader.task.per == "example":
        fixed |= {"label": labels_column(data), "prediction": m.measurement.predictions}
    else:
        counts = next((m.columns[name].weights for name in columns if m.columns[name].weights is not None), None)
        fixed |= {} if counts is None else {"rows": counts.astype(int)}
    return pd.DataFrame({**fixed, **columns})


def labels_column(data: Data) -> pd.api.extensions.ExtensionArray:
    """The label of each example, a class or a number; missing where it is not known or there are several."""
    values: list[float | int | None] = []
    for piece in data.pieces:
        one = piece.labels is not None and piece.labels.reshape(len(piece), -1).shape[1] == 1
        values += _known(piece.labels) if one and piece.labels is not None else [None] * len(piece)
    whole = all(value is None or isinstance(value, int) for value in values)
    return pd.array(values, dtype="Int64" if whole else "Float64")


def _known(labels: torch.Tensor) -> list[float | int | None]:
    flat = labels.reshape(-1).tolist()
    return [None if value == IGNORED or value != value else value for value in flat]


def data_record(data: Data, measured: Sequence[Measured]) -> DataRecord:
    """What the record says of the data."""
    task = measured[0].reader.task
    counts = [column.weights for column in measured[0].columns.values() if column.weights is not None]
    return DataRecord(
        source=data.source,
        n_examples=data.n_examples,
        n_classes=max(_n_outputs(m) for m in measured),
        has_labels=data.has_labels,
        fingerprint=data.fingerprint,
        class_names=data.class_names,
        task=task.name,
        per=task.per,
        n_rows=int(counts[0].sum()) if counts else data.n_examples,
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
