"""One look for every figure: two themes, a colour-blind-safe palette, and text that is never parsed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rdrop_probes.records import RunRecord
from rdrop_reports.select import place_of

WIDTH = 4.6  # inches: one column on a page, and the width of a phone at about 70 pixels an inch
MARKERS = ("o", "s", "D", "^", "v", "P", ".")


@dataclass(frozen=True)
class Theme:
    """Colours of a figure: `ink` for text, `muted` for what steps back, `palette` for checkpoints."""

    name: str
    ink: str
    muted: str
    grid: str
    surface: str
    palette: tuple[str, ...]


# Okabe & Ito 2008, without yellow and black; the dark set is the same hues, lighter
LIGHT = Theme(
    "light", "#1b1f24", "#6a737d", "#e3e6ea", "#ffffff",
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)  # fmt: skip
DARK = Theme(
    "dark", "#e8eaed", "#9aa4af", "#30363d", "#161a1f",
    ("#4aa8e8", "#ff8a47", "#2fc79b", "#e79bc8", "#f3b93f", "#a6dbff"),
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How one checkpoint is drawn in every figure."""

    colour: str
    marker: str


def look_of(record: RunRecord, name: str, theme: Theme) -> Look:
    """Colour and marker of a checkpoint: its own, or what all those have that step back."""
    place = place_of(record, name)
    return Look((*theme.palette, theme.muted)[place], MARKERS[place])


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
    return {
        "font.family": ["DejaVu Sans"], "font.size": 10.5, "text.parse_math": False, "text.usetex": False,
        "axes.titlesize": 10.5, "axes.titlelocation": "left", "axes.titlepad": 8, "axes.labelsize": 10,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": theme.muted,
        "axes.linewidth": 0.8, "axes.facecolor": theme.surface, "axes.labelcolor": theme.muted,
        "axes.axisbelow": True, "axes.unicode_minus": True, "axes.titlecolor": theme.ink,
        "text.color": theme.ink, "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
        "xtick.color": theme.muted, "ytick.color": theme.muted, "xtick.major.size": 3,
        "ytick.major.size": 3, "ytick.major.pad": 6,
        "grid.color": theme.grid, "grid.linewidth": 0.8, "lines.solid_capstyle": "round",
        "legend.frameon": False, "legend.fontsize": 9.5, "legend.handletextpad": 0.5, "legend.columnspacing": 1.2,
        "figure.facecolor": theme.surface, "savefig.facecolor": theme.surface, "figure.dpi": 100,
        "svg.hashsalt": "rdrop-reports", "pdf.fonttype": 42,
    }  # fmt: skip


def new_figure(height: float) -> Figure:
    """An empty figure of the common width, `height` in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[call-arg, union-attr]  # it is the constrained one
    return figure


def quiet(axes: Axes, which: str = "x") -> None:
    """Grid lines across one axis only, and no ticks on the other."""
    axes.grid(visible=True, axis="x" if which == "x" else "y")
    axes.tick_params(axis="y" if which == "x" else "x", length=0)
