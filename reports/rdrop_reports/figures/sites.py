"""Which site causes the inconsistency: predicted EPKL by site and checkpoint."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rdrop_probes.records import CheckpointResult, RunRecord, SitePrediction
from rdrop_reports.figures.forest import name_rows, value_axis
from rdrop_reports.figures.style import Look, Theme, look_of, new_figure
from rdrop_reports.numbers import format_number, is_number
from rdrop_reports.select import most_telling, short_unit
from rdrop_reports.text import called, elide, listed, short_paths

MOST_SITES = 16
MOST_CHECKPOINTS = 4
MOST_LETTERS = 32


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """Bars with intervals, sites from the largest down, one bar a checkpoint."""
    names = largest_sites(record)[:MOST_SITES]
    shown = [c for c in most_telling(record, MOST_CHECKPOINTS) if _predicted(c)]
    if not names or not shown:
        return None
    figure = new_figure(1.1 + len(names) * (0.16 + 0.14 * len(shown)))
    axes = figure.subplots()
    for place, checkpoint in enumerate(shown):
        look = look_of(record, checkpoint.name, theme)
        _draw_bars(axes, checkpoint, names, look, theme, place, len(shown))
    name_rows(axes, short_paths(names, MOST_LETTERS), theme)
    value_axis(axes)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"Predicted EPKL of the site ({short_unit(record)})")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """The site with the largest share by checkpoint, whether it stands out, and how many have no prediction."""
    shown = most_telling(record, 3)
    tops = [top for checkpoint in shown if (top := _ranked(checkpoint)[:1])]
    same = len({top[0].site for top in tops}) == 1
    parts = [part for checkpoint in shown if (part := _largest(checkpoint, named=not same))]
    unknown = {p.site for c in record.checkpoints for p in c.site_predictions if not is_number(p.predicted)}
    site = f"{elide(tops[0][0].site, 30)}, with " if same else ""
    sentences = [f"The largest predicted part arises at {site}{listed(parts)}."] if parts else []
    if unknown:
        names = listed([elide(name, 30) for name in sorted(unknown)[:3]])
        sentences.append(f"Not predicted: {names}{' and others' if len(unknown) > 3 else ''}.")
    return " ".join(sentences)


def _ranked(checkpoint: CheckpointResult) -> list[SitePrediction]:
    """Sites with a prediction above 0, from the largest down."""
    known = [p for p in checkpoint.site_predictions if is_number(p.predicted) and p.predicted > 0]
    return sorted(known, key=lambda p: -(p.predicted or 0.0))


def _largest(checkpoint: CheckpointResult, *, named: bool) -> str:
    """Share of the largest site, with its name where the checkpoints differ in it."""
    ranked = _ranked(checkpoint)
    if not ranked:
        return ""
    name = f"{elide(ranked[0].site, 30)}, with " if named else ""
    share = format_number(ranked[0].share, percent=True)
    return f"{name}{share} of the prediction in {called(checkpoint.name)}{_hedge(ranked)}"


def _hedge(ranked: list[SitePrediction]) -> str:
    """Whether the intervals of the two largest sites overlap."""
    if len(ranked) < 2 or not (is_number(ranked[0].low) and is_number(ranked[1].high)):
        return ""
    return f" (not clearly above {elide(ranked[1].site, 30)})" if ranked[0].low <= ranked[1].high else ""


def largest_sites(record: RunRecord) -> list[str]:
    """Sites that have a prediction, from the largest in any checkpoint down."""
    largest: dict[str, float] = {}
    for checkpoint in record.checkpoints:
        for name, found in _predicted(checkpoint).items():
            largest[name] = max(largest.get(name, 0.0), found.predicted or 0.0)
    return sorted(largest, key=lambda name: -largest[name])


def _predicted(checkpoint: CheckpointResult) -> dict[str, SitePrediction]:
    return {p.site: p for p in checkpoint.site_predictions if is_number(p.predicted)}


def _draw_bars(
    axes: Axes, checkpoint: CheckpointResult, names: list[str], look: Look, theme: Theme, place: int, count: int
) -> None:
    found, height = _predicted(checkpoint), 0.76 / count
    rows = [(row + (place - (count - 1) / 2) * height, found[name]) for row, name in enumerate(names) if name in found]
    axes.barh(
        [y for y, _ in rows], [p.predicted or 0.0 for _, p in rows], height * 0.9, color=look.colour,
        alpha=0.75, label=elide(checkpoint.name, 20),
    )  # fmt: skip
    for y, p in rows:
        if is_number(p.low) and is_number(p.high):
            axes.plot([p.low, p.high], [y, y], color=theme.ink, linewidth=1.2)
