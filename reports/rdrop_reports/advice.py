"""What to do about it, in sentences and tables: average, scale the temperature, or leave eval mode alone."""

from __future__ import annotations

from rdrop_probes.records import CheckpointResult, RunRecord, Temperature
from rdrop_reports.averaging import change, change_text, compared, curve, enough, signed
from rdrop_reports.html_tables import Cell, Table, checkpoint_head, estimate_cell, of_some
from rdrop_reports.numbers import MISSING, format_number, format_p, format_parts, is_number
from rdrop_reports.select import in_order, most_telling_with, short_unit
from rdrop_reports.text import called

MOST_CHECKPOINTS = 6
_SCORES = {"nll": "NLL", "mse": "MSE", "accuracy": "Accuracy", "brier": "Brier score", "ece": "ECE"}
_SHARES = ("accuracy", "ece")
_UNITS = {"mse": "target²"}


def advice(record: RunRecord) -> list[str]:
    """What the numbers advise, a sentence or two a checkpoint, for the few most telling ones."""
    shown = most_telling_with(record, 4, lambda c: compared(c) or c.temperature or c.temperature_mean)
    sentences = [f"{called(c.name)}: {' '.join(filter(None, [_averaging(c), *_temperatures(c)]))}" for c in shown]
    left_out = len(record.checkpoints) - len(shown)
    return [*sentences, f"{left_out} more checkpoints are in the tables."] if shown and left_out else sentences


def averaging_summary(record: RunRecord) -> Table | None:
    """One row a checkpoint: what the mean of the most passes changes in each score, and how many are enough."""
    scores = [s for s in _SCORES if any(curve(c, s) for c in record.checkpoints)]
    rows = [
        [checkpoint_head(record, c), *(cell for s in scores for cell in _summary(c, s))]
        for c in in_order(record)
        if compared(c)
    ]
    heads = [
        head for s in scores
        for head in (Cell(f"{_SCORES[s]}, less eval", _unit(record, s)), Cell("Enough", "passes", "word-enough"))
    ]  # fmt: skip
    return (
        Table("MC mean of the most passes, less the eval model", [Cell("Checkpoint"), *heads], rows) if rows else None
    )


def averaging_table(record: RunRecord) -> Table | None:
    """The whole curves: every score by number of passes."""
    shown = most_telling_with(record, MOST_CHECKPOINTS, compared)
    rows = [
        [
            Cell(str(p.passes), sort=p.passes), checkpoint_head(record, c), Cell(_SCORES.get(p.metric, p.metric)),
            estimate_cell(p.value, percent=p.metric in _SHARES), _difference(c, score, p.passes),
            Cell(format_p(p.p_value).removeprefix("p ").removeprefix("= "), sort=p.p_value),
        ]
        for c in shown
        for score in _SCORES
        for p in curve(c, score)
    ]  # fmt: skip
    heads = [Cell("Passes", metric="word-passes"), *map(Cell, ("Checkpoint", "Score", "MC mean", "Less eval", "p"))]
    return Table(f"Scores by number of passes{of_some(record, shown, 'averaging')}", heads, rows) if rows else None


def temperature_table(record: RunRecord) -> Table | None:
    """The best temperature of each checkpoint's eval model and MC mean, and what it changes."""
    rows = [
        [checkpoint_head(record, c), Cell(whose), *_scaled(found)]
        for c in in_order(record)
        for whose, found in (("eval model", c.temperature), ("MC mean", c.temperature_mean))
        if found
    ]
    heads = [
        Cell("Checkpoint"), Cell("Of"), Cell("Temperature", metric="word-temperature"),
        Cell("NLL before", short_unit(record)), Cell("NLL after", short_unit(record)), Cell("Change"), Cell("p"),
        Cell("ECE before"), Cell("ECE after"),
    ]  # fmt: skip
    return Table("Would a temperature help the eval model, or the MC mean?", heads, rows) if rows else None


def _averaging(checkpoint: CheckpointResult) -> str:
    found = compared(checkpoint)
    if found is None:
        return ""
    text = f"the mean of {found.passes} passes {change_text(found)}"
    passes = enough(checkpoint, found.metric)
    outcome = change(found)
    if outcome == "better":
        until = f"; {passes} passes are enough" if passes and passes < found.passes else ""
        return f"Average with dropout on: {text}{until}."
    if outcome == "worse":
        return f"Keep dropout off: {text}."
    return f"Keep dropout off, which is cheaper: {text}."


def _temperatures(checkpoint: CheckpointResult) -> list[str]:
    return [
        _temperature(checkpoint.temperature, "the logits", "the eval model's NLL"),
        _temperature(checkpoint.temperature_mean, "the logarithms of the MC mean", "its NLL"),
    ]


def _temperature(found: Temperature | None, scores: str, name: str) -> str:
    if found is None or not is_number(found.nll_difference.estimate):
        return ""
    low, high = found.nll_difference.low, found.nll_difference.high
    clear = is_number(low) and is_number(high) and not low <= 0 <= high
    text = signed(found.nll_difference, format_parts, name, shown_clearly=clear)
    scale = f"by {format_parts(found.temperature, found.low, found.high)}, fitted on other examples,"
    return f"Dividing {scores} {scale} {text}."


def _summary(checkpoint: CheckpointResult, score: str) -> list[Cell]:
    last = compared(checkpoint, score)
    passes = enough(checkpoint, score)
    number = Cell(str(passes), sort=passes) if passes else Cell(MISSING)
    return [_difference(checkpoint, score, last.passes) if last else Cell(MISSING), number]


def _difference(checkpoint: CheckpointResult, score: str, passes: int) -> Cell:
    point = next((p for p in curve(checkpoint, score) if p.passes == passes), None)
    if point is None or point.difference is None:
        return Cell(MISSING)
    scale = 100.0 if score in _SHARES else 1.0
    values = (point.difference.estimate, point.difference.low, point.difference.high)
    parts = format_parts(*(None if value is None else scale * value for value in values))
    return Cell(parts.estimate, parts.interval, sort=point.difference.estimate)


def _unit(record: RunRecord, score: str) -> str:
    if score in _SHARES:
        return "percentage points"
    return short_unit(record) if score == "nll" else _UNITS.get(score, "")


def _scaled(found: Temperature) -> list[Cell]:
    scale = format_parts(found.temperature, found.low, found.high)
    return [
        Cell(scale.estimate, scale.interval, sort=found.temperature),
        estimate_cell(found.nll_before), estimate_cell(found.nll_after), estimate_cell(found.nll_difference),
        Cell(format_p(found.p_value).removeprefix("p ").removeprefix("= "), sort=found.p_value),
        *(Cell(format_number(ece, percent=True), sort=ece) for ece in (found.ece_before, found.ece_after)),
    ]  # fmt: skip
