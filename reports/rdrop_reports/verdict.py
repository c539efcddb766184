"""The answer in words, computed from the numbers: for the report's first lines and for the terminal."""

from __future__ import annotations

from collections import Counter

from rdrop_probes.records import CheckpointResult, Comparison, RunRecord
from rdrop_reports.context import context
from rdrop_reports.group_verdict import group_caveats, group_verdicts
from rdrop_reports.numbers import (
    format_count,
    format_estimate,
    format_level,
    format_p,
    format_parts,
    is_number,
)
from rdrop_reports.outcome import Verdict, format_beside, outcome_of, ratio_text, why_not
from rdrop_reports.select import checkpoint_named, comparison_of, most_telling, short_unit, unit_of
from rdrop_reports.text import called

FEW = 4  # verdicts that a page opens with


def verdicts(record: RunRecord) -> list[Verdict]:
    """One verdict a candidate: a group of training seeds where there are such groups, else a checkpoint."""
    return group_verdicts(record) or checkpoint_verdicts(record)


def checkpoint_verdicts(record: RunRecord) -> list[Verdict]:
    """One verdict a candidate; for a run without a comparison, one a checkpoint about itself."""
    candidates = [c for c in record.checkpoints if c.name != record.reference]
    reference = checkpoint_named(record, record.reference)
    if reference is None or not candidates:
        return [_own(record, checkpoint) for checkpoint in record.checkpoints]
    return [_compared(record, reference, candidate) for candidate in candidates]


def most_telling_first(record: RunRecord, found: list[Verdict]) -> list[Verdict]:
    """Those on the most telling checkpoints before the others, for a page that opens with a few of many."""
    telling = [checkpoint.name for checkpoint in most_telling(record, FEW + 1)]
    return sorted(found, key=lambda verdict: verdict.candidate not in telling)


def headline(record: RunRecord) -> str:
    """One line for the whole run, such as `2 of 3 candidates are more consistent than baseline`."""
    found = verdicts(record)
    if not found:
        return "No checkpoint could be measured."
    if len(found) == 1:
        return _headline_of_one(record, found[0])
    groups = bool(group_verdicts(record))
    if not groups and not _is_compared(record):
        return f"{len(found)} checkpoints measured, none of them compared."
    counts = Counter(verdict.outcome for verdict in found)
    more = counts.pop("more consistent", 0)
    rest = "; ".join(f"{outcome}: {count}" for outcome, count in counts.items())
    what, reference = ("groups", record.reference_group) if groups else ("candidates", record.reference)
    first = f"{more} of {len(found)} {what} {'is' if more == 1 else 'are'} more consistent than {called(reference)}"
    return f"{first} ({rest})." if rest else f"{first}."


def caveats(record: RunRecord) -> list[str]:
    """What the intervals do not cover, and what the run did not do."""
    notes = group_caveats(record)
    if not notes and _is_compared(record):
        notes.append("Each comparison is of one checkpoint with one: intervals cover new data, not new training runs.")
    if record.config.get("masks") == "shared":
        notes.append("The masks were shared across examples: each sub-model is one fixed sub-network.")
    limit = record.config.get("limit")
    if isinstance(limit, int):
        notes.append(f"Measured on the first {f'{format_count(limit)} examples at most' if limit > 1 else 'example'}.")
    return notes


def has_dropout(checkpoint: CheckpointResult) -> bool:
    """Whether train mode draws anything."""
    return checkpoint.stochastic


def _is_compared(record: RunRecord) -> bool:
    return checkpoint_named(record, record.reference) is not None and len(record.checkpoints) > 1


def _headline_of_one(record: RunRecord, verdict: Verdict) -> str:
    of_groups = bool(group_verdicts(record))
    name, reference = called(verdict.candidate), called(record.reference_group if of_groups else record.reference)
    return {
        "more consistent": f"{name} is more consistent than {reference}.",
        "less consistent": f"{name} is less consistent than {reference}.",
        "no difference shown": f"No difference in consistency is shown between {name} and {reference}.",
        "not measured": f"The consistency of {name} was not measured.",
        "not compared": f"{name} was measured, and not compared with {reference}.",
        "own consistency": _own_headline(record, verdict.candidate),
        "no dropout": f"{name} draws no dropout.",
    }[verdict.outcome]


def _own_headline(record: RunRecord, name: str) -> str:
    found = checkpoint_named(record, name)
    if found is not None and (text := _alike(found)):
        return text
    return f"The sub-models of {called(name)} diverge by {_epkl(record, name)} (EPKL)."


