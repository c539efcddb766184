"""Raw examples (texts, lists of words, images) as a file has them, before a checkpoint's preprocessor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rdrop_analysis.data.class_numbers import ClassNames
from rdrop_analysis.data.examples import Data
from rdrop_analysis.data.layouts import ARRAYS, Layout, find_layout
from rdrop_analysis.data.numeric import data_of_numbers
from rdrop_analysis.data.places import ExampleError, by_number
from rdrop_analysis.data.renumbering import renumbered
from rdrop_analysis.errors import DataError, UsageError
from rdrop_analysis.files import printable

if TYPE_CHECKING:
    from rdrop_analysis.data.preprocessing import Preprocessor

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Table:
    """Raw examples by column, which a checkpoint's own tokenizer or image processor makes `Data` of.

    Attributes:
        source: where they came from.
        columns: values by name, one an example in each.
        own_names: the names that a data set gives the numbers in a column.
        read_column: reads a column of the whole source, where only some examples are here.
        lines: finds the line in a file that each example of the source begins in, where it can be known.
        rows: the examples' numbers in the source, where some were left out.
        notes: what a reader has to know of how they were read.
    """

    source: str
    columns: Columns
    own_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    read_column: Callable[[str], Iterable[Any]] | None = None
    lines: Callable[[], Sequence[int]] | None = None
    rows: Sequence[int] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_examples(self) -> int:
        """Return the number of examples."""
        return len(next(iter(self.columns.values())))

    @property
    def layout(self) -> Layout | None:
        """Return what the columns hold; None if there are neither texts nor words nor images."""
        return find_layout(self.columns)

    def head(self, n: int) -> Table:
        """Return the first `n` examples (all, if there are fewer)."""
        if n < 1:
            raise DataError(f"the number of examples must be at least 1, not {n}")
        return self.only(range(min(n, self.n_examples)))

    def only(self, rows: Sequence[int], notes: Mapping[str, str] | None = None) -> Table:
        """Return some of the examples, which keep their places, with further notes."""
        return replace(
            self,
            columns={name: _taken(values, rows) for name, values in self.columns.items()},
            read_column=self.read_column or self.columns.__getitem__,
            rows=[self.rows[row] for row in rows] if self.rows is not None else rows,
            notes={**self.notes, **(notes or {})},
        )

    def place(self, example: int) -> str:
        """Return what an example is called in messages: its line in the file, else its number in the source."""
        row = example if self.rows is None else self.rows[example]
        line = self.line(example)
        return by_number(row) if line is None else f"line {line}"

    def line(self, example: int) -> int | None:
        """Return the line in the file that an example begins in, if that is known."""
        row = example if self.rows is None else self.rows[example]
        return self._lines[row] if row < len(self._lines) else None

    @cached_property
    def _lines(self) -> Sequence[int]:
        """Find the lines of the examples; none if they are not known."""
        return self.lines() if self.lines else ()

    def names(self, column: str, wanted: Sequence[str] | None) -> ClassNames:
        """Return what is known of the names of classes in a column; `wanted` are the checkpoint's."""
        read = self.read_column or self.columns.__getitem__
        return ClassNames(wanted, self.own_names.get(column), lambda: read(column))

    def unused(self, used: Iterable[str | None]) -> dict[str, str]:
        """Return the note on columns that are not used, if there are any."""
        left = [column for column in self.columns if column not in set(used)]
        return {"columns_unused": f"columns not used: {printable(', '.join(left), 200)}"} if left else {}

    def prepare(self, preprocessor: Preprocessor, task: str | None, class_names: list[str] | None) -> Data:
        """Return the examples as a checkpoint takes them.

        Args:
            preprocessor: the checkpoint's own.
            task: what the model is for; None reads off the labels whether they are classes or targets.
            class_names: the checkpoint's names of its classes, which labels are matched with.

        Raises:
            DataError: the preprocessor is missing, or an example cannot be used.
            UnsafeFileError: the preprocessor needs code of its own.
        """
        from rdrop_analysis.data.preparing import prepare

        try:
            return prepare(self, preprocessor, task, class_names)
        except DataError as problem:
            raise DataError(f"{self.source}: {problem}") from problem


def _taken(values: Sequence[Any], rows: Sequence[int]) -> Any:
    """Return the values of some rows."""
    return values[list(rows)] if isinstance(values, np.ndarray) else [values[row] for row in rows]


def data_or_table(table: Table) -> Data | Table:
    """Return numbers as `Data`, and raw examples as the table that they are.

    Raises:
        DataError: there are no examples, or the columns hold nothing that is known.
    """
    if not table.columns or not table.n_examples:
        raise DataError("the data set is empty")
    if not any(name in table.columns for name in ARRAYS) and table.layout is not None:
        return table
    try:
        data = data_of_numbers(table)
    except ExampleError as problem:
        raise DataError(problem.at(table.place)) from problem
    return replace(data, place=table.place, notes={**table.notes, **data.notes})


def as_data(given: Data | Table, directory: Path | None, task: str | None, class_names: list[str] | None) -> Data:
    """Return what `load_data` returned as a checkpoint takes it: `Data` with its class numbers, a `Table` prepared.

    Args:
        given: the data or raw examples.
        directory: the checkpoint's, with its tokenizer or image processor; None if it is a lone file.
        task: what the model is for.
        class_names: the checkpoint's names of its classes.

    Raises:
        UsageError: raw examples, and no directory; or transformers is not installed.
        DataError, UnsafeFileError: as for `Table.prepare`.
    """
    if isinstance(given, Data):
        return renumbered(given, class_names) if class_names else given
    if directory is None:
        raise UsageError(
            f"{given.source} holds raw examples, which need the checkpoint's own tokenizer or image processor: "
            "pass the Hugging Face directory as CHECKPOINT, or --data file.py:callable that returns tensors"
        )
    from rdrop_analysis.data.preprocessing import Preprocessor

    return given.prepare(Preprocessor.from_directory(directory), task, class_names)
