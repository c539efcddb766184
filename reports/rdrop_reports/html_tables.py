"""Tables of the page as plain cells: the template only lays them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rdrop_probes.records import CheckpointResult, Metric, RunRecord, SitePrediction, SiteRecord
from rdrop_reports.definitions import DEFINITIONS, as_shown, is_share, label, unit_text
from rdrop_reports.numbers import MISSING, format_count, format_number, format_parts, is_number
from rdrop_reports.select import any_measured, in_order, measured, most_telling_with, place_of
from rdrop_reports.text import elide

MOST_OPEN_ROWS = 24
MOST_COLUMNS = 3  # more checkpoints than this become rows
MOST_LISTED = 6  # checkpoints of which every site is listed


@dataclass(frozen=True)
class Cell:
    """Text with a small `note` below it; `metric` links to a definition (of a word, too), `place` is a colour."""

    text: str
    note: str = ""
    metric: str = ""
    place: int | None = None
    sort: float | None = None
    mono: bool = False


@dataclass(frozen=True)
class Table:
    """A caption, a row of heads, and rows whose first cell is their head."""

    caption: str
    head: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]

    @property
    def is_long(self) -> bool:
        """Whether it is better folded where there is much else to read."""
        return len(self.rows) > MOST_OPEN_ROWS


def metric_table(record: RunRecord, metrics: Sequence[str], caption: str) -> Table | None:
    """Estimates with intervals, metrics by checkpoints; the other way round when there are many checkpoints."""
    names = [name for name in metrics if any_measured(record, name)]
    if not names:
        return None
    checkpoints = in_order(record)
    cells = {name: [metric_cell(name, c.metrics.get(name)) for c in checkpoints] for name in names}
    grid = [[metric_head(record, name), *row] for name, row in cells.items()]
    full = [[Cell("Metric"), *(checkpoint_head(record, c) for c in checkpoints)], *grid]
    if len(checkpoints) > MOST_COLUMNS:
        full = [list(row) for row in zip(*full, strict=True)]
        full[0][0] = Cell("Checkpoint")
    return Table(caption, full[0], full[1:])


def scores_table(record: RunRecord, scores: Mapping[str, str], modes: Mapping[str, str]) -> Table | None:
    """Scores with dropout off, on, and of the MC mean side by side: one row a score and checkpoint.

    Args:
        record: the results.
        scores: title by prefix of the metrics' names, such as `nll`.
        modes: title by suffix, such as `eval`.
    """
    rows = [
        [
            Cell(title, metric_head(record, f"{score}_{next(iter(modes))}").note, f"{score}_{next(iter(modes))}"),
            checkpoint_head(record, checkpoint),
            *(metric_cell(f"{score}_{mode}", checkpoint.metrics.get(f"{score}_{mode}")) for mode in modes),
        ]
        for score, title in scores.items()
        for checkpoint in in_order(record)
        if any(measured(checkpoint, f"{score}_{mode}") for mode in modes)
    ]
    return Table("Scores by mode", [Cell(h) for h in ("Score", "Checkpoint", *modes.values())], rows) if rows else None


def sites_table(record: RunRecord) -> Table | None:
    """Every site of every checkpoint: where it is, what it draws, and its predicted share."""
    shown = most_telling_with(record, MOST_LISTED, lambda c: c.sites or c.site_predictions)
    rows = [row for checkpoint in shown for row in _site_rows(record, checkpoint)]
    heads = [
        Cell("Site", metric="word-site"), *map(Cell, ("Checkpoint", "Kind", "Rate", "Mask per example")),
        Cell("Predicted EPKL", metric="word-predicted"), Cell("Share", metric="word-share"),
    ]  # fmt: skip
    return Table(f"All sites{of_some(record, shown, 'sites')}", heads, rows) if rows else None


def checkpoints_table(record: RunRecord) -> Table | None:
    """Where each checkpoint comes from and how it says it was trained."""
    keys = list(dict.fromkeys(key for c in record.checkpoints for key in c.training))
    heads = ["Checkpoint", "Parameters", "Architecture", "Passes", *keys, "Path", "SHA-256"]
    rows = [
        [
            replace(checkpoint_head(record, c), text=c.name),
            Cell(format_count(c.n_parameters), sort=c.n_parameters),
            Cell(c.architecture or MISSING),
            Cell(c.strategy or MISSING),
            *(Cell(scalar_text(c.training.get(key))) for key in keys),
            Cell(c.path or MISSING, mono=True),
            Cell(elide(c.sha256, 17) if c.sha256 else MISSING, mono=True),
        ]
        for c in in_order(record)
    ]
    return Table("Checkpoints", [Cell(h) for h in heads], rows) if rows else None


def other_metrics(record: RunRecord, shown: Sequence[str]) -> list[str]:
    """Metrics that no section of the report shows, in the record's order."""
    names = dict.fromkeys(name for c in record.checkpoints for name in c.metrics)
    return [name for name in names if name not in shown]


