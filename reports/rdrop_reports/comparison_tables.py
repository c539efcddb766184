"""Tables of the comparisons: every metric of one candidate, or one metric of every candidate."""

from __future__ import annotations

from dataclasses import replace

from rdrop_probes.records import Comparison, RunRecord
from rdrop_reports.definitions import DEFINITIONS, is_share, label
from rdrop_reports.html_tables import Cell, Table, checkpoint_head, metric_head
from rdrop_reports.numbers import format_p, format_parts, is_number
from rdrop_reports.outcome import outcome_of
from rdrop_reports.select import in_order, most_telling
from rdrop_reports.text import called

MOST_LISTED = 6  # checkpoints of which every metric is compared where there are many
MOST_COMPARED = 8  # candidates of which every metric is compared

_COMPARED = (
    Cell("Difference"), Cell("Ratio", metric="word-ratio"), Cell("Adjusted p", metric="word-p"), Cell("Reads as"),
)  # fmt: skip


def comparison_table(record: RunRecord, candidate: str) -> Table | None:
    """Every comparison of one candidate with the reference."""
    found = [c for c in record.comparisons if c.candidate == candidate and is_number(c.difference)]
    heads = [Cell("Metric"), *_COMPARED]
    rows = [[_metric(record, comparison), *_comparison(comparison)] for comparison in found]
    return Table(f"All metrics: {called(candidate)} minus {called(record.reference)}", heads, rows) if rows else None


def candidates_table(record: RunRecord, metric: str) -> Table | None:
    """Every candidate against the reference on one metric, where there are too many for a table each."""
    found = {c.candidate: c for c in record.comparisons if c.metric == metric and is_number(c.difference)}
    rows = [[checkpoint_head(record, c), *_comparison(found[c.name])] for c in in_order(record) if c.name in found]
    caption = f"{label(metric)}: every candidate minus {called(record.reference)}"
    return Table(caption, [Cell("Candidate"), *_COMPARED], rows) if len(rows) > MOST_COMPARED else None


def comparison_tables(record: RunRecord) -> list[Table]:
    """A table for each candidate, of many for the few most telling ones."""
    many = len(record.checkpoints) > MOST_COMPARED + 1
    shown = most_telling(record, MOST_LISTED) if many else in_order(record)
    return [table for c in shown if (table := comparison_table(record, c.name))]


def _metric(record: RunRecord, found: Comparison) -> Cell:
    """A metric's head beside a difference: of shares, in percentage points."""
    head = metric_head(record, found.metric)
    return replace(head, note="percentage points") if is_share(found.metric) else head


def _comparison(found: Comparison) -> list[Cell]:
    shares = is_share(found.metric)
    difference = format_parts(*((100 * v if shares and v is not None else v) for v in _bounds(found)))
    ratio = format_parts(found.ratio, found.ratio_low, found.ratio_high)
    return [
        Cell(difference.estimate, difference.interval, sort=found.difference),
        Cell(ratio.estimate, ratio.interval, sort=found.ratio),
        Cell(format_p(found.p_adjusted).removeprefix("p ").removeprefix("= "), found.test, sort=found.p_adjusted),
        Cell(_reading(found)),
    ]


def _bounds(found: Comparison) -> tuple[float | None, float | None, float | None]:
    return found.difference, found.low, found.high


def _reading(found: Comparison) -> str:
    """Whether the difference is shown, and whether it is for the better."""
    outcome = outcome_of(found)
    if outcome == "no difference shown":
        return outcome
    lower = outcome == "more consistent"
    direction = DEFINITIONS[found.metric].direction if found.metric in DEFINITIONS else "none"
    if direction in ("lower", "higher"):
        return "better" if lower == (direction == "lower") else "worse"
    return "lower" if lower else "higher"
