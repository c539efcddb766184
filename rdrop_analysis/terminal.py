"""What the terminal shows: progress while it takes long, then verdict, table and where the files are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from rdrop_analysis.files import printable, visible
from rdrop_probes.records import CheckpointResult, Finding, GroupResult, Metric, RunRecord
from rdrop_reports.definitions import is_share, label, unit_text
from rdrop_reports.numbers import format_parts
from rdrop_reports.verdict import caveats, headline, verdicts

if TYPE_CHECKING:
    from rdrop_analysis.audit import Audit, Row
    from rdrop_analysis.inspection import Contents
    from rdrop_analysis.results import Results

HEADLINE_METRICS = (
    "epkl",
    "kl_sub_to_eval",
    "flip_rate",
    "accuracy_eval",
    "accuracy_sub",
    "accuracy_mean",
    "pairwise_mse",
    "mse_eval",
    "mse_sub",
    "mse_mean",
    "nll_eval",
    "nll_sub",
    "nll_mean",
    "ece_eval",
    "jacobian_fisher",
    "predicted_epkl",
    "epkl_over_predicted",
    "fisher_trace",
    "effective_dimension",
)
NOTES = frozenset({"freedom_examples", "sampled_freedom", "sampled_classes", "sampled_jacobian", "sampled_predictions"})
"""Findings that say how it was measured, not what is wrong."""
MOST_ALIKE = 2  # findings with one code that are shown
LABEL_WIDTH = 25
COLUMN_WIDTH = 18
MAX_TENSORS = 40
SECONDS_BETWEEN_LINES = 60.0
WIDTH_OF_FILES = 160  # for tables that are piped or kept, where nothing has to fit on a screen
LONGEST_PATH = 200


class _Console(Console):
    """Standard output, whose reader may stop reading."""

    def on_broken_pipe(self) -> None:
        """Leave it to the command line."""
        raise BrokenPipeError

    def render_str(self, text: str, **options: Any) -> Text:
        """Render text of which parts may come from a file: no control character of theirs reaches the terminal."""
        return super().render_str(visible(text), **options)


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each checkpoint on standard error; where that is not a terminal, a line a minute."""
    if not quiet and not Console(stderr=True).is_terminal:
        yield _a_line_a_minute()
        return
    with _bars(quiet=quiet) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(escape(printable(name)), total=total)
            bars.update(tasks[name], completed=done)

        yield advance


