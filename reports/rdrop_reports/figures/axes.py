"""Axes helpers shared by the figures: plain tick labels, square log panels, panels in a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from rdrop_reports.figures.style import Look, Theme, new_figure
from rdrop_reports.per_example import Array

MOST_POINTS = 4000
NARROW = 100.0  # times the lower end of a log axis, below which powers of ten are too few ticks
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def panels(count: int, width: int, height: float, extra: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most `width` in a row, each row `height` inches high."""
    columns = min(count, width)
    rows = math.ceil(count / columns)
    figure = new_figure(rows * height + extra)
    grid = figure.subplots(rows, columns, squeeze=False)
    for spare in grid.flat[count:]:
        spare.set_visible(False)
    return figure, list(grid.flat[:count])


def power_label(value: float, _position: int = 0) -> str:
    """A power of ten for a tick: 0.01, 1, 100, and 10⁻⁵ further out."""
    if value <= 0:
        return ""
    exponent = round(math.log10(value))
    if not math.isclose(value, 10.0**exponent):
        return f"{value:g}" if 1e-3 <= value < 1e4 else f"{value:.0e}"
    if -2 <= exponent <= 3:
        return f"{value:g}"
    return f"10{str(exponent).translate(_SUPERSCRIPT)}"


class _Ticks(LogLocator):
    """Powers of ten; where fewer than two decades are shown, also 2 and 5 times them."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Places of the ticks."""
        self.set_params(subs=(1.0, 2.0, 5.0) if vmax < NARROW * vmin else (1.0,))
        return super().tick_values(vmin, vmax)


def log_axis(axes: Axes, which: str) -> None:
    """Make one axis logarithmic, with few ticks and labels that need no maths font."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(_Ticks(numticks=5))
    axis.set_major_formatter(FuncFormatter(power_label))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def floor_of(*arrays: Array) -> float:
    """Where to draw what a log axis cannot show: the 0.1% quantile of the positive values, at most 8 decades down."""
    together = np.concatenate(arrays)
    positive = together[together > 0]
    if not len(positive):
        return 1e-8
    return float(max(np.quantile(positive, 0.001), positive.max() * 1e-8))


def log_limits(*arrays: Array) -> tuple[float, float]:
    """Limits of a log axis that holds all the arrays, from their common floor up."""
    floor = floor_of(*arrays)
    return floor / 1.5, 1.5 * max(floor * 10, *(float(array.max()) for array in arrays))


def log_scatter(axes: Axes, x: Array, y: Array, look: Look, theme: Theme, limits: tuple[float, float]) -> None:
    """Scatter on equal log axes with the diagonal; values at or below the floor are drawn at the edge."""
    x, y = (_thinned(np.maximum(array, 1.5 * limits[0])) for array in (x, y))
    axes.plot(limits, limits, color=theme.muted, linewidth=1, zorder=1)
    points = axes.scatter(x, y, s=10, c=look.colour, marker=look.marker, alpha=_alpha(len(x)), linewidths=0)
    _rasterise(points)
    for which in ("x", "y"):
        log_axis(axes, which)
    axes.set(xlim=limits, ylim=limits, box_aspect=1)
    axes.grid(visible=True)


def _rasterise(points: PathCollection) -> None:
    """Points become one picture inside a vector figure: thousands of paths would make the page heavy."""
    points.set_rasterized(True)


def _thinned(values: Array) -> Array:
    """Every n-th value, so that at most MOST_POINTS are drawn."""
    return values[:: max(1, math.ceil(len(values) / MOST_POINTS))]


def _alpha(count: int) -> float:
    return float(np.clip(12 / math.sqrt(max(count, 1)), 0.25, 0.8))
