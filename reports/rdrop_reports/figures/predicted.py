"""Theory check: EPKL as measured against EPKL predicted to second order in the dropout noise."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from rdrop_probes.records import Metric, RunRecord
from rdrop_reports.figures.axes import log_limits, log_scatter, panels
from rdrop_reports.figures.style import Theme, look_of
from rdrop_reports.numbers import format_estimate, is_number
from rdrop_reports.per_example import Array, joint
from rdrop_reports.select import measured, most_telling, short_name_of, short_unit
from rdrop_reports.text import called, listed

MOST_PANELS = 4
_LESS = "dropping units does less than their gradients say"
_MORE = "dropping units does more than their gradients say"


def draw(record: RunRecord, per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """Scatter over examples, one panel a checkpoint, at most four; above the diagonal, more than predicted."""
    shown = _arrays(record, per_example)
    if not shown:
        return None
    figure, axes = panels(len(shown), 2, 2.6 if len(shown) > 1 else 4.2)
    limits = log_limits(*(array for arrays in shown.values() for array in arrays))
    for axis, (name, arrays) in zip(axes, shown.items(), strict=True):
        log_scatter(axis, *arrays, look_of(record, name, theme), theme, limits)
        axis.set_title(short_name_of(record, name) if len(shown) > 1 else f"Measured EPKL ({short_unit(record)})")
        axis.set_xlabel(f"Predicted EPKL ({short_unit(record)})")
    if len(shown) > 1:
        for axis in axes[::2]:
            axis.set_ylabel("Measured")
    return figure


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """Measured over predicted, and what that says of the response to dropout."""
    shown = [(c, m) for c in most_telling(record, 3) if (m := measured(c, "epkl_over_predicted"))]
    readings = [_reading(metric) for _, metric in shown]
    parts = [f"{format_estimate(metric)} for {called(c.name)}" for c, metric in shown]
    if not parts:
        return ""
    if len(set(readings)) == 1:
        return f"Measured over predicted EPKL is {listed(parts)}{': ' if readings[0] else ''}{readings[0]}."
    each = [f"{part} ({reading})" if reading else part for part, reading in zip(parts, readings, strict=True)]
    return f"Measured over predicted EPKL is {listed(each)}."


def _reading(found: Metric) -> str:
    """What the ratio says, where its interval says anything."""
    if not (is_number(found.low) and is_number(found.high)):
        return ""
    if found.low > 1:
        return _MORE
    return _LESS if found.high < 1 else "no departure from linear is shown"


def _arrays(record: RunRecord, per_example: pd.DataFrame | None) -> dict[str, tuple[Array, Array]]:
    """Predicted and measured EPKL by checkpoint."""
    found = {
        c.name: joint(record, per_example, c.name, ("predicted_epkl", "epkl"))
        for c in most_telling(record, MOST_PANELS)
    }
    return {k: xy for k, xy in found.items() if xy is not None and all((a > 0).any() for a in xy)}
