"""Whether theory holds as the dropout rate changes: EPKL measured and predicted over rates at inference."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rdrop_probes.records import CheckpointResult, Comparison, Metric, RunRecord
from rdrop_reports.figures.axes import log_axis, panels
from rdrop_reports.figures.style import Look, Theme, look_of
from rdrop_reports.numbers import format_estimate, format_number, format_parts, is_number
from rdrop_reports.outcome import outcome_of
from rdrop_reports.select import most_telling_with, short_name_of, short_unit
from rdrop_reports.text import called

MOST_LINES = 4

Points = list[tuple[float, Metric]]


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """EPKL over rates, measured as a line with its band and predicted as a dashed one; beside it their ratio."""
    shown = _shown(record)
    if not shown:
        return None
    has_ratio = any(_ratios(c) for c in shown)
    figure, axes = panels(2 if has_ratio else 1, 2, 2.9, 0.35)
    for checkpoint in shown:
        look = look_of(record, checkpoint.name, theme)
        _line(axes[0], _positive(_measured(checkpoint)), look, label=short_name_of(record, checkpoint.name, 20))
        _line(axes[0], _positive(_predicted(checkpoint)), look, style="--")
        if has_ratio:
            _line(axes[1], _ratios(checkpoint), look)
    axes[0].plot([], [], "--", color=theme.muted, label="predicted")
    log_axis(axes[0], "y")
    axes[0].set_title(f"EPKL ({short_unit(record)})")
    if has_ratio:
        axes[1].axhline(1, color=theme.muted, linewidth=1)
        axes[1].set_title("Measured / predicted")
        axes[1].yaxis.set_major_locator(MaxNLocator(nbins=5))
    for axis in axes:
        _rates(axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """The ratio at the smallest and the largest rate, and whether it comes closer to 1 between them."""
    parts = [part for c in _shown(record)[:3] if (part := _course(c))]
    return f"Measured over predicted EPKL is {'; '.join(parts)}." if parts else ""


def _shown(record: RunRecord) -> list[CheckpointResult]:
    return most_telling_with(record, MOST_LINES, _measured)


def _measured(checkpoint: CheckpointResult) -> Points:
    found = ((p.rate, p.epkl) for p in checkpoint.sweep if is_number(p.epkl.estimate))
    return sorted(found, key=lambda point: point[0])


def _predicted(checkpoint: CheckpointResult) -> Points:
    found = ((p.rate, p.predicted) for p in checkpoint.sweep if p.predicted and is_number(p.predicted.estimate))
    return sorted(found, key=lambda point: point[0])


def _ratios(checkpoint: CheckpointResult) -> Points:
    found = ((p.rate, p.ratio) for p in checkpoint.sweep if p.ratio and is_number(p.ratio.estimate))
    return sorted(found, key=lambda point: point[0])


def _positive(points: Points) -> Points:
    """What a log axis can show."""
    return [(rate, metric) for rate, metric in points if (metric.estimate or 0) > 0]


def _line(axes: Axes, points: Points, look: Look, style: str = "-", label: str = "") -> None:
    """A line with the band of its intervals; a dashed one has neither band nor marks."""
    dashed = style == "--"
    x, y = [rate for rate, _ in points], [m.estimate or 0.0 for _, m in points]
    marker = "" if dashed else look.marker
    axes.plot(x, y, style, color=look.colour, linewidth=1.5, marker=marker, markersize=5, label=label or None)
    banded = [(rate, m.low, m.high) for rate, m in points if is_number(m.low) and is_number(m.high)]
    if not dashed and banded:
        rates, low, high = zip(*banded, strict=True)
        axes.fill_between(rates, low, high, color=look.colour, alpha=0.18, linewidth=0)


def _rates(axes: Axes) -> None:
    axes.set_xlabel("Dropout rate")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(visible=True)


def _course(checkpoint: CheckpointResult) -> str:
    points = _ratios(checkpoint)
    if not points:
        return ""
    (low_rate, first), (high_rate, last) = points[0], points[-1]
    name = called(checkpoint.name)
    if len(points) == 1:
        return f"{format_estimate(first)} at rate {format_number(low_rate)} for {name}"
    ends = f"{format_estimate(first)} at rate {low_rate:g} and {format_estimate(last)} at {high_rate:g} for {name}"
    change = checkpoint.sweep_change
    if change is None or not is_number(change.difference):
        return ends
    size = format_parts(change.difference, change.low, change.high)
    return f"{ends}, a change of {size}: {_reading(change, (first.estimate or 0) - 1, (last.estimate or 0) - 1)}"


def _reading(change: Comparison, first: float, last: float) -> str:
    """Whether the smaller rate is nearer to linear; both rates are of the same examples, and compared as such."""
    if outcome_of(change) == "no difference shown":
        return "no change with the rate is shown"
    if first * last < 0:
        return "on the other side of 1"
    nearer = abs(first) < abs(last)
    return "closer to 1 the smaller the noise, as the theory says" if nearer else "not closer to 1 as the noise falls"
