"""Forest plots: one row a checkpoint, one panel a quantity, a mark with its interval in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from rdrop_probes.records import Metric, RunRecord
from rdrop_reports.definitions import is_share, unit_text
from rdrop_reports.figures.axes import RoundTicks, panels
from rdrop_reports.figures.style import Look, Theme, look_of, quiet
from rdrop_reports.numbers import is_number
from rdrop_reports.select import as_rows, measured, rows_left_out, short_name_of


@dataclass(frozen=True)
class Panel:
    """A title and the metrics drawn in it, each with its marker (None: the checkpoint's own)."""

    title: str
    metrics: Sequence[str]
    markers: Sequence[str | None] = (None,)


def forest(record: RunRecord, wanted: Sequence[Panel], theme: Theme, *, from_zero: bool = False) -> Figure | None:
    """Panels that have anything measured, two in a row, their axes from 0 if wanted; None where there are none."""
    kept = [panel for panel in wanted if _has_any(record, panel)]
    if not kept:
        return None
    rows = len(as_rows(record))
    figure, axes = panels(len(kept), 2, 0.85 + 0.26 * max(rows, 2))
    for place, (axis, panel) in enumerate(zip(axes, kept, strict=True)):
        _draw_panel(axis, record, panel, theme)
        if from_zero:
            left, right = min(0.0, axis.get_xlim()[0]), axis.get_xlim()[1]
            axis.set_xlim(left, right + 0.06 * (right - left))  # marks at the right end are not cut
        name_rows(
            axis, [short_name_of(record, c.name, 16) for c in as_rows(record)] if place % 2 == 0 else [""] * rows, theme
        )
    say_rows(figure, record)
    return figure


def say_rows(figure: Figure, record: RunRecord) -> None:
    """Say below the figure that it does not show every checkpoint, where it does not."""
    if text := rows_left_out(record):
        figure.supxlabel(text, fontsize=9)


def name_rows(axes: Axes, names: Sequence[str], theme: Theme) -> None:
    """Rows from the top down, with these names at the left."""
    axes.set_yticks(range(len(names)), labels=list(names), color=theme.ink)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    quiet(axes, "x")


def draw_interval(
    axes: Axes, row: float, metric: Metric, look: Look, theme: Theme, scale: float = 1.0, *, hollow: bool = False
) -> None:
    """A mark, a thin bar for new data, and a thick one for the dropout masks alone."""
    bounds = [(metric.low, metric.high, 1.4, 1.0), (metric.mask_low, metric.mask_high, 4.5, 0.45)]
    for low, high, width, alpha in bounds:
        if is_number(low) and is_number(high):
            axes.plot([low * scale, high * scale], [row, row], color=look.colour, linewidth=width, alpha=alpha)
    face = theme.surface if hollow else look.colour
    if is_number(metric.estimate):
        axes.plot(
            metric.estimate * scale, row, look.marker, color=look.colour, markersize=6.5,
            markerfacecolor=face, markeredgewidth=1.3,
        )  # fmt: skip


def value_axis(axes: Axes, *, percent: bool = False) -> None:
    """Few ticks on the value axis; percentages carry their sign."""
    axes.xaxis.set_major_locator(RoundTicks())
    axes.margins(x=0.12)
    if percent:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}%"))
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def _has_any(record: RunRecord, panel: Panel) -> bool:
    return any(measured(c, name) for c in record.checkpoints for name in panel.metrics)


def _draw_panel(axes: Axes, record: RunRecord, panel: Panel, theme: Theme) -> None:
    percent = is_share(panel.metrics[0])
    for row, checkpoint in enumerate(as_rows(record)):
        look = look_of(record, checkpoint.name, theme)
        for place, (name, marker) in enumerate(zip(panel.metrics, panel.markers, strict=True)):
            found = measured(checkpoint, name)
            if found is not None:
                offset = 0.22 * (place - (len(panel.metrics) - 1) / 2)
                drawn = look if marker is None else Look(look.colour, marker)
                draw_interval(axes, row + offset, found, drawn, theme, 100 if percent else 1, hollow=place % 2 == 1)
    axes.set_title(panel.title + _unit(record, panel.metrics[0]), fontsize=9.5)
    value_axis(axes, percent=percent)


def _unit(record: RunRecord, metric: str) -> str:
    """Unit, for a panel's title; a percentage says so on its ticks."""
    units = [c.metrics[metric].unit for c in record.checkpoints if metric in c.metrics]
    text = "" if is_share(metric) or not units else unit_text(metric, units[0])
    return f", {text}" if text else ""
