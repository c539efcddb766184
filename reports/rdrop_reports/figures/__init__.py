"""Every figure, in the order the report asks its questions, and ways to draw and save them.

A figure is a function `(record, per_example, theme) -> Figure | None` (None: nothing to draw) with a title and a
takeaway: one sentence computed from the numbers, empty where they do not allow one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from rdrop_probes.records import RunRecord
from rdrop_reports.figures import (
    attribution,
    attribution_groups,
    averaging,
    convergence,
    divergences,
    epkl,
    gap,
    groups,
    jacobian,
    noise_floor,
    over,
    predicted,
    reliability,
    sites,
    spread,
    sweep,
)
from rdrop_reports.figures.style import LIGHT, Theme, fit, styled

logger = logging.getLogger(__name__)

T = TypeVar("T")
Draw = Callable[[RunRecord, pd.DataFrame | None, Theme], Figure | None]
Takeaway = Callable[[RunRecord, pd.DataFrame | None], str]
DPI = 200
_METADATA: Mapping[str, Mapping[str, None]] = MappingProxyType(
    {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    }
)


@dataclass(frozen=True)
class FigureSpec:
    """One figure: its file `name`, `title`, how to draw it, and what to conclude."""

    name: str
    title: str
    draw: Draw
    takeaway: Takeaway


FIGURES: Mapping[str, FigureSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            FigureSpec("epkl", "Divergence between sub-models", epkl.draw, epkl.takeaway),
            FigureSpec("groups", "Groups of training seeds", groups.draw, groups.takeaway),
            FigureSpec("over", "EPKL over a training setting", over.draw, over.takeaway),
            FigureSpec("over_scores", "Scores over a training setting", over.draw_scores, over.scores_takeaway),
            FigureSpec("gap", "Dropout on against dropout off", gap.draw, gap.takeaway),
            FigureSpec("divergences", "Sub-models against the eval model", divergences.draw, divergences.takeaway),
            FigureSpec("reliability", "Reliability diagram", reliability.draw, reliability.takeaway),
            FigureSpec("epkl_per_example", "EPKL example by example", spread.draw_pairs, spread.pairs_takeaway),
            FigureSpec("epkl_distribution", "How EPKL is spread", spread.draw_ecdf, spread.ecdf_takeaway),
            FigureSpec("noise_floor", "EPKL above numerical noise", noise_floor.draw, noise_floor.takeaway),
            FigureSpec("convergence", "EPKL by number of sub-models", convergence.draw, convergence.takeaway),
            FigureSpec("attribution", "EPKL site by site", attribution.draw, attribution.takeaway),
            FigureSpec(
                "attribution_groups", "EPKL by part of the network",
                attribution_groups.draw, attribution_groups.takeaway,
            ),
            FigureSpec("sites", "Predicted EPKL by site", sites.draw, sites.takeaway),
            FigureSpec("jacobian", "Jacobian complexity", jacobian.draw, jacobian.takeaway),
            FigureSpec("predicted", "Measured against predicted EPKL", predicted.draw, predicted.takeaway),
            FigureSpec("sweep", "EPKL over dropout rates", sweep.draw, sweep.takeaway),
            FigureSpec("averaging", "What averaging passes changes", averaging.draw, averaging.takeaway),
        )
    }
)  # fmt: skip


def draw_all(
    record: RunRecord, per_example: pd.DataFrame | None, theme: Theme = LIGHT, names: Collection[str] | None = None
) -> dict[str, Figure]:
    """Every figure that the results allow (of those in `names`), by name, in the report's order."""
    with styled(theme):
        wanted = [spec for spec in FIGURES.values() if names is None or spec.name in names]
        drawn = {s.name: _unless_impossible(s.name, partial(_drawn, s, record, per_example, theme)) for s in wanted}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def rendered(
    figures: Mapping[str, Figure], image_format: str, theme: Theme = LIGHT, *, live_text: bool = False
) -> dict[str, bytes]:
    """What :func:`figure_bytes` gives of each figure, without those whose numbers cannot be drawn."""
    found = {
        name: _unless_impossible(name, partial(figure_bytes, figure, image_format, theme, live_text=live_text))
        for name, figure in figures.items()
    }
    return {name: content for name, content in found.items() if content is not None}


def _unless_impossible(name: str, make: Callable[[], T]) -> T | None:
    """What `make` makes; None, and a word in the log, where it fails: one picture less must not cost the page."""
    try:
        return make()
    except Exception as problem:
        logger.warning("the figure %s is left out, for it cannot be drawn: %s", name, problem)
        return None


def _drawn(spec: FigureSpec, record: RunRecord, per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    if (figure := spec.draw(record, per_example, theme)) is not None:
        fit(figure, theme)
    return figure


def figure_bytes(figure: Figure, image_format: str, theme: Theme = LIGHT, *, live_text: bool = False) -> bytes:
    """A figure as a file's content: `png` (200 dpi), `svg` or `pdf`; the same bytes each time.

    Args:
        figure: what :func:`draw_all` drew in the same theme.
        image_format: a format that matplotlib writes.
        theme: colours of the background.
        live_text: in SVG, write text as text for the reader's fonts instead of as outlines.
    """
    buffer = BytesIO()
    with styled(theme), rc_context({"svg.fonttype": "none" if live_text else "path"}):
        figure.savefig(buffer, format=image_format, dpi=DPI, metadata=_METADATA.get(image_format))
    return buffer.getvalue()


def save_figures(
    record: RunRecord,
    per_example: pd.DataFrame | None,
    directory: Path,
    formats: Sequence[str] = ("png",),
    theme: Theme = LIGHT,
) -> list[Path]:
    """Write every figure that the results allow as `directory/NAME.FORMAT`.

    Returns:
        The files written.

    Raises:
        OSError: a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    figures = draw_all(record, per_example, theme)
    for image_format in formats:
        for name, content in rendered(figures, image_format, theme).items():
            path = directory / f"{name}.{image_format}"
            path.write_bytes(content)
            written.append(path)
    return written
