"""Groups of training seeds: the mean over seeds with its interval, and every seed beside it."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rdrop_probes.records import GroupResult, RunRecord
from rdrop_reports.definitions import is_share, label, unit_text
from rdrop_reports.figures.axes import panels
from rdrop_reports.figures.forest import draw_interval, name_rows, value_axis
from rdrop_reports.figures.style import MARKERS, Look, Theme
from rdrop_reports.numbers import format_parts, is_number
from rdrop_reports.select import COLOURS, checkpoint_named, measured
from rdrop_reports.text import called, elide

METRICS = ("epkl", "accuracy_eval", "nll_gap", "flip_rate", "mse_eval", "kl_sub_to_eval")
MOST_PANELS = 4
MANY = 12  # groups from which two panels are high enough
MOST_ROWS = 24


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """Panels of EPKL and what it comes with, a row a group."""
    groups = in_order(record)[:MOST_ROWS]
    most = MOST_PANELS if len(groups) < MANY else 2
    kept = [name for name in METRICS if any(_has(group, name) for group in groups)][:most]
    if not kept:
        return None
    figure, grid = panels(len(kept), 2, 0.85 + 0.3 * max(len(groups), 2))
    for place, (axes, metric) in enumerate(zip(grid, kept, strict=True)):
        _draw_panel(axes, record, groups, metric, theme)
        name_rows(axes, [_named(group) if place % 2 == 0 else "" for group in groups], theme)
    dots = "dots: seeds; " if any(_seeds(record, group, kept[0]) for group in groups) else ""
    figure.supxlabel(f"{dots}bar: interval of the mean over seeds{_left_out(record)}", fontsize=9)
    return figure


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """The ratio of EPKL of each of the first groups to the reference's, with its interval over seeds."""
    found = [c for c in record.group_comparisons if c.metric == "epkl" and is_number(c.ratio)]
    parts = [
        f"{format_parts(c.ratio, c.ratio_low, c.ratio_high)} times for {called(c.candidate)}"
        + ("" if is_number(c.ratio_low) else " (not tested)")
        for c in found[:3]
    ]
    if not parts:
        return ""
    return f"Over seeds, against {called(record.reference_group)}, the mean EPKL is {'; '.join(parts)}."


def in_order(record: RunRecord) -> list[GroupResult]:
    """Groups with the reference first."""
    return sorted(record.groups, key=lambda group: group.name != record.reference_group)


def _has(group: GroupResult, metric: str) -> bool:
    return metric in group.metrics and is_number(group.metrics[metric].estimate)


def seeds_of(group: GroupResult) -> str:
    """How many seeds its means are over, at most: of groups that lie along an axis these are not all members."""
    count = max((metric.n for metric in group.metrics.values()), default=len(group.members))
    return f"{count} seed{'s' if count != 1 else ''}"


def _named(group: GroupResult) -> str:
    return f"{elide(group.name, 14)}, {seeds_of(group)}"


def _left_out(record: RunRecord) -> str:
    count = len(record.groups)
    return f"; {MOST_ROWS} of {count} groups" if count > MOST_ROWS else ""


def _draw_panel(axes: Axes, record: RunRecord, groups: list[GroupResult], metric: str, theme: Theme) -> None:
    scale = 100.0 if is_share(metric) else 1.0
    for row, group in enumerate(groups):
        place = min(record.groups.index(group), COLOURS)
        look = Look((*theme.palette, theme.muted)[place], MARKERS[place])
        seeds = [scale * x for x in _seeds(record, group, metric)]
        axes.plot(seeds, [row + 0.22] * len(seeds), ".", color=look.colour, markersize=4, alpha=0.6)
        if _has(group, metric):
            draw_interval(axes, row - 0.08, group.metrics[metric], look, theme, scale)
    unit = next((unit_text(metric, g.metrics[metric].unit) for g in groups if metric in g.metrics), "")
    axes.set_title(label(metric) + (f", {unit}" if unit and not is_share(metric) else ""), fontsize=9.5)
    value_axis(axes, percent=is_share(metric))


def _seeds(record: RunRecord, group: GroupResult, metric: str) -> list[float]:
    """What each member came out at; nothing where the mean is over some of them (groups that lie along an axis)."""
    members = [c for name in group.members if (c := checkpoint_named(record, name)) is not None]
    found = [m.estimate for c in members if (m := measured(c, metric)) is not None and m.estimate is not None]
    return found if _has(group, metric) and group.metrics[metric].n == len(found) else []
