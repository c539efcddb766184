"""Which site causes the inconsistency, measured: EPKL with only one site active, beside what was predicted of it."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rdrop_probes.records import CheckpointResult, RunRecord, SiteAttribution
from rdrop_reports.figures.axes import panels, share_x
from rdrop_reports.figures.forest import draw_interval, name_rows, value_axis
from rdrop_reports.figures.style import Theme, look_of
from rdrop_reports.numbers import format_estimate, format_number, is_number
from rdrop_reports.select import measured, most_telling_with, short_name_of, short_unit
from rdrop_reports.text import called, listed, short_paths

MOST_SITES = 12
MOST_CHECKPOINTS = 2
MOST_LETTERS = 32


def draw(record: RunRecord, _per_example: pd.DataFrame | None, theme: Theme) -> Figure | None:
    """One panel a checkpoint (two at most, of one scale), one row a site: exact as a mark, predicted as a bar."""
    shown, names = shown_checkpoints(record), largest_parts(record)[:MOST_SITES]
    if not names:
        return None
    figure, axes = panels(len(shown), 1, 0.85 + 0.25 * len(names), 0.35)
    for axis, checkpoint in zip(axes, shown, strict=True):
        _draw_panel(axis, record, checkpoint, names, theme)
        axis.set_title(short_name_of(record, checkpoint.name, 32))
    share_x(axes)
    axes[-1].set_xlabel(f"EPKL of the site ({short_unit(record)})")
    figure.legend(handles=_keys(theme), loc="outside upper left", ncols=3, columnspacing=0.9)
    return figure


def takeaway(record: RunRecord, _per_example: pd.DataFrame | None) -> str:
    """The site that causes most by checkpoint, whether it stands out, and whether the prediction ranks sites alike."""
    names = largest_parts(record)
    short = dict(zip(names, short_paths(names, MOST_LETTERS), strict=True))
    parts = [_largest(record, c, short) for c in shown_checkpoints(record)]
    if not parts:
        return ""
    left_out = len(names) - MOST_SITES
    more = f" Shown are the {MOST_SITES} largest of {left_out + MOST_SITES} sites." if left_out > 0 else ""
    return f"Active alone, the site with the largest EPKL is {listed(parts)}.{more}"


def shown_checkpoints(record: RunRecord) -> list[CheckpointResult]:
    """The checkpoints whose sites were measured one by one, two at most."""
    return most_telling_with(record, MOST_CHECKPOINTS, ranked)


def largest_parts(record: RunRecord) -> list[str]:
    """Sites that were measured, from the largest share of any shown checkpoint down."""
    largest: dict[str, float] = {}
    for checkpoint in shown_checkpoints(record):
        rows = ranked(checkpoint)
        for row in rows:
            share = alone(row) / (alone(rows[0]) or 1.0)
            largest[row.site] = max(largest.get(row.site, float("-inf")), share)
    return sorted(largest, key=lambda name: -largest[name])


def ranked(checkpoint: CheckpointResult) -> list[SiteAttribution]:
    """Sites with a measurement, from the largest down."""
    known = [row for row in checkpoint.attribution if row.only is not None and is_number(row.only.estimate)]
    return sorted(known, key=lambda row: -alone(row))


def alone(row: SiteAttribution) -> float:
    """EPKL with only this site active; 0 where it was not measured."""
    return row.only.estimate or 0.0 if row.only is not None else 0.0


def _largest(record: RunRecord, checkpoint: CheckpointResult, short: dict[str, str]) -> str:
    first, *others = ranked(checkpoint)
    text = f"{short[first.site]} in {called(checkpoint.name)} ({format_estimate(first.only)} {short_unit(record)}"
    if others and not _clearly_above(first, others[0]):
        text += f", not clearly above {short[others[0].site]}"
    rho = measured(checkpoint, "attribution_rank_correlation")
    return f"{text}; rank correlation with the predicted {format_number(rho.estimate)})" if rho else f"{text})"


def _clearly_above(first: SiteAttribution, second: SiteAttribution) -> bool:
    if first.only is None or second.only is None:
        return False
    return is_number(first.only.low) and is_number(second.only.high) and first.only.low > second.only.high


def _draw_panel(axes: Axes, record: RunRecord, checkpoint: CheckpointResult, names: list[str], theme: Theme) -> None:
    look, whole = look_of(record, checkpoint.name, theme), measured(checkpoint, "epkl")
    found = {row.site: row for row in ranked(checkpoint)}
    predicted = {p.site: p.predicted for p in checkpoint.site_predictions if is_number(p.predicted)}
    for place, name in enumerate(names):
        axes.barh(place, predicted.get(name) or 0.0, 0.62, color=theme.muted, alpha=0.35)
        row = found.get(name)
        if row is None or row.only is None:
            continue
        draw_interval(axes, place, row.only, look, theme)
        if whole is not None and row.without is not None and is_number(row.without.estimate):
            removed = (whole.estimate or 0.0) - row.without.estimate
            axes.plot(removed, place, "|", color=look.colour, markersize=12, markeredgewidth=1.6)
    name_rows(axes, short_paths(names, MOST_LETTERS), theme)
    value_axis(axes)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))


def _keys(theme: Theme) -> list[Line2D | Patch]:
    def mark(marker: str, text: str, size: float) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=theme.ink, markersize=size, label=text)

    bar = Patch(color=theme.muted, alpha=0.35, label="predicted")
    return [mark("o", "only this site", 6), mark("|", "lost without it", 11), bar]
