"""Results in a notebook: the headline, the verdicts and a small table with the metrics' labels."""

from __future__ import annotations

from html import escape

from rdrop_probes.records import RunRecord
from rdrop_reports.html_tables import Cell, Table, metric_table
from rdrop_reports.markdown import note_of
from rdrop_reports.verdict import headline, most_telling_first, verdicts

METRICS = (
    "epkl", "kl_sub_to_eval", "flip_rate", "accuracy_eval", "mse_eval", "nll_eval", "ece_eval", "predicted_epkl",
    "epkl_over_predicted", "fisher_trace", "effective_dimension",
)  # fmt: skip
MOST_VERDICTS = 4


def notebook_html(record: RunRecord) -> str:
    """An HTML fragment, for a record in the unit to be shown."""
    found = most_telling_first(record, verdicts(record))
    said = [f"<p>{escape(verdict.text)}</p>" for verdict in found[:MOST_VERDICTS]]
    more = [f"<p>{len(found) - MOST_VERDICTS} more in the report.</p>"] if len(found) > MOST_VERDICTS else []
    table = metric_table(record, METRICS, "")
    return "\n".join(
        [f"<p><b>{escape(headline(record))}</b></p>", *said, *more, *([] if table is None else [_html(table)])]
    )


def _html(table: Table) -> str:
    """A plain table; a note stands behind its text."""
    rows = [
        "".join(["<tr>", _cell(row[0], "th"), *(_cell(cell, "td") for cell in row[1:]), "</tr>"]) for row in table.rows
    ]
    head = "".join(_cell(cell, "th") for cell in table.head)
    return "\n".join([f"<table><thead><tr>{head}</tr></thead><tbody>", *rows, "</tbody></table>"])


def _cell(cell: Cell, tag: str) -> str:
    return f"<{tag}>{escape(' '.join(filter(None, (cell.text, note_of(cell)))))}</{tag}>"
