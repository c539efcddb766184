"""Whether enough sub-models were sampled: EPKL from the first K of them, with its mask-only band."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from rdrop_probes.records import CheckpointResult, Metric, RunRecord
from rdrop_reports.figures.style import Look, Theme, look_of, new_figure
from rdrop_reports.numbers import format_number, is_number
from rdrop_reports.select import measured, most_telling, short_name_of, unit_of
from rdrop_reports.text import called, listed

MOST_LINES = 6


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """One line a checkpoint over K on a log scale."""
    shown = [c for c in most_telling(record, MOST_LINES) if len(c.convergence) > 1]
    if not shown:
        return None
    figure = new_figure(3.4)
    axes = figure.subplots()
    for checkpoint in shown:
        _draw_line(
            axes, checkpoint, look_of(record, checkpoint.name, theme), short_name_of(record, checkpoint.name, 20)
        )
    _count_axis(axes, sorted({point.sub_models for c in shown for point in c.convergence}))
    axes.set(xlabel="Sub-models, K", title=f"EPKL ({unit_of(record)})")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(visible=True, axis="y")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """Width of the mask-only interval against the estimate and against the interval for new data."""
    found = {c.name: m for c in most_telling(record, 3) if (m := measured(c, "epkl")) and relative_width(m)}
    if not found:
        return ""
    widths = [f"±{format_number(relative_width(m), percent=True)} for {called(name)}" for name, m in found.items()]
    first = (
        f"With {record.config.get('sub_models', 'these')} sub-models, the interval over masks alone is, of the EPKL,"
    )
    return f"{first} {listed(widths)}{_advice(list(found.values()))}."


def relative_width(metric: Metric) -> float | None:
    """Half-width of the mask-only interval over the estimate; None where there is none."""
    if not (is_number(metric.mask_low) and is_number(metric.mask_high) and metric.estimate):
        return None
    return abs((metric.mask_high - metric.mask_low) / 2 / metric.estimate)


def _advice(metrics: list[Metric]) -> str:
    """Whether more sub-models or more examples would narrow the interval."""
    parts = [
        (m.mask_high - m.mask_low) / (m.high - m.low)
        for m in metrics
        if is_number(m.mask_low) and is_number(m.mask_high) and is_number(m.low) and is_number(m.high)
        and m.high > m.low
    ]  # fmt: skip
    if not parts:
        return ""
    if max(parts) < 0.5:
        return "; more examples would narrow the estimate more than more sub-models"
    return "; more sub-models would narrow the estimate further"


def _draw_line(axes: Axes, checkpoint: CheckpointResult, look: Look, label: str) -> None:
    points = [p for p in checkpoint.convergence if is_number(p.estimate)]
    x = [p.sub_models for p in points]
    axes.plot(x, [p.estimate for p in points], color=look.colour, marker=look.marker, markersize=5,
              linewidth=1.6, label=label)  # fmt: skip
    banded = [p for p in points if is_number(p.low) and is_number(p.high)]
    axes.fill_between(
        [p.sub_models for p in banded], [p.low or 0.0 for p in banded], [p.high or 0.0 for p in banded],
        color=look.colour, alpha=0.18, linewidth=0,
    )  # fmt: skip


def _count_axis(axes: Axes, counts: list[int]) -> None:
    """A log axis with a tick at the K that were used, thinned where they crowd."""
    axes.set_xscale("log", base=2)
    step = max(1, len(counts) // 6)
    axes.xaxis.set_major_locator(FixedLocator([float(k) for k in counts[::-1][::step]]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
