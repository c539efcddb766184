"""The EPKL of each checkpoint with both of its intervals, the value written beside it."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rdrop_probes.records import Metric, RunRecord
from rdrop_reports.definitions import label
from rdrop_reports.figures.forest import draw_interval, name_rows, say_rows, value_axis
from rdrop_reports.figures.style import Look, Theme, look_of, new_figure
from rdrop_reports.numbers import format_estimate
from rdrop_reports.outcome import ratio_text
from rdrop_reports.select import (
    are_groups_compared,
    as_rows,
    compared_on,
    in_order,
    measured,
    per_row,
    short_name_of,
    short_unit,
    unit_of,
)
from rdrop_reports.text import called

_FAMILY = ("epkl", "mutual_information", "reverse_mutual_information")

Row = tuple[str, Metric, Look]


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """One row a checkpoint; for a single checkpoint, one row each for EPKL and its two parts."""
    rows = _rows(record, theme)
    if not rows:
        return None
    figure = new_figure(1.35 + 0.3 * len(rows))
    axes = figure.subplots()
    for place, (_, metric, look) in enumerate(rows):
        draw_interval(axes, place, metric, look, theme)
        _write(axes, place, format_estimate(metric))
    name_rows(axes, [name for name, _, _ in rows], theme)
    value_axis(axes)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    title = "EPKL" if len(record.checkpoints) > 1 else "Divergence between sub-models"
    axes.set_title(title + per_row(record))
    axes.set_xlabel(f"{short_unit(record)}; thick: masks alone, thin: new data")
    say_rows(figure, record)
    return figure


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """The ratio, for one candidate; else how far the checkpoints reach."""
    if len(record.checkpoints) <= 2:
        return _of_few(record)
    scored = [(m.estimate, c) for c in record.checkpoints if (m := measured(c, "epkl")) and m.estimate is not None]
    if not scored:
        return ""
    low, high = min(scored, key=lambda s: s[0])[1], max(scored, key=lambda s: s[0])[1]
    parts = [f"from {format_estimate(low.metrics['epkl'])} {unit_of(record)} ({called(low.name)})"]
    parts.append(f"to {format_estimate(high.metrics['epkl'])} ({called(high.name)})")
    how = "groups over their seeds" if are_groups_compared(record) else "candidates by their paired differences"
    return f"EPKL goes {' '.join(parts)}; compare {how}, not by overlap."


def _of_few(record: RunRecord) -> str:
    """The ratio of candidate to reference (of groups, where these are compared); the estimate of a single one."""
    for found in compared_on(record, "epkl", 2):
        return f"The EPKL of {called(found.candidate)} is {ratio_text(found)} times that of {called(found.reference)}."
    for checkpoint in in_order(record)[::-1]:
        if (metric := measured(checkpoint, "epkl")) is not None:
            return f"The EPKL of {called(checkpoint.name)} is {format_estimate(metric)} {unit_of(record)}."
    return ""


def _rows(record: RunRecord, theme: Theme) -> list[Row]:
    if len(record.checkpoints) == 1:
        only = record.checkpoints[0]
        look = look_of(record, only.name, theme)
        return [(label(name), metric, look) for name in _FAMILY if (metric := measured(only, name))]
    return [
        (short_name_of(record, c.name, 24), metric, look_of(record, c.name, theme))
        for c in as_rows(record)
        if (metric := measured(c, "epkl"))
    ]


def _write(axes: Axes, row: int, text: str) -> None:
    """The value at the right of its row."""
    axes.text(1.03, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
