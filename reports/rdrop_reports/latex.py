"""The report's tables as LaTeX (booktabs), ready to paste into a paper."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rdrop_probes.records import RunRecord
from rdrop_reports.html_tables import Cell, Table
from rdrop_reports.markdown import LONGEST_CELL, LONGEST_TEXT, arrow_of, is_numeric, note_of
from rdrop_reports.sections import sections
from rdrop_reports.text import elide
from rdrop_reports.verdict import caveats, headline, verdicts

PREAMBLE = "% Made by rdrop-analyze. Needs \\usepackage{booktabs}. Intervals, in brackets, are over examples.\n"
_ARROWS = {"↓": r"$\downarrow$", "↑": r"$\uparrow$", "": ""}
_POWER = re.compile(r"(\d)e(-?\d+)")
_CHARACTERS = str.maketrans(
    {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
        "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
        "|": r"\textbar{}", "`": "{`}", '"': "''",
        "\N{MINUS SIGN}": "$-$", "\N{EN DASH}": r"\textendash{}", "\N{MULTIPLICATION SIGN}": r"$\times$",
        "\N{DOUBLE VERTICAL LINE}": r"$\|$", "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}", "\u202f": r"\,",
        "\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$", "δ": r"$\delta$", "ε": r"$\varepsilon$", "λ": r"$\lambda$",
        "\N{GREEK SMALL LETTER SIGMA}": r"$\sigma$", "≤": r"$\leq$", "≥": r"$\geq$",
        "≈": r"$\approx$", "→": r"$\to$", "√": r"$\surd$",
    }
)  # fmt: skip


def latex_tables(record: RunRecord) -> str:
    """The verdict and every table of the report, for a record in the unit to be shown."""
    said = [rf"\textbf{{{escape(headline(record))}}}", *(escape(v.text, LONGEST_TEXT) for v in verdicts(record))]
    said += [rf"\emph{{{escape(caveat)}}}" for caveat in caveats(record)]
    tables = [table for section in sections(record).values() for table in (*section.tables, *section.folded)]
    return "\n".join(
        [
            PREAMBLE,
            *(f"{text}\n" for text in said),
            *(latex_table(table, f"tab:rdrop-{n}") for n, table in enumerate(tables, 1)),
        ]
    )


def latex_table(table: Table, label: str) -> str:
    """One table with its caption; columns of numbers are set right."""
    columns = ["r" if all(is_numeric(row[place]) for row in table.rows) else "l" for place in range(len(table.head))]
    body = [_row([_head(row[0]), *(_body(cell) for cell in row[1:])]) for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(table.caption)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{{''.join(columns)}}}",
            r"\toprule",
            _row([_head(cell) for cell in table.head]),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape(text: str, longest: int = LONGEST_CELL) -> str:
    r"""Text that is set as it is, on one line; what pdfLaTeX has no letter for is left to LuaLaTeX or XeLaTeX."""
    escaped = elide(text, longest).translate(_CHARACTERS) if text else ""
    return re.sub("-(?=-)", "-{}", escaped)  # no ligature


def _row(cells: Sequence[str]) -> str:
    """A row; one that began with [ or * would be an argument of the end of the row before."""
    return ("{}" if cells[0].startswith(("[", "*")) else "") + " & ".join(cells) + r" \\"


def _head(cell: Cell) -> str:
    return " ".join(filter(None, (escape(cell.text), escape(note_of(cell)), _ARROWS[arrow_of(cell)])))


def _body(cell: Cell) -> str:
    parts = [_number(part) if is_numeric(cell) else escape(part) for part in (cell.text, note_of(cell))]
    return " ".join(filter(None, parts))


def _number(text: str) -> str:
    """Numbers, with powers of ten written as such."""
    return _POWER.sub(r"\1$\\times 10^{\2}$", escape(text))
