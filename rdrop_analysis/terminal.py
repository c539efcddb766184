"""What the terminal shows: progress while it takes long, then verdict, table and where the files are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from rdrop_probes.records import Metric, RunRecord, SiteRecord
from rdrop_reports.definitions import is_share, label, unit_text
from rdrop_reports.numbers import format_parts
from rdrop_reports.verdict import caveats, headline, verdicts

if TYPE_CHECKING:
    from rdrop_analysis.inspection import Contents
    from rdrop_analysis.results import Results

HEADLINE_METRICS = (
    "epkl",
    "kl_sub_to_eval",
    "flip_rate",
    "accuracy_eval",
    "accuracy_sub",
    "accuracy_mean",
    "nll_eval",
    "nll_sub",
    "nll_mean",
    "ece_eval",
    "jacobian_fisher",
    "predicted_epkl",
    "epkl_over_predicted",
)
LABEL_WIDTH = 25
COLUMN_WIDTH = 18
MAX_TENSORS = 40


class _Console(Console):
    """Standard output, whose reader may stop reading."""

    def on_broken_pipe(self) -> None:
        """Leave it to the command line."""
        raise BrokenPipeError


@contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each checkpoint on standard error; nothing where that is not a terminal."""
    with _bars(quiet=quiet) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(escape(name), total=total)
            bars.update(tasks[name], completed=done)

        yield advance


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
        console.print(_metrics_table(record, console.width))
        _show_files(console, directory, formats)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    for failure in record.failures:
        errors.print(f"Error: {escape(failure.checkpoint)} was not measured: {escape(failure.message)}")


def show_sites(sites: Sequence[SiteRecord]) -> None:
    """One row a site."""
    console = _Console(highlight=False, soft_wrap=True)
    if not sites:
        console.print("The model draws nothing: it has no active dropout.")
        return
    table = Table("site", "kind", "rate", "mask for one example", "in eval mode", "mask per example")
    for site in sites:
        rate = "" if site.rate is None else f"{site.rate:g}"
        shape = " x ".join(map(str, site.mask_shape)) or "1"
        eval_mode = "draws" if site.fires_in_eval else "silent"
        table.add_row(escape(site.label), site.kind, rate, shape, eval_mode, "yes" if site.per_example else "no")
    console.print(table)
    console.print(f"{len(sites)} site(s)")


def show_contents(contents: Contents) -> None:
    """What `inspect` found."""
    console = _Console(highlight=False, soft_wrap=True)
    kind = "state dict" if contents.description is None else "self-describing checkpoint"
    console.print(f"{escape(str(contents.path))}: {kind}, sha256 {contents.sha256}")
    for name, value in (contents.description or {}).items():
        console.print(f"  {escape(name)}: {escape(value)}")
    table = Table("tensor", "shape", "dtype")
    for name, tensor in list(contents.tensors.items())[:MAX_TENSORS]:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        table.add_row(escape(name), shape, str(tensor.dtype).removeprefix("torch."))
    console.print(table)
    hidden = len(contents.tensors) - MAX_TENSORS
    more = f", {hidden} of them not shown" if hidden > 0 else ""
    console.print(f"{len(contents.tensors)} tensors{more}, {contents.n_values:,} numbers")


def _bars(*, quiet: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True)


def _show_verdict(console: Console, record: RunRecord) -> None:
    console.print(f"[bold]{escape(headline(record))}[/bold]")
    for verdict in verdicts(record):
        console.print(escape(" ".join(filter(None, (verdict.sentence, verdict.context)))))
    for caveat in caveats(record):
        console.print(escape(caveat), style="dim")
    for warning in record.warnings:
        where = f"{escape(warning.checkpoint)}: " if warning.checkpoint else ""
        console.print(f"[yellow]Warning:[/yellow] {where}{escape(warning.message)}")


def _metrics_table(record: RunRecord, width: int) -> Table:
    """One column a checkpoint, as many as fit with an interval on one line."""
    shown = record.checkpoints[: max(1, (width - LABEL_WIDTH) // COLUMN_WIDTH)]
    columns = (Column(escape(checkpoint.name), overflow="fold", min_width=COLUMN_WIDTH - 2) for checkpoint in shown)
    table = Table(Column("metric", width=LABEL_WIDTH), *columns, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in HEADLINE_METRICS:
        found = [checkpoint.metrics.get(name) for checkpoint in shown]
        unit = next((metric.unit for metric in found if metric is not None), None)
        if unit is not None:
            text = "" if is_share(name) else unit_text(name, unit)
            title = f"{label(name)} ({text})" if text else label(name)
            table.add_row(escape(title), *(_cell(metric, name) for metric in found))
    hidden = len(record.checkpoints) - len(shown)
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
