"""Whether averaging helps: scores of the mean of 1, 2, 4, ... passes with dropout on, less those of the eval model."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from rdrop_probes.records import AveragingPoint, CheckpointResult, RunRecord
from rdrop_reports.averaging import change_text, compared, curve, enough
from rdrop_reports.figures.axes import panels
from rdrop_reports.figures.style import Theme, look_of
from rdrop_reports.numbers import is_number
from rdrop_reports.select import most_telling_with, short_name_of
from rdrop_reports.text import called

MOST_LINES = 4
MOST_TICKS = 6
_TITLES = {"nll": "NLL", "accuracy": "Accuracy (points)", "brier": "Brier score", "ece": "ECE (points)", "mse": "MSE"}
_PERCENT = ("accuracy", "ece")


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """One panel a score, one line a checkpoint over the number of passes; a ring where more stop mattering."""
    shown = _shown(record)
    names = [name for name in _TITLES if any(curve(c, name) for c in shown)]
    if not names:
        return None
    figure, axes = panels(len(names), 2, 2.3, 0.4)
    for axis, name in zip(axes, names, strict=True):
        for checkpoint in shown:
            _draw_line(axis, record, checkpoint, name, theme)
        axis.axhline(0, color=theme.ink, linewidth=1)
        _finish(axis, name, sorted({p.passes for c in shown for p in curve(c, name)}))
    for axis in axes[::2]:
        axis.set_ylabel("less eval model")
    for axis in axes[-2:]:
        axis.set_xlabel("Passes averaged")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """What the largest mean changes against the eval model, and how many passes are enough for it."""
    parts = [part for c in _shown(record)[:3] if (part := _gain(c))]
    first = "Against the eval model (the line at 0), "
    return f"{first}{'; '.join(parts)}." if parts else ""


def _shown(record: RunRecord) -> list[CheckpointResult]:
    return most_telling_with(record, MOST_LINES, lambda c: any(curve(c, name) for name in _TITLES))


def _gain(checkpoint: CheckpointResult) -> str:
    found = compared(checkpoint)
    if found is None:
        return ""
    passes = enough(checkpoint, found.metric)
    until = f", and from {passes} on more passes do not matter" if passes and passes < found.passes else ""
    whose = called(checkpoint.name)
    return f"the mean of {found.passes} passes {change_text(found)} for {whose}{until}"


def _draw_line(axes: Axes, record: RunRecord, checkpoint: CheckpointResult, name: str, theme: Theme) -> None:
    look, scale = look_of(record, checkpoint.name, theme), 100.0 if name in _PERCENT else 1.0
    points = curve(checkpoint, name)
    x = [p.passes for p in points]
    y = [scale * _difference(p) for p in points]
    label = short_name_of(record, checkpoint.name, 20)
    axes.plot(x, y, color=look.colour, marker=look.marker, markersize=4, linewidth=1.5, label=label)
    banded = [(p.passes, d.low * scale, d.high * scale) for p in points
              if (d := p.difference) and is_number(d.low) and is_number(d.high)]  # fmt: skip
    if banded:
        passes, low, high = zip(*banded, strict=True)
        axes.fill_between(passes, low, high, color=look.colour, alpha=0.15, linewidth=0)
    stop = enough(checkpoint, name)
    ring = [(a, b) for a, b in zip(x, y, strict=True) if a == stop]
    axes.plot([a for a, _ in ring], [b for _, b in ring], "o", color=look.colour, markersize=11, markerfacecolor="none")


def _difference(point: AveragingPoint) -> float:
    return (point.difference.estimate if point.difference else None) or 0.0


def _finish(axes: Axes, name: str, counts: list[int]) -> None:
    axes.set_title(_TITLES[name], fontsize=9.5)
    axes.set_xscale("log", base=2)
    step = max(1, len(counts) // MOST_TICKS)
    axes.xaxis.set_major_locator(FixedLocator([float(k) for k in counts[::-1][::step]]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.grid(visible=True, axis="y")
