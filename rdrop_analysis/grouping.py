"""From checkpoints and groups of them, as users name them, to the models to measure and who belongs together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rdrop_analysis import patterns
from rdrop_analysis.errors import UsageError
from rdrop_analysis.files import printable
from rdrop_analysis.subjects import Entry, Model, Models, entries, names_of

Members = Model | Sequence[Model]
Groups = Mapping[str, Members] | Sequence[str]


@dataclass(frozen=True)
class Lineup:
    """Models to measure, each once; `groups` has the names of those that are training seeds of one arm."""

    entries: list[Entry]
    groups: dict[str, list[str]] = field(default_factory=dict)

    def check_reference(self, name: str | None) -> None:
        """See that a reference is one of the checkpoints or groups.

        Raises:
            UsageError: it is neither.
        """
        known = [*self.groups, *(entry.name for entry in self.entries)]
        if name is not None and name not in known:
            raise UsageError(f"there is no checkpoint {name!r} to be the reference: choose from {', '.join(known)}")


def line_up(models: Models | None, groups: Groups | None) -> Lineup:
    """Models and members of groups, with names that differ; what is named twice is measured once.

    A member is a path, a pattern of paths, a module, or the name of one of `models`.

    Raises:
        UsageError: there is none, a group is empty or has no name, or two groups share a member.
    """
    if not groups:
        return Lineup(entries([] if models is None else models))
    known = dict(models) if isinstance(models, Mapping) else {}
    arms = {name: _members(name, given, known) for name, given in _by_name(groups).items()}
    listed = [] if models is None or isinstance(models, Mapping) else _listed(models)
    named = known | _named([("model", listed), *arms.items()], known)
    names = {_key(model): name for name, model in named.items()}
    found = Lineup(entries(named), {arm: [names[_key(model)] for model in members] for arm, members in arms.items()})
    _check_apart(found.groups)
    return found


def _by_name(groups: Groups) -> dict[str, list[Any]]:
    """What is said of each group, together."""
    pairs = groups.items() if isinstance(groups, Mapping) else map(patterns.split, groups)
    found: dict[str, list[Any]] = {}
    for name, given in pairs:
        if not str(name).strip():
            raise UsageError("a group has no name")
        found.setdefault(str(name), []).extend(_listed(given))
    return found


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def _members(group: str, given: Iterable[Any], known: Mapping[str, Model]) -> list[Model]:
    """The models of one group, each once."""
    found = {_key(model): model for part in given for model in _expanded(group, part, known)}
    if not found:
        raise UsageError(f"the group {printable(group)} is empty: name at least one checkpoint")
    return list(found.values())


def _expanded(group: str, part: Any, known: Mapping[str, Model]) -> Sequence[Model]:
    if isinstance(part, str) and part in known:
        return [known[part]]
    return patterns.expand(group, str(part)) if isinstance(part, str | Path) else [part]


def _key(model: Any) -> object:
    """Equal for what is one model: a file, however it is named, or a module."""
    return Path(model).resolve() if isinstance(model, str | Path) else id(model)


def _named(parts: Iterable[tuple[str, Sequence[Model]]], known: Mapping[str, Model]) -> dict[str, Model]:
    """Names for those models that have none yet: of files their own, of modules that of their part and a number."""
    seen = {_key(model) for model in known.values()}
    places: dict[object, tuple[Path, Model]] = {}
    for part, models in parts:
        for number, model in enumerate(models, 1):
            path = Path(model) if isinstance(model, str | Path) else Path(f"{part}-{number}")
            if _key(model) not in seen:
                places.setdefault(_key(model), (path, model))
    names = names_of([path for path, _ in places.values()])
    if twice := [name for name, count in Counter([*known, *names]).items() if count > 1]:
        raise UsageError(f"{printable(twice[0])} is given twice")
    return {name: model for name, (_, model) in zip(names, places.values(), strict=True)}


def _check_apart(groups: Mapping[str, Sequence[str]]) -> None:
    """See that no checkpoint counts for two arms."""
    owners = sorted((member, group) for group, members in groups.items() for member in members)
    for (one, first), (other, second) in pairwise(owners):
        if one == other:
            text = f"{printable(one)} is in the groups {printable(first)} and {printable(second)}"
            raise UsageError(f"{text}: a checkpoint belongs to one arm")
