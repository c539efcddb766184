"""Accuracy, NLL, Brier score and ECE, or the squared error, with dropout off, with dropout on, and of the MC mean."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rdrop_probes.records import CheckpointResult, RunRecord
from rdrop_reports.figures.forest import Panel, forest
from rdrop_reports.figures.style import Theme
from rdrop_reports.numbers import format_parts, format_points, is_number
from rdrop_reports.select import measured, most_telling
from rdrop_reports.text import called

MODES = {"eval": "o", "sub": "D", "mean": "s"}
MODE_LABELS = {"eval": "eval model", "sub": "sub-models", "mean": "MC mean"}
_FAMILIES = {"accuracy": "Accuracy", "nll": "NLL", "brier": "Brier score", "ece": "ECE", "mse": "MSE"}

_GAPS = {
    "accuracy_gap": "Accuracy with dropout off minus dropout on, in percentage points",
    "mse_gap": "Squared error with dropout on minus dropout off",
}


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """One panel a score, one row a checkpoint, three marks in a row."""
    markers = tuple(MODES.values())
    wanted = [Panel(title, [f"{f}_{mode}" for mode in MODES], markers) for f, title in _FAMILIES.items()]
    figure = forest(record, wanted, theme)
    if figure is not None:
        figure.legend(handles=_keys(theme), loc="outside upper left", ncols=3)
    return figure


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """What switching dropout off changes in accuracy (squared error), for the few most telling checkpoints."""
    for metric, words in _GAPS.items():
        parts = [part for checkpoint in most_telling(record, 3) if (part := _gap(checkpoint, metric))]
        if parts:
            return f"{words}: {'; '.join(parts)}."
    return ""


def _gap(checkpoint: CheckpointResult, metric: str) -> str:
    found = measured(checkpoint, metric)
    if found is None or found.estimate is None:
        return ""
    unclear = is_number(found.low) and is_number(found.high) and found.low <= 0 <= found.high
    shown = format_points if metric == "accuracy_gap" else format_parts
    text = f"{called(checkpoint.name)} {shown(found.estimate, found.low, found.high)}"
    return f"{text}, no gap shown" if unclear else text


def _keys(theme: Theme) -> list[Line2D]:
    return [
        Line2D(
            [], [], linestyle="", marker=marker, color=theme.muted, markersize=6.5, label=MODE_LABELS[mode],
            markerfacecolor=theme.surface if mode == "sub" else theme.muted, markeredgewidth=1.3,
        )
        for mode, marker in MODES.items()
    ]  # fmt: skip
