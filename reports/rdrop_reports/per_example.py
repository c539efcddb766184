"""The per-example table: as it stands in files, and one aligned array at a time, in the unit that is shown."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from rdrop_probes.records import NATS_PER_BIT, RunRecord, in_unit
from rdrop_reports.numbers import LARGEST

Array = npt.NDArray[np.float64]
UNIT = "divergence_unit"  # the column of a file that says what its divergences are in


def values(record: RunRecord, per_example: pd.DataFrame | None, checkpoint: str, metric: str) -> Array | None:
    """One metric of one checkpoint: shape (examples,), or None where there are no finite values."""
    found = joint(record, per_example, checkpoint, (metric, metric))
    return None if found is None else found[0]


def joint(
    record: RunRecord, per_example: pd.DataFrame | None, checkpoint: str, metrics: tuple[str, str]
) -> tuple[Array, Array] | None:
    """Two metrics of one checkpoint on the examples that have both: two arrays of shape (examples,), or None."""
    if per_example is None or not {"checkpoint", *metrics} <= set(per_example.columns):
        return None
    rows = per_example.loc[per_example["checkpoint"] == checkpoint]
    return _aligned(record, rows[metrics[0]], rows[metrics[1]], metrics)


def paired(
    record: RunRecord, per_example: pd.DataFrame | None, names: tuple[str, str], metric: str
) -> tuple[Array, Array] | None:
    """One metric of two checkpoints on the examples they share: two arrays of shape (examples,), or None."""
    if per_example is None or not {"checkpoint", "example", metric} <= set(per_example.columns):
        return None
    columns = [
        per_example.loc[per_example["checkpoint"] == name].drop_duplicates("example").set_index("example")[metric]
        for name in names
    ]
    first, second = columns[0].align(columns[1], join="inner")
    return _aligned(record, first, second, (metric, metric))


def for_files(record: RunRecord, per_example: pd.DataFrame) -> pd.DataFrame:
    """The table (nats) in the unit of the record shown, which a column of its own names."""
    divided = {name: column / divisor for name, column, divisor in _scaled(record, per_example)}
    table = per_example.assign(**divided)
    table.insert(min(2, table.shape[1]), UNIT, "bits" if record.config.get("unit") == "bits" else "nats")
    return table


def from_files(record: RunRecord, table: pd.DataFrame) -> pd.DataFrame:
    """The table of a file in nats, whatever the file is in; one that does not say so is in nats.

    Args:
        record: whose metrics the table holds, in nats.
        table: as :func:`for_files` makes it.

    Raises:
        ValueError: its unit is neither nats nor bits, or both.
    """
    units = set(table[UNIT]) if UNIT in table else {"nats"}
    table = table.drop(columns=UNIT, errors="ignore")
    if units <= {"nats"}:
        return table
    if units != {"bits"}:
        raise ValueError(f"its {UNIT} is neither nats nor bits")
    in_bits = in_unit(record, "bits")
    return table.assign(**{name: column * divisor for name, column, divisor in _scaled(in_bits, table)})


def _scaled(record: RunRecord, table: pd.DataFrame) -> Iterator[tuple[str, pd.Series[float], float]]:
    """The columns of metrics that the record holds in bits, each with the nats in one."""
    for name in table.columns:
        if (divisor := _divisor(record, name)) != 1.0:
            yield name, table[name], divisor


def _aligned(
    record: RunRecord, first: pd.Series[float], second: pd.Series[float], metrics: tuple[str, str]
) -> tuple[Array, Array] | None:
    """Two columns as arrays without the rows that cannot be drawn, in the unit shown."""
    x, y = (np.asarray(column, dtype=np.float64) for column in (first, second))
    kept = (np.abs(x) < LARGEST) & (np.abs(y) < LARGEST)
    if not kept.any():
        return None
    return x[kept] / _divisor(record, metrics[0]), y[kept] / _divisor(record, metrics[1])


def _divisor(record: RunRecord, metric: str) -> float:
    """Nats in the unit shown, for a metric that the record holds in bits; else 1."""
    in_bits = any(c.metrics[metric].unit == "bits" for c in record.checkpoints if metric in c.metrics)
    return NATS_PER_BIT if in_bits else 1.0
