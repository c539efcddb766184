"""Where in the network the inconsistency arises: EPKL by kind of module and by layer, and of all sites together."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rdrop_probes.records import CheckpointResult, GroupAttribution, Metric, RunRecord
from rdrop_reports.figures.forest import draw_interval, name_rows, value_axis
from rdrop_reports.figures.style import Theme, look_of, new_figure
from rdrop_reports.numbers import format_estimate, format_number, is_number
from rdrop_reports.select import measured, most_telling_with, short_unit
from rdrop_reports.text import called, elide, listed

MOST_CHECKPOINTS = 4
MOST_LAYERS = 16
_TITLES = {"module": "By kind of module", "layer": "By layer"}
_TOGETHER = {"epkl": "all sites at once", "epkl_sum_of_parts": "sum of single sites"}


class Panel(NamedTuple):
    """A title and, by the name of its row, the metric of each checkpoint (by name)."""

    title: str
    rows: dict[str, dict[str, Metric]]


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """Up to three panels below each other: the whole and the sum of parts, kinds of modules, layers."""
    shown = _shown(record)
    drawn = [panel for panel in _panels(shown) if panel.rows]
    if not shown or not drawn:
        return None
    heights = [0.75 + len(panel.rows) * (0.14 + 0.12 * len(shown)) for panel in drawn]
    figure = new_figure(sum(heights) + 0.4)
    axes = figure.subplots(len(drawn), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, panel in zip(axes, drawn, strict=True):
        _draw_panel(axis, record, panel, [c.name for c in shown], theme)
    axes[-1].set_xlabel(f"EPKL with only these sites active ({short_unit(record)})")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """What the sites sum to against the whole, and so whether they interact."""
    parts = [part for c in _shown(record)[:3] if (part := _interaction(record, c))]
    if parts:
        return f"Beyond the sum of each alone, all sites at once add {listed(parts)}."
    tops = [top for c in _shown(record)[:3] if (top := _largest(c))]
    return f"The largest EPKL of one kind of module arises in {listed(tops)}." if tops else ""


def _shown(record: RunRecord) -> list[CheckpointResult]:
    return most_telling_with(record, MOST_CHECKPOINTS, lambda c: c.attribution_groups)


def _panels(shown: list[CheckpointResult]) -> list[Panel]:
    together = {
        title: {c.name: m for c in shown if (m := measured(c, name))} for name, title in _TOGETHER.items()
    }  # fmt: skip
    complete = together if all(together.values()) else {}
    return [Panel("Together", complete), *(Panel(_TITLES[by], _rows(shown, by)) for by in _TITLES)]


def _rows(shown: list[CheckpointResult], by: str) -> dict[str, dict[str, Metric]]:
    rows: dict[str, dict[str, Metric]] = {}
    for checkpoint in shown:
        for group in checkpoint.attribution_groups:
            if group.by == by and group.only is not None and is_number(group.only.estimate):
                rows.setdefault(group.name, {})[checkpoint.name] = group.only
    return dict(list(rows.items())[:MOST_LAYERS])


def _draw_panel(axes: Axes, record: RunRecord, panel: Panel, names: list[str], theme: Theme) -> None:
    """Marks with intervals, one line of them a checkpoint in each row."""
    for place, name in enumerate(names):
        look, offset = look_of(record, name, theme), (place - (len(names) - 1) / 2) * 0.7 / len(names)
        for row, found in enumerate(panel.rows.values()):
            if name in found:
                draw_interval(axes, row + offset, found[name], look, theme)
        axes.plot([], [], look.marker, color=look.colour, label=elide(name, 20))
    title = panel.title
    if len(panel.rows) == MOST_LAYERS:
        title += f", the first {MOST_LAYERS}"
    axes.set_title(title)
    name_rows(axes, [elide(name, 24) for name in panel.rows], theme)
    value_axis(axes)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))


def _interaction(record: RunRecord, checkpoint: CheckpointResult) -> str:
    """The interaction with its interval, and its share of the whole."""
    found, whole = measured(checkpoint, "epkl_interaction"), measured(checkpoint, "epkl")
    if found is None or found.estimate is None:
        return ""
    ratio = found.estimate / whole.estimate if whole and whole.estimate else None
    share = [f"{format_number(ratio, percent=True)} of it"] if ratio is not None else []
    unclear = is_number(found.low) and is_number(found.high) and found.low <= 0 <= found.high
    said = "; ".join([*share, *(["no interaction is shown"] if unclear else [])])
    text = f"{format_estimate(found)} {short_unit(record)} to the EPKL of {called(checkpoint.name)}"
    return f"{text} ({said})" if said else text


def _largest(checkpoint: CheckpointResult) -> str:
    known = [g for g in checkpoint.attribution_groups if g.by == "module" and g.only and is_number(g.only.estimate)]
    top = max(known, key=_only, default=None)
    return f"{elide(top.name)} for {called(checkpoint.name)} ({format_estimate(top.only)})" if top else ""


def _only(group: GroupAttribution) -> float:
    return (group.only.estimate if group.only else None) or 0.0
