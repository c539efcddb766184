"""Tables of the theory check and of numerical noise: over dropout rates, over checkpoints, between eval passes."""

from __future__ import annotations

from rdrop_probes.records import CheckpointResult, NoiseFloor, RunRecord
from rdrop_reports.definitions import DEFINITIONS, label
from rdrop_reports.html_tables import Cell, Table, checkpoint_head, estimate_cell, of_some
from rdrop_reports.numbers import MISSING, format_number, format_p, is_number
from rdrop_reports.select import most_telling_with, short_unit

MOST_CHECKPOINTS = 6


def sweep_table(record: RunRecord) -> Table | None:
    """EPKL measured and predicted at each dropout rate."""
    shown = most_telling_with(record, MOST_CHECKPOINTS, lambda c: c.sweep)
    rows = [
        [
            Cell(f"{point.rate:g}", sort=point.rate), checkpoint_head(record, checkpoint),
            estimate_cell(point.epkl), estimate_cell(point.predicted), estimate_cell(point.ratio),
        ]
        for checkpoint in shown
        for point in checkpoint.sweep
    ]  # fmt: skip
    heads = [
        Cell("Dropout rate", metric="word-rate"), Cell("Checkpoint"), Cell("EPKL", short_unit(record)),
        Cell("Predicted", short_unit(record), "word-predicted"), Cell("Measured / predicted"),
    ]  # fmt: skip
    return Table(f"EPKL by dropout rate{of_some(record, shown, 'sweep')}", heads, rows) if rows else None


def rankings_table(record: RunRecord) -> Table | None:
    """How each metric ranks the checkpoints against how EPKL ranks them."""
    rows = [
        [
            Cell(label(r.metric), metric=r.metric if r.metric in DEFINITIONS else ""),
            Cell(format_number(r.correlation), sort=r.correlation),
            Cell(format_p(r.p_value).removeprefix("p ").removeprefix("= "), sort=r.p_value),
            Cell(str(r.n), sort=r.n),
        ]
        for r in record.rankings
    ]
    heads = [Cell("Metric"), Cell("Rank correlation", "with EPKL", "word-rank"), Cell("p"), Cell("Checkpoints")]
    return Table("Does it rank the checkpoints as EPKL does?", heads, rows) if rows else None


def noise_table(record: RunRecord) -> Table | None:
    """Divergence of eval passes that should agree, and the EPKL as a multiple of it."""
    shown = most_telling_with(record, MOST_CHECKPOINTS, lambda c: c.noise_floor)
    rows = [_noise_row(record, checkpoint, row) for checkpoint in shown for row in checkpoint.noise_floor]
    heads = [
        Cell("Eval passes compared"), Cell("Checkpoint"), Cell("KL", short_unit(record), "word-noise"),
        Cell("EPKL over it"), Cell("Flip rate"),
    ]  # fmt: skip
    return Table(f"Numerical noise{of_some(record, shown, 'noise_floor')}", heads, rows) if rows else None


def _noise_row(record: RunRecord, checkpoint: CheckpointResult, row: NoiseFloor) -> list[Cell]:
    known = row.divergence is not None and is_number(row.divergence.estimate)
    return [
        Cell(row.name), checkpoint_head(record, checkpoint),
        estimate_cell(row.divergence) if known else Cell("not measured", row.reason or ""),
        Cell(f"{format_number(row.ratio)}\N{MULTIPLICATION SIGN}" if is_number(row.ratio) else MISSING, sort=row.ratio),
        Cell(format_number(row.flip_rate, percent=True), sort=row.flip_rate),
    ]  # fmt: skip
