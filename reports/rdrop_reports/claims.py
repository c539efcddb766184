"""What the theory claims, held against these numbers, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from rdrop_probes.records import Ranking, RunRecord
from rdrop_reports.definitions import label
from rdrop_reports.numbers import format_number, format_p, is_number
from rdrop_reports.outcome import outcome_of, ratio_text
from rdrop_reports.select import are_groups_compared, compared_on, measured, most_telling_with, unit_of
from rdrop_reports.text import called, listed

MOST = 4
SIGNIFICANT = 0.05
FEWEST = 5  # checkpoints: of 4 in the very same order, p is 2 of 24 permutations
_OUTCOMES = {"more consistent": "lower", "less consistent": "higher"}


def claims(record: RunRecord) -> list[str]:
    """Whether the constraint holds, for which epsilon, and whether the parameters have less freedom."""
    freedom = [sentence for name in ("fisher_trace", "effective_dimension") if (sentence := _lower(record, name))]
    return [*_constraint(record), *freedom]


def ranks(record: RunRecord) -> list[str]:
    """Which metrics rank the checkpoints as EPKL does, and which are not shown to."""
    known = [r for r in record.rankings if is_number(r.correlation)]
    if not known:
        return []
    if all(r.p_value is None for r in known):
        return [_described(known)]
    alike = [r for r in known if _is_shown(r) and (r.correlation or 0) > 0]
    if known[0].n < FEWEST:
        return [f"{known[0].n} checkpoints are too few to show that anything ranks them as EPKL does."]
    if not alike:
        return [f"No metric is shown to rank the {known[0].n} checkpoints as EPKL does."]
    best = sorted(alike, key=lambda r: -(r.correlation or 0))[:3]
    parts = [f"{label(r.metric)} ({format_number(r.correlation)}, {format_p(r.p_value)})" for r in best]
    rest = len(known) - len(alike)
    more = f"; {rest} other{'s are' if rest > 1 else ' is'} not shown to" if rest else ""
    return [f"Of {known[0].n} checkpoints, these rank as EPKL does, by rank correlation: {listed(parts)}{more}."]


def _described(known: Sequence[Ranking]) -> str:
    """Of checkpoints that are no independent sample."""
    best = sorted(known, key=lambda r: -(r.correlation or 0))[:3]
    parts = [f"{label(r.metric)} ({format_number(r.correlation)})" for r in best]
    first = f"The {known[0].n} checkpoints are seeds or epochs of a few trainings, not an independent sample"
    return f"{first}: rank correlations with EPKL describe them and have no p-value. Highest: {listed(parts)}."


def _is_shown(ranking: Ranking) -> bool:
    return is_number(ranking.p_value) and ranking.p_value < SIGNIFICANT


def _constraint(record: RunRecord) -> list[str]:
    """From which epsilon on the constraint holds: over the seeds of a group where there are several groups."""
    seeds, name = are_groups_compared(record), "constraint_epsilon"
    subjects = record.groups if seeds else most_telling_with(record, MOST, lambda c: measured(c, name))
    known = [(c.name, m) for c in subjects if (m := c.metrics.get(name)) is not None and is_number(m.estimate)]
    parts = [f"{format_number(metric.estimate)} for {called(who)}" for who, metric in known[:MOST]]
    if not parts:
        return []
    whose = "mean EPKL over training seeds" if seeds else "mean EPKL"
    first = f"With 95% confidence the constraint, {whose} ≤ ε, holds from this ε on, in {unit_of(record)}"
    return [f"{first}: {listed(parts)}."]


def _lower(record: RunRecord, metric: str) -> str:
    """How a metric of the candidates (of the groups, over seeds) stands to that of the reference."""
    found = compared_on(record, metric, MOST)
    parts = [
        f"{ratio_text(c)} for {called(c.candidate)} ({_OUTCOMES.get(outcome_of(c), 'no difference shown')})"
        for c in found
    ]
    if not parts:
        return ""
    seeds = " over training seeds" if are_groups_compared(record) else ""
    return f"{label(metric)}{seeds}, as a multiple of that of {called(found[0].reference)}: {listed(parts)}."
