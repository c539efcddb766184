"""One look for every figure: themes for pages and papers, a colour-blind-safe palette, text that is never parsed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rcParams, style
from matplotlib.axes import Axes
from matplotlib.collections import Collection, PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from rdrop_probes.records import RunRecord
from rdrop_reports.select import mark_of, place_of

WIDTH = 4.6  # inches: one column on a page, and the width of a phone at about 70 pixels an inch
MARKERS = ("o", "s", "D", "^", "v", "P", ".")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure: `ink` for text, `muted` for what steps back, `palette` for checkpoints.

    `scale` is the size of everything, text too, beside a figure for the page; letters that the first of `fonts` lacks
    are taken from the next.
    """

    name: str
    ink: str
    muted: str
    grid: str
    surface: str
    palette: tuple[str, ...]
    fonts: tuple[str, ...] = ("DejaVu Sans",)
    scale: float = 1.0


# Okabe & Ito 2008, without yellow and black; the dark set is the same hues, lighter
LIGHT = Theme(
    "light", "#1b1f24", "#6a737d", "#e3e6ea", "#ffffff",
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)  # fmt: skip
DARK = Theme(
    "dark", "#e8eaed", "#9aa4af", "#30363d", "#161a1f",
    ("#4aa8e8", "#ff8a47", "#2fc79b", "#e79bc8", "#f3b93f", "#a6dbff"),
)  # fmt: skip
PAPER = Theme(
    "paper", "#000000", "#404040", "#dddddd", "#ffffff", LIGHT.palette,
    fonts=("STIXGeneral", "DejaVu Serif", "DejaVu Sans"), scale=3.3 / WIDTH,  # inches: one of two columns
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How one checkpoint is drawn in every figure."""

    colour: str
    marker: str


def look_of(record: RunRecord, name: str, theme: Theme) -> Look:
    """Colour and marker of a checkpoint: its own or its group's, or what all those have that step back."""
    return Look((*theme.palette, theme.muted)[place_of(record, name)], MARKERS[mark_of(record, name)])


@contextmanager
def styled(theme: Theme) -> Iterator[None]:
    """Matplotlib settings of the theme, put back on leaving; dollar signs stay dollar signs.

    A name in a script that the font lacks is drawn with boxes, which is no reason to warn of every letter.
    """
    with warnings.catch_warnings(), style.context(["default", _settings(theme)]):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _settings(theme: Theme) -> dict[Any, Any]:
    """Settings on top of matplotlib's own defaults, never of the user's."""
    sizes = {
        "font.size": 10.5, "axes.titlesize": 10.5, "axes.titlepad": 8, "axes.labelsize": 10, "axes.labelpad": 4,
        "axes.linewidth": 0.8, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "xtick.major.size": 3,
        "ytick.major.size": 3, "xtick.major.width": 0.8, "ytick.major.width": 0.8, "xtick.major.pad": 3.5,
        "ytick.major.pad": 6, "grid.linewidth": 0.8, "legend.fontsize": 9.5, "figure.labelsize": 10.5,
    }  # fmt: skip
    return {name: size * theme.scale for name, size in sizes.items()} | {
        "font.family": list(theme.fonts), "text.parse_math": False, "text.usetex": False,
        "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": theme.muted, "axes.facecolor": theme.surface, "axes.labelcolor": theme.muted,
        "axes.axisbelow": True, "axes.unicode_minus": True, "axes.titlecolor": theme.ink,
        "text.color": theme.ink, "xtick.color": theme.muted, "ytick.color": theme.muted,
        "grid.color": theme.grid, "lines.solid_capstyle": "round",
        "legend.frameon": False, "legend.handletextpad": 0.5, "legend.columnspacing": 1.2,
        "figure.facecolor": theme.surface, "savefig.facecolor": theme.surface, "figure.dpi": 100,
        "figure.figsize": (WIDTH * theme.scale, theme.scale), "svg.hashsalt": "rdrop-reports", "pdf.fonttype": 42,
    }  # fmt: skip


def new_figure(height: float) -> Figure:
    """An empty figure of the theme's width; `height` in inches of a figure for the page."""
    width, inch = rcParams["figure.figsize"]
    figure = Figure(figsize=(width, height * inch), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06 * inch, h_pad=0.06 * inch)  # type: ignore[call-arg, union-attr]  # it is the constrained one
    return figure


def fit(figure: Figure, theme: Theme) -> None:
    """Bring what was drawn in sizes of its own, and not of the settings, to the scale of the theme."""
    if theme.scale == 1:
        return
    for text in figure.findobj(Text):
        size = float(text.get_fontsize())
        if size > rcParams["figure.labelsize"]:  # the largest of the settings
            text.set_fontsize(size * theme.scale)
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    drawn = [artist for axes in figure.axes for artist in axes.get_children()]
    for artist in (*drawn, *(handle for legend in legends for handle in legend.legend_handles)):
        if isinstance(artist, Line2D | Collection):
            _shrink(artist, theme.scale)


def _shrink(artist: Line2D | Collection, scale: float) -> None:
    """Lines and marks, whose sizes are in points, or in their squares."""
    if isinstance(artist, Line2D):
        artist.set(linewidth=artist.get_linewidth() * scale, markersize=artist.get_markersize() * scale)
        artist.set_markeredgewidth(artist.get_markeredgewidth() * scale)
        return
    artist.set_linewidth([float(width) * scale for width in np.atleast_1d(artist.get_linewidth())])
    if isinstance(artist, PathCollection):
        artist.set_sizes(artist.get_sizes() * scale**2)


def quiet(axes: Axes, which: str = "x") -> None:
    """Grid lines across one axis only, and no ticks on the other."""
    axes.grid(visible=True, axis="x" if which == "x" else "y")
    axes.tick_params(axis="y" if which == "x" else "x", length=0)
