"""Tables of groups of training seeds: every metric over the seeds, and against the reference group."""

from __future__ import annotations

from dataclasses import replace

from rdrop_probes.records import Comparison, GroupResult, RunRecord
from rdrop_reports.comparison_tables import comparison_table
from rdrop_reports.figures.groups import in_order, seeds_of
from rdrop_reports.html_tables import MOST_COLUMNS, Cell, Table, metric_cell, metric_head
from rdrop_reports.numbers import format_number, is_number
from rdrop_reports.text import called, elide

MOST_COMPARED = 8  # groups of which every metric is compared


def arms_table(record: RunRecord) -> Table | None:
    """Means over seeds with their intervals, metrics by groups; the other way round where groups are many."""
    groups = in_order(record)
    names = list(dict.fromkeys(name for group in groups for name, m in group.metrics.items() if is_number(m.estimate)))
    if not names:
        return None
    grid = [[metric_head(record, name), *(_mean(group, name) for group in groups)] for name in names]
    full = [[Cell("Metric"), *(_head(record, group) for group in groups)], *grid]
    if len(groups) > MOST_COLUMNS:
        full = [list(row) for row in zip(*full, strict=True)]
        full[0][0] = Cell("Group")
    return Table("Groups of training seeds: means over seeds, on these examples", full[0], full[1:])


def arm_comparison_tables(record: RunRecord) -> list[Table]:
    """A table for each group but the reference: differences over seeds, with the effect size."""
    view = replace(record, comparisons=record.group_comparisons, reference=record.reference_group)
    others = [group.name for group in in_order(record) if group.name != record.reference_group]
    return [table for name in others[:MOST_COMPARED] if (table := _compared(view, name)) is not None]


def _compared(view: RunRecord, name: str) -> Table | None:
    table = comparison_table(view, name)
    found = [c for c in view.comparisons if c.candidate == name and is_number(c.difference)]
    if table is None:
        return None
    rows = [[*row[:-1], _effect(c), row[-1]] for row, c in zip(table.rows, found, strict=True)]
    caption = f"All metrics over seeds: {called(name)} minus {called(view.reference)}"
    return Table(caption, [*table.head[:-1], Cell("Effect size", "Hedges' g"), table.head[-1]], rows)


def _effect(found: Comparison) -> Cell:
    """Difference in standard deviations over seeds."""
    return Cell(format_number(found.effect_size), sort=found.effect_size)


def _mean(group: GroupResult, name: str) -> Cell:
    return metric_cell(name, group.metrics.get(name))


def _head(record: RunRecord, group: GroupResult) -> Cell:
    reference = ", reference" if group.name == record.reference_group else ""
    return Cell(elide(group.name, 32), f"{seeds_of(group)}{reference}")
