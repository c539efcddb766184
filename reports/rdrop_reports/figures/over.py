"""EPKL and what it comes with over an axis, such as R-Drop's weight or the epoch: one line a group."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from rdrop_probes.records import Metric, RunRecord
from rdrop_reports.definitions import is_share, label, unit_text
from rdrop_reports.figures.axes import panels
from rdrop_reports.figures.style import MARKERS, Look, Theme, new_figure
from rdrop_reports.layout_over import Line, Point, lines
from rdrop_reports.numbers import format_estimate, is_number
from rdrop_reports.select import COLOURS, per_row, unit_of
from rdrop_reports.text import called, elide, listed

MOST_NAMED = 3
MOST_TICKS = 7
MOST_MARKS = 12
BAND, FAINT = 0.16, 0.08  # how dense bands are, where lines are few and where they are many
WIDE = 30.0  # times the smallest step from which an axis is logarithmic
SCORES = ("accuracy_eval", "nll_gap", "flip_rate", "mse_eval", "kl_sub_to_eval")
MOST_PANELS = 3


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """EPKL over the axis, with the interval as a band."""
    found = lines(record, "epkl")
    if not found or record.axis is None:
        return None
    figure = new_figure(3.4)
    axes = figure.subplots()
    _draw_lines(axes, found, "epkl", theme)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set(xlabel=elide(record.axis.name), title=f"EPKL ({unit_of(record)}){_what_band(found)}")
    _finish(figure, [axes], found, theme)
    return figure


def draw_scores(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """Small multiples of accuracy, gap and flips over the same axis."""
    kept = _scores(record)
    if not kept or record.axis is None:
        return None
    figure, grid = panels(len(kept), MOST_PANELS, 2.5, extra=0.3)
    for axes, (metric, found) in zip(grid, kept.items(), strict=True):
        _draw_lines(axes, found, metric, theme)
        axes.set_title(label(metric) + _unit(record, metric), fontsize=8.5)
        axes.set_xlabel(elide(record.axis.name, 14))
    _finish(figure, grid, next(iter(kept.values())), theme, most_ticks=3)
    return figure


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """Both ends of the line, or where groups differ at the end."""
    return _conclusion(record, "epkl", lines(record, "epkl"), f" {unit_of(record)}")


def scores_takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """The same of the first score."""
    for metric, found in _scores(record).items():
        return _conclusion(record, metric, found, "" if is_share(metric) else _unit(record, metric).replace(",", ""))
    return ""


def _conclusion(record: RunRecord, metric: str, found: Sequence[Line], unit: str) -> str:
    if not found or record.axis is None:
        return ""
    axis, percent, kept = called(record.axis.name), is_share(metric), found[:MOST_NAMED]
    if len(found) == 1:
        return f"{_from_to(label(metric), axis, found[0], unit=unit, percent=percent)}."
    ends = [f"{format_estimate(x.points[-1].value, percent=percent)}{unit} for {called(x.name)}" for x in kept]
    places = {line.points[-1].x for line in kept}
    where = f"at {axis} {min(places):g}" if len(places) == 1 else f"at the largest {axis} of each"
    return f"{label(metric)}, {where}: {listed(ends)}."


def _from_to(what: str, axis: str, line: Line, *, unit: str = "", percent: bool = False) -> str:
    """From one end to the other; it falls or rises only where the intervals of the ends lie apart."""
    first, last = line.points[0], line.points[-1]
    ends = [f"{format_estimate(p.value, percent=percent)}{unit} at {axis} {p.x:g}" for p in (first, last)]
    return f"{what} {_moves(first.value, last.value)} from {ends[0]} to {ends[1]}"


def _moves(first: Metric, last: Metric) -> str:
    if not (is_number(first.low) and is_number(first.high) and is_number(last.low) and is_number(last.high)):
        return "goes"
    if last.high < first.low:
        return "falls"
    return "rises" if last.low > first.high else "goes, intervals overlapping,"


def _scores(record: RunRecord) -> dict[str, list[Line]]:
    found = {metric: lines(record, metric) for metric in SCORES}
    return dict([(metric, drawn) for metric, drawn in found.items() if drawn][:MOST_PANELS])


def _unit(record: RunRecord, metric: str) -> str:
    units = [c.metrics[metric].unit for c in record.checkpoints if metric in c.metrics]
    text = unit_text(metric, units[0]) if units and not is_share(metric) else ""
    return f", {text}{per_row(record)}" if text else ""


def _what_band(found: Sequence[Line]) -> str:
    """What the band is of: seeds where there are several at a place."""
    several = any(point.seeds for line in found for point in line.points)
    return "; band: over seeds" if several else "; band: new data"


def _look(place: int, theme: Theme) -> Look:
    """A group's colour and marker; beyond the colours it steps back."""
    kept = min(place, COLOURS)
    return Look((*theme.palette, theme.muted)[kept], MARKERS[kept])


