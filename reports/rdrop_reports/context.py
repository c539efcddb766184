"""What consistency comes with: a model that ignores its input is perfectly consistent."""

from __future__ import annotations

from collections.abc import Sequence

from rdrop_probes.records import Comparison
from rdrop_reports.numbers import format_parts, format_points, is_number
from rdrop_reports.outcome import outcome_of

_SCORES = (
    ("accuracy_eval", "eval accuracy", format_points, " percentage points"),
    ("mse_eval", "squared error", format_parts, ""),
)


def context(comparisons: Sequence[Comparison], candidate: str) -> str:
    """Whether the candidate's score differs from the reference's, the first of those that were compared."""
    compared = {c.metric: c for c in comparisons if c.candidate == candidate and is_number(c.difference)}
    for metric, called_so, shown, unit in _SCORES:
        if (found := compared.get(metric)) is not None:
            return _score(found, called_so, f"{shown(found.difference or 0.0, found.low, found.high)}{unit}")
    return ""


def _score(found: Comparison, called_so: str, numbers: str) -> str:
    """Which way a score differs, where interval and adjusted p-value agree that it does."""
    if not (is_number(found.low) and is_number(found.high)):
        return f"Its {called_so} differs by {numbers}."
    if outcome_of(found) != "no difference shown":
        return f"Its {called_so} is {'higher' if found.low > 0 else 'lower'} ({numbers})."
    adjusted = "" if found.low <= 0 <= found.high else " once adjusted for the number of metrics tested"
    return f"No difference in {called_so} is shown{adjusted} ({numbers})."
