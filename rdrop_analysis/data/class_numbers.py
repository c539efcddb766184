"""Number classes by their names, in the order of the checkpoint's outputs where that is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rdrop_analysis.data.places import ExampleError
from rdrop_analysis.files import printable


@dataclass(frozen=True)
class ClassNames:
    """What is known of the names of classes.

    Attributes:
        wanted: the checkpoint's, in the order of its outputs.
        own: the data set's, where its labels are numbers with names.
        every: reads all labels of the data set, of which only some examples may have been read.
    """

    wanted: Sequence[str] | None
    own: Sequence[str] | None
    every: Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class Numbering:
    """Gives a label its class number: by name or, in `number_of`, by the data set's own number."""

    by_name: Mapping[str, int]
    by_number: Mapping[int, int]
    class_names: list[str] | None
    notes: Mapping[str, str]

    def __call__(self, label: Any, example: int) -> int:
        """Return the class number of a label; `example` is for the message."""
        if label is None:
            raise ExampleError("", example, "has no label: write -100 where none is known")
        if isinstance(label, str):
            return self._named(label, example)
        if not isinstance(label, int | float) or label % 1 or abs(label) >= 2**31:  # infinity % 1 is NaN
            raise ExampleError(f"label {printable(label)} at", example, "is no class: give a name or whole number")
        return self.by_number.get(int(label), int(label))

    def _named(self, label: str, example: int) -> int:
        key = label if label in self.by_name else label.strip().casefold()
        if key in self.by_name:
            return self.by_name[key]
        known = printable(", ".join(self.class_names or ()), 200)
        raise ExampleError(f"label {printable(label)!r} at", example, f"is none of the classes: {known}")


def number_classes(labels: Iterable[Any], names: ClassNames) -> Numbering:
    """Return the numbers of the classes that `labels` (flat, none missing) are from."""
    named = any(isinstance(label, str) for label in labels)
    if names.wanted:
        by_number, notes = matched(names.own, names.wanted)
        return Numbering(_by_name(names.wanted), by_number, list(names.wanted), notes)
    if names.own:
        return Numbering(_by_name(names.own), {}, list(names.own), {})
    if not named:
        return Numbering({}, {}, None, {})
    found = sorted({label for label in names.every() if isinstance(label, str)})
    if all(label.strip().isdecimal() for label in found):
        return Numbering({label: int(label) for label in found}, {}, None, {})
    note = f"the checkpoint does not name its classes: labels were numbered by the alphabet ({', '.join(found)})"
    return Numbering(_by_name(found), {}, found, {"labels_numbered": printable(note, 300)})


def matched(own: Sequence[str] | None, wanted: Sequence[str]) -> tuple[dict[int, int], dict[str, str]]:
    """Return the checkpoint's number of each of the data set's, where it knows all their names; and a note if not."""
    if own is None:
        return {}, {}
    numbers = _by_name(wanted)
    if all(name.strip().casefold() in numbers for name in own):
        return {number: numbers[name.strip().casefold()] for number, name in enumerate(own)}, {}
    note = f"the data set's class names ({', '.join(own)}) are not the checkpoint's: classes are matched by number"
    return {}, {"labels_by_number": printable(note, 300)}


def _by_name(names: Sequence[str]) -> dict[str, int]:
    """Return class numbers by name, as written and in small letters."""
    small = {name.strip().casefold(): number for number, name in enumerate(names)}
    return {**small, **{name: number for number, name in enumerate(names)}}
