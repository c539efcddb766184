"""From labels as people write them (names, numbers, lists of either) to class numbers and targets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rdrop_analysis.data.class_numbers import ClassNames, number_classes
from rdrop_analysis.data.places import ExampleError
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import printable

HIDDEN = -1
"""The label of every example where a data set keeps its labels to itself."""


@dataclass(frozen=True)
class Labels:
    """Labels as numbers (or lists of them), one an example; None where there are none to be had.

    `columns` are those that they were read from.
    """

    values: list[Any] | None
    class_names: list[str] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()


def read_labels(values: Sequence[Any], task: str | None, names: ClassNames) -> Labels:
    """Return labels as numbers: classes, targets, or 0 and 1 for each of several classes.

    Names of classes are matched with the checkpoint's, whatever their case; without such names they are numbered
    in the order of the data set, else of the alphabet. Numbers are taken as they are, but a data set's named
    numbers follow the checkpoint's names where it has them all.

    Raises:
        DataError: a label is missing, is not one of the names, or is of another kind than the task needs.
    """
    values = [plain(value) for value in values]
    if all(value == HIDDEN for value in values):
        note = "all labels are -1, as where a data set hides them: measured without labels"
        return Labels(None, notes={"labels_hidden": note})
    notes: Mapping[str, str] = {}
    if task == "multi-label":
        notes = _one_class_each(values, names)
        values = [_parts(value, index) for index, value in enumerate(values)]
    if any(isinstance(value, list) for value in values):
        several = _several(values, task, names)
        return replace(several, notes={**several.notes, **notes})
    if (task in ("regression", None) and _has_floats(values)) or task == "regression":
        return Labels([_target(value, index) for index, value in enumerate(values)])
    numbering = number_classes([value for value in values if value is not None], names)
    return Labels(
        [numbering(value, index) for index, value in enumerate(values)], numbering.class_names, numbering.notes
    )


def _one_class_each(values: Sequence[Any], names: ClassNames) -> dict[str, str]:
    """Return the note on labels that are one class an example where several may be true, if they are.

    Raises:
        DataError: all are 0 or 1, which for more than two classes are no less likely to say yes or no of one.
    """
    wanted = names.wanted or names.own or ()
    if len(wanted) < 2 or not all(map(_is_single, values)):
        return {}
    every = [plain(value) for value in names.every()]  # of which only some examples may be here
    if not all(value is None or _is_single(value) for value in every):
        return {}
    if len(wanted) > 2 and all(value in (0, 1, "0", "1", None) for value in every):
        raise DataError(
            f"labels are one 0 or 1 an example, for {len(wanted)} classes: write those that are true as in "
            f"{printable(';'.join(wanted[:2]))}, or one column a class"
        )
    return {"labels_as_flags": "labels are one class an example: that one is read as yes, the others as no"}


def _is_single(value: Any) -> bool:
    """Tell whether a label is one class, not a list of them, written as such or as a text."""
    is_list = isinstance(value, list) or str(value).lstrip().startswith("[")
    return value is not None and not is_list and len(_parts(value, 0)) == 1


def _parts(value: Any, example: int) -> list[Any]:
    """Return the labels of an example as a list, where a text has them between commas, semicolons or bars."""
    if isinstance(value, list):
        return value
    if value is None:
        raise ExampleError("", example, "has no label: write [] where no class is true")
    if not isinstance(value, str):
        return [value]
    parts = [part.strip(" '\"") for part in re.split("[,;|]", value.strip().strip("[]"))]
    return [int(part) if part.isdecimal() else part for part in parts if part]


def plain(value: Any) -> Any:
    """Return a label without NumPy around it: text, a number, a list of either, or None where it is missing."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, bool):
        return int(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _has_floats(values: Sequence[Any]) -> bool:
    """Tell whether the labels are numbers in floating point."""
    return any(isinstance(value, float) for value in values)


def _target(value: Any, example: int) -> float:
    """Return the target of a regression; NaN where it is not known."""
    if value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as problem:
        raise ExampleError(f"label {printable(value)!r} at", example, "is not a number") from problem


def _several(values: Sequence[Any], task: str | None, names: ClassNames) -> Labels:
    """Return lists of labels: targets of one length, or 0 and 1 for each class."""
    for index, value in enumerate(values):
        if not isinstance(value, list):
            raise ExampleError("", index, f"has {_kind(value)} where others have a list of labels")
    if task == "regression" or (task is None and _has_floats([part for value in values for part in value])):
        if len({len(value) for value in values}) > 1:
            raise DataError("targets are lists of several lengths: give as many for each example")
        return Labels([[_target(part, index) for part in value] for index, value in enumerate(values)])
    n_classes = len(names.wanted or names.own or ()) or None
    if _are_indicators(values, n_classes):
        return Labels([[float(part) for part in value] for value in values], _listed(names.wanted or names.own))
    return _indicators(values, names)


def _are_indicators(values: Sequence[list[Any]], n_classes: int | None) -> bool:
    """Tell whether each list has 0 or 1 for each class."""
    lengths = {len(value) for value in values}
    return len(lengths) == 1 and n_classes in (None, *lengths) and all(part in (0, 1) for v in values for part in v)


def _indicators(values: Sequence[list[Any]], names: ClassNames) -> Labels:
    """Return 0 and 1 for each class from the lists of those that are true."""
    every = ClassNames(names.wanted, names.own, lambda: _flat(names.every()))
    numbering = number_classes([part for value in values for part in value], every)
    if not numbering.class_names:
        raise DataError(
            "labels are lists of class numbers, and the number of classes is not known: give 0 or 1 for each"
        )
    rows = []
    for index, value in enumerate(values):
        row = [0.0] * len(numbering.class_names)
        for part in value:
            number = numbering(part, index)
            if not 0 <= number < len(row):
                raise ExampleError(f"label {number} at", index, f"is out of range for {len(row)} classes")
            row[number] = 1.0
        rows.append(row)
    return Labels(rows, numbering.class_names, numbering.notes)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the labels in lists of them, of examples that nothing is known of."""
    for value in map(plain, values):
        yield from value if isinstance(value, list) else [value]


def _listed(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else list(names)


def _kind(value: Any) -> str:
    return "no label" if value is None else "a single label"
