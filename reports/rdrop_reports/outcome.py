"""What a comparison comes to, in a few fixed words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rdrop_probes.records import Comparison
from rdrop_reports.numbers import is_number

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


def p_disagrees(comparison: Comparison) -> bool:
    """Whether the adjusted p-value does not reach the interval's level."""
    return is_number(comparison.p_adjusted) and comparison.p_adjusted > 1 - comparison.level + 1e-12
