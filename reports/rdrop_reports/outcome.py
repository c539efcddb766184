"""What a comparison comes to, in a few fixed words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, log10
from typing import Literal

from rdrop_probes.records import Comparison, Metric
from rdrop_reports.numbers import format_parts, format_to, is_number, last_place

Outcome = Literal[
    "more consistent",
    "less consistent",
    "no difference shown",
    "not measured",
    "not compared",
    "own consistency",
    "no dropout",
]


@dataclass(frozen=True)
class Verdict:
    """What is said of one checkpoint or group: the `outcome`, its `sentence`, and `context` to read it with."""

    candidate: str
    outcome: Outcome
    sentence: str
    context: str = ""

    @property
    def text(self) -> str:
        """Both, which are not told apart from each other."""
        return " ".join(filter(None, (self.sentence, self.context)))


def outcome_of(comparison: Comparison) -> Outcome:
    """Difference shown only if the interval excludes 0 and the adjusted p-value agrees."""
    low, high = comparison.low, comparison.high
    if not (is_number(low) and is_number(high)) or low <= 0 <= high or p_disagrees(comparison):
        return "no difference shown"
    return "more consistent" if high < 0 else "less consistent"


def why_not(comparison: Comparison) -> str:
    """Why no difference is shown, where none is."""
    low, high = comparison.low, comparison.high
    if not (is_number(low) and is_number(high)):
        return "; without an interval nothing can be concluded"
    if low <= 0 <= high:
        return "; the interval includes 0"
    if p_disagrees(comparison):
        return "; the interval excludes 0, but not once adjusted for the number of metrics tested"
    return ""


def format_beside(compared: Sequence[Metric | None], comparison: Comparison) -> list[str]:
    """Estimates that are compared, with the decimals of their difference, which they add up to, or two digits."""
    estimates = [None if metric is None else metric.estimate for metric in compared]
    place = last_place(comparison.difference, comparison.low, comparison.high)
    second = [floor(log10(abs(value))) - 1 for value in estimates if is_number(value) and value]
    return format_to(estimates, min([place, *second]))


def ratio_text(comparison: Comparison) -> str:
    """The ratio with its interval; without it where it includes 1 and a difference is shown, which it tells worse.

    The two are computed apart, on the scale of the metric and on that of its logarithm, and can disagree at the edge.
    """
    low, high = comparison.ratio_low, comparison.ratio_high
    includes_1 = is_number(low) and is_number(high) and low <= 1 <= high
    if includes_1 and outcome_of(comparison) != "no difference shown":
        low = high = None
    return str(format_parts(comparison.ratio, low, high))


def p_disagrees(comparison: Comparison) -> bool:
    """Whether the adjusted p-value does not reach the interval's level."""
    return is_number(comparison.p_adjusted) and comparison.p_adjusted > 1 - comparison.level + 1e-12
