"""The answer in words where there are groups of training seeds: the seed is the unit, one seed proves nothing."""

from __future__ import annotations

from rdrop_probes.records import Comparison, GroupResult, RunRecord
from rdrop_reports.context import context
from rdrop_reports.numbers import format_level, format_p, format_parts, is_number
from rdrop_reports.outcome import Outcome, Verdict, format_beside, outcome_of, ratio_text, why_not
from rdrop_reports.select import unit_of
from rdrop_reports.text import called, listed

MOST_COUNTED = 6  # groups whose seeds are counted in words


def group_verdicts(record: RunRecord) -> list[Verdict]:
    """One verdict a group but the reference; empty where there are no groups to compare."""
    reference = next((g for g in record.groups if g.name == record.reference_group), None)
    if reference is None:
        return []
    return [_verdict(record, reference, group) for group in record.groups if group is not reference]


def group_caveats(record: RunRecord) -> list[str]:
    """What the comparison of groups rests on."""
    if not group_verdicts(record):
        return []
    single = [called(group.name) for group in record.groups if _seeds(group) == 1]
    known = any(is_number(comparison.low) for comparison in record.group_comparisons)
    what = ": the intervals cover new training runs, not new data" if known else ""
    notes = [f"Groups are compared over training seeds ({_counts(record)}), all on these examples{what}."]
    if single:
        whose = f"{listed(single[:MOST_COUNTED])}{' and others' if len(single) > MOST_COUNTED else ''}"
        notes.append(f"One training seed says nothing of other training runs: nothing is tested of {whose} as a group.")
    return notes


def _seeds(group: GroupResult) -> int:
    """How many seeds its EPKL is over: of a group along an axis not all members are seeds."""
    found = group.metrics.get("epkl")
    return found.n if found is not None and found.n else len(group.members)


def _count(group: GroupResult) -> str:
    count = _seeds(group)
    return f"{count} training seed{'s' if count > 1 else ''}"


def _counts(record: RunRecord) -> str:
    """How many seeds the groups have."""
    counts = {_seeds(group) for group in record.groups}
    if len(counts) == 1:
        return f"{counts.pop()} each"
    parts = [f"{called(group.name)} {_seeds(group)}" for group in record.groups[:MOST_COUNTED]]
    return listed(parts) if len(record.groups) <= MOST_COUNTED else f"{', '.join(parts)}, ..."


def _verdict(record: RunRecord, reference: GroupResult, group: GroupResult) -> Verdict:
    """A verdict about one group against the group of reference."""
    ours, theirs = called(group.name), called(reference.name)
    found = _comparison(record, group.name, "epkl")
    if found is None or not is_number(found.difference):
        return Verdict(group.name, "not compared", f"The EPKL of {ours} is not compared with that of {theirs}.")
    outcome: Outcome = outcome_of(found)
    claim = {
        "more consistent": f"{ours} is more consistent than {theirs} across training seeds",
        "less consistent": f"{ours} is less consistent than {theirs} across training seeds",
    }.get(outcome, f"No difference in consistency is shown between {ours} and {theirs} across training seeds")
    numbers = _numbers(record, reference, group, found)
    sentence = f"{claim}: {numbers}{_why_not(reference, group, found)}."
    return Verdict(group.name, outcome, sentence, context(record.group_comparisons, group.name))


def _comparison(record: RunRecord, group: str, metric: str) -> Comparison | None:
    return next((c for c in record.group_comparisons if c.candidate == group and c.metric == metric), None)


def _numbers(record: RunRecord, reference: GroupResult, group: GroupResult, found: Comparison) -> str:
    """Mean EPKL of both with their seeds, difference, ratio, effect size and p-value."""
    ours, theirs = format_beside([g.metrics.get("epkl") for g in (group, reference)], found)
    difference = format_parts(found.difference, found.low, found.high)
    level = f" ({format_level(found.level)} interval over seeds)" if difference.interval else ""
    means = f"its mean EPKL over {_count(group)} is {ours} {unit_of(record)} against {theirs} over {_seeds(reference)}"
    text = f"{means}, a difference of {difference}{level}"
    if is_number(found.ratio):
        text += f" and a ratio of {ratio_text(found)}"
    if is_number(found.effect_size):
        text += f"; effect size {format_parts(found.effect_size).estimate}"
    return f"{text}; adjusted {format_p(found.p_adjusted)}" if is_number(found.p_adjusted) else text


def _why_not(reference: GroupResult, group: GroupResult, found: Comparison) -> str:
    """Why no difference is shown, where none is."""
    if min(_seeds(reference), _seeds(group)) < 2:
        return "; with one training seed in an arm this may be the seed's doing"
    return why_not(found)