def _draw_lines(axes: Axes, found: Sequence[Line], metric: str, theme: Theme) -> None:
    scale = 100.0 if is_share(metric) else 1.0
    for line in found[::-1]:  # the first, the reference, on top
        look = _look(line.place, theme)
        if line.place >= COLOURS:
            axes.plot(*_estimates(line, scale), color=look.colour, linewidth=0.8, alpha=0.4)
        else:
            _draw_line(axes, line, look, scale, FAINT if len(found) > MOST_NAMED else BAND)
    if scale != 1:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}%"))
    axes.grid(visible=True, axis="y")


def _estimates(line: Line, scale: float) -> tuple[list[float], list[float]]:
    kept = [(p.x, p.value.estimate) for p in line.points if is_number(p.value.estimate)]
    return [x for x, _ in kept], [scale * y for _, y in kept]


def _draw_line(axes: Axes, line: Line, look: Look, scale: float, alpha: float) -> None:
    """A line with its marks, its band and its seeds."""
    size = 4 if len(line.points) <= MOST_MARKS else 0
    axes.plot(*_estimates(line, scale), color=look.colour, marker=look.marker, markersize=size, linewidth=1.6)
    banded = [(p.x, p.value.low, p.value.high) for p in line.points]
    known = [(x, scale * low, scale * high) for x, low, high in banded if is_number(low) and is_number(high)]
    axes.fill_between(
        [x for x, _, _ in known], [low for _, low, _ in known], [high for _, _, high in known],
        color=look.colour, alpha=alpha, linewidth=0,
    )  # fmt: skip
    _draw_seeds(axes, line.points, look, scale)


def _draw_seeds(axes: Axes, points: Sequence[Point], look: Look, scale: float) -> None:
    seeds = [(p.x, scale * value) for p in points for value in p.seeds]
    if seeds:
        x, y = zip(*seeds, strict=True)
        axes.plot(x, y, ".", color=look.colour, markersize=3.5, alpha=0.6)


def _finish(
    figure: Figure, grid: Sequence[Axes], found: Sequence[Line], theme: Theme, *, most_ticks: int = MOST_TICKS
) -> None:
    """Places on the axis as ticks, and names of the lines above."""
    places = sorted({p.x for line in found for p in line.points})
    for axes in grid:
        _place_axis(axes, places, most_ticks)
    if len(found) > 1:
        handles = _keys(grid[0], found, theme)
        figure.legend(handles=handles, loc="outside upper left", ncols=2 if len(handles) < 3 else 3)


def _keys(axes: Axes, found: Sequence[Line], theme: Theme) -> list[Line2D]:
    """One key a colour: the groups beyond the last share one."""
    keys: list[Line2D] = []
    for line in found[: COLOURS + 1]:
        look = _look(line.place, theme)
        name = elide(line.name, 18) if line.place < COLOURS else f"{len(found) - COLOURS} more"
        keys += axes.plot([], [], color=look.colour, marker=look.marker, markersize=4, linewidth=1.6, label=name)
    return keys


def _place_axis(axes: Axes, places: Sequence[float], most: int) -> None:
    """Ticks at the places themselves where they are few; logarithmic where steps grow over decades."""
    steps = [b - a for a, b in pairwise(places)]
    least = min((abs(x) for x in places if x), default=1.0)
    if steps and places[0] >= 0 and places[-1] / least >= WIDE and max(steps) >= WIDE * min(steps):
        axes.set_xscale("log" if places[0] > 0 else "symlog", **({} if places[0] > 0 else {"linthresh": least}))
        axes.xaxis.set_minor_locator(NullLocator())
    if len(places) <= MOST_TICKS or axes.get_xscale() != "linear":
        axes.xaxis.set_major_locator(FixedLocator(_apart(axes, places, most)))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=most, integer=all(x == round(x) for x in places)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _apart(axes: Axes, places: Sequence[float], most: int) -> list[float]:
    """Both ends, and of the places between them those that leave room for their labels."""
    drawn = axes.xaxis.get_transform().transform(np.array(places))
    room = (drawn[-1] - drawn[0]) / most
    kept = [0]
    for i in range(1, len(places) - 1):
        if min(drawn[i] - drawn[kept[-1]], drawn[-1] - drawn[i]) >= room:
            kept.append(i)
    return [places[i] for i in dict.fromkeys([*kept, len(places) - 1])]
