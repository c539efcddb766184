"""The averaging curve read: what the mean of many passes changes against the eval model, and how many are enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from rdrop_probes.records import AveragingPoint, CheckpointResult, Metric
from rdrop_reports.numbers import Parts, format_parts, format_points, is_number

Change = Literal["better", "worse", "no difference shown"]
Show = Callable[[float, float | None, float | None], Parts]

_DECIDING = ("nll", "mse", "accuracy", "brier", "ece")
_NAMES = {"nll": "NLL", "mse": "the squared error", "accuracy": "accuracy", "brier": "Brier score", "ece": "ECE"}
_SHARES = ("accuracy", "ece")


def curve(checkpoint: CheckpointResult, metric: str) -> list[AveragingPoint]:
    """The points of one metric that have a difference to the eval model, by passes."""
    points = checkpoint.averaging.points if checkpoint.averaging else []
    known = [p for p in points if p.metric == metric and p.difference and is_number(p.difference.estimate)]
    return sorted(known, key=lambda point: point.passes)


def compared(checkpoint: CheckpointResult, metric: str | None = None) -> AveragingPoint | None:
    """The mean of the most passes against the eval model, on a metric or the first there is of those that decide."""
    names = _DECIDING if metric is None else (metric,)
    return next((points[-1] for name in names if (points := curve(checkpoint, name))), None)


def enough(checkpoint: CheckpointResult, metric: str) -> int | None:
    """Number of passes from which more do not matter, or None."""
    return checkpoint.averaging.enough.get(metric) if checkpoint.averaging else None


def change(point: AveragingPoint) -> Change:
    """Whether the mean is better or worse than the eval model, where the interval can tell."""
    found = point.difference
    if found is None or not (is_number(found.low) and is_number(found.high)) or found.low <= 0 <= found.high:
        return "no difference shown"
    return "better" if (found.low > 0) == (point.metric == "accuracy") else "worse"


def change_text(point: AveragingPoint) -> str:
    """Such as `lowers NLL by 0.012 [0.010, 0.014]`, or that no difference is shown."""
    found, name = point.difference, _NAMES.get(point.metric, point.metric)
    if found is None or not is_number(found.estimate):
        return f"was not compared in {name}"
    shown = format_points if point.metric in _SHARES else format_parts
    unit = " percentage points" if point.metric in _SHARES else ""
    return f"{signed(found, shown, name, shown_clearly=change(point) != 'no difference shown')}{unit}"


def signed(found: Metric, shown: Show, name: str, *, shown_clearly: bool) -> str:
    """A change with its verb; with a sign only where its direction is not clear."""
    value = found.estimate or 0.0
    if not shown_clearly:
        return f"is not shown to change {name}: {shown(value, found.low, found.high)}"
    if value > 0:
        return f"raises {name} by {shown(value, found.low, found.high)}"
    return f"lowers {name} by {shown(-value, _minus(found.high), _minus(found.low))}"


def _minus(value: float | None) -> float | None:
    return None if value is None else -value
