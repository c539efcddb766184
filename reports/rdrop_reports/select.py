"""Picking things out of a record: by name, by metric, and the few to show when there are many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rdrop_probes.records import CheckpointResult, Comparison, Metric, RunRecord
from rdrop_reports.numbers import is_number
from rdrop_reports.text import short_name

COLOURS = 6  # that can be told apart without seeing red or green
MOST_ROWS = 24  # of checkpoints in a figure


def unit_of(record: RunRecord) -> str:
    """The unit that divergences are shown in: `nats` or `bits`, and per what unless it is an example."""
    return short_unit(record) + per_row(record)


def short_unit(record: RunRecord) -> str:
    """`nats` or `bits`, for places too small to say per what."""
    return "bits" if record.config.get("unit") == "bits" else "nats"


def per_row(record: RunRecord) -> str:
    """` per token` or ` per label`; empty where divergences are of examples."""
    return "" if record.data.per == "example" else f" per {record.data.per}"


def checkpoint_named(record: RunRecord, name: str | None) -> CheckpointResult | None:
    """The checkpoint of that name, or None."""
    return next((c for c in record.checkpoints if c.name == name), None)


def comparison_of(record: RunRecord, candidate: str, metric: str) -> Comparison | None:
    """The comparison of a candidate with the reference on one metric, or None."""
    return next((c for c in record.comparisons if c.candidate == candidate and c.metric == metric), None)


def are_groups_compared(record: RunRecord) -> bool:
    """Whether what is said of candidates is said of groups of training seeds."""
    return len(record.groups) > 1


def compared_on(record: RunRecord, metric: str, limit: int) -> list[Comparison]:
    """Comparisons on one metric that have a ratio: of groups where there are several, else of telling checkpoints."""
    if are_groups_compared(record):
        found = [c for c in record.group_comparisons if c.metric == metric]
    else:
        shown = most_telling_with(record, limit, lambda c: measured(c, metric))
        found = [one for c in shown if (one := comparison_of(record, c.name, metric)) is not None]
    return [comparison for comparison in found if is_number(comparison.ratio)][:limit]


def measured(checkpoint: CheckpointResult, metric: str) -> Metric | None:
    """The metric where it has a finite estimate, or None."""
    found = checkpoint.metrics.get(metric)
    return found if found is not None and is_number(found.estimate) else None


def in_order(record: RunRecord) -> list[CheckpointResult]:
    """Checkpoints with the reference first, the others as they were given."""
    return sorted(record.checkpoints, key=lambda checkpoint: checkpoint.name != record.reference)


def any_measured(record: RunRecord, metric: str) -> bool:
    """Whether any checkpoint has the metric."""
    return any(measured(checkpoint, metric) for checkpoint in record.checkpoints)


def most_telling(record: RunRecord, limit: int) -> list[CheckpointResult]:
    """At most `limit` checkpoints (6 or fewer): all if they fit, else the reference and a range of EPKL.

    Beside the reference these are the lowest, the highest, the median and the quartiles of EPKL, in that
    order of importance: a smaller limit gives a part of what a larger one gives.
    """
    ordered = in_order(record)
    if len(ordered) <= limit:
        return ordered
    ranked = sorted(ordered[1:], key=_epkl)
    last = len(ranked) - 1
    wanted = [ranked[round(last * part)] for part in (0.0, 1.0, 0.5, 0.25, 0.75)]
    kept = {checkpoint.name for checkpoint in [ordered[0], *wanted[: limit - 1]]}
    return [checkpoint for checkpoint in ordered if checkpoint.name in kept]


def most_telling_with(
    record: RunRecord, limit: int, has: Callable[[CheckpointResult], object]
) -> list[CheckpointResult]:
    """The most telling of those checkpoints that have something."""
    return most_telling(replace(record, checkpoints=[c for c in record.checkpoints if has(c)]), limit)


def as_rows(record: RunRecord) -> list[CheckpointResult]:
    """Checkpoints as rows of a figure: all in order, or of many the reference and an even range of EPKL."""
    ordered = in_order(record)
    if len(ordered) <= MOST_ROWS:
        return ordered
    ranked = sorted(ordered[1:], key=_epkl)
    return [ordered[0], *(ranked[i * (len(ranked) - 1) // (MOST_ROWS - 2)] for i in range(MOST_ROWS - 1))]


def rows_left_out(record: RunRecord) -> str:
    """What to say where :func:`as_rows` leaves checkpoints out; empty where it does not."""
    count = len(record.checkpoints)
    return f"{MOST_ROWS} of {count} checkpoints, an even range of EPKL" if count > MOST_ROWS else ""


def place_of(record: RunRecord, name: str) -> int:
    """Which of the COLOURS a checkpoint has, the reference 0; COLOURS itself for one that steps back.

    Where there are groups of training seeds, a checkpoint has the colour of its group.
    """
    if record.groups:
        return min(next((i for i, g in enumerate(record.groups) if name in g.members), COLOURS), COLOURS)
    names = [checkpoint.name for checkpoint in most_telling(record, COLOURS)]
    return names.index(name) if name in names else COLOURS


def mark_of(record: RunRecord, name: str) -> int:
    """Which of the marks a checkpoint has: as its colour; within a group of training seeds, one a seed."""
    members = next((group.members for group in record.groups if name in group.members), None)
    return place_of(record, name) if members is None else members.index(name) % COLOURS


def _epkl(checkpoint: CheckpointResult) -> float:
    found = measured(checkpoint, "epkl")
    return found.estimate if found is not None and found.estimate is not None else float("inf")


def short_name_of(record: RunRecord, name: str, limit: int = 18) -> str:
    """A checkpoint's name in a figure, told apart from the others'."""
    return short_name(name, [checkpoint.name for checkpoint in record.checkpoints], limit)
