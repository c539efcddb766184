"""How far sub-models and their mean are from the eval model: divergences, flips, disagreement."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from rdrop_probes.records import RunRecord
from rdrop_reports.figures.forest import Panel, forest
from rdrop_reports.figures.style import Theme
from rdrop_reports.numbers import format_estimate
from rdrop_reports.select import measured, most_telling, unit_of
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
    """The flip rates, or the divergence where there are no classes to flip."""
    parts = [
        f"{format_estimate(found, percent=True)} for {called(checkpoint.name)}"
        for checkpoint in most_telling(record, 3)
        if (found := measured(checkpoint, "flip_rate"))
    ]
    if parts:
        return f"A sub-model predicts another class than the eval model in {listed(parts)}."
    kls = [
        f"{format_estimate(found)} for {called(checkpoint.name)}"
        for checkpoint in most_telling(record, 3)
        if (found := measured(checkpoint, "kl_sub_to_eval"))
    ]
    return f"A sub-model is from the eval model, in {unit_of(record)}, {listed(kls)}." if kls else ""
