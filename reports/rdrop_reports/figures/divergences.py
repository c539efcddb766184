"""How far sub-models and their mean are from the eval model: divergences, flips, disagreement."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from rdrop_probes.records import RunRecord
from rdrop_reports.figures.forest import Panel, forest
from rdrop_reports.figures.style import Theme
from rdrop_reports.numbers import format_estimate
from rdrop_reports.select import measured, most_telling
from rdrop_reports.text import called, listed

_PANELS = (
    Panel("KL(sub ‖ eval)", ["kl_sub_to_eval"]),
    Panel("KL(mean ‖ eval)", ["kl_mean_to_eval"]),
    Panel("Flip rate", ["flip_rate"]),
    Panel("Disagreement", ["disagreement"]),
)


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """Four panels, one row a checkpoint."""
    return forest(record, _PANELS, theme, from_zero=True)


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """The flip rates."""
    parts = [
        f"{format_estimate(found, percent=True)} for {called(checkpoint.name)}"
        for checkpoint in most_telling(record, 3)
        if (found := measured(checkpoint, "flip_rate"))
    ]
    return f"A sub-model predicts another class than the eval model in {listed(parts)}." if parts else ""
