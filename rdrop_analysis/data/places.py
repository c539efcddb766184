"""Say which example an error is about: by its line in the file where that is known, else by its number."""

from __future__ import annotations

from collections.abc import Callable

from rdrop_analysis.errors import DataError

Place = Callable[[int], str]
"""From the number of an example to what it is called in messages."""


def by_number(example: int) -> str:
    """Return what an example is called where nothing but its number is known."""
    return f"example {example}"


class ExampleError(DataError):
    """An example that cannot be used; the message is `before`, the place of the example, `after`."""

    def __init__(self, before: str, example: int, after: str = "") -> None:
        """Write the message with the example's number."""
        self.parts = before, example, after
        super().__init__(self.at(by_number))

    def at(self, place: Place) -> str:
        """Return the message with the place that the example has in its file."""
        before, example, after = self.parts
        return f"{before} {place(example)} {after}".strip()
