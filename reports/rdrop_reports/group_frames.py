"""Groups of training seeds as tidy DataFrames: one row a group and metric, one row a comparison over seeds."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from rdrop_probes.records import RunRecord
from rdrop_reports.tables import comparisons_frame

_NUMBERS = ("estimate", "low", "high", "level")
_COLUMNS = ("group", "metric", *_NUMBERS, "unit", "n")


def groups_frame(record: RunRecord) -> pd.DataFrame:
    """Means over seeds: columns `group`, `metric`, `estimate`, `low`, `high`, `level`, `unit` and `n`, the seeds."""
    rows = [
        [group.name, name, m.estimate, m.low, m.high, m.level, m.unit, m.n]
        for group in record.groups
        for name, m in group.metrics.items()
    ]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(dict.fromkeys(_NUMBERS, "float64"))


def group_comparisons_frame(record: RunRecord) -> pd.DataFrame:
    """Groups against the reference group, the seed being the unit; columns as in `Comparison`."""
    return comparisons_frame(replace(record, comparisons=record.group_comparisons))
