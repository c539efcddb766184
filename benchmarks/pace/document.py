"""What is found, as Markdown: said at once, kept for the file that a run may write at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass
class Document:
    """Lines of Markdown, printed as they come."""

    lines: list[str] = field(default_factory=list)

    def say(self, *lines: str) -> None:
        """A paragraph, or one line of it."""
        self.lines += lines
        print(*lines, sep="\n", flush=True)

    def section(self, title: str, *lines: str) -> None:
        """A heading and what is said below it."""
        self.say(f"## {title}", "", *lines, "")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table with its first column to the left and numbers to the right."""
        self.say(f"| {' | '.join(head)} |", "|" + "|".join(["---", *["--:"] * (len(head) - 1)]) + "|")
        for row in rows:
            self.say(f"| {' | '.join(map(str, row))} |")
        self.say("")

    def sentences(self, sentences: Iterable[str]) -> None:
        """What follows from a table, one sentence a line."""
        self.say(*(f"- {sentence}" for sentence in sentences), "")


def seconds(value: float) -> str:
    """Seconds with three digits, in milliseconds where they are few."""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def megabytes(count: float) -> str:
    """Bytes in MiB."""
    return f"{count / 2**20:.0f} MiB"


def times(ratio: float) -> str:
    """A ratio with as many digits as say something."""
    return f"{ratio:.0f}x" if ratio >= 20 else f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"