def _a_line_a_minute() -> Callable[[str, int, int], None]:
    """Progress for logs: nothing of runs that take less."""
    said = time.monotonic()

    def advance(name: str, done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            click.echo(f"{printable(name)}: {done} of {total} done", err=True)

    return advance


@contextmanager
def training_bar(title: str, epochs: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """One bar over epochs."""
    with _bars(quiet=quiet) as bars:
        task = bars.add_task(f"training {title}", total=epochs)
        yield lambda done: bars.update(task, completed=done)


def show(results: Results, directory: Path, formats: Sequence[str], *, quiet: bool) -> None:
    """Verdict, warnings, table and paths; failures go to standard error even when quiet."""
    record = results.shown
    console = _Console(highlight=False, soft_wrap=True)
    if not quiet:
        _show_verdict(console, record)
        if (table := _metrics_table(record, console.width)).rows:
            console.print(table)
        _show_files(console, directory, formats)
    errors = _Console(stderr=True, highlight=False, soft_wrap=True)
    for failure in record.failures:
        errors.print(f"Error: {escape(failure.checkpoint)} was not measured: {escape(failure.message)}")


def show_sites(audit: Audit, *, every: bool = False) -> None:
    """One row a group of repeated layers, or with `every` one a site; then what they amount to."""
    from rdrop_analysis.audit import rows

    console = _Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH_OF_FILES)
    if audit.sites:
        heads: tuple[str, ...] = ("n", "kind", "rate", "mask", "in eval", "patching", "shared")
        heads = heads[:-1] if all(site.per_example for site in audit.sites) else heads
        table = Table(Column("site", overflow="fold"), *heads, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for row in rows(audit.sites, every=every):
            table.add_row(escape(printable(row.label, LONGEST_PATH)), *_site_cells(row)[: len(heads)])
        console.print(table, soft_wrap=False)
    for sentence in audit.sentences():
        console.print(escape(sentence))


def _site_cells(row: Row) -> tuple[str, ...]:
    """Number of sites, kind, rate, mask, eval mode, module patching, whether a batch shares the mask."""
    site = row.sites[0]
    in_eval = "[yellow]draws[/yellow]" if site.fires_in_eval else "silent"
    patching = "reaches" if site.found_by_patching else "[red]misses[/red]"
    shared = "" if site.per_example else "by batch"
    return str(len(row.sites)), escape(site.kind), row.rate, row.mask, in_eval, patching, shared


def show_contents(contents: Contents) -> None:
    """What `inspect` found."""
    console = _Console(highlight=False, soft_wrap=True)
    console.print(f"{escape(str(contents.path))}: {escape(contents.kind)}, sha256 {contents.sha256}")
    for name, value in (contents.description or {}).items():
        console.print(f"  {escape(printable(name))}: {escape(printable(value, LONGEST_PATH))}")
    _show_code(console, contents.code)
    if not contents.tensors:
        return
    table = Table("tensor", "shape", "dtype")
    for name, tensor in list(contents.tensors.items())[:MAX_TENSORS]:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        table.add_row(escape(printable(name, LONGEST_PATH)), shape, str(tensor.dtype).removeprefix("torch."))
    console.print(table)
    hidden = len(contents.tensors) - MAX_TENSORS
    more = f", {hidden} of them not shown" if hidden > 0 else ""
    console.print(f"{len(contents.tensors)} tensors{more}, {contents.n_values:,} numbers")


def _show_code(console: Console, names: Sequence[str]) -> None:
    """What a checkpoint would run, and `inspect` does not."""
    for name in names[:MAX_TENSORS]:
        console.print(f"  code, not run: {escape(printable(name, LONGEST_PATH))}")
    if len(names) > MAX_TENSORS:
        console.print(f"  and {len(names) - MAX_TENSORS} more")


def _bars(*, quiet: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True)


def _show_verdict(console: Console, record: RunRecord) -> None:
    console.print(f"[bold]{escape(headline(record))}[/bold]")
    for verdict in verdicts(record):
        console.print(escape(verdict.text))
    for caveat in caveats(record):
        console.print(escape(caveat), style="dim")
    for alike in _by_code(record.warnings):
        for warning in alike[:MOST_ALIKE]:
            where = f"{escape(warning.checkpoint)}: " if warning.checkpoint else ""
            word = "Note:" if warning.code in NOTES else "[yellow]Warning:[/yellow]"
            console.print(f"{word} {where}{escape(warning.message)}")
        if more := len(alike[MOST_ALIKE:]):
            console.print(f"      {more} more like it, of other checkpoints, in the report", style="dim")


def _by_code(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings with one code together, in the order of the first of each."""
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.code, []).append(finding)
    return list(found.values())


def _metrics_table(record: RunRecord, width: int) -> Table:
    """One column a group of training seeds and a checkpoint that is in none, as many as fit with their intervals."""
    members = {name for group in record.groups for name in group.members}
    alone = [checkpoint for checkpoint in record.checkpoints if checkpoint.name not in members]
    subjects: Sequence[GroupResult | CheckpointResult] = [*record.groups, *alone]
    shown = subjects[: max(1, (width - LABEL_WIDTH) // COLUMN_WIDTH)]
    columns = (Column(escape(subject.name), overflow="fold", min_width=COLUMN_WIDTH - 2) for subject in shown)
    table = Table(Column("metric", width=LABEL_WIDTH), *columns, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in HEADLINE_METRICS:
        found = [subject.metrics.get(name) for subject in shown]
        unit = next((metric.unit for metric in found if metric is not None), None)
        if unit is not None:
            text = "" if is_share(name) else unit_text(name, unit)
            title = f"{label(name)} ({text})" if text else label(name)
            table.add_row(escape(title), *(_cell(metric, name) for metric in found))
    hidden = len(subjects) - len(shown)
    table.caption = f"{hidden} more in summary.csv" if hidden else None
    return table


def _cell(metric: Metric | None, name: str) -> str:
    """Estimate, and its interval on a line below."""
    if metric is None:
        return ""
    return escape("\n".join(format_parts(metric.estimate, metric.low, metric.high, percent=is_share(name))).strip())


def _show_files(console: Console, directory: Path, formats: Sequence[str]) -> None:
    if "html" in formats:
        console.print(f"report: {escape(str(directory / 'report.html'))}")
    others = [name for name in formats if name != "html"]
    if others:
        console.print(f"also in {escape(str(directory))}: {', '.join(others)}")
