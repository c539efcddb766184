"""Groups of training seeds once they are measured: arms, their comparisons, and what must be said of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from rdrop_analysis.axis import value_of
from rdrop_analysis.files import printable
from rdrop_analysis.measuring import Measured
from rdrop_probes.groups import Arm, compare_arms, group_result
from rdrop_probes.records import Axis, CheckpointResult, Comparison, Finding, GroupResult

SEED = "seed"
OF_TRAINING = (
    "alpha", "epoch", "epochs", "dropout", "learning_rate", "lr", "batch_size", "weight_decay", "optimizer",
    "convention", "limit", "task",
)  # fmt: skip
"""Settings that make two checkpoints more than two seeds of one training."""

WITHIN = (SEED, "epoch", "epochs")
"""What may differ between checkpoints of one training."""


@dataclass(frozen=True)
class Arms:
    """What a record says of groups."""

    groups: list[GroupResult] = field(default_factory=list)
    reference_group: str | None = None
    group_comparisons: list[Comparison] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def reference_among(measured: Sequence[Measured], groups: Mapping[str, Sequence[str]], name: str | None) -> str | None:
    """The checkpoint that a reference stands for: itself, or the first of its group that was measured."""
    known = [m.result.name for m in measured]
    if name is None or name in known or name not in groups:
        return name
    return next((member for member in groups[name] if member in known), name)


def arms(
    measured: Sequence[Measured], groups: Mapping[str, Sequence[str]], reference: str | None, axis: Axis | None
) -> Arms:
    """Every group over its seeds, and against the reference group: the one named, else of alpha 0, else the first."""
    by_name = {m.result.name: m for m in measured}
    present = {name: [by_name[m] for m in members if m in by_name] for name, members in groups.items()}
    missing = _missing(groups, present)
    whole = {name: _arm(name, members) for name, members in present.items() if members}
    if not whole:
        return Arms(findings=missing)
    seeds, notes = _in_line(whole, axis)
    first = _reference(whole, reference)
    kinds = {name: _kinds(present[name]) for name in whole}
    alike = [name for name in whole if name != first and kinds[name] == kinds[first] and len(kinds[name]) == 1]
    return Arms(
        [replace(group_result(seeds[name]), members=_names(arm.members)) for name, arm in whole.items()],
        first,
        [comparison for name in alike for comparison in compare_arms(seeds[first], seeds[name])],
        [*missing, *notes, *(finding for arm in seeds.values() for finding in _doubts(arm))],
    )


def clustered(checkpoints: Sequence[CheckpointResult], groups: Mapping[str, Sequence[str]]) -> bool:
    """Whether some are seeds or epochs of one training, by their group or by the settings that they tell of."""
    known = set(_names(checkpoints))
    settings = [{k: v for k, v in c.training.items() if k not in WITHIN} for c in checkpoints if c.training]
    in_one_group = any(len(known.intersection(members)) > 1 for members in groups.values())
    return in_one_group or any(first == second for first, second in combinations(settings, 2))


def _names(checkpoints: Sequence[CheckpointResult]) -> list[str]:
    return [checkpoint.name for checkpoint in checkpoints]


def _arm(name: str, members: Sequence[Measured]) -> Arm:
    results = [m.result for m in members]
    ranges = {metric: column.range for m in members for metric, column in m.columns.items()}
    return Arm(name, results, [_seed(result) for result in results], ranges)


def _seed(checkpoint: CheckpointResult) -> float | None:
    return value_of(SEED, checkpoint.training, checkpoint.name, checkpoint.path or "")


def _kinds(members: Sequence[Measured]) -> set[tuple[str, str]]:
    """What divergences are of, and between what kind of distributions."""
    return {(m.reader.task.per, m.reader.family.name) for m in members}


def _reference(found: Mapping[str, Arm], name: str | None) -> str:
    """Which group the others are compared with."""
    of_checkpoint = [arm.name for arm in found.values() if name in _names(arm.members)]
    plain = [arm.name for arm in found.values() if all(c.training.get("alpha") == 0 for c in arm.members)]
    return name if name in found and name is not None else [*of_checkpoint, *plain, *found][0]


def _in_line(found: Mapping[str, Arm], axis: Axis | None) -> tuple[Mapping[str, Arm], list[Finding]]:
    """Arms at one place of the axis: checkpoints of one training are no seeds of it."""
    places = {} if axis is None else {n: [axis.values[c.name] for c in a.members] for n, a in found.items()}
    if axis is None or axis.name == SEED or all(len(set(values)) == 1 for values in places.values()):
        return found, []
    common = set.intersection(*(set(values) for values in places.values()))
    where = printable(axis.name, 30)
    if not common:
        text = f"the groups have no {where} in common: their spread is more than that of seeds"
        return found, [Finding(code="groups_along_axis", message=text)]
    last = max(common)
    text = f"groups are compared at {where} {last:g}, the largest that all have, so that seeds are the sample"
    kept = {name: _only(arm, [value == last for value in places[name]]) for name, arm in found.items()}
    return kept, [Finding(code="groups_along_axis", message=text)]


def _only(arm: Arm, kept: Sequence[bool]) -> Arm:
    members = [member for member, keep in zip(arm.members, kept, strict=True) if keep]
    return replace(arm, members=members, seeds=[seed for seed, keep in zip(arm.seeds, kept, strict=True) if keep])


def _missing(groups: Mapping[str, Sequence[str]], present: Mapping[str, Sequence[Measured]]) -> list[Finding]:
    """Groups of which some were not measured."""
    return [
        Finding(
            code="group_incomplete",
            message=f"the group {printable(name)} is of {len(present[name])} checkpoint(s): {lost} not measured",
        )
        for name, members in groups.items()
        if (lost := len(members) - len(present[name]))
    ]


def _doubts(arm: Arm) -> Iterator[Finding]:
    """What speaks against taking the members for seeds of one training."""
    name = printable(arm.name)
    if len(arm.members) == 1:
        text = f"{name} has one seed: how another training run would come out is not known, and nothing is tested"
        yield Finding(code="one_seed", message=text)
    settings = [key for key in OF_TRAINING if len({_text(c.training.get(key)) for c in arm.members}) > 1]
    if settings:
        text = f"the checkpoints of {name} differ in {', '.join(settings)}: their spread is more than that of seeds"
        yield Finding(code="not_only_seeds", message=text)
    hashes = Counter(c.sha256 for c in arm.members if c.sha256 is not None)
    seeds = Counter(seed for seed in arm.seeds if seed is not None)
    for code, what, counts in (("same_weights", "files", hashes), ("same_seed", "training seeds", seeds)):
        if max(counts.values(), default=1) > 1:
            text = f"{name} has equal {what}: one training run counted twice makes the interval too narrow"
            yield Finding(code=code, message=text)
            return


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