def metric_head(record: RunRecord, name: str) -> Cell:
    """Label and unit of a metric, linked to its definition where there is one."""
    units = [c.metrics[name].unit for c in record.checkpoints if name in c.metrics]
    return Cell(label(name), unit_text(name, units[0] if units else ""), name if name in DEFINITIONS else "")


def checkpoint_head(record: RunRecord, checkpoint: CheckpointResult) -> Cell:
    """Name of a checkpoint with its colour."""
    note = "reference" if checkpoint.name == record.reference else ""
    return Cell(elide(checkpoint.name, 32), note, place=place_of(record, checkpoint.name))


def scalar_text(value: object) -> str:
    """A setting as text."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(scalar_text(item) for item in value) or MISSING
    return {"True": "yes", "False": "no"}[str(value)] if isinstance(value, bool) else str(value)


def estimate_cell(metric: Metric | None, *, percent: bool = False) -> Cell:
    """Estimate with its interval below; a dash where there is none."""
    if metric is None or not is_number(metric.estimate):
        return Cell(MISSING)
    parts = format_parts(metric.estimate, metric.low, metric.high, percent=percent)
    return Cell(parts.estimate, parts.interval, sort=metric.estimate)


def metric_cell(name: str, metric: Metric | None) -> Cell:
    """A metric's estimate with its interval, as it is shown."""
    return Cell(MISSING) if metric is None else estimate_cell(as_shown(name, metric), percent=is_share(name))


def of_some(record: RunRecord, shown: Sequence[CheckpointResult], part: str) -> str:
    """What to add to a caption where `part` of more checkpoints was measured than are shown."""
    count = sum(bool(getattr(checkpoint, part)) for checkpoint in record.checkpoints)
    return f", {len(shown)} of {count} checkpoints" if count > len(shown) else ""


def _site_rows(record: RunRecord, checkpoint: CheckpointResult) -> list[list[Cell]]:
    predictions = {p.site: p for p in checkpoint.site_predictions}
    rows = []
    for site in checkpoint.sites:
        found = predictions.pop(site.label, None)
        rate = f"{site.rate:.4g}" if site.rate is not None else MISSING
        shape = " \N{MULTIPLICATION SIGN} ".join(map(str, site.mask_shape)) or "scalar"
        facts = [
            Cell(site.kind, _oddities(site)),
            Cell(rate, sort=site.rate),
            Cell(shape),
        ]
        rows.append([Cell(site.label, mono=True), checkpoint_head(record, checkpoint), *facts, *_predicted(found)])
    for name, found in predictions.items():
        blank = [Cell(MISSING)] * 3
        rows.append([Cell(name, mono=True), checkpoint_head(record, checkpoint), *blank, *_predicted(found)])
    return rows


def _oddities(site: SiteRecord) -> str:
    """What a reader would not expect of the site."""
    missed = "" if site.found_by_patching else "missed by module patching"
    return ", ".join(filter(None, ("draws in eval" if site.fires_in_eval else "", missed)))


def _predicted(found: SitePrediction | None) -> list[Cell]:
    if found is None:
        return [Cell(MISSING), Cell(MISSING)]
    if not is_number(found.predicted):
        return [Cell("not predicted", found.reason or ""), Cell(MISSING)]
    parts = format_parts(found.predicted, found.low, found.high)
    share = format_number(found.share, percent=True)
    error = f"sampling error {format_number(found.sampling_error)}" if found.sampling_error else ""
    note = ", ".join(filter(None, (parts.interval, error)))
    return [Cell(parts.estimate, note, sort=found.predicted), Cell(share, sort=found.share)]
