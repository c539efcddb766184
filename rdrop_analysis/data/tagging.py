"""Labels a word, put on the first token of each word, as taggers are trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rdrop_analysis.data.class_numbers import ClassNames, number_classes
from rdrop_analysis.data.examples import IGNORED
from rdrop_analysis.data.labelling import Labels, plain
from rdrop_analysis.data.places import ExampleError
from rdrop_analysis.data.tables import Table
from rdrop_analysis.errors import DataError
from rdrop_analysis.files import counted, printable


def tags_of_tokens(
    table: Table,
    candidates: Sequence[str],
    words: Sequence[Sequence[str]],
    owners: Sequence[Sequence[int | None]],
    class_names: list[str] | None,
) -> Labels:
    """Return a label a token: that of its word on the first token of a word, -100 elsewhere.

    Args:
        table: the examples.
        candidates: columns that may hold a label a word.
        words: the words of each example.
        owners: for each token of each example the word that it is from.
        class_names: the checkpoint's names of its classes.

    Raises:
        DataError: there are not as many labels as words, or one is not one of the classes.
    """
    column = _column(table, candidates, class_names)
    if column is None:
        return Labels(None, class_names)
    tags = [_split(value, column, index) for index, value in enumerate(table.columns[column])]
    for index, (example, given) in enumerate(zip(words, tags, strict=True)):
        if len(example) != len(given):
            raise ExampleError("", index, f"has {len(example)} words but {len(given)} labels in {printable(column)}")
    names = table.names(column, class_names)
    every = ClassNames(names.wanted, names.own, lambda: _flat(names.every(), column))
    numbering = number_classes((tag for given in tags for tag in given), every)
    numbers = [[numbering(tag, index) for tag in given] for index, given in enumerate(tags)]
    labels = [_on_first_tokens(o, n) for o, n in zip(owners, numbers, strict=True)]
    return Labels(labels, numbering.class_names, {**numbering.notes, **_cut_note(words, owners)})


def as_list(value: Any, column: str, example: int) -> list[Any]:
    """Return a list of words or labels, which a text may have with spaces between.

    Raises:
        DataError: it is something else, or has nothing in it.
    """
    value = value.split() if isinstance(value, str) else plain(value)
    if not isinstance(value, list) or not value:
        raise ExampleError(f"{printable(column)} at", example, "is no list of words, or an empty one")
    return value


def _split(value: Any, column: str, example: int) -> list[Any]:
    """Return the labels of an example; numbers that a text has with spaces between as such."""
    return [int(tag) if isinstance(value, str) and _is_whole(tag) else tag for tag in as_list(value, column, example)]


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _flat(values: Iterable[Any], column: str) -> Iterable[Any]:
    return (tag for index, value in enumerate(values) for tag in _split(value, column, index))


def _column(table: Table, candidates: Sequence[str], class_names: list[str] | None) -> str | None:
    """Return the column of labels a word; of several, the one whose names are the checkpoint's."""
    if len(candidates) < 2:
        return next(iter(candidates), None)
    wanted = {name.casefold() for name in class_names or ()}
    fitting = [column for column in candidates if {n.casefold() for n in table.own_names.get(column, [""])} <= wanted]
    if len(fitting) != 1:
        listed = " and ".join(map(printable, candidates))
        raise DataError(f"{listed} could each be the labels: keep one of these columns")
    return fitting[0]


def _on_first_tokens(owners: Sequence[int | None], numbers: Sequence[int]) -> list[int]:
    return [
        numbers[owner] if owner is not None and (place == 0 or owners[place - 1] != owner) else IGNORED
        for place, owner in enumerate(owners)
    ]


def _cut_note(words: Sequence[Sequence[str]], owners: Sequence[Sequence[int | None]]) -> dict[str, str]:
    """Return the note on words without a token, if there are any."""
    lost = sum(len(set(range(len(example))) - set(own)) for example, own in zip(words, owners, strict=True))
    text = f"{counted(lost, 'word')} without a token, most often beyond the tokenizer's most, and without their labels"
    return {"words_cut": text} if lost else {}
