"""Reliability diagrams: accuracy in each confidence bin, with dropout off, on, and for the MC mean."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from rdrop_probes.records import CheckpointResult, ReliabilityBin, RunRecord
from rdrop_reports.figures.axes import panels
from rdrop_reports.figures.gap import MODE_LABELS, MODES
from rdrop_reports.figures.style import Theme, look_of
from rdrop_reports.numbers import format_estimate, is_number
from rdrop_reports.select import measured, most_telling, short_name_of
from rdrop_reports.text import called

MOST_PANELS = 4
FIRM = 5  # examples that a bin needs to be joined to its neighbours by the line
_LINES = {"eval": "-", "sub": (0, (3, 2)), "mean": (0, (1, 1.5))}


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """One panel a checkpoint, at most four; a mark's area grows with the bin's count."""
    shown = [c for c in most_telling(record, MOST_PANELS) if any(c.reliability.values())]
    if not shown:
        return None
    figure, axes = panels(len(shown), 2, 2.55 if len(shown) > 1 else 3.9, extra=0.3)
    for place, (axis, checkpoint) in enumerate(zip(axes, shown, strict=True)):
        _draw_panel(axis, record, checkpoint, theme)
        axis.set_ylabel("Accuracy" if place % 2 == 0 else "")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3)
    return figure


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """Calibration error with dropout off and of the MC mean."""
    parts = []
    for checkpoint in most_telling(record, 3):
        off, mean = measured(checkpoint, "ece_eval"), measured(checkpoint, "ece_mean")
        if off and mean:
            texts = format_estimate(off, percent=True), format_estimate(mean, percent=True)
            parts.append(f"{called(checkpoint.name)} {texts[0]} with dropout off, {texts[1]} for the MC mean")
    note = f"Lines join bins of {FIRM} examples or more."
    return f"Expected calibration error: {'; '.join(parts)}. {note}" if parts else ""


def _draw_panel(axes: Axes, record: RunRecord, checkpoint: CheckpointResult, theme: Theme) -> None:
    axes.plot([0, 1], [0, 1], color=theme.muted, linewidth=1)
    colours = {"eval": look_of(record, checkpoint.name, theme).colour, "sub": theme.ink, "mean": theme.muted}
    for mode, rows in checkpoint.reliability.items():
        if mode in MODES and rows:
            _draw_line(axes, rows, mode, colours[mode], theme)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), box_aspect=1, title=short_name_of(record, checkpoint.name))
    axes.set_xlabel("Confidence")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.5, 1])
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.grid(visible=True)


def _draw_line(axes: Axes, rows: list[ReliabilityBin], mode: str, colour: str, theme: Theme) -> None:
    kept = [row for row in rows if row.count > 0 and is_number(row.confidence) and is_number(row.accuracy)]
    total = sum(row.count for row in kept) or 1.0
    x, y = [row.confidence or 0.0 for row in kept], [row.accuracy or 0.0 for row in kept]
    firm = [i for i, row in enumerate(kept) if row.count >= FIRM]
    axes.plot(
        [x[i] for i in firm], [y[i] for i in firm], color=colour, linestyle=_LINES[mode], linewidth=1.3, alpha=0.9
    )
    axes.scatter(
        x, y, s=[12 + 60 * row.count / total for row in kept], marker=MODES[mode], zorder=3, linewidths=1.1,
        edgecolors=colour, facecolors=theme.surface if mode == "sub" else colour, label=MODE_LABELS[mode],
    )  # fmt: skip
