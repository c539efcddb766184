"""Checkpoints laid out over an axis: lines of points, the mean over seeds where several lie at one place.

Plain numbers, for the figures that draw them and the sentences that conclude from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from rdrop_probes.records import Axis, CheckpointResult, Metric, RunRecord
from rdrop_probes.seeds import EVERYTHING, over_seeds
from rdrop_reports.definitions import DEFINITIONS, is_share
from rdrop_reports.select import measured

UNGROUPED = "no group"


@dataclass(frozen=True)
class Point:
    """A place on the axis; `value` is the checkpoint's own metric, or the mean over `seeds` of several."""

    x: float
    value: Metric
    seeds: list[float]


@dataclass(frozen=True)
class Line:
    """Points from left to right of one group; `place` is the group's number, `name` empty where all are one line."""

    name: str
    place: int
    points: list[Point]


def lines(record: RunRecord, metric: str) -> list[Line]:
    """A line a group that stretches over the axis, and one of what is in none; one of all where no group does."""
    axis = record.axis
    if axis is None:
        return []
    found = [
        Line(name, place, points)
        for place, (name, members) in enumerate(_parts(record, axis))
        if (points := _points(axis, metric, members))
    ]
    return found if any(len(line.points) > 1 for line in found) else []


def _parts(record: RunRecord, axis: Axis) -> Iterable[tuple[str, list[CheckpointResult]]]:
    placed = {c.name: c for c in record.checkpoints if c.name in axis.values}
    groups = [(group.name, [placed[name] for name in group.members if name in placed]) for group in record.groups]
    if not any(len({axis.values[c.name] for c in members}) > 1 for _, members in groups):
        return [("", list(placed.values()))]
    grouped = {c.name for _, members in groups for c in members}
    return [*groups, (UNGROUPED, [c for name, c in placed.items() if name not in grouped])]


def _points(axis: Axis, metric: str, members: list[CheckpointResult]) -> list[Point]:
    there: dict[float, list[Metric]] = {}
    for checkpoint in members:
        if (found := measured(checkpoint, metric)) is not None:
            there.setdefault(axis.values[checkpoint.name], []).append(found)
    several = any(len(found) > 1 for found in there.values())
    return [_point(x, there[x], metric) if several else Point(x, there[x][0], []) for x in sorted(there)]


def _point(x: float, found: list[Metric], metric: str) -> Point:
    """The mean over seeds; a place with a single one has no interval then, since that of its examples is another."""
    seeds = [m.estimate for m in found if m.estimate is not None]
    return Point(x, over_seeds(seeds, unit=found[0].unit, within=_range(metric), level=found[0].level), seeds)


def _range(metric: str) -> tuple[float, float]:
    """What a mean over seeds can be; a gap has either sign."""
    if is_share(metric) and DEFINITIONS[metric].direction != "zero":
        return 0.0, 1.0
    return (0.0, inf) if metric == "epkl" else EVERYTHING
