"""Axes helpers shared by the figures: plain tick labels, square log panels, panels in a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from rdrop_reports.figures.style import Look, Theme, new_figure
from rdrop_reports.per_example import Array

MOST_POINTS = 4000
LETTER = 0.6  # times the size of letters, how wide one is
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


def share_x(axes: Sequence[Axes]) -> None:
    """Give panels below each other one scale, so that lengths compare."""
    limits = [axis.get_xlim() for axis in axes]
    for axis in axes:
        axis.set_xlim(min(left for left, _ in limits), max(right for _, right in limits))


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
    """Powers of ten, as many as leave room between labels; where fewer than two decades are shown, also in between."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Places of the ticks."""
        between = [((1.0, 2.0, 5.0), 5), ((1.0, 3.0), 5)] if vmax < NARROW * vmin else []
        for subs, number in [*between, *(((1.0,), number) for number in (5, 4, 3, 2))]:
            self.set_params(subs=subs, numticks=number)
            found = super().tick_values(vmin, vmax)
            if has_room(self.axis, found):
                break
        return found


class RoundTicks(MaxNLocator):
    """Two or three ticks beside the first at round numbers, fewer where their labels would touch."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Places of the ticks."""
        tried: list[list[float]] = []
        for bins in (3, 4, 5, 2):
            self.set_params(nbins=bins, min_n_ticks=2)
            tried.append(list(super().tick_values(vmin, vmax)))
        return max(tried, key=lambda ticks: (has_room(self.axis, ticks), min(len(_within(self.axis, ticks)), 3)))


def has_room(axis: object, ticks: Sequence[float]) -> bool:
    """Whether labels of ticks at these places neither overlap nor touch, with letters of usual widths."""
    if not isinstance(axis, Axis):  # a locator on its own has no labels
        return True
    shown, sideways = _within(axis, ticks), axis.axis_name == "x"  # type: ignore[attr-defined]  # axes have it, stubs not
    given = axis.get_tick_params().get("labelsize", rcParams["xtick.labelsize"])
    size = FontProperties(size=given).get_size_in_points()
    extent = axis.axes.get_window_extent()
    points = (extent.width if sideways else extent.height) * 72 / axis.axes.figure.dpi
    ends = axis.get_transform().transform(np.array(axis.get_view_interval(), dtype=float))
    places = axis.get_transform().transform(np.array(shown, dtype=float)) * points / abs(ends[1] - ends[0])
    room = [LETTER * len(axis.get_major_formatter()(x, 0)) * size if sideways else size for x in shown]
    pairs = zip(pairwise(places), pairwise(room), strict=True)
    return all(abs(b - a) >= (left + right) / 2 + LETTER * size for (a, b), (left, right) in pairs)


def _within(axis: object, ticks: Sequence[float]) -> list[float]:
    """Those of the ticks that are shown."""
    low, high = sorted(axis.get_view_interval()) if isinstance(axis, Axis) else (-math.inf, math.inf)
    return [tick for tick in ticks if low <= tick <= high]


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
