"""How per-example EPKL is spread: candidate against reference, and the distribution of each checkpoint."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest

from rdrop_probes.records import RunRecord
from rdrop_reports.figures.axes import floor_of, log_axis, log_limits, log_scatter, panels
from rdrop_reports.figures.style import Theme, look_of, new_figure
from rdrop_reports.numbers import format_count, format_number, format_parts
from rdrop_reports.per_example import Array, paired, values
from rdrop_reports.select import checkpoint_named, most_telling, short_name_of, short_unit
from rdrop_reports.text import called, listed

MOST_PANELS = 4
MOST_LINES = 6


def draw_pairs(record: RunRecord, per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """Scatter of each candidate against the reference on log axes; below the diagonal is more consistent."""
    shown = _pairs(record, per_example)
    if not shown or record.reference is None:
        return None
    figure, axes = panels(len(shown), 2, 2.6 if len(shown) > 1 else 4.2)
    limits = log_limits(*(array for arrays in shown.values() for array in arrays))
    for place, (axis, (name, arrays)) in enumerate(zip(axes, shown.items(), strict=True)):
        log_scatter(axis, *arrays, look_of(record, name, theme), theme, limits)
        axis.set_title(short_name_of(record, name))
        axis.set_xlabel(short_name_of(record, record.reference or ""))
        axis.set_ylabel("" if place % 2 else f"EPKL ({short_unit(record)})")
    return figure


def pairs_takeaway(record: RunRecord, per_example: pd.DataFrame | None) -> str:
    """On what share of the examples each candidate is more consistent."""
    parts = [
        f"under {called(name)} on {_share_below(x, y)} of {format_count(len(x))} examples"
        for name, (x, y) in _pairs(record, per_example).items()
    ]
    return f"Compared with {called(record.reference)}, EPKL is lower {listed(parts)}." if parts else ""


def draw_ecdf(record: RunRecord, per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """Empirical distribution of per-example EPKL, one step line a checkpoint."""
    shown = _single(record, per_example)
    if not shown:
        return None
    figure = new_figure(3.4)
    axes = figure.subplots()
    floor = floor_of(*shown.values())
    for name, array in shown.items():
        look = look_of(record, name, theme)
        x, y = _steps(np.maximum(array, floor))
        axes.plot(x, y, color=look.colour, linewidth=1.8, drawstyle="steps-post", label=short_name_of(record, name, 20),
                  marker=look.marker, markevery=max(1, len(x) // 4), markersize=5.5)  # fmt: skip
    log_axis(axes, "x")
    axes.set(ylim=(0, 1.02), xlabel=f"EPKL ({short_unit(record)})", title="Share of examples at or below")
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], labels=["0%", "25%", "50%", "75%", "100%"])
    axes.grid(visible=True)
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def ecdf_takeaway(record: RunRecord, per_example: pd.DataFrame | None) -> str:
    """What share of all EPKL the most inconsistent tenth of the examples carries."""
    parts = []
    for name, array in list(_single(record, per_example).items())[:3]:
        if array.sum() > 0 and len(array) >= 10:
            tenth = np.sort(array)[-round(len(array) / 10) :].sum() / array.sum()
            parts.append(f"{format_number(float(tenth), percent=True)} for {called(name)}")
    return f"The most inconsistent tenth of these examples carries, of all EPKL, {listed(parts)}." if parts else ""


def _pairs(record: RunRecord, per_example: pd.DataFrame | None) -> dict[str, tuple[Array, Array]]:
    """EPKL of reference and candidate, by candidate, for the few most telling ones."""
    reference = checkpoint_named(record, record.reference)
    if reference is None:
        return {}
    names = [c.name for c in most_telling(record, MOST_PANELS + 1) if c is not reference]
    found = {name: paired(record, per_example, (reference.name, name), "epkl") for name in names}
    return {name: arrays for name, arrays in found.items() if arrays is not None and _drawable(*arrays)}


def _single(record: RunRecord, per_example: pd.DataFrame | None) -> dict[str, Array]:
    """EPKL by checkpoint, for the few most telling ones."""
    names = [c.name for c in most_telling(record, MOST_LINES)]
    found = {name: values(record, per_example, name, "epkl") for name in names}
    return {name: array for name, array in found.items() if array is not None and _drawable(array)}


def _share_below(x: Array, y: Array) -> str:
    """Share of examples with y below x, with its Wilson interval."""
    below = binomtest(int((y < x).sum()), len(x))
    interval = below.proportion_ci(0.95, method="wilson")
    return str(format_parts(below.statistic, interval.low, interval.high, percent=True))


def _drawable(*arrays: Array) -> bool:
    """Whether a log axis has anything to show: exact zeros alone are better said than drawn."""
    return any(bool((array > 0).any()) for array in arrays)


def _steps(array: Array) -> tuple[Array, Array]:
    """Sorted values and the share at or below each, at 200 quantiles at most."""
    ordered = np.sort(array)
    places = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), 200)).astype(int))
    return ordered[places], (places + 1) / len(ordered)
