"""A record as tidy DataFrames: one row an estimate, one row a comparison."""

from __future__ import annotations

from dataclasses import asdict, fields

import pandas as pd

from rdrop_probes.records import Comparison, Metric, RunRecord
from rdrop_reports.numbers import format_estimate, format_number

__all__ = ["comparisons_frame", "format_estimate", "format_number", "summary_frame"]

_METRIC_COLUMNS = [field.name for field in fields(Metric)]
_COMPARISON_COLUMNS = [field.name for field in fields(Comparison)]


def summary_frame(record: RunRecord) -> pd.DataFrame:
    """One row a checkpoint and metric, in the record's order and unit.

    Returns:
        Columns `checkpoint`, `metric`, `estimate`, `low`, `high`, `level`, `unit`, `n`, `mask_low`,
        `mask_high`; bounds that were not estimated are missing.
    """
    rows = [
        {"checkpoint": checkpoint.name, "metric": name, **asdict(metric)}
        for checkpoint in record.checkpoints
        for name, metric in checkpoint.metrics.items()
    ]
    numbers = ["estimate", "low", "high", "level", "mask_low", "mask_high"]
    return _frame(rows, ["checkpoint", "metric", *_METRIC_COLUMNS], numbers)


def comparisons_frame(record: RunRecord) -> pd.DataFrame:
    """One row a candidate and metric: difference, ratio, p-values; columns as in `Comparison`."""
    numbers = ["difference", "low", "high", "ratio", "ratio_low", "ratio_high", "p_value", "p_adjusted", "level"]
    numbers.append("effect_size")
    return _frame([asdict(comparison) for comparison in record.comparisons], _COMPARISON_COLUMNS, numbers)


def _frame(rows: list[dict[str, object]], columns: list[str], numbers: list[str]) -> pd.DataFrame:
    """A frame with these columns even if there are no rows; None in a column of numbers is NaN."""
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype(dict.fromkeys(numbers, "float64"))
