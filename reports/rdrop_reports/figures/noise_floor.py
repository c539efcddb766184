"""Whether the inconsistency is more than numerical noise: EPKL beside divergences of eval passes that should agree."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rdrop_probes.records import CheckpointResult, Metric, NoiseFloor, RunRecord
from rdrop_reports.figures.axes import log_axis
from rdrop_reports.figures.forest import draw_interval, name_rows, value_axis
from rdrop_reports.figures.style import Theme, look_of, new_figure
from rdrop_reports.numbers import format_count, is_number
from rdrop_reports.select import measured, most_telling_with, short_name_of, short_unit
from rdrop_reports.text import called, elide, listed

MOST_CHECKPOINTS = 4


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """One row for the EPKL, one a kind of numerical noise, on a log axis; one mark a checkpoint."""
    shown = _shown(record)
    names = list(dict.fromkeys(row.name for c in shown for row in known(c)))
    if not names:
        return None
    figure = new_figure(1.4 + (1 + len(names)) * (0.2 + 0.1 * len(shown)))
    axes = figure.subplots()
    floor = _floor(shown)
    for place, checkpoint in enumerate(shown):
        offset = (place - (len(shown) - 1) / 2) * 0.7 / len(shown)
        _draw_checkpoint(axes, record, checkpoint, names, offset, floor, theme)
    name_rows(axes, ["EPKL", *(elide(name, 26) for name in names)], theme)
    value_axis(axes)
    log_axis(axes, "x")
    axes.set_xlim(left=floor / 2)
    hidden = any((row.divergence.estimate or 0) < floor for c in shown for row in known(c) if row.divergence)
    axes.set_xlabel(f"KL ({short_unit(record)})" + ("; hollow: 0 or too small to show" if hidden else ""))
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """How far the EPKL is above the largest numerical noise, with both intervals at their worst."""
    shown = [c for c in _shown(record) if measured(c, "epkl")][:3]
    parts = [f"{_distance(c)} for {called(c.name)} ({elide(_worst(c).name, 26)})" for c in shown]
    return f"As a multiple of the largest numerical noise, EPKL is {listed(parts)}." if parts else ""


def known(checkpoint: CheckpointResult) -> list[NoiseFloor]:
    """The kinds of noise that were measured."""
    return [row for row in checkpoint.noise_floor if row.divergence and is_number(row.divergence.estimate)]


def _shown(record: RunRecord) -> list[CheckpointResult]:
    return most_telling_with(record, MOST_CHECKPOINTS, known)


def _worst(checkpoint: CheckpointResult) -> NoiseFloor:
    """The largest noise."""
    return max(known(checkpoint), key=lambda row: _upper(row.divergence))


def _distance(checkpoint: CheckpointResult) -> str:
    """EPKL over the largest noise; lowest over highest where there are intervals."""
    epkl, above = measured(checkpoint, "epkl"), _upper(_worst(checkpoint).divergence)
    if epkl is None or above <= 0:
        return "endless, with a noise of exactly 0,"
    ratio = (epkl.low if is_number(epkl.low) else epkl.estimate or 0.0) / above
    return f"at least {_floored(ratio)}" if ratio > 1 else "not clear of 1"


def _floored(ratio: float) -> str:
    """Two digits, never rounded up; beyond a million no digits matter."""
    if ratio >= 1e6:
        return "a million"
    if ratio < 10:
        return f"{math.floor(10 * ratio) / 10:.1f}"
    unit = 10 ** max(0, len(str(int(ratio))) - 2)
    return format_count(int(ratio) // unit * unit)


def _upper(metric: Metric | None) -> float:
    """The upper bound, or the estimate where there is none."""
    if metric is None:
        return 0.0
    return metric.high if is_number(metric.high) else metric.estimate or 0.0


def _floor(shown: list[CheckpointResult]) -> float:
    """Where to draw what a log axis cannot show: half of the smallest divergence above 0, at most 18 decades down."""
    rows = [row.divergence for c in shown for row in known(c)] + [measured(c, "epkl") for c in shown]
    values = [m.estimate for m in rows if m and is_number(m.estimate) and m.estimate > 0]
    return max(min(values) / 2, max(values) * 1e-18) if values else 1e-12


def _draw_checkpoint(
    axes: Axes, record: RunRecord, checkpoint: CheckpointResult, names: list[str], offset: float, floor: float,
    theme: Theme,
) -> None:  # fmt: skip
    look, found = look_of(record, checkpoint.name, theme), {row.name: row.divergence for row in known(checkpoint)}
    for row, metric in enumerate([measured(checkpoint, "epkl"), *(found.get(name) for name in names)]):
        if metric is not None:
            below = (metric.estimate or 0) < floor
            draw_interval(axes, row + offset, _shifted(metric, floor), look, theme, hollow=below)
    axes.plot([], [], look.marker, color=look.colour, label=short_name_of(record, checkpoint.name, 20))


def _shifted(metric: Metric, floor: float) -> Metric:
    """The metric with everything below the floor moved up to it."""

    def up(value: float | None) -> float | None:
        return max(value, floor) if is_number(value) else None

    return Metric(estimate=up(metric.estimate), low=up(metric.low), high=up(metric.high),
                  mask_low=up(metric.mask_low), mask_high=up(metric.mask_high))  # fmt: skip
