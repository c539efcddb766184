"""The results of an analysis as users hold them: DataFrames to compute with, files to keep, a report to show."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, get_args

from rdrop_analysis.errors import DataError, UsageError
from rdrop_analysis.files import PICTURES, check_formats, check_writable, counted, printable, write_whole
from rdrop_analysis.journal import Spent
from rdrop_probes.records import RunRecord, Unit, in_unit, read_record, to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

RESULTS = "results.json"
PER_EXAMPLE = "per_example"
TABLES = ("summary.csv", "summary.parquet", f"{PER_EXAMPLE}.csv", f"{PER_EXAMPLE}.parquet", "tables.tex", "tables.md")
MOST_NAMES = 4  # in a repr
Style = Literal["screen", "paper"]
DEFAULT_FORMATS = ("html", "png", "json", "csv")


@dataclass(frozen=True, repr=False)
class Results:
    """What an analysis found.

    Attributes:
        record: everything, as plain data; divergences in nats.
        per_example: one row a checkpoint and example: `checkpoint`, `example`, `label`, `prediction` and one
            column a metric, divergences in nats whatever the unit shown; None if the results were read from a file
            without it. Files have it in the unit shown, which their column `divergence_unit` names.
        journals: the finished work items of this run, which are of no more use once it is saved.
    """

    record: RunRecord
    per_example: pd.DataFrame | None
    journals: Spent | None = None

    @property
    def unit(self) -> Unit:
        """Unit that divergences are shown in: the run's own choice."""
        return "bits" if self.record.config.get("unit") == "bits" else "nats"

    @property
    def shown(self) -> RunRecord:
        """The record in the unit to be shown."""
        return in_unit(self.record, self.unit)

    @property
    def summary(self) -> pd.DataFrame:
        """One row a checkpoint and metric: estimate, interval, unit, number of examples."""
        from rdrop_reports.tables import summary_frame

        return summary_frame(self.shown)

    @property
    def comparisons(self) -> pd.DataFrame:
        """One row a candidate and metric: difference to the reference, interval, ratio, p-values."""
        from rdrop_reports.tables import comparisons_frame

        return comparisons_frame(self.shown)

    @property
    def groups(self) -> pd.DataFrame:
        """One row a group of training seeds and metric: mean over seeds, interval for new training runs."""
        from rdrop_reports.group_frames import groups_frame

        return groups_frame(self.shown)

    @property
    def group_comparisons(self) -> pd.DataFrame:
        """One row a group and metric: difference to the reference group, interval, effect size, p-values."""
        from rdrop_reports.group_frames import group_comparisons_frame

        return group_comparisons_frame(self.shown)

    def save(
        self,
        directory: str | Path,
        formats: str | Sequence[str] = DEFAULT_FORMATS,
        *,
        clear: bool = False,
        style: Style = "screen",
    ) -> Path:
        """Write report.html, figures/, results.json, summary.csv and per_example.csv; returns the directory.

        Files appear whole or not at all, and `results.json` first, so that the numbers are safe before the
        figures are drawn. With `clear`, the files that an earlier run left under these names are removed before.
        The work items that `analyze(resume=...)` kept are removed at the end, unless a checkpoint failed.

        Args:
            directory: where to write, made if need be.
            formats: `html`, `json`, `csv` and `parquet` (both tables), `latex` and `markdown` (tables ready to paste),
                and `png`, `svg` and `pdf` for figures.
            clear: remove what an earlier run wrote.
            style: of the figures: "screen", or "paper" for a column of a paper.

        Raises:
            UsageError: an unknown format or style, or one that needs a package that is not installed.
            DataError: the directory cannot be written.
        """
        formats = formats.split(",") if isinstance(formats, str) else formats
        check_formats(formats)
        if style not in get_args(Style):
            raise UsageError(f"unknown style {style!r}: choose from {', '.join(get_args(Style))}")
        directory = Path(directory)
        check_writable(directory)
        if clear:
            _clear(directory)
        if "json" in formats:
            write_whole(directory / RESULTS, to_json(self.record), DataError)
        for name, content in self._tables(formats):
            write_whole(directory / name, content, DataError)
        if pictures := [name for name in PICTURES if name in formats]:
            _write_figures(self.shown, self.per_example, directory / "figures", pictures, style)
        if "html" in formats:
            self.report(directory / "report.html")
        if self.journals is not None:
            self.journals.discard()
        return directory

    def _tables(self, formats: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Names and contents of the files with tables."""
        from rdrop_reports.per_example import for_files

        rows = None if self.per_example is None else for_files(self.shown, self.per_example)
        frames = {"summary": self.summary, PER_EXAMPLE: rows}
        for name, frame in frames.items():
            if "csv" in formats and frame is not None:
                yield f"{name}.csv", frame.to_csv(index=False).encode()
            if "parquet" in formats and frame is not None:
                yield f"{name}.parquet", frame.to_parquet(None, engine="pyarrow", index=False)
        if "latex" in formats:
            from rdrop_reports.latex import latex_tables

            yield "tables.tex", latex_tables(self.shown).encode()
        if "markdown" in formats:
            from rdrop_reports.markdown import markdown_tables

            yield "tables.md", markdown_tables(self.shown).encode()

    def report(self, path: str | Path) -> Path:
        """Write the HTML report alone."""
        path = Path(path)
        write_whole(path, self.page().encode(), DataError)
        return path

    def page(self) -> str:
        """The report as one HTML page."""
        from rdrop_reports.page import render_page

        return render_page(self.shown, self.per_example)

    def _repr_html_(self) -> str:
        """What notebooks show: headline, verdicts, and a table of some metrics."""
        from rdrop_reports.notebook import notebook_html

        return notebook_html(self.shown)

    def __repr__(self) -> str:
        from rdrop_reports.verdict import headline

        names = [printable(checkpoint.name, 40) for checkpoint in self.record.checkpoints]
        more = ", ..." if len(names) > MOST_NAMES else ""
        metrics = {name for checkpoint in self.record.checkpoints for name in checkpoint.metrics}
        of = f"{counted(len(names), 'checkpoint')} ({', '.join(names[:MOST_NAMES])}{more})"
        return f"<Results of {of}, {counted(len(metrics), 'metric')}: {headline(self.shown)}>"


def _write_figures(
    record: RunRecord, per_example: pd.DataFrame | None, directory: Path, formats: Sequence[str], style: Style
) -> None:
    """Draw into a folder beside, then move each figure into `directory`.

    Raises:
        DataError: it cannot be written.
    """
    from rdrop_reports.figures import save_figures
    from rdrop_reports.figures.style import LIGHT, PAPER

    theme = PAPER if style == "paper" else LIGHT
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=directory.parent, prefix=".rdrop-") as scratch:
            for drawn in save_figures(record, per_example, Path(scratch), tuple(formats), theme):
                drawn.replace(directory / drawn.name)
    except OSError as problem:
        raise DataError(f"cannot write figures to {directory}: {problem.strerror}") from problem


def _clear(directory: Path) -> None:
    """Remove what an earlier run wrote, and nothing else."""
    from rdrop_reports.figures import FIGURES

    figures = [directory / "figures" / f"{name}.{suffix}" for name in FIGURES for suffix in PICTURES]
    try:
        for path in (*figures, *(directory / name for name in (RESULTS, *TABLES, "report.html"))):
            path.unlink(missing_ok=True)
    except OSError as problem:
        raise DataError(f"cannot write to {directory}: {problem.strerror}; name another with --output") from problem


def load_results(path: str | Path) -> Results:
    """Read results back from a `results.json` or its directory, with the per-example table if it is there.

    Raises:
        DataError: the files cannot be read or are not results.
    """
    path = Path(path)
    path = path / RESULTS if path.is_dir() else path
    try:
        record = read_record(path)
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else str(problem).splitlines()[0]
        raise DataError(f"{path} cannot be read as results: {reason}") from problem
    return Results(record, _per_example_beside(path, record))


def _per_example_beside(path: Path, record: RunRecord) -> pd.DataFrame | None:
    """The per-example table beside a `results.json`, in nats; None if there is none.

    Raises:
        DataError: it cannot be read.
    """
    import pandas as pd

    from rdrop_reports.per_example import from_files

    tables = [path.with_name(f"{PER_EXAMPLE}{suffix}") for suffix in (".csv", ".parquet")]
    table = next((table for table in tables if table.exists()), None)
    if table is None:
        return None
    if table.suffix == ".parquet":
        check_formats(["parquet"])
    try:
        per_example = pd.read_csv(table) if table.suffix == ".csv" else pd.read_parquet(table, engine="pyarrow")
        if "label" in per_example:
            per_example["label"] = pd.to_numeric(per_example["label"]).convert_dtypes()
        return from_files(record, per_example)
    except (OSError, ValueError, TypeError) as problem:
        raise DataError(f"{table} cannot be read: {printable(problem, 200)}") from problem
