"""The output directory: every file whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rdrop_analysis.errors import DataError
from rdrop_analysis.safe_io import write_whole
from rdrop_probes.records import to_json

if TYPE_CHECKING:
    from rdrop_analysis.results import Results

PICTURES = ("png", "svg", "pdf")


def check_writable(directory: Path) -> None:
    """Make the directory and see that files can be made in it, before any work is done for it.

    Raises:
        DataError: it cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=directory, prefix=".rdrop-"):
            pass
    except OSError as problem:
        raise DataError(f"cannot write to {directory}: {problem.strerror}; name another with --output") from problem


def write_all(results: Results, directory: Path, formats: Sequence[str]) -> Path:
    """Write the files of these formats into `directory`; numbers first, then what is drawn from them."""
    check_writable(directory)
    if "json" in formats:
        write_whole(directory / "results.json", to_json(results.record), DataError)
    if "csv" in formats:
        write_whole(directory / "summary.csv", results.summary.to_csv(index=False).encode(), DataError)
        if results.per_example is not None:
            write_whole(directory / "per_example.csv", results.per_example.to_csv(index=False).encode(), DataError)
    if pictures := [name for name in PICTURES if name in formats]:
        _write_figures(results, directory, pictures)
    if "html" in formats:
        results.report(directory / "report.html")
    return directory


def _write_figures(results: Results, directory: Path, formats: Sequence[str]) -> None:
    """Draw into a folder beside, then move each figure into place."""
    from rdrop_reports.figures import save_figures

    figures = directory / "figures"
    try:
        figures.mkdir(exist_ok=True)
        with TemporaryDirectory(dir=directory, prefix=".rdrop-") as scratch:
            for drawn in save_figures(results.shown, results.per_example, Path(scratch), formats=tuple(formats)):
                drawn.replace(figures / drawn.name)
    except OSError as problem:
        raise DataError(f"cannot write figures to {figures}: {problem.strerror}") from problem
