"""Jacobian complexity of the eval model, one panel a norm."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from rdrop_probes.records import Comparison, RunRecord
from rdrop_reports.definitions import label
from rdrop_reports.figures.forest import Panel, forest
from rdrop_reports.figures.style import Theme
from rdrop_reports.numbers import format_number
from rdrop_reports.outcome import outcome_of, ratio_text
from rdrop_reports.per_example import joint
from rdrop_reports.select import are_groups_compared, compared_on, in_order
from rdrop_reports.text import called, listed

MOST = 4
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
    """How much smaller or larger the Jacobian is than the reference's; of groups where there are several."""
    found = next((f for m in ("jacobian_fisher", "jacobian_logits") if (f := compared_on(record, m, MOST))), None)
    if found is None:
        return ""
    parts = [f"{ratio_text(c)} for {called(c.candidate)}{_unclear(c)}" for c in found]
    seeds = " over training seeds" if are_groups_compared(record) else ""
    return f"{label(found[0].metric)}{seeds}, as a multiple of that of {called(found[0].reference)}: {listed(parts)}."


def _unclear(found: Comparison) -> str:
    return " (no difference shown)" if outcome_of(found) == "no difference shown" else ""


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
