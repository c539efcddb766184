"""Tables of where the inconsistency comes from: sites one by one, kinds of modules, layers."""

from __future__ import annotations

from rdrop_probes.records import CheckpointResult, GroupAttribution, Metric, RunRecord, SiteAttribution
from rdrop_reports.html_tables import Cell, Table, checkpoint_head, estimate_cell, of_some
from rdrop_reports.numbers import MISSING, format_number, is_number
from rdrop_reports.select import most_telling_with, short_unit

MOST_CHECKPOINTS = 6


def attribution_table(record: RunRecord) -> Table | None:
    """EPKL of each site alone and of all but it, with its share, beside its predicted share."""
    shown = most_telling_with(record, MOST_CHECKPOINTS, lambda c: c.attribution)
    rows = [row for checkpoint in shown for row in _site_rows(record, checkpoint)]
    heads = [
        Cell("Site", metric="word-site"), Cell("Checkpoint"), Cell("Part", metric="word-part"),
        Cell("Only this site", short_unit(record), "word-only"), Cell("Share", metric="word-share"),
        Cell("Predicted share", metric="word-predicted"), Cell("All but this site", short_unit(record), "word-without"),
    ]  # fmt: skip
    return Table(f"EPKL site by site{of_some(record, shown, 'attribution')}", heads, rows) if rows else None


def groups_table(record: RunRecord) -> Table | None:
    """The same by kind of module and by layer."""
    shown = most_telling_with(record, MOST_CHECKPOINTS, lambda c: c.attribution_groups)
    rows = [_group_row(record, c, group) for c in shown for group in c.attribution_groups]
    heads = [
        Cell("Part", metric="word-part"), Cell("Checkpoint"), Cell("Sites"),
        Cell("Only this part", short_unit(record), "word-only"),
        Cell("Predicted", short_unit(record), "word-predicted"),
        Cell("All but this part", short_unit(record), "word-without"),
    ]  # fmt: skip
    return (
        Table(f"EPKL by part of the network{of_some(record, shown, 'attribution_groups')}", heads, rows)
        if rows
        else None
    )


def _site_rows(record: RunRecord, checkpoint: CheckpointResult) -> list[list[Cell]]:
    predicted = {p.site: p.share for p in checkpoint.site_predictions}
    total = sum(_estimate(row.only) or 0.0 for row in checkpoint.attribution)
    return [
        [
            Cell(row.site, mono=True),
            checkpoint_head(record, checkpoint),
            Cell(row.group if row.layer is None else f"{row.group}, layer {row.layer}"),
            *_measured(row, total),
            Cell(format_number(predicted.get(row.site), percent=True), sort=predicted.get(row.site)),
            estimate_cell(row.without),
        ]
        for row in checkpoint.attribution
    ]


def _measured(row: SiteAttribution, total: float) -> list[Cell]:
    """EPKL alone and its share of the sum; the reason where it could not be measured."""
    only = _estimate(row.only)
    if only is None:
        return [Cell("not measured", row.reason or ""), Cell(MISSING)]
    share = only / total if total > 0 else None
    return [estimate_cell(row.only), Cell(format_number(share, percent=True), sort=share)]


def _group_row(record: RunRecord, checkpoint: CheckpointResult, group: GroupAttribution) -> list[Cell]:
    name = f"layer {group.name}" if group.by == "layer" and group.name.isdecimal() else group.name
    return [
        Cell(name),
        checkpoint_head(record, checkpoint),
        Cell(str(len(group.sites)), sort=len(group.sites)),
        estimate_cell(group.only),
        Cell(format_number(group.predicted), sort=group.predicted),
        estimate_cell(group.without),
    ]


def _estimate(metric: Metric | None) -> float | None:
    return metric.estimate if metric is not None and is_number(metric.estimate) else None
