"""The report's tables as Markdown (GitHub's pipe tables), ready to paste into an issue or a README."""

from __future__ import annotations

import re
from types import MappingProxyType

from rdrop_probes.records import GateResult, RunRecord
from rdrop_reports.definitions import DEFINITIONS
from rdrop_reports.html_tables import Cell, Table
from rdrop_reports.sections import sections
from rdrop_reports.text import elide
from rdrop_reports.verdict import caveats, headline, verdicts

LONGEST_CELL = 400
LONGEST_TEXT = 2000
ARROWS = MappingProxyType({"lower": "↓", "higher": "↑"})
_SPECIAL = re.compile(r"[\\`*_|~$]|\](?=[(\[:])|^[#+-]")  # links hold ](, blocks begin a line
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"})


def markdown_tables(record: RunRecord) -> str:
    """Verdict, gates and every table of the report, for a record in the unit to be shown."""
    parts = [f"**{escape(headline(record))}**", *(escape(verdict.text, LONGEST_TEXT) for verdict in verdicts(record))]
    parts += [f"_{escape(caveat)}_" for caveat in caveats(record)]
    if record.gates:
        parts.append("\n".join(_gate(gate) for gate in record.gates))
    for section in sections(record).values():
        if tables := [*section.tables, *section.folded]:
            parts += [f"## {escape(section.title)}", *(markdown_table(table) for table in tables)]
    return "\n\n".join(parts) + "\n"


def _gate(gate: GateResult) -> str:
    word = "**failed**" if gate.failed else "passed"
    return f"- gate {word}: {escape(gate.expression)}, {escape(gate.message)}"


def markdown_table(table: Table) -> str:
    """One table with its caption above."""
    numeric = [all(is_numeric(row[place]) for row in table.rows) for place in range(len(table.head))]
    rule = ["---:" if right else "---" for right in numeric]
    rows = [[_head(cell) for cell in table.head], rule, *([_head(row[0]), *map(_body, row[1:])] for row in table.rows)]
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([f"**{escape(table.caption)}**", "", *lines])


def escape(text: str, longest: int = LONGEST_CELL) -> str:
    """Text that shows as it is: on one line, and no mark-up, HTML or mention of anybody."""
    safe = _SPECIAL.sub(r"\\\g<0>", elide(text, longest).translate(_HTML)) if text else ""
    return re.sub(r"^(\d+)([.)] )", r"\1\\\2", safe)  # no item of a list


def is_numeric(cell: Cell) -> bool:
    """Whether a cell holds a number or stands for a missing one."""
    return cell.sort is not None or cell.text == "\N{EN DASH}"


def arrow_of(cell: Cell) -> str:
    """Which way is better, for the head of a metric."""
    return ARROWS.get(DEFINITIONS[cell.metric].direction, "") if cell.metric in DEFINITIONS else ""


def note_of(cell: Cell) -> str:
    """What stands behind the text: an interval as it is, anything else in parentheses."""
    return cell.note if not cell.note or cell.note.startswith("[") else f"({cell.note})"


def _head(cell: Cell) -> str:
    return " ".join(filter(None, (_name(cell), escape(note_of(cell)), arrow_of(cell))))


def _body(cell: Cell) -> str:
    return " ".join(filter(None, (_name(cell), escape(note_of(cell)))))


def _name(cell: Cell) -> str:
    """Names that come from outside as code where that can hold them, everything else as text."""
    is_name = cell.place is not None or cell.mono
    return f"`{elide(cell.text, LONGEST_CELL)}`" if is_name and not set(cell.text) & set("`|") else escape(cell.text)