def _alike(checkpoint: CheckpointResult) -> str:
    """Said where no mask is random: a model whose dropout is all at rate 1; empty where some is."""
    epkl, to_eval = (checkpoint.metrics.get(name) for name in ("epkl", "kl_sub_to_eval"))
    if not checkpoint.sites or any(site.rate not in (0, 1) for site in checkpoint.sites) or not epkl or epkl.estimate:
        return ""
    differ = to_eval is not None and is_number(to_eval.estimate) and to_eval.estimate > 0
    end = ", though they differ from the eval model" if differ else ""
    return f"All sub-models of {called(checkpoint.name)} are alike{end}."


def _epkl(record: RunRecord, name: str) -> str:
    """Estimate and unit, without the interval."""
    found = checkpoint_named(record, name)
    estimate = format_estimate(found.metrics.get("epkl") if found else None).split(" ")[0]
    return f"{estimate} {unit_of(record)}"


def _own(record: RunRecord, checkpoint: CheckpointResult) -> Verdict:
    """A verdict about one checkpoint by itself."""
    name = checkpoint.name
    shown = called(name)
    if not has_dropout(checkpoint):
        return Verdict(name, "no dropout", _no_dropout(shown))
    epkl = checkpoint.metrics.get("epkl")
    if epkl is None or not is_number(epkl.estimate):
        return Verdict(name, "not measured", f"The EPKL of {shown} was not measured.")
    if text := _alike(checkpoint):
        return Verdict(name, "own consistency", f"{text[:-1]}: every dropout is at rate 0 or 1.", _flips(checkpoint))
    interval = f" ({format_level(epkl.level)} interval)" if is_number(epkl.low) else " (no interval)"
    sentence = f"The EPKL of {shown} is {format_estimate(epkl)} {unit_of(record)}{interval}."
    return Verdict(name, "own consistency", sentence, _flips(checkpoint))


def _no_dropout(name: str) -> str:
    return f"{name} draws no dropout: all its sub-models are the eval model, so every divergence between them is 0."


def _flips(checkpoint: CheckpointResult) -> str:
    """What share of sub-model predictions differ from the eval model's."""
    flips = checkpoint.metrics.get("flip_rate")
    if flips is None or not is_number(flips.estimate):
        return ""
    if flips.estimate == 0:
        return "No sub-model prediction differed from the eval model's."
    return f"{format_estimate(flips, percent=True)} of sub-model predictions differ from the eval model's."


def _compared(record: RunRecord, reference: CheckpointResult, candidate: CheckpointResult) -> Verdict:
    """A verdict about one candidate against the reference."""
    name, ours, theirs = candidate.name, called(candidate.name), called(reference.name)
    if not has_dropout(candidate):
        return Verdict(name, "no dropout", _no_dropout(ours))
    found = comparison_of(record, name, "epkl")
    if found is None or not is_number(found.difference):
        own = candidate.metrics.get("epkl")
        if own is None or not is_number(own.estimate):
            return Verdict(name, "not measured", f"The EPKL of {ours} was not measured.")
        unit = short_unit(record)  # per what differs between them
        sentence = (
            f"{ours} was not compared with {theirs}: its EPKL of {format_estimate(own)} {unit} is of another kind."
        )
        return Verdict(name, "not compared", sentence)
    outcome = outcome_of(found)
    claim = {
        "more consistent": f"{ours} is more consistent than {theirs}",
        "less consistent": f"{ours} is less consistent than {theirs}",
    }.get(outcome, f"No difference in consistency is shown between {ours} and {theirs}")
    numbers = _numbers(record, reference, candidate, found)
    parts = (_alike(candidate), context(record.comparisons, name))
    return Verdict(name, outcome, f"{claim}: {numbers}{why_not(found)}.", " ".join(filter(None, parts)))


def _numbers(record: RunRecord, reference: CheckpointResult, candidate: CheckpointResult, found: Comparison) -> str:
    """EPKL of both, difference, ratio and adjusted p-value."""
    ours, theirs = format_beside([c.metrics.get("epkl") for c in (candidate, reference)], found)
    difference = format_parts(found.difference, found.low, found.high)
    level = f" ({format_level(found.level)} interval)" if difference.interval else " (no interval)"
    text = f"its EPKL is {ours} {unit_of(record)} against {theirs}, a difference of {difference}{level}"
    if is_number(found.ratio):
        text += f" and a ratio of {ratio_text(found)}"
    return f"{text}; adjusted {format_p(found.p_adjusted)}" if is_number(found.p_adjusted) else text
