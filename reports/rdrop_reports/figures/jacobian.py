"""Jacobian complexity of the eval model, one panel a norm."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from rdrop_probes.records import RunRecord
from rdrop_reports.definitions import label
from rdrop_reports.figures.forest import Panel, forest
from rdrop_reports.figures.style import Theme
from rdrop_reports.numbers import format_number, format_parts, is_number
from rdrop_reports.per_example import joint
from rdrop_reports.select import comparison_of, in_order, most_telling
from rdrop_reports.text import called, listed

_PANELS = (
    Panel("Fisher-weighted", ["jacobian_fisher"]),
    Panel("Logits, ‖∂z/∂x‖", ["jacobian_logits"]),
    Panel("Probabilities, ‖∂p/∂x‖", ["jacobian_probs"]),
    Panel("Spectral norm", ["jacobian_spectral"]),
)


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """Up to four panels, one row a checkpoint."""
    return forest(record, _PANELS, theme, from_zero=True)


def takeaway(record: RunRecord, per_example: pd.DataFrame | None) -> str:
    """Ratios of the Fisher-weighted Jacobian, and how it goes with EPKL over examples."""
    return " ".join(filter(None, [_ratios(record), _correlation(record, per_example)]))


def _ratios(record: RunRecord) -> str:
    """How much smaller or larger the Jacobian is than the reference's."""
    metric = next((m for m in ("jacobian_fisher", "jacobian_logits") if _compared(record, m)), None)
    if metric is None:
        return ""
    parts = []
    for checkpoint in most_telling(record, 4):
        found = comparison_of(record, checkpoint.name, metric)
        if found is not None and is_number(found.ratio):
            ratio = format_parts(found.ratio, found.ratio_low, found.ratio_high)
            parts.append(f"{ratio} for {called(checkpoint.name)}{_unclear(found.low, found.high)}")
    return f"{label(metric)}, as a multiple of that of {called(record.reference)}: {listed(parts)}." if parts else ""


def _compared(record: RunRecord, metric: str) -> bool:
    return any(c.metric == metric and is_number(c.ratio) for c in record.comparisons)


def _unclear(low: float | None, high: float | None) -> str:
    known = is_number(low) and is_number(high)
    return " (no difference shown)" if known and (low or 0) <= 0 <= (high or 0) else ""


def _correlation(record: RunRecord, per_example: pd.DataFrame | None) -> str:
    """Rank correlation of the Fisher-weighted Jacobian with EPKL over examples, in the first checkpoint."""
    from scipy.stats import spearmanr  # half a second, and only needed where there are per-example values

    for checkpoint in in_order(record):
        arrays = joint(record, per_example, checkpoint.name, ("jacobian_fisher", "epkl"))
        if arrays is None or len(arrays[0]) < 10 or any(len(set(a.tolist())) < 2 for a in arrays):
            continue
        rho = format_number(float(spearmanr(*arrays).statistic))
        whose = called(checkpoint.name)
        return f"Over the examples of {whose}, the Fisher-weighted one has rank correlation {rho} with EPKL."
    return ""
